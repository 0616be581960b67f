"""Transfer: domains that do not count train along as far as they help those that do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray, integer, number
from adaptmix._simplex import normalise
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run, Start
from adaptmix.policies._gram import averaged, mean_error, unknown
from adaptmix.policies._least_variance import least_variance_shares
from adaptmix.policies._moments import moments
from adaptmix.policies._proven import proven_weights

# The weight that keeps a domain's gradients in sight; its bias is negligible.
_SEEN = 1e-4
# The part of the rows that goes to domains which get no more than that: always, and in turn. Two
# rows in one step tell the squared length of a mean gradient; one row never does.
_ALWAYS, _IN_TURN, _PAIR = 0.02, 0.04, 2.0
# Domains that are not known yet have this part of an equal share, or that one where it is too
# little for two rows a step.
_EQUAL, _WHILE_UNKNOWN = 0.9, 0.4
# The part of the way to the program's weights that an update goes. Rows in flight were drawn with
# the shares of before; a weight that rises at once would multiply them by too much.
_RATE = 0.5
# Domains that count have two rows of every step, if this part of the rows suffices for that.
_COUNTING = 0.1


@dataclass(frozen=True)
class Transfer:
    """Weights that train the domains that count, with the others' help as far as it goes.

    Importance says what counts, and may be 0. With α the weights of the training objective
    Σ α L and p the shares, the policy minimises the mean squared error of the training gradient as
    an estimate of the gradient that counts (``solvers.transfer_weights``),

        ‖Σ (α − π) μ‖² + Σ α² v² (1/n + 1/(N p)) + doubt · Σ (α − π)² v² / m,

    the bias of training on other domains, which is measured by the domains' mean gradients μ, the
    variance of n rows of data and of N = batch size · horizon draws, and a price for what is not
    known: m rows tell each μ. A domain that pulls elsewhere gets no weight; a noisy copy of a
    domain that counts is turned down, not off. While gradients are far apart in nothing but noise,
    early or where rows are few, all help; as they come apart, the domains that count take over.

    It starts from α = π and, where there are auxiliary domains, from equal shares. Until inner
    products with a domain's mean gradient are known, that stays. With no auxiliary domain it is
    ``VarianceAware``, plus what domains lend each other. A domain that the program drops keeps
    0.01 % of the objective and, in turn with others, two rows of a step, so that it is seen when it
    begins to help. Weights go half of the way at each update, and inner products are averaged over
    the last quarter of the updates, by the rows they are known from.

    A bias that few rows of the domains that count cannot tell counts as none, and a domain far from
    the rest must prove its help (``_proven``). In networks gradients vary much more than their mean
    is long, so that domains that harm may get weight: compare with those that count alone.

    Gradients of rows that the model has fitted are told from training rows. What they miss is the
    same for all domains of like curvature, and cancels in the differences μ_i − μ_j, which alone
    matter; v² of a domain that the model knows by heart comes out too small.

    Args:
        doubt: ≥ 0, the price of what is not known, in estimated variances of μ.
        horizon: optimizer steps that the noise of sampling averages over; the run's when None.

    Raises:
        ValueError: a negative ``doubt``, or ``horizon`` below 1; at ``init``, steps of one row.

    Source:
        Ours. Bias against variance: Ben-David et al., A theory of learning from different domains,
        2010. The default of ``doubt`` is measured in tests/benchmarks/bench_transfer.py.

    Example:
        >>> domains = Domains(("target", "helper", "other"), [50, 1000, 1000], [1, 0, 0])
        >>> policy = Transfer()
        >>> weights, state = policy.init(domains, Run(batch_size=32, horizon=1000))
        >>> gram = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # other is orthogonal
        >>> stats = DomainStats(grad_var=[1.0, 1.0, 1.0], grad_gram=gram)
        >>> for _ in range(20):
        ...     weights, state = policy.update(stats, state)
        >>> weights.objective.round(2).tolist()
        [0.13, 0.87, 0.0]
        >>> policy.figures(state)["helps"].round(2).tolist()
        [0.0, 0.86, 0.0]
    """

    doubt: float = 0.1
    horizon: int | None = None

    requires = frozenset({"grad_gram", "grad_sq"})
    auxiliary = True

    def __post_init__(self) -> None:
        number("doubt", self.doubt, minimum=0.0)
        if self.horizon is not None:
            integer("horizon", self.horizon, minimum=1)

    def init(self, domains: Domains, run: Run) -> Start:
        """Return the weights to start with, and the state, in which no gradient is known."""
        if run.batch_size == 1:
            raise ValueError(
                "batch_size must be at least 2 with Transfer, in all of a step's micro-batches; "
                "got 1. Inner products of gradients are told by rows of one step."
            )
        K = len(domains)
        pi = domains.importance
        sampling = pi if pi.all() else np.full(K, 1.0 / K)
        weights = Weights(sampling, None, pi, objective=_in_sight(pi, pi))
        state = {
            "importance": pi,
            "sizes": domains.sizes,
            "batch_size": run.batch_size,
            "horizon": self.horizon if self.horizon is not None else run.horizon,
            "counts": run.counts,
            "objective": weights.objective,
            "helps": np.zeros(K),
            "turn": 0.0,
            **unknown(K),
        }
        return Start(weights, state)

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return weights half of the way to the program's, for all domains that are known."""
        state = averaged(stats, state)
        pi, objective, helps = state["importance"], state["objective"], state["helps"]
        known = _known(state["evidence"], pi)
        if known.any():
            wanted, helps = self._program(known, stats, state)
            objective = _in_sight(objective + _RATE * (wanted - objective), pi)
        sampling, turn = _shares(objective, known, stats, state)
        state = {
            **state,
            "objective": objective,
            "helps": helps,
            "turn": turn,
        }
        return Weights(sampling, None, pi, objective=objective), state

    def figures(self, state: dict[str, Any]) -> dict[str, FloatArray]:
        """Return what it believes, (K,) by name.

        ``objective`` are the weights α. ``helps`` is the part of the mean squared error of training
        on the stated importance alone that each domain takes away; the parts add up to all that is
        taken away.
        """
        return {"objective": state["objective"], "helps": state["helps"]}

    def _program(
        self, known: NDArray[np.bool_], stats: DomainStats, state: dict[str, Any]
    ) -> tuple[FloatArray, FloatArray]:
        """Return (K,) the best weights of the objective, and how much each domain helps."""
        pi = state["importance"]
        lengths = stats.tokens_per_row
        variance = moments(stats)[0]
        sizes = state["sizes"] * lengths  # in the unit of v²
        error = self.doubt * mean_error(variance, sizes, stats)
        draws = math.inf
        if state["batch_size"] is not None and state["horizon"] is not None:
            draws = state["batch_size"] * state["horizon"] / float((pi / lengths).sum())
        wanted, helps = np.zeros(known.size), np.zeros(known.size)
        wanted[known], helps[known] = proven_weights(
            state["gram"][np.ix_(known, known)],
            variance[known],
            importance=pi[known],
            sizes=sizes[known],
            draws=draws,
            gram_error=error[known],
            doubt=self.doubt,
        )
        return wanted, helps


def _in_sight(objective: FloatArray, importance: FloatArray) -> FloatArray:
    """Return weights of which none is too small to see a domain's gradients by."""
    least = np.full_like(objective, min(_SEEN, 0.01 / objective.size))
    counts = importance > 0.0
    least[counts] = np.minimum(least, importance)[counts]
    if (objective >= least).all():
        return objective
    seen = np.maximum(objective, least)
    sure: FloatArray = seen / seen.sum()
    return sure


def _known(evidence: FloatArray, importance: FloatArray) -> NDArray[np.bool_]:
    """Return (K,) whether inner products with each domain are known; none if not of all that count.

    A domain that is known is so with every other one that is.
    """
    told = evidence > 0.0
    counts = importance > 0.0
    if not told[np.ix_(counts, counts)].all():
        return np.zeros_like(counts)
    known = counts.copy()
    for domain in np.flatnonzero(~counts & told.diagonal()):
        known[domain] = told[domain, known].all()
    return known


def _shares(
    objective: FloatArray, known: NDArray[np.bool_], stats: DomainStats, state: dict[str, Any]
) -> tuple[FloatArray, float]:
    """Return shares that make the gradient quiet and keep all in sight, and whose turn is next."""
    K, rows, pi = objective.size, state["batch_size"], state["importance"]
    pair = min(_PAIR / (rows or math.inf), 0.5)
    floor = np.zeros(K)
    floor[(objective <= 2.0 * _SEEN) & (objective < pi)] = _ALWAYS / K
    floor[pi == 0.0] = _ALWAYS / K
    if not pi.all():
        counts = pi > 0.0
        floor[counts] = min(pair, _COUNTING / counts.sum())
    floor[~known & (pi == 0.0)] = (_EQUAL if pair <= _EQUAL / K else _WHILE_UNKNOWN) / K

    def quiet() -> FloatArray:
        return least_variance_shares(
            objective,
            np.ones(K),
            stats,
            lower=floor if floor.any() else None,
            upper=1.0,
            rows=rows,
            sampler=state["counts"],
        )

    # Who has fewer than two rows a step gets them in turn, as often as there is room.
    shares, room, turn = quiet(), _IN_TURN, state["turn"]
    lengths = stats.tokens_per_row
    waiting = normalise(shares / lengths) < pair * (1.0 - 1e-9)
    if (waiting & ~known).any():
        waiting, room = waiting & ~known, 0.5
    if waiting.any():
        seats = min(room / pair, float(waiting.sum()))
        turns = np.arange(math.floor(turn), math.floor(turn + seats))
        floor[np.flatnonzero(waiting)[turns % int(waiting.sum())]] = pair
        shares, turn = quiet(), math.fmod(turn + seats, 1e6)
    return shares, turn
