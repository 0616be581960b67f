"""Which rule rows' losses follow, read off the gradient that the trainer's own loss has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adaptmix import Segments
from adaptmix_transformers._rows import (
    RowLosses,
    Rule,
    dft_likelihoods,
    likelihoods,
    possible_rules,
)

# Elements looked at together, so that large vocabularies need no second copy of the logits.
_TOGETHER = 2**24


@dataclass(frozen=True, eq=False)
class Recognised:
    """A rule whose losses' gradients are the loss's, up to a factor at each position.

    Attributes:
        rule: from the tensor to rows' losses; None where they are a user's.
        factors: (B,) or (B, T), what the loss multiplies each of them by; NaN where a loss has no
            gradient.
        rounding: what two factors that are the same may differ by, relatively.
    """

    rule: Rule | None
    factors: Tensor
    rounding: float

    @property
    def common(self) -> float | None:
        """The one factor that all have; None where they differ, or there is none."""
        known = self.factors[self.factors.isfinite()]
        return float(known.mean()) if len(known) and _equal(known, self.rounding) else None

    def unpacked(self, segments: Segments) -> Recognised:
        """Return the factors of packed rows row by row."""
        factors = segments.completed(self.factors, fill=torch.nan)
        return replace(self, factors=segments.unpack(factors, fill=torch.nan))


def recognise(tensor: Tensor, gradient: Tensor, given: Mapping[str, Any]) -> Recognised | None:
    """Return the rule whose losses the loss is made of, or None.

    With g the gradient of the loss at the tensor and ∇ℓ that of a rule's losses, g = c ∇ℓ must hold
    with one c for each position: for each token, or row. Where ∇ℓ has but one direction every
    loss fits, so there c must be the same for all; where it has more, equal labels must have
    equal c, as class weights do and focal losses do not.

    Args:
        tensor: (B, …) logits or log-probabilities.
        gradient: of the loss at ``tensor``, the same shape.
        given: what else the loss is computed from.
    """
    for rule in possible_rules(tensor, given):
        own, losses = _own_gradient(rule, tensor, given)
        if rule in (likelihoods, dft_likelihoods) and losses.mask is not None:
            gradient = torch.where(losses.mask, gradient, 0.0)  # masked on its way to the model
        factors = proportional(gradient, own, each=losses.values.ndim)
        if factors is None:
            continue
        found = Recognised(rule, factors, 4.0 * tolerance(gradient.dtype))
        if found.common is not None or _follow_labels(own, losses, found):
            return found
    return None


def proportional(gradient: Tensor, own: Tensor, *, each: int) -> Tensor | None:
    """Return c of g = c ∇ℓ for each entry of the first ``each`` dims; None if g is no multiple.

    Args:
        gradient: g.
        own: ∇ℓ, the same shape.
        each: how many leading dims have a c of their own.
    """
    shape = gradient.shape[:each]
    wide = torch.promote_types(gradient.dtype, torch.float32)
    g, d = (part.detach().to(wide).reshape(*shape, -1) for part in (gradient, own))
    square = d.square().sum(-1)
    # Saturated losses have gradients of rounding errors.
    known = square > square.max() * 1e-8
    c = torch.where(known, (g * d).sum(-1) / torch.where(known, square, 1.0), 0.0)
    error, size = (g - c.unsqueeze(-1) * d).norm(dim=-1), g.norm(dim=-1)
    rounding = tolerance(gradient.dtype)
    allowed = rounding * size + torch.where(known, 1e-6, 1e-3) * size.max()
    if not bool((error <= allowed).all()) or not bool(known.any()):
        return None
    return torch.where(known, c, torch.nan)


def tolerance(dtype: torch.dtype) -> float:
    """Return what two gradients may differ by; models compute losses in float32 at most."""
    return max(1e-4, 8.0 * torch.finfo(dtype).eps)


def _own_gradient(rule: Rule, tensor: Tensor, given: Mapping[str, Any]) -> tuple[Tensor, RowLosses]:
    """Return ∇ℓ of a rule, and its losses, computed a few rows at a time."""
    together = max(1, _TOGETHER // max(1, tensor[0].numel()))
    own, values, masks, targets = [], [], [], []
    for start in range(0, len(tensor), together):
        part = slice(start, start + together)
        leaf = tensor[part].detach().requires_grad_()
        with torch.enable_grad():
            losses = rule(leaf, {name: _rows_of(v, part, len(tensor)) for name, v in given.items()})
            own.append(torch.autograd.grad(losses.totals.sum(), leaf)[0])
        values.append(losses.values.detach())
        masks.append(losses.mask)
        targets.append(losses.targets)
    return torch.cat(own), RowLosses(
        torch.cat(values), _joined(masks), targets=_joined(targets), noise=None
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    kept = [part for part in parts if part is not None]
    return torch.cat(kept) if kept else None


def _rows_of(value: Any, part: slice, rows: int) -> Any:
    of_rows = isinstance(value, Tensor) and value.ndim and len(value) == rows
    return value[part] if of_rows else value


def _follow_labels(own: Tensor, losses: RowLosses, found: Recognised) -> bool:
    """Return whether equal classes have equal factors, and gradients more than one direction."""
    targets = losses.targets
    if targets is None or own.shape[-1] <= 2:
        return False
    classes = targets.reshape(-1)
    factors = found.factors.reshape(-1)
    return all(
        _equal(factors[classes == label], found.rounding)
        for label in classes.unique().tolist()
        if label >= 0
    )


def _equal(values: Tensor, rounding: float) -> bool:
    known = values[values.isfinite()]
    if not len(known):
        return True
    return float(known.max() - known.min()) <= rounding * float(known.abs().max())
