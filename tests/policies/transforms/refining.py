"""Proposals for stages that refine weights, and what is compared of them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy.special import rel_entr

from adaptmix import Domains, DomainStats, Weights
from adaptmix._simplex import normalise
from adaptmix.policies import Refinement, Run

STATS = DomainStats(count=[1.0] * 4)
INFO = Domains(("a", "b", "c", "d"), [100, 400, 50, 250], [0.4, 0.3, 0.2, 0.1])
PI = INFO.importance
PROPOSAL = Weights([0.1, 0.2, 0.3, 0.4], normalise([3.0, 0.0, 1.0, 2.0], importance=PI), PI)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Domains, Weights]:
    """Domains and a proposal, in which domains without loss weight may go unsampled."""
    K = draw(st.integers(1, 6))
    values = st.one_of(st.just(0.0), st.floats(-12, 0).map(lambda power: float(10.0**power)))
    many = st.lists(values, min_size=K, max_size=K).filter(any)
    info = Domains(
        [f"d{i}" for i in range(K)],
        [1] * K,
        draw(st.lists(st.floats(1e-3, 1.0), min_size=K, max_size=K)),
    )
    sampling = normalise(draw(many))
    loss = np.where(sampling > 0.0, draw(many), 0.0)
    if not loss.any():
        loss = np.where(sampling > 0.0, 1.0, 0.0)
    return info, Weights(sampling, normalise(loss, importance=info.importance), info.importance)


def steps(stage: Refinement, info: Domains, proposal: Weights, updates: int) -> list[Weights]:
    """The weights after each of a number of updates with the same proposal, after the first."""
    state = stage.init(info, Run())
    made = [Weights.proportional(info.importance)]
    for _ in range(updates):
        weights, state = stage.refine(proposal, STATS, state)
        made.append(weights)
    return made


def divergences(before: Weights, after: Weights) -> list[float]:
    """KL of the shares and of π w, in nats."""
    pairs = [
        (before.sampling, after.sampling),
        (before.importance * before.loss, after.importance * after.loss),
    ]
    return [float(rel_entr(p, q).sum() - p.sum() + q.sum()) for p, q in pairs]


def line(before: Weights, proposal: Weights, part: float) -> Weights:
    """The weights part of the way from the ones to the others."""
    sampling = before.sampling + part * (proposal.sampling - before.sampling)
    loss = before.loss + part * (proposal.loss - before.loss)
    return Weights(sampling, loss, before.importance)


def same(one: Weights, other: Weights) -> bool:
    return np.array_equal(one.sampling, other.sampling) and np.array_equal(one.loss, other.loss)
