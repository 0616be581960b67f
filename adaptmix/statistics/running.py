"""Running estimates of every statistic, from additive sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptmix.checks import FloatArray, vector
from adaptmix.statistics.discounted import DiscountedSums, ratio
from adaptmix.statistics.sums import FIELDS, HELD_OUT, NOISE
from adaptmix.types import DomainStats


class RunningStatistics:
    """Turns sums over processes into DomainStats.

    Variances are centred within each window of steps (with its degrees of freedom), so that a
    mean which drifts while the model learns does not count as variance. Noise of held-out rows
    replaces what was known of a domain's noise, for older residuals hold the misfit of the model as
    it was, and a domain that has any goes by held-out rows alone from then on.

    Args:
        num_domains: K.
        half_life: optimizer steps after which evidence counts half.

    Source:
        Salmani et al., arXiv:2511.06913, for what is estimated; the estimators are ours.
    """

    def __init__(self, num_domains: int, *, half_life: float) -> None:
        K = num_domains
        self.seen = np.zeros(K)
        self.skipped = 0.0
        self._last_seen = np.full(K, -np.inf)
        losses = ("count", "loss", "scatter", "freedom")
        gradients = ("count", "square", "scatter", "freedom")
        self._losses = DiscountedSums(losses, (K,), half_life=half_life)
        self._noise = DiscountedSums(NOISE, (K,), half_life=half_life)
        # Σ w² for discounts w, which fall twice as fast as w: for the effective number of rows.
        self._noise_squares = DiscountedSums(("rows",), (K,), half_life=half_life / 2.0)
        self._held_out = np.zeros(K, dtype=bool)
        self._gradients = DiscountedSums(gradients, (K,), half_life=half_life)
        self._gram = DiscountedSums(("products", "pairs"), (K, K), half_life=half_life)

    @property
    def has_losses(self) -> bool:
        """Whether any loss was told so far."""
        return bool(self._losses["count"].any())

    def add_losses(self, step: int, sums: FloatArray) -> None:
        """Add a window's sums, (fields, K), at the number of steps completed."""
        s = dict(zip(FIELDS, sums, strict=True))
        self.seen = self.seen + s["rows"]
        self.skipped += float(s["skipped"].sum())
        self._last_seen = np.where(s["rows"] > 0, step, self._last_seen)
        n = s["count"]
        scatter = np.maximum(s["loss_sq"] - s["loss"] ** 2 / np.maximum(n, 1.0), 0.0)
        freedom = np.maximum(n - 1.0, 0.0)
        self._losses.add(step, n > 0, count=n, loss=s["loss"], scatter=scatter, freedom=freedom)
        self.add_noise(step, *(s[name] for name in NOISE))
        self.add_noise(step, *(s[name] for name in HELD_OUT), held_out=True)

    def add_noise(
        self,
        step: int,
        residual: FloatArray,
        expected: FloatArray,
        rows: FloatArray,
        *,
        held_out: bool = False,
    ) -> None:
        """Add (K,) noise terms of rows the model has not been trained on, and how many they are."""
        told = (expected > 0) & (held_out | ~self._held_out)
        terms = {"residual": residual, "expected": expected, "noise_rows": rows}
        if held_out:
            self._noise.replace(step, told, **terms)
            self._noise_squares.replace(step, told, rows=rows)
            self._held_out = self._held_out | told
        else:
            self._noise.add(step, told, **terms)
            self._noise_squares.add(step, told, rows=rows)

    def add_gradients(
        self, step: int, *, count: FloatArray, square: FloatArray, gram: FloatArray
    ) -> None:
        """Add one observation of per-sample gradients.

        Args:
            step: steps completed.
            count: (K,) samples.
            square: (K,) Σ ‖g‖².
            gram: (K, K) inner products of the domains' gradient sums.
        """
        own = np.diagonal(gram)
        scatter = square - own / np.maximum(count, 1.0)
        freedom = np.maximum(count - 1.0, 0.0)
        self._gradients.add(
            step,
            count > 0,
            count=count,
            square=square,
            scatter=np.where(freedom > 0, scatter, 0.0),
            freedom=freedom,
        )
        # A sample's product with itself would bias ‖μ‖², so the diagonal counts distinct pairs.
        pairs = np.outer(count, count) - np.diag(count)
        products = gram - np.diag(square)
        self._gram.add(step, pairs > 0, products=products, pairs=pairs)

    def snapshot(self, step: int, *, lengths: FloatArray) -> DomainStats:
        """Return the estimates at a step.

        Args:
            step: steps completed.
            lengths: (K,) mean tokens per row when losses are sums over a row's tokens, ones when
                each row has one loss. Variances are then per token: Var(row) / length.
        """
        losses, gradients = self._losses, self._gradients
        grad_var = ratio(gradients["scatter"], gradients["freedom"])
        pairs = self._gram["pairs"]
        gram = ratio(self._gram["products"], pairs) / np.outer(lengths, lengths)
        return DomainStats(
            count=gradients.faded("count", step),
            seen=self.seen,
            age=step - self._last_seen,
            loss_mean=ratio(losses["loss"], losses["count"]) / lengths,
            loss_var=ratio(losses["scatter"], losses["freedom"]) / lengths,
            loss_count=losses.faded("freedom", step),
            noise=ratio(self._noise["residual"], self._noise["expected"]),
            noise_count=self._noise_count(),
            grad_var=np.maximum(grad_var, 0.0) / lengths,
            grad_freedom=gradients.faded("freedom", step),
            grad_sq=ratio(gradients["square"], gradients["count"]) / lengths,
            grad_mean_sq=np.diag(gram),
            tokens_per_row=lengths,
            grad_gram=gram if (pairs > 0).any() else None,
        )

    def _noise_count(self) -> FloatArray:
        """Return (Σ w)² / Σ w² over the rows behind the noise (Kish's effective sample size)."""
        squares = self._noise_squares["rows"]
        rows = np.square(self._noise["noise_rows"])
        return np.divide(rows, squares, out=np.zeros_like(rows), where=squares > 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return all sums as plain arrays and numbers."""
        return {
            "seen": self.seen,
            "skipped": self.skipped,
            "last_seen": self._last_seen,
            "losses": self._losses.state_dict(),
            "noise": self._noise.state_dict(),
            "noise_squares": self._noise_squares.state_dict(),
            "held_out": self._held_out,
            "gradients": self._gradients.state_dict(),
            "gram": self._gram.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved sums."""
        self.seen = vector("seen", state["seen"], size=self.seen.size)
        self.skipped = float(state["skipped"])
        age = vector(
            "last_seen", -np.asarray(state["last_seen"]), size=self.seen.size, infinite=True
        )
        self._last_seen = -age
        self._losses.load_state_dict(state["losses"])
        self._noise.load_state_dict(state["noise"])
        self._noise_squares.load_state_dict(state["noise_squares"])
        held_out = vector("held_out", state["held_out"], size=self.seen.size)
        self._held_out = held_out.astype(bool)
        self._gradients.load_state_dict(state["gradients"])
        self._gram.load_state_dict(state["gram"])
