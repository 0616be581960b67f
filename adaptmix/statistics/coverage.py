"""Which of a model's trainable parameters the gradient probe sees, and which it does not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from adaptmix.statistics.layers import InProjection, rms_norm_by_another_name
from adaptmix.statistics.mass import GradientMass
from adaptmix.statistics.rules import Rule, find_rule


@dataclass(frozen=True)
class Coverage:
    """What a probe sees of a model.

    Args:
        share: share that is seen of the elements of the parameters that the estimator is for: all
            trainable ones or, with estimator "norm", those of normalisation layers; in [0, 1].
        unseen: {module name: type name} of the modules that hold the others.
        mass: share that is seen of the squared norm of these parameters' gradients, in [0, 1], as
            of the first observed micro-batch; None before it, and of sharded models.
    """

    share: float
    unseen: Mapping[str, str]
    mass: float | None = None

    @property
    def least(self) -> float:
        """The smaller of ``share`` and, where it is known, ``mass``."""
        return self.share if self.mass is None else min(self.share, self.mass)


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that has a rule and trainable parameters of its own.

    Args:
        module: the module, or what has the parameters that its rule looks for.
        rule: its rule.
        indices: {parameter name in the module: number of the parameter in the model}.
        caller: the attention that uses it by function, instead of calling it.
    """

    module: Any
    rule: Rule
    indices: Mapping[str, int]
    caller: nn.MultiheadAttention | None = None

    @property
    def hooked(self) -> nn.Module:
        """The module whose calls show the layer's."""
        module: nn.Module = self.caller or self.module
        return module


class ParameterMap:
    """The trainable parameters of a model, numbered, the layers that use them, and what is seen.

    Tied parameters have one number, however many modules hold them. Numbers, shapes and dtypes
    are taken once, because sharding may later swap the tensors behind the names.

    Args:
        model: the model.
        only: the type of rule whose parameters count; all when None.

    Raises:
        ValueError: nothing is trainable, or nothing that counts.
    """

    def __init__(self, model: nn.Module, *, only: type | None = None) -> None:
        holders = [
            (name, module, find_rule(module) or rms_norm_by_another_name(module))
            for name, module in model.named_modules()
        ]
        if only is not None:
            holders = [holder for holder in holders if isinstance(holder[2], only)]
        own = [p for _, module, _ in holders for p in module.parameters(recurse=False)]
        parameters = list({id(p): p for p in own if p.requires_grad}.values())
        if not parameters:
            kind = "" if only is None else f" in layers of kind {only.__name__}"
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
        self._refused: set[int] = set()
        self._seen: set[int] = set()
        self._mass: GradientMass | None = None
        callers = _callers(model)
        for name, module, rule in holders:
            own = module.named_parameters(recurse=False, remove_duplicate=False)
            indices = {key: self._numbers[id(p)] for key, p in own if p.requires_grad}
            if not indices:
                continue
            self._holders.append((name, type(module).__name__, frozenset(indices.values())))
            if isinstance(rule, InProjection):
                self.layers.append(
                    Layer(rule.of(module), rule, _in_projection(indices), callers[id(module)])
                )
                # What is left, learned keys and values of every sample, has no rule.
                self._refused.update(set(indices.values()) - set(self.layers[-1].indices.values()))
            elif rule is None:
                self._refused.update(indices.values())
            else:
                self.layers.append(Layer(module, rule, indices, callers.get(id(module))))
        # One use without a rule hides part of a tied parameter's gradient, so all of it is out.
        self.candidates = [i for i in range(len(parameters)) if i not in self._refused]

    def refuse(self, indices: Iterable[int]) -> None:
        """Leave parameters out from now on: part of their gradient turned out to be hidden."""
        self._refused.update(indices)

    def refused(self, index: int) -> bool:
        """Return whether a parameter is left out."""
        return index in self._refused

    def refuse_used_outside(
        self, losses: Iterable[Tensor], calls: Mapping[Node, Collection[Node]]
    ) -> None:
        """Leave out the parameters that ``losses`` depend on other than through layer ``calls``.

        Args:
            losses: the scalar that will be differentiated, or all that samples' losses are made of.
            calls: {graph node of a layer call's output: nodes of its inputs}.
        """
        numbers = (self._numbers.get(id(leaf)) for leaf in _leaves_outside(losses, calls))
        self.refuse(number for number in numbers if number is not None)

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
        self._seen.update(indices)

    def weigh(self, model: nn.Module) -> GradientMass:
        """Listen to the next backward pass for how much of the gradient each parameter holds."""
        numbers = self._numbers
        self._mass = GradientMass(
            {numbers[id(p)]: p for p in model.parameters() if id(p) in numbers and p.requires_grad}
        )
        return self._mass

    @property
    def coverage(self) -> Coverage:
        """What is seen; before the first gradient arrives, what should be."""
        seen = (self._seen or set(self.candidates)) - self._refused
        sizes = [shape.numel() for shape in self.shapes]
        share = sum(sizes[i] for i in seen) / sum(sizes)
        unseen = {name: kind for name, kind, held in self._holders if held - seen}
        return Coverage(share, unseen, None if self._mass is None else self._mass.share(seen))


def _callers(model: nn.Module) -> dict[int, nn.MultiheadAttention]:
    """Return, by the module's identity, the attentions that use a module's weights by function."""
    found: dict[int, nn.MultiheadAttention] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and (
            type(module).forward is nn.MultiheadAttention.forward
        ):
            found |= {id(module): module, id(module.out_proj): module}
    return found


def _in_projection(indices: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers of an attention's projection under the names of a linear layer."""
    names = {"weight": "in_proj_weight", "bias": "in_proj_bias"}
    return {name: indices[key] for name, key in names.items() if key in indices}


def _leaves_outside(
    losses: Iterable[Tensor], calls: Mapping[Node, Collection[Node]]
) -> Iterator[Tensor]:
    """Yield the leaves that the graphs of ``losses`` reach without passing through ``calls``.

    A parameter among them is used by a function, as in ``F.linear(x, embedding.weight)``, where
    no forward hook sees it. Uses that reentrant checkpointing hides from the graph stay hidden.
    """
    pending = [loss.grad_fn for loss in losses]
    visited: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if node in calls:
            pending.extend(calls[node])
            continue
        if node.name() == "torch::autograd::AccumulateGrad":
            yield node.variable  # type: ignore[attr-defined]
        pending.extend(parent for parent, _ in node.next_functions)
