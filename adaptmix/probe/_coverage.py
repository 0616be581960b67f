"""Which of a model's trainable parameters the gradient probe sees, and which it does not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from adaptmix.probe._graph import nodes_of
from adaptmix.probe.rules._registry import LayerRule, recognise

_NAMED = 5  # modules in a sentence


@dataclass(frozen=True)
class Coverage:
    """What a probe sees of a model.

    Args:
        share: share that is seen of the elements of the parameters that the estimator is for: all
            trainable ones or, with estimator "norm", those of normalisation layers; in [0, 1].
        unseen: {module name: type name} of the modules that hold the others.
        mass: share that is seen of the squared norm of these parameters' gradients, in [0, 1], in
            the steps that statistics come from; None before any, and of sharded models.
        twice: whether a graph of gradients was made, as for a penalty on them: what is read at the
            layers is then not the gradient of a sample's loss, and none is seen.
        doubted: names of the modules among ``unseen`` whose gradients were read, and turned out to
            be others than the samples' own.
    """

    share: float
    unseen: Mapping[str, str]
    mass: float | None = None
    twice: bool = False
    doubted: tuple[str, ...] = ()

    @property
    def least(self) -> float:
        """The share that statistics are of: ``mass`` where it is known, and ``share`` elsewhere."""
        return self.share if self.mass is None else self.mass

    def describe(self) -> str:
        """Return a sentence on what is seen and where the rest is."""
        what = "trainable parameters" if self.mass is None else "gradient's squared norm"
        if self.twice:
            return (
                "The gradient probe leaves out steps whose gradients are differentiated again "
                "(create_graph=True), for the parts of samples cannot be told apart in them; it "
                f"sees {self.least:.0%} of the {what}."
            )
        named = [f"{name or 'the model itself'} ({kind})" for name, kind in self.unseen.items()]
        sentence = (
            f"The gradient probe sees {self.least:.0%} of the {what}. Not seen: {some(named)}."
        )
        if not self.doubted:
            return sentence
        names = some([name or "the model itself" for name in self.doubted])
        return (
            f"{sentence} What was read at {names} is not the gradient of the samples' own losses."
        )


def some(names: Sequence[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that has a rule and trainable parameters of its own.

    Args:
        module: the module, or what has the parameters that its rule looks for.
        rule: its rule.
        indices: {parameter name in the module: number of the parameter in the model}.
    """

    module: Any
    rule: LayerRule
    indices: Mapping[str, int]


def own_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return what modules hold themselves; a tied parameter comes once for each."""
    # In a step that is measured: nn.Module.parameters() takes ten times as long.
    return [p for module in modules for p in module._parameters.values() if p is not None]


class ParameterMap:
    """The trainable parameters of a model, numbered, the layers that use them, and what is seen.

    Tied parameters have one number, however many modules hold them. Numbers, shapes and dtypes
    are taken once, because sharding may later swap the tensors behind the names.

    Args:
        model: the model.
        norms_only: whether the parameters of normalisation layers alone count.

    Raises:
        ValueError: nothing is trainable, or nothing that counts.
    """

    def __init__(self, model: nn.Module, *, norms_only: bool = False) -> None:
        holders = [(name, module, recognise(module)) for name, module in model.named_modules()]
        if norms_only:
            holders = [holder for holder in holders if holder[2] and holder[2].normalises]
        own = [p for _, module, _ in holders for p in module.parameters(recurse=False)]
        parameters = list({id(p): p for p in own if p.requires_grad}.values())
        if not parameters:
            kind = " in normalisation layers" if norms_only else ""
            raise ValueError(
                f"model must have trainable parameters{kind}; got none. Unfreeze some before "
                "watching it."
            )
        self._numbers = {id(p): i for i, p in enumerate(parameters)}
        self.shapes = [p.shape for p in parameters]
        # Gradients are computed in float32 at least, whatever the model computes in.
        self.dtypes = [torch.promote_types(p.dtype, torch.float32) for p in parameters]
        self.layers: list[Layer] = []
        self._holders: list[tuple[str, str, frozenset[int]]] = []
        self.twice = False
        self._refused: set[int] = set()
        self._seen: set[int] | None = None  # before any gradient arrived
        self._doubted: set[int] = set()
        self._places: list[tuple[nn.Module, str, int]] = []
        for name, module, rule in holders:
            own = module.named_parameters(recurse=False, remove_duplicate=False)
            indices = {key: self._numbers[id(p)] for key, p in own if p.requires_grad}
            if not indices:
                continue
            self._places += [(module, key, i) for key, i in indices.items()]
            self._holders.append((name, type(module).__name__, frozenset(indices.values())))
            if rule is not None:
                self.layers.append(Layer(module, rule, indices))
        self.candidates = list(range(len(parameters)))

    def number(self, parameter: Tensor) -> int | None:
        """Return a parameter's number; None of one that does not count.

        Sharding swaps the tensors behind the names, and with them what is looked up here.
        """
        number = self._numbers.get(id(parameter))
        if number is None and parameter.requires_grad and self._swapped():
            number = self._numbers.get(id(parameter))
        return number

    def numbered(self, modules: Iterable[nn.Module]) -> dict[int, Tensor]:
        """Return {number: parameter} of the trainable parameters that count."""
        named = ((self._numbers.get(id(p)), p) for p in own_parameters(modules) if p.requires_grad)
        return {number: p for number, p in named if number is not None}

    def _swapped(self) -> bool:
        """Return whether modules hold other tensors by now, whose numbers are then known."""
        named = ((getattr(module, key, None), i) for module, key, i in self._places)
        now = {id(tensor): i for tensor, i in named if isinstance(tensor, Tensor)}
        swapped = not now.keys() <= self._numbers.keys()
        self._numbers |= now
        return swapped

    def refuse(self, indices: Iterable[int]) -> None:
        """Leave parameters out from now on: part of their gradient turned out to be hidden."""
        self._refused.update(indices)

    def refused(self, index: int) -> bool:
        """Return whether a parameter is left out."""
        return index in self._refused

    def refused_all(self, indices: Iterable[int]) -> bool:
        """Return whether all of these are left out."""
        return bool(self._refused) and self._refused.issuperset(indices)

    def refuse_used_outside(
        self, losses: Iterable[Tensor], calls: Mapping[Node, Collection[Node]]
    ) -> set[str]:
        """Leave out the parameters that ``losses`` depend on other than through layer ``calls``.

        Returns the names of the operations between the calls.

        Args:
            losses: the scalar that will be differentiated, or all that samples' losses are made of.
            calls: {graph node of a layer call's output: nodes of its inputs}.
        """
        leaves, names = _outside(losses, calls)
        numbers = (self._numbers.get(id(leaf)) for leaf in leaves)
        self.refuse(number for number in numbers if number is not None)
        return names

    def check_shape(self, index: int, gradients: Tensor) -> None:
        """Check that a rule's gradients of a parameter are (b, *shape).

        Raises:
            ValueError: they are not.
        """
        shape = self.shapes[index]
        if gradients.shape[1:] != shape:
            raise ValueError(
                f"rule must return gradients of shape (b, *{tuple(shape)}); "
                f"got {tuple(gradients.shape)}. Check the rule passed to register_rule."
            )

    def see(self, indices: Iterable[int]) -> None:
        """Note that gradients of these parameters arrived."""
        self._seen = {*(self._seen or ()), *indices}

    def doubt(self, indices: Iterable[int]) -> list[str]:
        """Leave out parameters whose gradients are others'; returns their modules."""
        found = set(indices)
        self._doubted |= found
        self.refuse(found)
        return self.named(found)

    def named(self, indices: Collection[int]) -> list[str]:
        """Return the modules that hold any of these parameters, by their names and types."""
        found = set(indices)
        return [
            f"{name or 'the model itself'} ({kind})"
            for name, kind, held in self._holders
            if held & found
        ]

    @property
    def seen(self) -> set[int]:
        """The parameters that are seen; before the first gradient arrives, that should be."""
        seen = set(self.candidates) if self._seen is None else self._seen
        return seen - self._refused

    @property
    def seen_all(self) -> bool:
        """Whether gradients of all parameters arrived, and all of them count."""
        arrived = self._seen is not None and len(self._seen) == len(self.candidates)
        return arrived and not self._refused and not self.twice

    @property
    def coverage(self) -> Coverage:
        """What is seen; before the first gradient arrives, what should be."""
        seen = self.seen
        sizes = [shape.numel() for shape in self.shapes]
        share = sum(sizes[i] for i in seen) / sum(sizes)
        unseen = {name: kind for name, kind, held in self._holders if held - seen}
        doubted = tuple(name for name, _, held in self._holders if held & self._doubted)
        return Coverage(share, unseen, twice=self.twice, doubted=doubted)


def _outside(
    losses: Iterable[Tensor], calls: Mapping[Node, Collection[Node]]
) -> tuple[list[Tensor], set[str]]:
    """Return the leaves that ``losses`` reach without passing through ``calls``, and operations.

    These are the names of those that are passed through. A parameter among the leaves is used by a
    function, as in ``F.linear(x, embedding.weight)``, where no forward hook sees it. Uses that
    reentrant checkpointing hides from the graph stay hidden.
    """
    pending = [loss.grad_fn for loss in losses]
    visited: set[Node] = set()
    leaves, names = [], set()
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if node in calls:
            pending.extend(calls[node])
            continue
        name = node.name()
        names.add(name)
        if name == "torch::autograd::AccumulateGrad":
            leaves.append(node.variable)  # type: ignore[attr-defined]
        pending.extend(parent for parent, _ in node.next_functions)
    return leaves, names


def accumulator(loss: Tensor) -> Node | None:
    """Return a node that accumulates a gradient when ``loss`` is differentiated by backward()."""
    names = ((node.name(), node) for node in nodes_of([loss]))
    return next((node for name, node in names if name == "torch::autograd::AccumulateGrad"), None)
