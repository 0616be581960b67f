"""Additive per-domain sums, kept on the device until an update reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptmix.noise import NoiseTerms

NOISE = ("residual", "expected", "noise_rows")
HELD_OUT = tuple(f"held_out_{name}" for name in NOISE)
FIELDS = ("rows", "tokens", "count", "loss", "loss_sq", *NOISE, *HELD_OUT, "skipped")
_INDEX = {name: i for i, name in enumerate(FIELDS)}


class DomainSums:
    """Sums over the samples of each domain since the last ``take``.

    The rows of ``tensor`` are ``FIELDS``: rows and tokens trained on; number, sum and sum of
    squares of finite losses; residual and expected noise terms of rows trained on and how many rows
    they are of, and the same of rows held out; samples left out because their loss was not finite.
    All additive over micro-batches and processes.

    Args:
        num_domains: K.
        device: where losses live.
    """

    def __init__(self, num_domains: int, device: torch.device) -> None:
        self.tensor = torch.zeros(len(FIELDS), num_domains, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self,
        domains: Tensor,
        losses: Tensor | None,
        tokens: Tensor,
        *,
        noise: NoiseTerms | None,
        fresh: Tensor,
    ) -> None:
        """Add one micro-batch without waiting for the device.

        Args:
            domains: (B,) int64.
            losses: (B,) unweighted losses, or None where they are not known.
            tokens: (B,) supervised tokens.
            noise: (B,) terms, or None.
            fresh: (B,) bool; only fresh rows tell the noise, for the model has not fitted them.
        """
        columns = torch.zeros(len(FIELDS), len(domains), dtype=torch.float64, device=tokens.device)
        columns[_INDEX["rows"]] = 1.0
        columns[_INDEX["tokens"]] = tokens.double()
        kept = torch.ones_like(fresh)
        if losses is not None:
            values = losses.detach().double()
            kept = values.isfinite()
            values = torch.where(kept, values, 0.0)
            columns[_INDEX["count"]] = kept.double()
            columns[_INDEX["loss"]] = values
            columns[_INDEX["loss_sq"]] = values.square()
            columns[_INDEX["skipped"]] = (~kept).double()
        self.tensor.index_add_(1, domains, columns)
        if noise is not None:
            self.add_noise(domains, noise, kept & fresh)

    @torch.no_grad()
    def add_noise(
        self, domains: Tensor, noise: NoiseTerms, told: Tensor, *, held_out: bool = False
    ) -> None:
        """Add (B,) noise terms of the samples that ``told`` (B,) selects."""
        residual, expected = (term.detach().double() for term in noise)
        told = told & residual.isfinite() & expected.isfinite()
        names = HELD_OUT if held_out else NOISE
        for name, term in zip(names, (residual, expected, told.double()), strict=True):
            self.tensor[_INDEX[name]].index_add_(0, domains, torch.where(told, term, 0.0))

    def take(self) -> Tensor:
        """Return the (fields, K) sums and start again from zero."""
        taken = self.tensor
        self.tensor = torch.zeros_like(taken)
        return taken
