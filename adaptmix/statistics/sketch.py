"""The sketch estimator: per-sample gradients projected to a few dimensions, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from adaptmix.statistics.coverage import Layer, ParameterMap
from adaptmix.statistics.gradients import MicroBatch
from adaptmix.statistics.rules import Factored
from adaptmix.statistics.signs import CountSketch, Signs

# Buckets per side of a weight, and of a vector that has no weight beside it.
_SIDE = 16
_VECTOR = 256


class Projections:
    """The projections of every parameter that has a rule: one for each dim of a weight.

    A gradient G of a weight is sketched as L G Rᵀ, that of a vector as L g, with count sketches L
    and R. The uses of a tied parameter share them, so that their sketches add up as their
    gradients do.

    Args:
        parameters: the model's parameters.
        seed: of the run.
    """

    def __init__(self, parameters: ParameterMap, *, seed: int) -> None:
        self._parameters = parameters
        self._seed = seed
        self._total = 0
        self._sides: dict[tuple[int, int], CountSketch] = {}
        self._widths: dict[int, int] = {}
        self._groups: dict[int, int] = {}
        for layer in parameters.layers:
            if factors(layer) is not None:
                self._place_factored(layer)
        for layer in parameters.layers:
            for index in layer.indices.values():
                if index not in self._widths:
                    self._place(index)

    @property
    def widths(self) -> list[int]:
        """The number of elements of each candidate's sketch."""
        return [self._widths[index] for index in self._parameters.candidates]

    def redraw(self, step: int) -> None:
        """Draw the signs of an observation, given the number of steps completed."""
        signs = Signs(self._total, seed=self._seed, step=step)
        for side in self._sides.values():
            side.redraw(signs)

    def of_inputs(self, layer: Layer, rule: Factored) -> CountSketch:
        """Return the projection of a layer's input features."""
        return self._sides[layer.indices["weight"], rule.inputs_dim]

    def of_outputs(self, layer: Layer, rule: Factored) -> CountSketch:
        """Return the projection of a layer's output features."""
        return self._sides[layer.indices["weight"], 1 - rule.inputs_dim]

    def sketch(self, index: int, gradients: Tensor) -> Tensor:
        """Return (B, n) sketches of the whole (B, *shape) gradients of one parameter."""
        size, groups = len(gradients), self._groups.get(index, 1)
        if groups > 1:
            gradients = gradients.unflatten(1, (groups, -1)).flatten(0, 1)
        for dim in range(min(2, gradients.ndim - 1)):
            gradients = self._sides[index, dim].fold(gradients, 1 + dim)
        return gradients.reshape(size, -1)

    def _place_factored(self, layer: Layer) -> None:
        rule = factors(layer)
        assert rule is not None
        weight, groups = layer.indices["weight"], rule.groups(layer.module)
        shape = self._parameters.shapes[weight]
        dim = rule.inputs_dim
        inputs = self._share([(weight, dim)], shape[dim])
        keys = [(weight, 1 - dim)]
        if "bias" in layer.indices:
            keys.append((layer.indices["bias"], 0))
        outputs = self._share(keys, shape[1 - dim] // groups)
        self._widths[weight] = groups * inputs.width * outputs.width * shape[2:].numel()
        self._groups[weight] = groups
        if "bias" in layer.indices:
            self._widths[layer.indices["bias"]] = groups * outputs.width
            self._groups[layer.indices["bias"]] = groups

    def _share(self, keys: Iterable[tuple[int, int]], size: int) -> CountSketch:
        """Give several sides one projection, that of the first which has one."""
        placed = [self._sides[key] for key in keys if key in self._sides]
        shared = placed[0] if placed else self._new(size, _SIDE)
        for key, side in self._sides.items():
            if side in placed:
                self._sides[key] = shared
        self._sides.update(dict.fromkeys(keys, shared))
        return shared

    def _place(self, index: int) -> None:
        shape = self._parameters.shapes[index]
        width = shape[2:].numel()
        for dim, size in enumerate(shape[:2]):
            side = self._sides.get((index, dim))
            if side is None:
                side = self._new(size, _SIDE if len(shape) > 1 else _VECTOR)
                self._sides[index, dim] = side
            width *= side.width
        self._widths[index] = width

    def _new(self, size: int, width: int) -> CountSketch:
        side = CountSketch(size, width, start=self._total)
        self._total += size
        return side


def factors(layer: Layer) -> Factored | None:
    """Return a layer's rule, if it factorises the gradient of a weight that is trained."""
    rule = layer.rule
    return rule if isinstance(rule, Factored) and "weight" in layer.indices else None


class SketchBatch(MicroBatch):
    """One micro-batch of which per-sample sketches are kept until its backward is done.

    Args:
        parameters: the model's parameters.
        num_domains: K.
        projections: drawn for this observation.
    """

    def __init__(
        self, parameters: ParameterMap, num_domains: int, projections: Projections
    ) -> None:
        super().__init__(parameters, num_domains)
        self._projections = projections
        self._rows: dict[int, Tensor] = {}

    def keep(self, layer: Layer, x: Tensor) -> Tensor | None:
        """Return the input's projection where that is enough: it is smaller than what it is of."""
        rule = factors(layer)
        if rule is None:
            return x.detach()
        if not rule.accepts(layer.module, x):
            return None
        return rule.inputs(layer.module, x.detach(), self._projections.of_inputs(layer, rule))

    def _add(self, layer: Layer, kept: Tensor | None, gradient: Tensor, scale: Tensor) -> None:
        if kept is None:
            self._parameters.refuse(layer.indices.values())
            return
        rule = factors(layer)
        if rule is None:
            dtype = self._parameters.dtypes[next(iter(layer.indices.values()))]
            x = kept.to(dtype) if kept.is_floating_point() else kept
            for name, gradients in layer.rule(layer.module, x, gradient.to(dtype)).items():
                if name in layer.indices:
                    index = layer.indices[name]
                    self._parameters.check_shape(index, gradients)
                    self._deliver(index, self._projections.sketch(index, gradients))
            return
        dtype = self._parameters.dtypes[layer.indices["weight"]]
        side = self._projections.of_outputs(layer, rule)
        outputs = rule.outputs(layer.module, gradient, side).to(dtype)
        weight = rule.product(layer.module, kept.to(dtype), outputs)
        self._deliver(layer.indices["weight"], weight)
        if "bias" in layer.indices:
            self._deliver(layer.indices["bias"], rule.total(outputs))

    def _deliver(self, index: int, sketch: Tensor) -> None:
        rows = sketch.reshape(len(self._domains), -1)
        self._rows[index] = self._rows[index] + rows if index in self._rows else rows

    def _vectors(self) -> list[Tensor] | None:
        if not self._rows:
            return None
        self._parameters.see(self._rows)
        dtype = self._parameters.dtypes[0]
        parts = [
            self._rows[index]
            if index in self._rows and not self._parameters.refused(index)
            else self._square.new_zeros(len(self._domains), width, dtype=dtype)
            for index, width in zip(
                self._parameters.candidates, self._projections.widths, strict=True
            )
        ]
        assert self._scale is not None
        rows = torch.cat(parts, dim=1)
        rows = self._where(rows * self._scale.to(rows.dtype).unsqueeze(1))
        self._square += rows.double().square().sum(1)
        return [rows.new_zeros(self._num_domains, rows.shape[1]).index_add_(0, self._domains, rows)]
