"""Every policy, the statistics it may meet, and what all of them must hold to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from adaptmix import Domains, DomainStats, Weights
from adaptmix.policies import (
    ERMA,
    FGLS,
    Floor,
    Joint,
    Policy,
    Run,
    Shrink,
    Smooth,
    Static,
    Temperature,
    Transfer,
    TrustRegion,
    VarianceAware,
    WarmUp,
    chain,
)
from adaptmix.policies._base import started

INFO = Domains(("a", "b", "c", "d"), [100, 400, 50, 250], [0.4, 0.3, 0.2, 0.1])
STATS = DomainStats(
    loss_mean=[1.0, 2.0, 0.5, 1.5],
    loss_var=[0.3, 1.0, 0.1, 4.0],
    noise=[1.0, 4.0, 0.5, 2.0],
    grad_var=[1.0, 9.0, 4.0, 0.25],
)
PI = INFO.importance

# Adding a policy is one line here: the laws run over all of them.
POLICIES: dict[str, Callable[[], Policy]] = {
    "static": Static,
    "temperature_sizes": lambda: Temperature(0.3),
    "variance_aware": VarianceAware,
    "fgls": FGLS,
    "fgls_sizes": lambda: FGLS(use_sizes=True),
    "erma": ERMA,
    "erma_exact": lambda: ERMA(exact=True),
    "erma_sizes": lambda: ERMA(exact=True, use_sizes=True, lower=0.1),
    "joint": Joint,
    "joint_ignoring": lambda: Joint(bias="ignored"),
    "transfer": Transfer,
    "joint_sizes": lambda: Joint(bias="ignored", use_sizes=True),
    "joint_bias": lambda: Joint(bias="ignored", bias_penalty=1.0),
    "joint_bias_sizes": lambda: Joint(bias="ignored", use_sizes=True, bias_penalty=10.0),
    "fgls+variance_aware": lambda: chain(FGLS(), VarianceAware()),
    "erma+variance_aware": lambda: chain(ERMA(), VarianceAware()),
    "static_floor": lambda: chain(Static(), Floor(lower=0.0)),
    "va_shrunk": lambda: chain(Shrink(), VarianceAware()),
    "va_trust_region": lambda: chain(VarianceAware(), TrustRegion(0.01), Floor()),
    "va_warm_up_linear": lambda: chain(VarianceAware(), WarmUp(4, linear=True), Floor()),
    "fgls_warm_up": lambda: chain(FGLS(), WarmUp(2)),
    "fgls_shrunk_trust_region": lambda: chain(Shrink(), FGLS(), TrustRegion(0.1)),
    "erma_smooth": lambda: chain(ERMA(exact=True), Smooth(0.25)),
    "erma_shrunk_trust_region": lambda: chain(Shrink(), ERMA(exact=True), TrustRegion(1e-3)),
    "joint_shrunk": lambda: chain(Shrink(), Joint()),
    "joint_shrunk_smooth": lambda: chain(Shrink(), Joint(), Smooth(0.5), Floor()),
    "fgls_shrunk+va_smooth": lambda: chain(
        Shrink(), FGLS(), VarianceAware(), Smooth(0.5), WarmUp(1), Floor()
    ),
}
# Those whose loss weights answer to differences between domains only, not to their sizes.
HARMLESS = [name for name in POLICIES if not name.endswith("_sizes")]

FIELDS = ("loss_mean", "loss_var", "noise", "grad_var", "grad_sq")


@st.composite
def domains(draw: st.DrawFn, *, min_size: int = 1, max_size: int = 6) -> Domains:
    """Domains with sizes from 1 to a million and importance over four orders of magnitude."""
    K = draw(st.integers(min_size, max_size))
    sizes = draw(st.lists(st.integers(1, 10**6), min_size=K, max_size=K))
    importance = draw(st.lists(st.floats(1e-2, 1e2), min_size=K, max_size=K))
    return Domains([f"d{i}" for i in range(K)], sizes, importance)


@st.composite
def statistics(draw: st.DrawFn, num_domains: int) -> DomainStats:
    """Statistics from 0 and 1e-15 to 1e15, with domains that were never seen."""
    size = st.one_of(st.just(0.0), st.floats(-15, 15).map(lambda power: float(10.0**power)))
    unseen = np.array(draw(st.lists(st.booleans(), min_size=num_domains, max_size=num_domains)))
    unseen[draw(st.integers(0, num_domains - 1))] = False
    values: dict[str, Any] = {
        name: np.where(
            unseen, np.nan, draw(st.lists(size, min_size=num_domains, max_size=num_domains))
        )
        for name in FIELDS
    }
    counts = draw(st.lists(st.integers(1, 1000), min_size=num_domains, max_size=num_domains))
    seen = np.where(unseen, 0, counts)
    return DomainStats(count=seen, seen=seen, age=np.where(unseen, np.inf, 1.0), **values)


def reorder(stats: DomainStats, order: NDArray[np.int64]) -> DomainStats:
    """The same statistics with the domains in another order."""
    columns = {field.name: getattr(stats, field.name) for field in fields(stats)}
    return DomainStats(
        **{name: value[order] for name, value in columns.items() if value is not None}
    )


def begin(policy: Policy, info: Domains, of: Run | None = None) -> Any:
    """The state before the first update, of a run in which every count is large if it may be."""
    if of is None:
        of = Run(16, 100) if isinstance(policy, Joint) and policy.use_sizes else Run()
    return started(policy, info, of).state


def run(
    policy: Policy, info: Domains, stats: DomainStats, *, updates: int = 1, of: Run | None = None
) -> Weights:
    """The weights after a number of updates with the same statistics."""
    state = begin(policy, info, of)
    for _ in range(updates):
        weights, state = policy.update(stats, state)
    return weights
