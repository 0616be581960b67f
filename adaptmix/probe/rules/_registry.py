"""The registry of rules: per-sample parameter gradients of one layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Rule = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
"""(module, input (b, ...), output gradient (b, ...)) -> {parameter name: (b, *parameter shape)}.

A rule never mixes samples and is linear in the output gradient. It may leave out parameters that
are frozen; one that it leaves out although it is trainable counts as not seen.

A rule with an attribute ``by_position`` that is true is of a layer that treats every position of
(b, positions, ...) by itself, so that samples may be packed.
"""


class Side(Protocol):
    """A linear map of the features along one side of a weight."""

    def fold(self, values: Tensor, dim: int) -> Tensor:
        """Return ``values`` with the features along ``dim`` mapped."""
        ...

    def part(self, values: Tensor, start: int, total: int) -> Tensor:
        """Return the images of ``total`` features that are zero but for ``values`` from ``start``.

        ``start`` is a multiple of 64.
        """
        ...

    def place(self, values: Tensor, starts: Tensor, total: int) -> Tensor:
        """Return the images of ``total`` features, of which each row has some from its start on."""
        ...

    def lookup(self, indices: Tensor) -> Tensor:
        """Return (*indices.shape, width): the images of one-hot features."""
        ...


class LayerRule(ABC):
    """A rule, and what estimators know of it beside its gradients."""

    by_position = False
    """Whether the layer treats every position of (b, positions, ...) by itself."""

    predicts = False
    """Whether the last position may have no output, for it predicts nothing."""

    normalises = False
    """Whether the layer normalises, so that estimator "norm" is for it."""

    @abstractmethod
    def __call__(self, module: Any, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return whole per-sample gradients, as every rule does."""

    @property
    def factored(self) -> Factored | None:
        """The rule itself, where a weight's gradient is a sum of products."""
        return None

    def packs(self, dims: int) -> bool:
        """Return whether samples may be packed in (b, positions, ...) of so many dims."""
        return self.by_position and dims >= 3


class _Called(LayerRule):
    """A rule that is a function."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.by_position = bool(getattr(rule, "by_position", False))

    def __call__(self, module: Any, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        return self._rule(module, x, g)


class Factored(LayerRule):
    """Rule for a layer with ``weight`` and ``bias`` whose weight's gradient is Σ_t o_t i_tᵀ.

    The features i_t of a position come from the layer's input alone and o_t from its output
    gradient alone, so each can be mapped to fewer dimensions before they are multiplied. A bias's
    gradient is Σ_t o_t.
    """

    outer = False
    """Whether a weight's gradient at one position is the product of both its features' vectors."""

    plain = False
    """Whether features are what the last dims of input and output gradient hold, as they are."""

    inputs_dim = 1
    """Along which dim of the weight, 0 or 1, input features run; output features: the other."""

    @property
    def factored(self) -> Factored:
        """The rule itself."""
        return self

    def packs(self, dims: int) -> bool:
        """Return whether samples may be packed: with one dim of positions and one of features."""
        return self.by_position and dims == 3

    @abstractmethod
    def accepts(self, module: Any, x: Tensor) -> bool:
        """Return whether an input has a dim of samples."""

    @abstractmethod
    def inputs(self, module: Any, x: Tensor, side: Side) -> Tensor:
        """Return the input's features (b · groups, ...), mapped."""

    @abstractmethod
    def outputs(self, module: Any, g: Tensor, side: Side) -> Tensor:
        """Return the output gradient's features (b · groups, ...), mapped."""

    @abstractmethod
    def product(self, module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return Σ_t o_t i_tᵀ of each sample, in any shape of b · n elements."""

    @abstractmethod
    def total(self, outputs: Tensor) -> Tensor:
        """Return Σ_t o_t of each sample, in any shape of b · n elements."""

    def groups(self, module: Any) -> int:
        """Return the number of groups of features; the features of different ones do not meet."""
        return 1

    def __call__(self, module: Any, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return whole per-sample gradients, as every rule does."""
        if not self.accepts(module, x):
            return {}
        outputs = self.outputs(module, g, _WHOLE)
        gradients = {}
        if trainable(module.weight):
            weight = self.product(module, self.inputs(module, x, _WHOLE), outputs)
            gradients["weight"] = weight.reshape(len(x), *module.weight.shape)
        if trainable(module.bias):
            gradients["bias"] = self.total(outputs).reshape(len(x), -1)
        return gradients


class _Whole:
    """The side that keeps every feature."""

    def fold(self, values: Tensor, dim: int) -> Tensor:
        return values

    def part(self, values: Tensor, start: int, total: int) -> Tensor:
        return functional.pad(values, (start, total - start - values.shape[-1]))

    def place(self, values: Tensor, starts: Tensor, total: int) -> Tensor:
        where = starts.unsqueeze(1) + torch.arange(values.shape[1], device=values.device)
        return values.new_zeros(len(values), total).scatter_(1, where, values)

    def lookup(self, indices: Tensor) -> Tensor:
        raise NotImplementedError("one-hot features are never multiplied out")


_WHOLE = _Whole()

RULES: dict[type[nn.Module] | str, tuple[Rule, Callable[[Any], bool]]] = {}


def register_rule(
    module_type: type[nn.Module] | str, supports: Callable[[Any], bool] = lambda _: True
) -> Callable[[Rule], Rule]:
    """Return a decorator that makes a rule the one for ``module_type``.

    Subclasses that keep the type's ``forward`` use the rule too. Register before the probe is
    made.

    Args:
        module_type: the layer's class, or "package.module.Class" of one that is not imported here.
        supports: whether the rule holds for a module as configured; always when left out.

    Raises:
        ValueError: the type has a rule.

    Example:
        >>> import torch
        >>> class Scale(nn.Module):
        ...     def __init__(self, size: int) -> None:
        ...         super().__init__()
        ...         self.gain = nn.Parameter(torch.ones(size))
        ...
        ...     def forward(self, x: Tensor) -> Tensor:  # (B, size)
        ...         return self.gain * x
        >>> rule = register_rule(Scale)(lambda module, x, g: {"gain": g * x})
    """

    def register(rule: Rule) -> Rule:
        if any(_name(kind) == _name(module_type) for kind in RULES):
            raise ValueError(
                f"module_type must have one rule; {_name(module_type)} has one already. Subclass "
                "it, with a forward of its own, to follow another rule."
            )
        RULES[module_type] = (rule, supports)
        return rule

    return register


def find_rule(module: nn.Module) -> Rule | None:
    """Return the rule for ``module``, or None where there is none that holds for it."""
    for kind in type(module).__mro__:
        found = RULES.get(kind) or RULES.get(_name(kind))
        # A subclass that overrides forward computes something else than the rule assumes.
        if found is not None and type(module).forward is getattr(kind, "forward", None):
            rule, supports = found
            return rule if supports(module) else None
    return None


Recogniser = Callable[[nn.Module], Rule | None]
_RECOGNISERS: list[Recogniser] = []


def register_recogniser(recogniser: Recogniser) -> Recogniser:
    """Register what finds a rule for modules of types that have none, by what they compute."""
    _RECOGNISERS.append(recogniser)
    return recogniser


def recognise(module: nn.Module) -> LayerRule | None:
    """Return the rule for a module by its type, or by what it computes."""
    found = (recogniser(module) for recogniser in _RECOGNISERS)
    rule = find_rule(module) or next((other for other in found if other is not None), None)
    return rule if rule is None or isinstance(rule, LayerRule) else _Called(rule)


def _name(kind: type | str) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


@dataclass(frozen=True, eq=False)
class FusedHead:
    """A linear layer that an autograd function calls by itself, fused with the loss.

    Args:
        rule: of its weight and bias; called with the gradient of the function's first output.
        module: has ``weight`` and ``bias``, and as ``x`` what ``rule`` is called with.
        x: (rows, …) what ``rule`` is called with as input.
        hidden: (rows, in) the function's input, by which rows are known.
    """

    rule: Factored
    module: Any
    x: Tensor
    hidden: Tensor


HEADS: dict[str, Callable[[Any], FusedHead]] = {}
"""How to read a head off its node in the graph, by the node's type."""


def register_head(
    node: str,
) -> Callable[[Callable[[Any], FusedHead]], Callable[[Any], FusedHead]]:
    """Return a decorator for what reads a fused head off the node of an autograd function."""

    def register(reader: Callable[[Any], FusedHead]) -> Callable[[Any], FusedHead]:
        return HEADS.setdefault(node, reader)

    return register


def trainable(parameter: Tensor | None) -> bool:
    """Return whether a layer has a parameter and trains it."""
    return parameter is not None and parameter.requires_grad
