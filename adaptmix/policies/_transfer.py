"""Transfer: domains that do not count train along as far as they help those that do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray, integer, number
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run, Start
from adaptmix.policies._moments import moments
from adaptmix.policies._variance import StepVariance
from adaptmix.solvers import transfer_weights

# Updates that inner products are averaged over, by how many rows each knows them from.
_MEMORY = 10
# What exact estimates count in that average.
_EXACT = 1e9
# The weight that keeps a domain's gradients in sight; its bias is negligible.
_SEEN = 1e-4
# The part of the rows that goes to domains which get no more than that: always, and in turn. Two
# rows in one step tell the squared length of a mean gradient; one row never does.
_ALWAYS, _IN_TURN, _PAIR = 0.02, 0.04, 2.0
# The part of the way to the program's weights that an update goes. Rows in flight were drawn with
# the shares of before; a weight that rises at once would multiply them by too much.
_RATE = 0.5
_TINY = 1e-300


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

    It starts from equal shares and α = π. Until inner products with a domain's mean gradient are
    known, it stays there. A domain that the program drops keeps 0.01 % of the objective and, in
    turn with others, two rows of a step, so that it is seen when it begins to help. Weights go half
    of the way at each update, and inner products are averaged over ten updates, by the rows they
    are known from.

    Gradients of rows that the model has fitted are told from training rows. What they miss is the
    same for all domains of like curvature, and cancels in the differences μ_i − μ_j, which alone
    matter; v² of a domain that the model knows by heart comes out too small.

    Args:
        doubt: ≥ 0, the price of what is not known, in estimated variances of μ.
        horizon: optimizer steps that the noise of sampling averages over; the run's when None.

    Raises:
        ValueError: a negative ``doubt``, or ``horizon`` below 1.

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
        [0.0, 0.9, 0.0]
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
        K = len(domains)
        pi = domains.importance
        equal = np.full(K, 1.0 / K)
        weights = Weights(equal, None, pi, objective=_in_sight(pi))
        state = {
            "importance": pi,
            "sizes": domains.sizes,
            "batch_size": run.batch_size,
            "horizon": self.horizon if self.horizon is not None else run.horizon,
            "counts": run.counts,
            "gram": np.zeros((K, K)),
            "evidence": np.zeros((K, K)),
            "objective": weights.objective,
            "sampling": equal,
            "helps": np.zeros(K),
            "turn": 0.0,
        }
        return Start(weights, state)

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return weights half of the way to the program's, for all domains that are known."""
        state = _averaged(stats, state)
        pi = state["importance"]
        known = _known(state["evidence"], pi)
        if known is None:
            return Weights(state["sampling"], None, pi, objective=state["objective"]), state
        wanted, helps = self._program(known, stats, state)
        objective = _in_sight(state["objective"] + _RATE * (wanted - state["objective"]))
        sampling, turn = _shares(objective, known, stats, state)
        state = {
            **state,
            "objective": objective,
            "sampling": sampling,
            "helps": helps,
            "turn": turn,
        }
        return Weights(sampling, None, pi, objective=objective), state

    def figures(self, state: dict[str, Any]) -> dict[str, FloatArray]:
        """Return what it believes, (K,) by name.

        ``helps`` is the part of the mean squared error of training on the stated importance alone
        that each domain takes away; the parts add up to all that is taken away.
        """
        return {"helps": state["helps"]}

    def _program(
        self, known: FloatArray, stats: DomainStats, state: dict[str, Any]
    ) -> tuple[FloatArray, FloatArray]:
        """Return (K,) the best weights of the objective, and how much each domain helps."""
        here = np.flatnonzero(known)
        pi = state["importance"][here]
        lengths = stats.tokens_per_row[here]
        variance = moments(stats)[0][here]
        sizes = state["sizes"][here] * lengths  # in the unit of v²
        gram = state["gram"][np.ix_(here, here)]
        # Rows of a step that repeat tell no more than the domain has.
        rows = np.maximum(np.minimum(stats.count[here] * lengths, sizes), _TINY)
        error = self.doubt * variance / rows
        draws = math.inf
        if state["batch_size"] is not None and state["horizon"] is not None:
            draws = state["batch_size"] * state["horizon"] / float((pi / lengths).sum())
        solution = transfer_weights(
            gram, variance, importance=pi, sizes=sizes, draws=draws, gram_error=error
        )
        wanted = np.zeros(known.size)
        wanted[here] = solution.objective
        helps = np.zeros(known.size)
        helps[here] = solution.helps
        return wanted, helps


def _in_sight(objective: FloatArray) -> FloatArray:
    """Return weights of which none is too small to see a domain's gradients by."""
    least = _SEEN / max(1.0, objective.size * _SEEN * 100.0)
    seen = np.maximum(objective, least)
    sure: FloatArray = seen / seen.sum()
    return sure


def _averaged(stats: DomainStats, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state with the inner products of these statistics in it."""
    now = stats.grad_gram
    if now is None:
        return state
    rows = np.minimum(stats.count, _EXACT)
    samples = np.where(np.isfinite(now), np.minimum(rows, rows[:, np.newaxis]), 0.0)
    evidence = (1.0 - 1.0 / _MEMORY) * state["evidence"] + samples
    step = samples / np.maximum(evidence, _TINY)
    gram = state["gram"] + (np.nan_to_num(now) - state["gram"]) * step
    return {**state, "gram": gram, "evidence": evidence}


def _known(evidence: FloatArray, importance: FloatArray) -> FloatArray | None:
    """Return (K,) whether inner products with each domain are known; None if not of all that count.

    A domain that is known is so with every other one that is.
    """
    told = evidence > 0.0
    counts = importance > 0.0
    if not told[np.ix_(counts, counts)].all():
        return None
    known = counts.copy()
    for domain in np.flatnonzero(~counts & told.diagonal()):
        known[domain] = told[domain, known].all()
    return known.astype(np.float64)


def _shares(
    objective: FloatArray, known: FloatArray, stats: DomainStats, state: dict[str, Any]
) -> tuple[FloatArray, float]:
    """Return shares that make the gradient quiet and keep all in sight, and whose turn is next."""
    K = objective.size
    rows = state["batch_size"]
    variance = StepVariance.of(objective, stats, rows=rows, sampler=state["counts"])
    floor = np.full(K, _ALWAYS / K)
    pair = min(_PAIR / (rows or math.inf), 1.0 / K)
    best = variance.best(floor, np.ones(K))
    # Who has fewer than two rows a step gets them in turn, as often as there is room.
    waiting = np.flatnonzero(best < pair)
    turn = state["turn"]
    if waiting.size:
        seats = min(_IN_TURN / pair, float(waiting.size))
        first, last = math.floor(turn), math.floor(turn + seats)
        floor[waiting[np.arange(first, last) % waiting.size]] = pair
        turn = math.fmod(turn + seats, 1e6)
    floor[known == 0.0] = max(0.5 / K, pair)
    return variance.unit_shares(variance.best(floor, np.ones(K))), turn
