"""Additive per-domain sums, kept on the device until an update reads them."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from adaptmix.noise import NoiseTerms

_SQUARES = ("residual_sq", "residual_expected", "expected_sq")
NOISE = ("residual", "expected", "noise_rows", *_SQUARES)
RECORDED = tuple(f"recorded_{name}" for name in NOISE)
HELD_OUT = tuple(f"held_out_{name}" for name in ("count", "loss", *NOISE))
FIELDS = ("rows", "tokens", "count", "loss", "loss_sq", *NOISE, *RECORDED, *HELD_OUT, "skipped")
# Micro-batches that may wait: enough for overhead to vanish, few enough to stay small.
_WAITING = 64
_INDEX = {name: i for i, name in enumerate(FIELDS)}


class _MicroBatch(NamedTuple):
    """What ``add`` was called with, until it is added.

    Attributes:
        domains: (B,) int64.
        tokens: (B,) supervised tokens.
        fresh: (B,) bool.
        terms: (terms, B) losses, where they are told, and both noise terms, where they are.
        held: (B,) bool, or None where no row is held out.
        told_by: whether losses, whether noise, and whether some rows are held out.
    """

    domains: Tensor
    tokens: Tensor
    fresh: Tensor
    terms: Tensor | None
    held: Tensor | None
    told_by: tuple[bool, bool, bool]


class DomainSums:
    """Sums over the samples of each domain since the last ``take``.

    The rows of ``tensor`` are ``FIELDS``: rows and tokens trained on; number, sum and sum of
    squares of finite losses; residual and expected noise terms of rows trained on, how many rows
    they are of, and sums of their squares and products; the same of what ``add_recorded`` told;
    number and sum of finite losses of held-out rows that rode in batches, and the same of their
    noise; samples left out because their loss was not finite. All additive over micro-batches and
    processes.

    Micro-batches wait until ``tensor`` is asked for and are added together then: a step launches a
    copy, not the two dozen small operations that the sums take. Those of an unfinished step can be
    forgotten.

    Args:
        num_domains: K.
        device: where losses live.
    """

    def __init__(self, num_domains: int, device: torch.device) -> None:
        self._tensor = torch.zeros(len(FIELDS), num_domains, dtype=torch.float64, device=device)
        self._waiting: list[_MicroBatch] = []
        self._unfinished: list[_MicroBatch] = []

    @property
    def tensor(self) -> Tensor:
        """(fields, K) float64, all micro-batches so far."""
        self.finish_step()
        self._add_waiting()
        return self._tensor

    @tensor.setter
    def tensor(self, value: Tensor) -> None:
        self._tensor, self._waiting, self._unfinished = value, [], []

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self._tensor.device

    @torch.no_grad()
    def add(
        self,
        domains: Tensor,
        losses: Tensor | None,
        tokens: Tensor,
        *,
        noise: NoiseTerms | None,
        fresh: Tensor,
        held: Tensor | None = None,
    ) -> None:
        """Add one micro-batch without waiting for the device.

        Args:
            domains: (B,) int64.
            losses: (B,) unweighted losses, or None where they are not known.
            tokens: (B,) supervised tokens.
            noise: (B,) terms, or None.
            fresh: (B,) bool; only fresh rows tell the noise, for the model has not fitted them.
            held: (B,) bool, which rows are held out; none when None.
        """
        told = [term.detach() for term in (losses, *(noise or ())) if term is not None]
        # A copy, for a loss may be changed in place before it is added.
        terms = torch.stack(told) if told else None
        told_by = (losses is not None, noise is not None, held is not None)
        self._unfinished.append(_MicroBatch(domains, tokens, fresh, terms, held, told_by))

    def finish_step(self) -> None:
        """Keep the micro-batches of the step for good."""
        self._waiting += self._unfinished
        self._unfinished = []
        if len(self._waiting) >= _WAITING:
            self._add_waiting()

    def forget_step(self) -> None:
        """Forget the micro-batches added since ``finish_step``."""
        self._unfinished = []

    @torch.no_grad()
    def _add_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for told_by, alike in groupby(waiting, key=lambda batch: batch.told_by):
            with_losses, with_noise, with_held = told_by
            domains, tokens, fresh, terms, held, _ = zip(*alike, strict=True)
            self._add_rows(
                torch.cat(domains),
                torch.cat(tokens),
                torch.cat(fresh),
                torch.cat(terms, dim=1).double() if with_losses or with_noise else None,
                with_losses,
                torch.cat(held) if with_held else None,
            )

    def _add_rows(
        self,
        domains: Tensor,
        tokens: Tensor,
        fresh: Tensor,
        terms: Tensor | None,
        with_losses: bool,
        held: Tensor | None,
    ) -> None:
        columns = torch.zeros(len(FIELDS), len(domains), dtype=torch.float64, device=tokens.device)
        columns[_INDEX["rows"]] = 1.0
        columns[_INDEX["tokens"]] = tokens
        fresh = fresh if held is None else fresh | held
        if terms is not None:
            finite = terms.isfinite()
            kept = torch.ones_like(fresh)
            if with_losses:
                kept, finite = finite[0], finite[1:]
                values = torch.where(kept, terms[0], 0.0)
                columns[_INDEX["count"]] = kept
                columns[_INDEX["loss"]] = values
                columns[_INDEX["loss_sq"]] = values.square()
                columns[_INDEX["skipped"]] = ~kept
                terms = terms[1:]
            if len(terms):
                told = kept & fresh & finite.all(0)
                columns[_INDEX["residual"] : _INDEX[_SQUARES[-1]] + 1] = _noise(terms, told)
        if held is not None:
            _set_apart(columns, held)
        self._tensor.index_add_(1, domains, columns)

    @torch.no_grad()
    def add_recorded(self, domain: int, noise: NoiseTerms) -> None:
        """Add noise terms of rows of one domain that are evaluated apart from training."""
        terms = torch.stack([term.detach().double() for term in noise])
        sums = _noise(terms, terms.isfinite().all(0)).sum(1)
        self._tensor[_INDEX[RECORDED[0]] : _INDEX[RECORDED[-1]] + 1, domain] += sums

    def take(self) -> Tensor:
        """Return the (fields, K) sums and start again from zero."""
        taken = self.tensor
        self._tensor = torch.zeros_like(taken)
        return taken


def _noise(terms: Tensor, told: Tensor) -> Tensor:
    """Return the ``NOISE`` fields of rows, (6, B), from (2, B) terms and which of them count."""
    residual, expected = torch.where(told, terms, 0.0)
    products = (residual.square(), residual * expected, expected.square())
    return torch.stack([residual, expected, told.double(), *products])


def _set_apart(columns: Tensor, held: Tensor) -> None:
    """Move what (fields, B) columns tell of held-out rows to the fields that are for them."""
    trained = [_INDEX[name] for name in ("count", "loss", *NOISE)]
    columns[[_INDEX[name] for name in HELD_OUT]] = torch.where(held, columns[trained], 0.0)
    columns[[_INDEX[name] for name in ("rows", "tokens", "loss_sq")] + trained] *= ~held
