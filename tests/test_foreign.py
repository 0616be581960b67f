"""Rows that somebody else's loader draws train on the stated objective."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adaptmix import Controller, Domains, Mixture
from adaptmix.errors import (
    BatchOrderError,
    ObjectiveError,
    RealisedSharesWarning,
    StateError,
    VersionError,
)
from adaptmix.policies import Static
from tests import runs
from tests.elsewhere import (
    IMPORTANCE,
    KEPT,
    LENGTHS,
    LOSS,
    NAMES,
    OBJECTIVE,
    SLOPES,
    TOKENS,
    Listener,
    made,
    train,
)


def slope(controller: Controller, domains: list[int], rows: list[int], **drawn: Any) -> float:
    """The derivative of a micro-batch's loss by the scale of all losses; it is not trained."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    losses, kept = SLOPES[domains, rows] * scale, KEPT[domains, rows]
    loss = controller.loss(losses, mask=kept, draw=controller.foreign(domains, **drawn))
    [found] = torch.autograd.grad(loss, scale)
    controller.abandon_step()
    return float(found)


def objective(unit: str, counted: Any = OBJECTIVE) -> float:
    """Σ α L of all rows, written out: its derivative by the scale of all losses."""
    kept = SLOPES * KEPT
    by_row, by_token = (kept.sum(2) / TOKENS).mean(1), kept.sum((1, 2)) / TOKENS.sum(1)
    means = by_token if unit == "token" else by_row
    return float(torch.from_numpy(np.asarray(counted)) @ means)


def told(way: str, listener: Listener, versions: list[int], domains: Any) -> dict[str, Any]:
    """What a loader tells of a batch, in one of four ways."""
    if way == "one version":
        return {"version": versions[0]}
    if way == "the version of each row":
        return {"version": torch.tensor(versions)}
    if way == "names of domains":
        return {"shares": listener.told[versions[0]][1]}
    own = [listener.shares(v)[d] for v, d in zip(versions, domains, strict=True)]
    return {"shares": own}


WAYS = ["one version", "the version of each row", "names of domains", "the share of each row"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("unit", ["sample", "token"])
def test_over_all_batches_that_can_be_drawn_the_gradient_is_the_objectives(
    unit: str, way: str
) -> None:
    """Every batch of two rows, weighted by its probability: no sampling error at all."""
    tokens = LENGTHS if unit == "token" else None
    controller, listener = made(unit=unit, tokens_per_row=tokens, accumulation=2)
    controller.pin("a", sampling=0.7)
    # The policy's shares hold from the beginning, so they are told as version 1.
    versions = [1, 2] if "row" in way else [1, 1]
    expected = 0.0
    for domains in itertools.product(range(3), repeat=2):
        chance = math.prod(listener.shares(v)[d] for v, d in zip(versions, domains, strict=True))
        for rows in itertools.product(range(2), repeat=2):
            drawn = told(way, listener, versions, domains)
            expected += chance / 4 * slope(controller, list(domains), list(rows), **drawn)
    # One of two micro-batches of a step.
    assert expected == pytest.approx(objective(unit) / 2, abs=1e-12)


def test_shares_of_rows_are_told_where_the_objective_counts_tokens() -> None:
    controller, listener = made(unit="token", tokens_per_row={"a": 1.0, "b": 2.0, "c": 10.0})
    share_of_tokens = listener.shares() * [1.0, 2.0, 10.0]
    np.testing.assert_allclose(share_of_tokens / share_of_tokens.sum(), [0.2, 0.3, 0.5])
    assert controller.weights.sampling.tolist() == pytest.approx([0.2, 0.3, 0.5])


def test_realised_shares_are_as_biased_as_they_say() -> None:
    controller, listener = made(3)
    chances, expected = listener.shares(), 0.0
    text = r"'a' counts 48\.8% of its weight\. Pass the version"
    with pytest.warns(RealisedSharesWarning, match=text) as given:
        for domains in itertools.product(range(3), repeat=3):
            for rows in itertools.product(range(2), repeat=3):
                found = slope(controller, list(domains), list(rows), shares="realised")
                expected += chances[list(domains)].prod() / 8 * found
    assert len(given) == 1
    counted = OBJECTIVE * (1.0 - (1.0 - chances) ** 3)
    assert expected == pytest.approx(objective("sample", counted), abs=1e-12)


def test_an_observing_run_tells_importance_alone() -> None:
    controller, listener = made(6, mode="observe", policy="erma", update_every=2, steps=20)
    train(controller, listener, np.random.default_rng(0))
    assert [version for version, _ in listener.told] == [0]
    assert controller.proposed.loss.tolist() != controller.weights.loss.tolist() == [1.0] * 3


def test_a_policy_adapts_to_gradients_of_rows_from_elsewhere() -> None:
    torch.manual_seed(0)
    net, rng = nn.Linear(4, 1).double(), np.random.default_rng(0)
    controller = Controller(Domains(NAMES, importance=[1, 1, 1]), net, update_every=5)
    listener, scales = Listener(), torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    controller.on_publish(listener)
    controller.expect(16, steps=60)
    for _ in range(60):
        domains = torch.from_numpy(rng.choice(3, size=16, p=listener.shares()))
        inputs = scales[domains, None] * torch.randn(16, 4, dtype=torch.float64)
        losses = (net(inputs).squeeze(1) - inputs.sum(1)).square()
        draw = controller.foreign(domains, version=listener.version)
        controller.loss(losses, draw=draw).backward()
        net.zero_grad()
        controller.step()
    assert listener.version > 3
    assert listener.shares().tolist() == sorted(listener.shares())
    assert listener.shares()[2] > 0.6
    assert controller.statistics.seen.sum() == 880  # as of the last update
    assert "multinomial" in str(controller.configuration["counts"])


@pytest.mark.parametrize("sizes", [None, [10, 10, 10]])
def test_noise_is_out_of_sample_where_rows_never_come_again(sizes: Any) -> None:
    controller = Controller(Domains(NAMES, sizes, IMPORTANCE), policy="static")
    controller.expect(2, steps=3)
    assert controller.foreign([0, 1], version=0).fresh.tolist() == [sizes is None] * 2
    controller.abandon_step()
    fresh = torch.tensor([True, False])
    assert controller.foreign([0, 1], version=0, fresh=fresh).fresh.tolist() == [True, False]
    with pytest.raises(ValueError, match=r"fresh must have one True or False per row, \(2,\)"):
        controller.foreign([0, 1], version=0, fresh=torch.ones(2))


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, ObjectiveError, r"version= or shares= must be given, .* shares=\"realised\""),
    "both": ({"version": 0, "shares": [0.1, 0.2]}, ValueError, "must not both be given"),
    "a fraction": ({"version": 0.5}, TypeError, "version must be an integer"),
    "versions of more rows": ({"version": [0, 0, 0]}, ValueError, "one per row"),
    "a negative version": ({"version": -1}, VersionError, "got -1"),
    "shares of other domains": ({"shares": {"a": 1.0}}, ValueError, "must name every domain, a, b"),
    "shares of fewer rows": ({"shares": [0.5]}, ValueError, "one value per domain|per row"),
    "a share of nothing": ({"shares": [0.5, 0.0]}, ValueError, r"\(0, 1\]; got 0 for row 1, of"),
    "a share above 1": ({"shares": [1.5, 0.5]}, ValueError, "got 1.5 for row 0"),
    "another word": ({"shares": "real"}, ValueError, "shares must be one of realised"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_rows_were_drawn_with_must_be_told(name: str) -> None:
    options, error, text = REFUSED[name]
    controller, _ = made()
    with pytest.raises(error, match=text):
        controller.foreign([0, 1], **options)


@pytest.mark.parametrize(
    ("domains", "error", "text"),
    [
        (["a"], ValueError, r"it has 2 \(expect\(\)\); got shape \(1,\).*drop_last=True"),
        (["a", "x"], ValueError, "domains must be one of a, b, c; got 'x'"),
        ([0, 3], ValueError, r"numbers in \[0, 3\); got 0 to 3"),
        ([0.0, 1.0], TypeError, "names or integers; got float64"),
    ],
)
def test_domains_of_rows_are_checked(domains: Any, error: type[Exception], text: str) -> None:
    controller, _ = made()
    with pytest.raises(error, match=text):
        controller.foreign(domains, version=0)


def test_batches_are_trained_in_order_and_once() -> None:
    controller, _ = made(accumulation=2)
    first, second = (controller.foreign([0, 1], version=0) for _ in range(2))
    losses = torch.ones(2, requires_grad=True)
    with pytest.raises(BatchOrderError, match="a batch was left out"):
        controller.loss(losses, draw=second)
    controller.abandon_step()
    # The only one that is out need not be passed.
    controller.foreign([0, 1], version=0)
    controller.loss(losses).backward()
    draw = controller.foreign([0, 1], version=0)
    controller.loss(losses, draw=draw).backward()
    with pytest.raises(BatchOrderError, match=r"controller\.step\(\) must be called"):
        controller.loss(losses, draw=controller.foreign([0, 1], version=0))
    controller.step()
    with pytest.raises(BatchOrderError, match="got 1 again"):
        controller.loss(losses, draw=draw)
    with pytest.raises(BatchOrderError, match="got 0 again"):
        controller.loss(losses, draw=first)


def test_each_kind_of_run_refuses_the_calls_of_the_other() -> None:
    elsewhere, _ = made()
    for make in (elsewhere.loader, elsewhere.sampler):
        with pytest.raises(TypeError, match=r"needs a Mixture, .* on_publish\(\)"):
            make(2, steps=3)
    here = Controller(runs.mixture())
    calls: list[Callable[[], Any]] = [
        lambda: here.expect(2, steps=3),
        lambda: here.on_publish(print),
        lambda: here.foreign([0, 1], version=0),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"Give Controller\(Domains\(names, importance="):
            call()
    with pytest.raises(ValueError, match=r"expect\(\) must be called before foreign\(\)"):
        Controller(Domains(NAMES, importance=IMPORTANCE)).foreign([0, 1], version=0)
    with pytest.raises(TypeError, match=r"or give Domains\(names, importance=\.\.\.\)"):
        Controller(["a", "b"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"when_exhausted": "drop"},
        {"max_epochs": 2},
        {"holdout": 0.1},
        {"unit": "token", "tokens_per_row": lambda batch: batch},
    ],
)
def test_options_of_rows_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="with Domains"):
        made(**options)


def test_a_run_goes_on_with_its_own_domains_and_steps_alone() -> None:
    controller, listener = made(6, steps=4)
    train(controller, listener, np.random.default_rng(0))
    state = controller.state_dict()
    with pytest.raises(StateError, match="changed must be False with Domains"):
        Controller(Domains(NAMES, importance=IMPORTANCE)).load_state_dict(state, changed=True)
    with pytest.raises(StateError, match="must stay 6 in a run; got 4"):
        controller.expect(4, steps=9)
    with pytest.raises(StateError, match="sizes"):
        parts = {name: [0.0, 1.0] for name in NAMES}
        mixture = Mixture(parts, importance=dict(zip(NAMES, IMPORTANCE, strict=True)))
        Controller(mixture, policy=Static({"a": 0.2, "b": 0.3, "c": 0.5}, LOSS)).load_state_dict(
            state
        )
