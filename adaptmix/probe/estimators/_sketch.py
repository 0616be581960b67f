"""The sketch estimator: per-sample gradients projected to a few dimensions, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

from adaptmix.probe._coverage import Layer, ParameterMap
from adaptmix.probe.estimators._gradients import products
from adaptmix.probe.estimators._micro_batch import FEW_DOMAINS, MicroBatch
from adaptmix.probe.estimators._signs import CountSketch, Places, Signs, in_parts, joined
from adaptmix.probe.rules._registry import Factored

# Buckets of a vector that has no weight beside it, and of a side of a weight: one for so many
# features, within bounds. Products of sketches then cost at most 1/64 of those of whole features
# (1/16 in layers as narrow as 64), and one observation of v is off by about a tenth, by about a
# fiftieth relative to other domains'. Each tap of a convolution's kernel has buckets of its own, so
# that the sides of several can be narrower.
_VECTOR = 256
_FEATURES = 8
_NARROW, _WIDE = 16, 32


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
        self._sizes: list[int] = []
        self._sides: dict[tuple[int, int], CountSketch] = {}
        self._widths: dict[int, int] = {}
        self._groups: dict[int, int] = {}
        self._matrices: set[int] = set()
        for layer in parameters.layers:
            if factors(layer) is not None:
                self._place_factored(layer)
        for index in parameters.candidates:
            if index not in self._widths:
                self._place(index)
        self._places = Places(self._sizes)

    @property
    def widths(self) -> list[int]:
        """The number of elements of each candidate's sketch."""
        return [self._widths[index] for index in self._parameters.candidates]

    def redraw(self, step: int) -> None:
        """Draw the signs of an observation, given the number of steps completed."""
        signs = Signs(self._places, seed=self._seed, step=step)
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
        if index in self._matrices:
            gradients = gradients.flatten(1, -2)
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
        taps = shape[2:].numel()
        inputs = self._share([(weight, dim)], shape[dim], taps)
        keys = [(weight, 1 - dim)]
        if "bias" in layer.indices:
            keys.append((layer.indices["bias"], 0))
        outputs = self._share(keys, shape[1 - dim] // groups, taps)
        self._widths[weight] = groups * inputs.width * outputs.width * taps
        self._groups[weight] = groups
        if "bias" in layer.indices:
            self._widths[layer.indices["bias"]] = groups * outputs.width
            self._groups[layer.indices["bias"]] = groups

    def _share(self, keys: Iterable[tuple[int, int]], size: int, taps: int) -> CountSketch:
        """Give several sides one projection, that of the first which has one."""
        placed = [self._sides[key] for key in keys if key in self._sides]
        shared = placed[0] if placed else self._new(size, _width(size, taps))
        for key, side in self._sides.items():
            if side in placed:
                self._sides[key] = shared
        self._sides.update(dict.fromkeys(keys, shared))
        return shared

    def _place(self, index: int) -> None:
        shape = self._parameters.shapes[index]
        if len(shape) > 2:  # a matrix with the columns of its last dim, as stacked experts are
            self._matrices.add(index)
            shape = torch.Size([shape[:-1].numel(), shape[-1]])
        width = 1
        for dim, size in enumerate(shape[:2]):
            side = self._sides.get((index, dim))
            if side is None:
                side = self._new(size, _width(size) if len(shape) > 1 else _VECTOR)
                self._sides[index, dim] = side
            width *= side.width
        self._widths[index] = width

    def _new(self, size: int, width: int) -> CountSketch:
        side = CountSketch(size, width, start=sum(self._sizes))
        self._sizes.append(size)
        return side


def _width(size: int, taps: int = 1) -> int:
    return min(_WIDE, max(_NARROW // isqrt(taps), size // _FEATURES, 1))


def factors(layer: Layer) -> Factored | None:
    """Return a layer's rule, if it factorises the gradient of a weight that is trained."""
    return layer.rule.factored if "weight" in layer.indices else None


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
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, layer: Layer, x: Tensor) -> Tensor | None:
        """Return the input's projection where that is enough: it is smaller than what it is of."""
        rule = factors(layer)
        if rule is None:
            return x.detach()
        if not rule.accepts(layer.module, x):
            return None
        return rule.inputs(layer.module, x.detach(), self._projections.of_inputs(layer, rule))

    def _add(
        self, layer: Layer, kept: Tensor | None, gradient: Tensor, samples: Tensor | None
    ) -> None:
        if kept is None:
            self._parameters.refuse(layer.indices.values())
            return
        rule = factors(layer)
        if rule is None:
            self._deliver_whole(
                layer, self._by_sample(kept, samples), self._by_sample(gradient, samples), samples
            )
            return
        dtype = self._parameters.dtypes[layer.indices["weight"]]
        side = self._projections.of_outputs(layer, rule)
        outputs = self._by_sample(rule.outputs(layer.module, gradient, side).to(dtype), samples)
        inputs = self._by_sample(kept.to(dtype), samples)
        self._deliver_weight(layer, rule, inputs, outputs, samples)
        if "bias" in layer.indices:
            self._deliver(layer.indices["bias"], rule.total(outputs), samples)

    def _add_whole(self, index: int, gradients: Tensor, samples: Tensor | None) -> None:
        self._deliver(index, self._projections.sketch(index, gradients), samples)

    def _deliver_whole(
        self, layer: Layer, inputs: Tensor, gradient: Tensor, samples: Tensor | None
    ) -> None:
        dtype = self._parameters.dtypes[next(iter(layer.indices.values()))]
        sketches: dict[int, list[Tensor]] = {}
        for x, g in in_parts(inputs, inputs, gradient):
            x = x.to(dtype) if x.is_floating_point() else x
            for name, gradients in layer.rule(layer.module, x, g.to(dtype)).items():
                if name in layer.indices:
                    index = layer.indices[name]
                    self._parameters.check_shape(index, gradients)
                    part = self._projections.sketch(index, gradients)
                    sketches.setdefault(index, []).append(part)
        for index, parts in sketches.items():
            self._deliver(index, joined(parts), samples)

    def _deliver_weight(
        self,
        layer: Layer,
        rule: Factored,
        inputs: Tensor,
        outputs: Tensor,
        samples: Tensor | None,
    ) -> None:
        index = layer.indices["weight"]
        few = self._few_products(index, samples)
        if rule.outer and inputs.shape[1] == 1 and few:
            pair = (inputs[:, 0], outputs[:, 0])
            self._pairs[index] = pair if rule.inputs_dim == 0 else pair[::-1]
        else:
            parts = [
                rule.product(layer.module, i, o) for i, o in in_parts(outputs, inputs, outputs)
            ]
            self._deliver(index, joined(parts), samples)

    def _deliver(self, index: int, sketch: Tensor, samples: Tensor | None) -> None:
        size = len(self._domains if samples is None else samples)
        rows = self._summed(sketch.reshape(size, -1), samples)
        self._rows[index] = self._rows[index] + rows if index in self._rows else rows

    def _restart(self) -> None:
        super()._restart()
        self._rows.clear()
        self._pairs.clear()

    def image(self, index: int, gradient: Tensor) -> Tensor:
        """Return the gradient's sketch."""
        gradient = gradient.to(self._parameters.dtypes[index])
        return self._projections.sketch(index, gradient.unsqueeze(0)).squeeze(0)

    def _parts(self) -> dict[int, Tensor]:
        if not self._rows and not self._pairs:
            return {}
        assert self._scale is not None
        candidates = self._parameters.candidates
        seen = [index for index in candidates if not self._parameters.refused(index)]
        parts: dict[int, Tensor] = {}
        whole = [index for index in seen if index in self._rows]
        if whole:
            rows = self._where(torch.cat([self._rows[index] for index in whole], dim=1))
            self._square += torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
            sums = self._by_domain(rows)
            widths = [self._rows[index].shape[1] for index in whole]
            parts.update(zip(whole, sums.split(widths, dim=1), strict=True))
        for index in seen:
            if index in self._pairs:
                left, right = (self._where(vectors) for vectors in self._pairs[index])
                square, sums = products(left, right, self._members(left.dtype))
                self._square += square
                parts[index] = sums.flatten(1)
        self._square *= self._scale.square()
        return parts

    def _joined(self, parts: Mapping[int, Tensor]) -> list[Tensor]:
        empty = self._square.new_zeros
        return [
            torch.cat(
                [
                    parts[index] if index in parts else empty(self._num_domains, width)
                    for index, width in zip(
                        self._parameters.candidates, self._projections.widths, strict=True
                    )
                ],
                dim=1,
            )
        ]

    def _by_domain(self, rows: Tensor) -> Tensor:
        """Return the (K, width) sums of the scaled gradients, given (B, width) sketches."""
        assert self._scale is not None
        if self._num_domains <= FEW_DOMAINS:
            return self._members(rows.dtype).T @ rows
        scaled = rows * self._scale.unsqueeze(1).to(rows.dtype)
        return rows.new_zeros(self._num_domains, rows.shape[1]).index_add_(0, self._domains, scaled)

    def _members(self, dtype: torch.dtype) -> Tensor:
        """Return (B, K): what the gradient of each sample counts in each domain's sum."""
        assert self._scale is not None
        members = functional.one_hot(self._domains, self._num_domains)
        return (members * self._scale.unsqueeze(1)).to(dtype)
