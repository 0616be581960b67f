"""Every row's own loss, from logits and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adaptmix import Segments
from adaptmix.noise import NoiseTerms, softmax, squared
from adaptmix.trainers import IGNORED


@dataclass(frozen=True, eq=False)
class RowLosses:
    """Unreduced losses of a micro-batch.

    Attributes:
        values: (B,) or (B, T) losses.
        mask: which of them are supervised, the same shape; all when None.
        noise: returns the noise terms of rows, given where they are packed, if they are; None
            where nothing tells them.
        targets: classes that they are the cross-entropy of, the same shape; None elsewhere.
    """

    values: Tensor
    mask: Tensor | None = None
    noise: Callable[[Segments | None], NoiseTerms] | None = None
    targets: Tensor | None = None

    @property
    def totals(self) -> Tensor:
        """(B,) sum over what is supervised of each row."""
        kept = self.values if self.mask is None else torch.where(self.mask, self.values, 0.0)
        return kept.reshape(len(kept), -1).sum(1)

    @property
    def tokens(self) -> Tensor:
        """(B,) number of supervised losses of each row."""
        if self.mask is not None:
            return self.mask.reshape(len(self.mask), -1).sum(1)
        each = self.values[0].numel()
        return torch.full((len(self.values),), each, device=self.values.device)

    def unpacked(self, segments: Segments) -> RowLosses:
        """Return (B, L) losses of rows, of packed (P, T) or (P, T − 1) ones."""
        mask = torch.ones_like(self.values, dtype=torch.bool) if self.mask is None else self.mask
        noise = self.noise
        return RowLosses(
            segments.unpack(segments.completed(self.values)),
            _unpacked(mask, segments, fill=False),
            None if noise is None else lambda _: noise(segments),
        )


def _unpacked(values: Tensor, segments: Segments | None, *, fill: Any) -> Tensor:
    if segments is None:
        return values
    return segments.unpack(segments.completed(values, fill=fill), fill=fill)


Rule = Callable[[Tensor, Mapping[str, Any]], RowLosses]
"""(logits, what else the loss is computed from) -> losses; ``label_smoothing`` may be there."""


def causal_tokens(logits: Tensor, given: Mapping[str, Any]) -> RowLosses:
    """Cross-entropy of each next token, (B, T)."""
    return _cross_entropy(logits, _next(given), given)


def _next(given: Mapping[str, Any]) -> Tensor:
    """Return the label that each position predicts, (B, T)."""
    targets: Tensor | None = given.get("shift_labels")
    if targets is None:
        return functional.pad(given["labels"], (0, 1), value=IGNORED)[..., 1:]
    return targets


def tokens(logits: Tensor, given: Mapping[str, Any]) -> RowLosses:
    """Cross-entropy of each token, (B, T)."""
    return _cross_entropy(logits, given["labels"], given)


def classes(logits: Tensor, given: Mapping[str, Any]) -> RowLosses:
    """Cross-entropy of each row's class, (B,)."""
    return _cross_entropy(logits, given["labels"].reshape(-1), given)


def several_classes(logits: Tensor, given: Mapping[str, Any]) -> RowLosses:
    """Mean binary cross-entropy over each row's labels, (B,)."""
    labels = given["labels"].to(logits.dtype)
    each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return RowLosses(each.mean(1))


def numbers(logits: Tensor, given: Mapping[str, Any]) -> RowLosses:
    """Mean squared error over each row's numbers, (B,)."""
    predictions = logits.reshape(len(logits), -1)
    labels = given["labels"].reshape(predictions.shape).to(predictions.dtype)
    values = (predictions - labels).square().mean(1)
    return RowLosses(values, noise=lambda _: squared(predictions.detach(), labels))


def likelihoods(log_probs: Tensor, given: Mapping[str, Any]) -> RowLosses:
    """Negative log-likelihood of each token, (B, T), of TRL's fused head."""
    head: Any = given.get("head")
    mask: Tensor = given["label_mask"].bool()

    def noise(segments: Segments | None) -> NoiseTerms:
        return _dispersion(head.logits, head.targets, segments)

    return RowLosses(-log_probs, mask, None if head is None else noise)


def _dispersion(
    logits: Callable[[Tensor], Tensor], targets: Tensor, segments: Segments | None
) -> NoiseTerms:
    """Return the noise terms of rows, whose logits are computed at some of their places.

    Args:
        logits: of (n,) places among the flattened targets, (n, C).
        targets: of positions, which rows may be packed in.
        segments: where they are.
    """
    if segments is None:
        return softmax(logits, targets)
    places = torch.arange(targets.numel(), device=targets.device).view_as(targets)
    places = _unpacked(places, segments, fill=0).flatten()
    own = _unpacked(targets, segments, fill=IGNORED)
    return softmax(lambda chosen: logits(places[chosen]), own)


def dft_likelihoods(log_probs: Tensor, given: Mapping[str, Any]) -> RowLosses:
    """Negative log-likelihood of each token times its probability, which is not differentiated.

    Source:
        Wu et al., On the Generalization of SFT, arXiv:2508.05629.
    """
    rows = likelihoods(log_probs, given)
    return RowLosses(rows.values * log_probs.detach().exp(), rows.mask, rows.noise)


def _cross_entropy(logits: Tensor, targets: Tensor, given: Mapping[str, Any]) -> RowLosses:
    targets = targets.to(logits.device)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    values = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        targets.reshape(-1),
        ignore_index=IGNORED,
        label_smoothing=given.get("label_smoothing", 0.0),
        reduction="none",
    )
    kept = targets != IGNORED
    return RowLosses(
        values.view(targets.shape),
        kept,
        noise=lambda segments: (
            softmax(logits.detach(), targets)
            if segments is None
            else _dispersion(logits.detach().flatten(0, 1).__getitem__, targets, segments)
        ),
        targets=targets,
    )


def supervised(
    rule: Rule | None, given: Mapping[str, Any], segments: Segments | None = None
) -> Tensor | None:
    """Return which of a rule's losses are supervised, without computing them; all when None.

    Args:
        rule: of the losses.
        given: what they are computed from.
        segments: where rows are packed; the mask is then row by row.
    """
    mask = _mask(rule, given)
    return None if mask is None else _unpacked(mask, segments, fill=False)


def _mask(rule: Rule | None, given: Mapping[str, Any]) -> Tensor | None:
    labels = given.get("labels")
    if rule in (likelihoods, dft_likelihoods):
        return given["label_mask"].bool()  # type: ignore[no-any-return]
    if rule is causal_tokens:
        labels = _next(given)
    elif rule is classes and isinstance(labels, Tensor):
        labels = labels.reshape(-1)
    elif rule is not tokens:
        return None
    return labels != IGNORED if isinstance(labels, Tensor) else None


def _are_classes(labels: Tensor, classes: int) -> bool:
    return bool(((labels == IGNORED) | ((labels >= 0) & (labels < classes))).all())


def possible_rules(logits: Tensor, given: Mapping[str, Any]) -> list[Rule]:
    """Return the rules whose shapes and classes fit."""
    mask, labels = given.get("label_mask"), given.get("labels")
    if isinstance(mask, Tensor) and mask.shape == logits.shape:
        return [dft_likelihoods, likelihoods] if given.get("dft") else [likelihoods]
    if not isinstance(labels, Tensor) or not logits.ndim:
        return []
    whole = not labels.is_floating_point()
    if logits.ndim == labels.ndim + 1 and labels.ndim >= 2 and whole:
        same = logits.shape[:-1] == labels.shape and _are_classes(labels, logits.shape[-1])
        return [causal_tokens, tokens] if same else []
    rules: list[Rule] = []
    if logits.ndim == 2 and labels.numel() == len(logits) and whole:
        rules += [classes] if _are_classes(labels, logits.shape[-1]) else []
    if logits.shape == labels.shape and logits.ndim == 2:
        rules += [several_classes]
    if logits.numel() == labels.numel():
        rules += [numbers]
    return rules
