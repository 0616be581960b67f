"""The variance of one optimizer step's gradient, as a function of the shares its rows have.

Everything that predicts a variance goes through here: policies, their law of doing no harm, the
predicted gain and the variance ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import DomainStats
from adaptmix.policies._moments import moments
from adaptmix.solvers import neyman_shares

# A count this near to a whole number is one, as in the rounding of the plan.
_SNAP = 1e-9
# Parts of ‖μ‖² that may count where domains with like mean gradients take turns.
_PARTS = (0.3, 0.1)


@dataclass(frozen=True, eq=False)
class StepVariance:
    """Variance of a step's gradient, relative to the largest a² s²; a domain's weight a is π w.

    With stratified counts, N rows and b = N q expected rows of a domain, its part is

        a² (s² / b − ‖μ‖²)   where b < 1: the domain is present or absent, b divides;
        a² v² E[1/n]         where b ≥ 1: its realised count n, ⌊b⌋ or ⌈b⌉, divides,

    which meet at b = 1. E[1/n] is linear between whole numbers, 0.75 at b = 1.5. Counts add up to
    N, so domains that may be absent take turns. With c = f (1 − f), f the fractional part of b, two
    counts have a covariance near −c_i c_j / Σ c, as in any design of high entropy. It matters where
    mean gradients are alike and ⟨μ_i, μ_j⟩ is known; otherwise it is left out.

    With multinomial counts it is Σ a² s² / b − ‖Σ a μ‖² / N.

    Attributes:
        within: (K,) a v of a row.
        uncentred: (K,) a s of a row, s² = v² + ‖μ‖².
        products: (K, K) a_i a_j ⟨μ_i, μ_j⟩, or None where they are not known.
        lengths: (K,) mean tokens per row; ones with unit "sample".
        rows: N, of the step's global batch; None for so many that every count is large.
        sampler: "stratified" or "multinomial".

    Source:
        Neyman (1934); Hájek, Asymptotic theory of rejective sampling (1964), for the covariance;
        small counts are ours.
    """

    within: FloatArray
    uncentred: FloatArray
    products: FloatArray | None
    lengths: FloatArray
    rows: float | None
    sampler: str

    @classmethod
    def of(
        cls, used: FloatArray, stats: DomainStats, *, rows: float | None, sampler: str | None
    ) -> StepVariance:
        """Return the variance for domains that count ``used`` = π w, (K,), in the objective."""
        lengths = stats.tokens_per_row
        within, uncentred = (used * np.sqrt(each / lengths) for each in moments(stats))
        peak = float(uncentred.max())
        scale = 1.0 / peak if peak > 0.0 else 1.0
        products = None
        if stats.grad_gram is not None:
            weight = used * scale
            products = np.nan_to_num(stats.grad_gram) * weight * weight[:, np.newaxis]
        return cls(
            within * scale,
            uncentred * scale,
            products,
            lengths,
            rows,
            sampler or "stratified",
        )

    def row_shares(self, shares: FloatArray) -> FloatArray:
        """Return (K,) shares of rows for shares of the objective's unit."""
        return _normal(shares / self.lengths)

    def unit_shares(self, row_shares: FloatArray) -> FloatArray:
        """Return (K,) shares of the objective's unit for shares of rows."""
        return _normal(row_shares * self.lengths)

    def best(self, lower: FloatArray, upper: FloatArray) -> FloatArray:
        """Return the (K,) shares of rows, within bounds, that make the variance least.

        Counts beyond 1 are taken as E[1/n] = 1/b. Covariances cancel part of what mean gradients
        that are alike add to s², so where they are known, parts of ‖μ‖² are tried.
        """
        if self.sampler == "multinomial":
            return neyman_shares(self.uncentred, lower=lower, upper=upper)
        if self.rows is None:
            return neyman_shares(self.within, lower=lower, upper=upper)
        found = self._filled(1.0, lower, upper)
        if self.products is None or (self.rows * found >= 1.0 - _SNAP).all():
            return found
        others = [self._filled(part, lower, upper) for part in _PARTS]
        return min((found, *others), key=self.at)

    def _filled(self, part: float, lower: FloatArray, upper: FloatArray) -> FloatArray:
        """Return the best shares when only a part of ‖μ‖² counts."""
        uncentred = self.uncentred
        if part < 1.0:
            uncentred = np.sqrt(part * uncentred**2 + (1.0 - part) * self.within**2)
            uncentred = np.maximum(uncentred, self.within)
        return neyman_shares(
            self.within, uncentred=uncentred, rows=self.rows, lower=lower, upper=upper
        )

    def at(self, row_shares: FloatArray) -> float:
        """Return the variance when rows have these (K,) shares."""
        rows = 1.0 if self.rows is None else self.rows
        b = rows * row_shares
        if self.sampler == "multinomial":
            products = self.products
            mean = 0.0 if products is None else max(float(products.sum()) / rows, 0.0)
            total = float(_squared_per(self.uncentred, b).sum())
            # An estimated mean gradient may come out longer than the second moments allow.
            return total - mean if mean < total else total
        if self.rows is None:
            return float(_squared_per(self.within, b).sum())
        whole = np.floor(b + _SNAP)
        part = np.maximum(b - whole, 0.0)
        sure = whole >= 1.0
        count = np.where(sure, whole, 1.0)
        inverse = (1.0 - part) / count + part / (count + 1.0)
        absent = np.where(sure, 0.0, b)
        coming = (self.uncentred - self.within) * (self.uncentred + self.within)
        alone = _squared_per(self.uncentred, absent) - coming
        own = float(np.where(sure, np.square(self.within) * inverse, alone).sum())
        if self.products is None or sure.all() or not np.isfinite(own):
            return own
        # What comes and goes of the mean gradients is all that taking turns can cancel.
        steady = _squared_per(self.within[~sure], b[~sure])
        most = float((alone[~sure] - steady).sum())
        return own + max(self._together(absent, part * (1.0 - part)), -most)

    def _together(self, absent: FloatArray, spread: FloatArray) -> float:
        """Return what covariances of counts add, for (K,) counts below 1 and variances of all."""
        total = float(spread.sum())
        if self.products is None or not total > 0.0:
            return 0.0
        # So that each count's covariances with the others come near to its own variance.
        own = np.minimum(spread / total, 0.5)
        spread = spread / (1.0 - own)
        pull = np.divide(spread, absent, out=np.zeros_like(spread), where=absent > 0.0)
        here = np.flatnonzero(pull)
        pull, products = pull[here], self.products[np.ix_(here, here)]
        between = float(pull @ products @ pull) - float(np.square(pull) @ products.diagonal())
        return -between / float(spread.sum())


def _normal(values: FloatArray) -> FloatArray:
    normal: FloatArray = values / values.sum()
    return normal


def _squared_per(values: FloatArray, counts: FloatArray) -> FloatArray:
    """Return values² / counts: infinite where something is never drawn, 0 where nothing is."""
    never = np.where(values > 0.0, np.inf, 0.0)
    return values * np.divide(values, counts, out=never, where=counts > 0.0)
