"""Running estimates of every statistic, from additive sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._credibility import scatter_of
from adaptmix._types import DomainStats
from adaptmix.state import _schema as schema
from adaptmix.statistics._discounted import DiscountedSums, ratio
from adaptmix.statistics._drift import updated
from adaptmix.statistics._held_out import NAMES, HeldOutSums
from adaptmix.statistics._scatter import SquareScatter
from adaptmix.statistics._sums import FIELDS, HELD_OUT, NOISE, RECORDED


class RunningStatistics:
    """Turns sums over processes into DomainStats.

    Variances are centred within each window of steps (with its degrees of freedom), so that a
    mean which drifts while the model learns does not count as variance.

    Noise is that of rows the model has not fitted: rows it is trained on for the first time,
    brought up to date by held-out rows that ride in batches (``_drift``). Noise that is recorded
    replaces what was known of a domain's noise, for older residuals hold the misfit of the model as
    it was, and a domain that has any goes by that alone from then on.

    Args:
        num_domains: K.
        half_life: optimizer steps after which evidence counts half.
        gram: whether inner products between domains' mean gradients, (K, K), are kept.
        held: (K,) how many rows of each domain are held out; none when None.

    Source:
        Salmani et al., arXiv:2511.06913, for what is estimated; the estimators are ours.
    """

    def __init__(
        self,
        num_domains: int,
        *,
        half_life: float,
        gram: bool = False,
        held: FloatArray | None = None,
    ) -> None:
        K = num_domains
        self.gram = gram
        self.seen = np.zeros(K)
        self.skipped = 0.0
        self._last_seen = np.full(K, -np.inf)
        losses = ("count", "loss", "scatter", "freedom")
        gradients = ("count", "square", "scatter", "freedom")
        products = ("products", "pairs")
        self._losses = DiscountedSums(losses, (K,), half_life=half_life)
        self._noise = DiscountedSums(NOISE, (K,), half_life=half_life)
        # Σ w² for discounts w, which fall twice as fast as w: for the effective number of rows.
        self._noise_squares = DiscountedSums(("rows",), (K,), half_life=half_life / 2.0)
        self._recorded = np.zeros(K, dtype=bool)
        self._held_out = HeldOutSums(np.zeros(K) if held is None else held, half_life=half_life)
        self._gradients = DiscountedSums(gradients, (K,), half_life=half_life)
        self._square_scatter = SquareScatter(K, half_life=half_life)
        self._mass = DiscountedSums(("seen", "other"), (1,), half_life=half_life)
        self._own = DiscountedSums(products, (K,), half_life=half_life)
        self._gram = DiscountedSums(products, (K, K) if gram else (0, 0), half_life=half_life)

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
        self.add_noise(step, *(s[name] for name in RECORDED), recorded=True)
        self._held_out.add(step, **dict(zip(NAMES, (s[name] for name in HELD_OUT), strict=True)))

    def add_noise(self, step: int, *terms: FloatArray, recorded: bool = False) -> None:
        """Add (K,) sums of the fields ``NOISE`` of rows the model has not been trained on."""
        named = dict(zip(NOISE, terms, strict=True))
        told = (named["expected"] > 0) & (recorded | ~self._recorded)
        if recorded:
            self._noise.replace(step, told, **named)
            self._noise_squares.replace(step, told, rows=named["noise_rows"])
            self._recorded = self._recorded | told
        else:
            self._noise.add(step, told, **named)
            self._noise_squares.add(step, told, rows=named["noise_rows"])

    def add_gradients(
        self, step: int, *, count: FloatArray, square: FloatArray, products: FloatArray
    ) -> None:
        """Add one observation of per-sample gradients.

        Args:
            step: steps completed.
            count: (K,) samples.
            square: (K,) Σ ‖g‖².
            products: of the domains' gradient sums: (K, K) where inner products are kept, (K,)
                squared norms otherwise.
        """
        own = np.diagonal(products) if self.gram else products
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
        self._square_scatter.add(step, count=count, square=square)
        # A sample's product with itself would bias ‖μ‖², so only distinct pairs count.
        pairs = count * freedom
        self._own.add(step, pairs > 0, products=own - square, pairs=pairs)
        if self.gram:
            pairs = np.outer(count, count) - np.diag(count)
            self._gram.add(step, pairs > 0, products=products - np.diag(square), pairs=pairs)

    def add_mass(self, step: int, seen: float, other: float) -> None:
        """Add squared norms of gradients that the probe saw in a step, and did not see."""
        present = np.array([seen + other > 0.0])
        self._mass.add(step, present, seen=np.array([seen]), other=np.array([other]))

    @property
    def mass(self) -> float | None:
        """Share of the gradient's squared norm that statistics are of; None before any."""
        seen, other = float(self._mass["seen"][0]), float(self._mass["other"][0])
        return seen / (seen + other) if seen + other > 0.0 else None

    def snapshot(self, step: int, *, lengths: FloatArray) -> DomainStats:
        """Return the estimates at a step.

        Args:
            step: steps completed.
            lengths: (K,) mean tokens per row when losses are sums over a row's tokens, ones when
                each row has one loss. Variances are then per token: Var(row) / length.
        """
        losses, gradients = self._losses, self._gradients
        grad_var = ratio(gradients["scatter"], gradients["freedom"])
        mean_sq = ratio(self._own["products"], self._own["pairs"]) / lengths**2
        held_out = self._held_out
        return DomainStats(
            count=gradients.faded("count", step),
            seen=self.seen,
            age=step - self._last_seen,
            loss_mean=ratio(losses["loss"], losses["count"]) / lengths,
            loss_var=ratio(losses["scatter"], losses["freedom"]) / lengths,
            loss_count=losses.faded("freedom", step),
            **self._noise_estimate(),
            holdout_loss=ratio(held_out["loss"], held_out["count"]) / lengths,
            holdout_count=_effective(held_out["count"], held_out.squares),
            grad_var=np.maximum(grad_var, 0.0) / lengths,
            grad_freedom=gradients.faded("freedom", step),
            grad_sq=ratio(gradients["square"], gradients["count"]) / lengths,
            grad_sq_scatter=self._square_scatter.values,
            grad_sq_freedom=self._square_scatter.freedom(step),
            grad_mean_sq=mean_sq,
            grad_mean_pairs=self._own.faded("pairs", step),
            tokens_per_row=lengths,
            grad_gram=self._inner_products(lengths),
        )

    def _inner_products(self, lengths: FloatArray) -> FloatArray | None:
        """Return (K, K) ⟨μ_i, μ_j⟩; None where they are not kept, or none is known."""
        pairs = self._gram["pairs"]
        if not (pairs > 0).any():
            return None
        gram: FloatArray = ratio(self._gram["products"], pairs) / np.outer(lengths, lengths)
        return gram

    def _noise_estimate(self) -> dict[str, FloatArray]:
        """Return (K,) noise, the effective number of rows behind it, and their scatter."""
        own, held, recorded = self._noise, self._held_out, self._recorded
        noise = ratio(own["residual"], own["expected"])
        rows = _effective(own["noise_rows"], self._noise_squares["rows"])
        riding = np.where(recorded, np.nan, ratio(held["residual"], held["expected"]))
        ridden = _effective(held["noise_rows"], held.squares)
        scatter = _noise_scatter(own, rows)
        if (riding > 0.0).any():
            lately = _noise_scatter(held, ridden)
            spread = scatter_of(lately, ridden)
            scatter = np.where(riding > 0.0, lately, scatter)
            today, behind = updated(noise, rows, riding, ridden, scatter=spread)
            noise, rows = np.where(recorded, noise, today), np.where(recorded, rows, behind)
        return {"noise": noise, "noise_count": rows, "noise_scatter": scatter}

    def state_dict(self) -> dict[str, Any]:
        """Return all sums as plain arrays and numbers."""
        return {
            "seen": self.seen,
            "skipped": self.skipped,
            "last_seen": self._last_seen,
            "losses": self._losses.state_dict(),
            "noise": self._noise.state_dict(),
            "noise_squares": self._noise_squares.state_dict(),
            "recorded": self._recorded,
            "held_out": self._held_out.state_dict(),
            "gradients": self._gradients.state_dict(),
            "square_scatter": self._square_scatter.state_dict(),
            "mass": self._mass.state_dict(),
            "own": self._own.state_dict(),
            "gram": self._gram.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "running") -> None:
        """Take over saved sums.

        Raises:
            StateError: a damaged state.
        """
        K = self.seen.size
        sums: dict[str, DiscountedSums | SquareScatter | HeldOutSums] = {
            "losses": self._losses,
            "held_out": self._held_out,
            "noise": self._noise,
            "noise_squares": self._noise_squares,
            "gradients": self._gradients,
            "square_scatter": self._square_scatter,
            "mass": self._mass,
            "own": self._own,
            "gram": self._gram,
        }
        fields = {
            "seen": schema.array(K, minimum=0.0),
            "skipped": schema.number(minimum=0.0),
            "last_seen": schema.array(K, minimum=0.0, unknown=-np.inf),
            "recorded": schema.array(K, dtype=np.bool_),
            **dict.fromkeys(sums, schema.mapping),
        }
        saved = schema.read(state, fields, name=name)
        for part, target in sums.items():
            target.load_state_dict(saved[part], name=f"{name}.{part}")
        self.seen, self.skipped = saved["seen"], saved["skipped"]
        self._last_seen, self._recorded = saved["last_seen"], saved["recorded"]


def _effective(rows: FloatArray, squares: FloatArray) -> FloatArray:
    """Return (Σ w)² / Σ w² over rows with weights w (Kish's effective sample size)."""
    squared = np.square(rows)
    return np.divide(squared, squares, out=np.zeros_like(squared), where=squares > 0.0)


def _noise_scatter(sums: DiscountedSums | HeldOutSums, number: FloatArray) -> FloatArray:
    """Return (K,) the relative variance of noise from one row, of ``number`` effective ones."""
    noise = ratio(sums["residual"], sums["expected"])
    # Σ (residual − noise · expected)²
    square = sums["residual_sq"] - noise * (
        2.0 * sums["residual_expected"] - noise * sums["expected_sq"]
    )
    relative = ratio(square * sums["noise_rows"], sums["residual"] ** 2)
    return np.maximum(relative, 0.0) * ratio(number, number - 1.0)
