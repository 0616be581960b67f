"""A run that goes on with another mixture: known domains go on, new ones begin, others go."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from adaptmix import Controller, Mixture
from adaptmix.errors import StateError
from adaptmix.policies import Static


class Rows(Dataset[Any]):
    """Rows of a domain: inputs of some scale, a target, and which domain and row they are."""

    def __init__(self, number: int, size: int) -> None:
        generator = torch.Generator().manual_seed(number)
        self.inputs = (1 + number) * torch.randn(size, 4, generator=generator)
        self.number = number

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> Any:
        return self.inputs[row], self.inputs[row].sum() + 1.0, self.number, row


SIZES = {"a": 40, "b": 60, "c": 80, "d": 50}
NUMBERS = {name: number for number, name in enumerate(SIZES)}


def controller(names: str, *, sizes: dict[str, int] = SIZES, **options: Any) -> Any:
    model = nn.Linear(4, 1)
    parts = {name: Rows(NUMBERS[name], sizes[name]) for name in names}
    importance = dict.fromkeys(names, 1.0)
    return Controller(Mixture(parts, importance=importance), model, **options), model


def train(run: Controller, model: nn.Module, stop: int) -> dict[str, list[int]]:
    """The rows of each domain, in order."""
    rows: dict[str, list[int]] = {name: [] for name in SIZES}
    for inputs, targets, numbers, places in run.loader(12, steps=40):
        for number, place in zip(numbers.tolist(), places.tolist(), strict=True):
            rows["abcd"[number]].append(place)
        losses = (model(inputs).squeeze(1) - targets).square()
        run.loss(losses).backward()
        model.zero_grad()
        run.step()
        if run.completed == stop:
            break
    return rows


@pytest.mark.parametrize("loader_first", [False, True])
def test_domains_that_stay_go_on_and_others_come_and_go(
    loader_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first, model = controller("abc", update_every=2)
    before = train(first, model, 9)
    statistics, weights = first.statistics, first.weights
    again, model = controller("cda", update_every=2)
    if loader_first:
        again.loader(12, steps=40)
    with caplog.at_level(logging.WARNING, logger="adaptmix"):
        again.load_state_dict(first.state_dict(), changed=True)
    assert caplog.messages == [
        "Going on with another mixture. Domains that are new: 'd'; gone: 'b'. Rows from the "
        "beginning, for there are more or fewer than before: none. The policy begins anew."
    ]
    assert again.completed == 9
    for name in ("seen", "loss_mean", "grad_sq", "count"):
        old, new = getattr(statistics, name), getattr(again.statistics, name)
        assert new[[2, 0]].tolist() == old[[0, 2]].tolist()
    old, new = statistics.grad_gram, again.statistics.grad_gram
    assert new[2, 0] == old[0, 2]
    # A new domain has its importance as share; the others keep their proportion.
    assert again.weights.sampling[1] == pytest.approx(1 / 3)
    ratio = weights.sampling[0] / weights.sampling[2]
    assert again.weights.sampling[2] / again.weights.sampling[0] == pytest.approx(ratio)
    after = train(again, model, 30)
    assert not after["b"]
    assert after["d"]
    for name in "ac":
        size = SIZES[name]
        epoch = (before[name] + after[name])[:size]
        assert len(set(epoch)) == len(epoch)  # no row comes again before all have been drawn


def test_a_domain_of_more_rows_begins_them_anew(caplog: pytest.LogCaptureFixture) -> None:
    first, model = controller("ab")
    train(first, model, 5)
    again, model = controller("ab", sizes=SIZES | {"b": 61})
    with caplog.at_level(logging.WARNING, logger="adaptmix"):
        again.load_state_dict(first.state_dict(), changed=True)
    assert "more or fewer than before: 'b'. The policy" in caplog.text
    drawn = again._plan.state_dict()["drawn"]
    assert drawn[0] == first._plan.state_dict()["drawn"][0] > 0
    assert drawn[1] == 0
    # The model knows them already, so that their residuals are not noise out of sample.
    assert "Held-out" not in caplog.text
    fresh: dict[int, set[bool]] = {0: set(), 1: set()}
    for _, draw in again.loader(12, steps=6).with_draws():
        for domain, new in zip(draw.domains.tolist(), draw.fresh.tolist(), strict=True):
            fresh[domain].add(new)
        again.loss(torch.ones(12, requires_grad=True), draw=draw)
        again.step()
    assert fresh == {0: {True}, 1: {False}}
    third, _ = controller("ab", sizes=SIZES | {"b": 61})
    third.load_state_dict(again.state_dict())
    assert third._plan.state_dict()["trained_before"].tolist() == [False, True]


def test_rows_that_are_now_held_out_may_be_known(caplog: pytest.LogCaptureFixture) -> None:
    """As many rows are trained on as before, and they are others."""
    first, model = controller("ab", holdout=4)
    train(first, model, 5)
    again, _ = controller("abc", sizes=SIZES | {"a": 41, "b": 60}, holdout=5)
    with caplog.at_level(logging.WARNING, logger="adaptmix"):
        again.load_state_dict(first.state_dict(), changed=True)
    assert again.mixture.sizes[0] == first.mixture.sizes[0]
    assert again._plan.state_dict()["drawn"].tolist() == [0, 0, 0]
    assert caplog.messages[1].startswith(
        "Held-out rows that the run may have been trained on: those of 'a', 'b'. Their losses"
    )


@pytest.mark.parametrize("stop", range(2, 7))
def test_one_domain_may_be_left(stop: int) -> None:
    """Also where the history of shares is as long as there were domains."""
    first, model = controller("ab", update_every=2, lag=3)
    train(first, model, stop)
    again, model = controller("b", update_every=2, lag=3)
    again.load_state_dict(first.state_dict(), changed=True)
    train(again, model, stop + 2)
    assert again.weights.sampling == pytest.approx([1.0], abs=1e-12)


@pytest.mark.parametrize("names", [("ab", "abc"), ("abc", "ab")])
def test_inner_products_are_left_out_where_one_of_both_does_not_keep_them(
    names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptmix._run._GRAM_DOMAINS", 2)
    first, model = controller(names[0], update_every=2)
    train(first, model, 4)
    again, model = controller(names[1], update_every=2)
    again.load_state_dict(first.state_dict(), changed=True)
    train(again, model, 8)


def test_a_domain_that_only_helped_and_counts_now_has_its_importance_as_share() -> None:
    """It may have had no share at all."""
    helper = Mixture({n: Rows(NUMBERS[n], 40) for n in "ab"}, importance={"a": 1.0, "b": 0.0})
    first = Controller(helper, nn.Linear(4, 1), policy="transfer", lag=1)
    state = first.state_dict()
    again, _ = controller("ab", sizes={"a": 40, "b": 40}, policy="transfer", lag=1, holdout=16)
    with pytest.raises(StateError):
        again.load_state_dict(state)
    again.load_state_dict(state, changed=True)
    assert again.weights.sampling.tolist() == again.weights.objective.tolist() == [0.5, 0.5]
    assert again._plan.shares_at(0).tolist() == [0.5, 0.5]


def test_pins_go_on_and_only_pins() -> None:
    """The most that a loss weight may be depends on importance, and is no pin."""
    first, model = controller("ab")
    first.pin("b", sampling=0.4)
    train(first, model, 4)
    again, other = controller("abc", policy=Static(loss={"a": 2.6, "b": 0.2, "c": 0.2}))
    again.load_state_dict(first.state_dict(), changed=True)
    train(again, other, 5)
    assert again.weights.sampling[1] == pytest.approx(0.4)
    assert again.weights.loss.tolist() == pytest.approx([2.6, 0.2, 0.2])
    first.pin("a", sampling=0.6)
    train(first, model, 5)
    again, _ = controller("abc")
    with pytest.raises(StateError, match=r"pins must leave a share .* > 0 for 'c', which .* saved"):
        again.load_state_dict(first.state_dict(), changed=True)


def test_a_lower_limit_ends_those_that_are_past_it() -> None:
    limits: dict[str, Any] = {"when_exhausted": "drop", "policy": "static"}
    first, model = controller("ab", max_epochs=2, **limits)
    train(first, model, 4)
    again, model = controller("abc", max_epochs=0.2, **limits)
    again.load_state_dict(first.state_dict(), changed=True)
    rows = train(again, model, 40)
    assert [len(rows[name]) for name in "abc"] == [0, 0, 12]


def test_weights_that_are_set_hold_for_the_new_mixture() -> None:
    first, model = controller("ab", policy=Static(sampling={"a": 0.9, "b": 0.1}), lag=2)
    train(first, model, 4)
    policy = Static(sampling={"a": 0.5, "b": 0.2, "c": 0.3}, loss={"a": 1, "b": 1, "c": 2})
    again, model = controller("abc", policy=policy, lag=2)
    again.load_state_dict(first.state_dict(), changed=True)
    train(again, model, 10)
    assert again.weights.sampling.tolist() == pytest.approx([0.5, 0.2, 0.3])
    assert again.weights.loss.tolist() == pytest.approx([0.75, 0.75, 1.5])


def test_loss_weights_go_on() -> None:
    first, model = controller("ab", policy=Static(loss={"a": 3.0, "b": 1.0}))
    train(first, model, 4)
    again, _ = controller("bad", policy="variance_aware")
    again.load_state_dict(first.state_dict(), changed=True)
    loss = again.weights.loss
    assert loss[1] / loss[0] == pytest.approx(3.0)
    assert again.weights.objective.sum() == pytest.approx(1.0)


def test_without_changed_the_difference_is_listed() -> None:
    first, model = controller("abc")
    train(first, model, 3)
    again, _ = controller("cda")
    with pytest.raises(StateError, match=r"^domains must be those .* are new: 'd'; gone: 'b'\. Go"):
        again.load_state_dict(first.state_dict())
    with pytest.raises(StateError, match=r"^seed must be what the saved run had: 0; got 1"):
        controller("cda", seed=1)[0].load_state_dict(first.state_dict(), changed=True)
    with pytest.raises(StateError, match=r"^domains must have one of the saved run's in common"):
        controller("d")[0].load_state_dict(first.state_dict(), changed=True)
    with pytest.raises(ValueError, match=r"^changed must be used before training; got 3 trained"):
        first.load_state_dict(first.state_dict(), changed=True)


def test_the_same_mixture_goes_on_alike() -> None:
    first, model = controller("abc", update_every=2)
    train(first, model, 9)
    runs = []
    for changed in (False, True):
        again, model = controller("abc", update_every=2)
        again.load_state_dict(first.state_dict(), changed=changed)
        np.testing.assert_allclose(again.weights.sampling, first.weights.sampling, rtol=1e-12)
        runs.append(train(again, model, 12))
    assert runs[0] == runs[1]


class Masks(Rows):
    """Rows of which as many of ten tokens are supervised as their domain's number, or one more."""

    def __getitem__(self, row: int) -> Any:
        return torch.arange(10) <= self.number + row % 2


@pytest.mark.parametrize("loader_first", [False, True])
def test_tokens_are_counted_in_the_new_mixture(loader_first: bool) -> None:
    def run(names: str, **sizes: int) -> Controller:
        parts = {name: Masks(NUMBERS[name], {**SIZES, **sizes}[name]) for name in names}
        mixture = Mixture(parts, importance=dict.fromkeys(names, 1.0))
        return Controller(
            mixture, policy="static", unit="token", tokens_per_row=lambda batch: batch.sum(1)
        )

    def go_on(controller: Controller) -> None:
        for mask in controller.loader(12, steps=controller.completed + 2):
            losses = torch.ones(mask.shape, requires_grad=True)
            controller.loss(losses, mask=mask).backward()
            controller.step()

    first = run("ab")
    go_on(first)
    again = run("bad", a=80)
    if loader_first:
        again.loader(12, steps=4)
    again.load_state_dict(first.state_dict(), changed=True)
    go_on(again)
    assert again._measurements.lengths.tolist() == [2.5, 1.5, 4.5]
