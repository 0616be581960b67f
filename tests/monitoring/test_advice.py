"""Advice is given where it applies, and only there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adaptmix.monitoring._advice import advise
from adaptmix.monitoring._comparison import compare
from adaptmix.monitoring._gains import gains
from adaptmix.monitoring._groups import grouped
from adaptmix.monitoring._record import RunRecord, Series
from adaptmix.monitoring._texts import Caution
from tests.monitoring import made

LIKE_NOTHING: dict[str, Any] = {"shares": [1 / 3] * 3}


def titles(*records: RunRecord) -> dict[str, str]:
    groups = grouped(records)
    judged = groups[-1]
    comparison = compare(groups[0], judged) if len(groups) > 1 else None
    return {item.title: item.text for item in advise(judged, gains(judged), comparison)}


def test_a_run_that_helped_needs_none() -> None:
    plain = made.record("plain", mode="observe")
    assert titles(plain, made.record("mixed", losses=[1.5] * 3, **LIKE_NOTHING)) == {}


def test_nothing_to_gain() -> None:
    quiet: dict[str, Any] = {"gain": 1.01, "attained": 1.01, "doubt": 0.01}
    found = titles(made.record(mode="observe", **quiet, **LIKE_NOTHING))
    assert list(found) == ["Remove AdaptMix"]
    assert "1.01 times less noisy" in found["Remove AdaptMix"]
    equal = titles(made.record(mode="observe", gain=1.001, doubt=0.01, **LIKE_NOTHING))
    assert "leave a step's gradient as noisy as it is" in equal["Remove AdaptMix"]
    # Loss weights that moved do something else than sampling, so its gain decides nothing.
    assert "Remove AdaptMix" not in titles(made.record(weights=[0.5, 1.0, 1.5], **quiet))


def test_measuring_that_costs_more_than_a_larger_batch() -> None:
    title = "Pay less for the gain"
    found = titles(made.record(mode="observe", gain=1.08, doubt=0.005, overhead=0.15))
    assert "Measuring takes 15 % more time. A batch 1.08 times larger" in found[title]
    assert "for at most 8.0 %" in found[title]
    assert title not in titles(made.record(mode="observe", gain=1.08, overhead=0.05))
    assert title not in titles(made.record(mode="observe", gain=1.01, doubt=0.005, overhead=0.15))


def test_a_gain_that_shares_do_not_attain() -> None:
    found = titles(made.record(gain=1.4, attained=1.1, **LIKE_NOTHING))
    assert (
        "1.40 times less noisy; those in force made it 1.10 times" in found["Give the shares room"]
    )
    assert "Give the shares room" not in titles(made.record(gain=1.4, attained=1.35))


def test_shares_that_do_harm_are_not_kept() -> None:
    plain = made.record("plain", mode="observe")
    found = titles(plain, made.record("bad", gain=1.24, attained=0.25, losses=[2.5] * 3))
    assert list(found) == ["Stop this set-up", "Change these shares"]
    assert "They make the gradient 4.00 times noisier" in found["Change these shares"]
    assert "best ones would make it 1.24 times less noisy" in found["Change these shares"]
    assert list(titles(made.record(gain=1.24, attained=0.25))) == ["Change these shares"]


def test_a_gain_that_the_loss_does_not_follow() -> None:
    found = titles(made.record("plain", mode="observe"), made.record("mixed"))
    text = found["Use the quieter gradient"]
    assert "learning rate" in text
    assert "a batch 1.17 times smaller" in text


@pytest.mark.parametrize(
    ("weights", "words"), [([0.5, 1.0, 1.5], "variance_aware"), ([1.0] * 3, "sampling=(low, high)")]
)
def test_harm(weights: list[float], words: str) -> None:
    harmful = made.record("mixed", losses=[2.5] * 3, weights=weights)
    assert words in titles(made.record("plain", mode="observe"), harmful)["Stop this set-up"]


def test_domains_of_importance_0_that_do_harm_are_to_be_left_out() -> None:
    """Policy "variance_aware", the advice against loss weights, would refuse them."""
    told = {"importance": [1.0, 0.0, 0.0]}
    plain = made.record("plain", mode="observe", configuration=told)
    weights = [0.5, 1.0, 1.5]
    mixed = made.record("mixed", losses=[2.5] * 3, weights=weights, configuration=told)
    assert "Leave code and news out" in titles(plain, mixed)["Stop this set-up"]
    assert 'Try policy="variance_aware"' not in titles(plain)


def test_domains_that_paid() -> None:
    mixed = made.record("mixed", losses=[2.2, 1.5, 1.5])
    found = titles(made.record("plain", mode="observe"), mixed)
    assert "controller.pin('web'" in found["Protect the domains that paid"]
    assert "Stop this set-up" not in found


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        ([9.0, 1.0, 0.5], "web was drawn up to 9.0 times over, all rows 3.5 times"),
        ([9.0, 9.0, 0.1], None),  # everything repeats, as its user wants
        ([3.0, 0.5, 0.5], None),
    ],
)
def test_repetition(epochs: list[float], words: str | None) -> None:
    found = titles(made.record(epochs=epochs, **LIKE_NOTHING))
    title = "Add rows, or bound the share, of what repeats"
    assert (title in found) == (words is not None)
    assert (words or "") in found.get(title, "")


def test_coverage() -> None:
    assert "Only 70 %" in titles(made.record(coverage=0.7))["See more of the model"]
    assert "See more of the model" not in titles(made.record(coverage=0.95))


def test_noise_needs_held_out_rows() -> None:
    title = "Measure noise on held-out rows"
    assert title in titles(made.record(cautions=[Caution("NoiseWarning", "rows repeat")]))
    needs = {"requires": ["noise"]}
    assert title in titles(made.record(epochs=[2.0, 1.0, 1.0], configuration=needs))
    assert title not in titles(made.record(configuration=needs))


def test_weights_that_stay_constant() -> None:
    title = "Keep these weights, drop the machinery"
    assert title in titles(made.record())
    assert title not in titles(made.record(**LIKE_NOTHING))
    assert title not in titles(made.record(mode="observe"))


def test_an_observed_run_hears_which_policy_would_help_and_why() -> None:
    found = titles(made.record(mode="observe", noise=[1.0, 4.0, 2.0]))
    assert found['Try policy="variance_aware"'].startswith("Variance:")
    assert (
        "the targets of code are 4.00 times as noisy as those of web"
        in (found['Try policy="joint"'])
    )
    assert all("what this run's measuring did, 1.2 % more" in text for text in found.values())
    assert 'Try policy="joint"' not in titles(made.record(mode="observe", noise=[1.0, 1.01, 1.0]))


def test_an_observed_run_hears_what_domains_lend_each_other() -> None:
    run = made.record(mode="observe", gain=1.01, doubt=0.01, **LIKE_NOTHING)
    helps = dict(zip(run.domains, map(made.constant, (0.0, 0.2, 0.15)), strict=True))
    found = titles(replace(run, by_domain={**run.by_domain, "helps": helps}))
    assert list(found) == ['Try policy="transfer"']
    assert "training on code and news as well takes 35 % of the mean" in found[next(iter(found))]


def test_domains_that_help_are_no_reason_to_remove_anything() -> None:
    importance = {"configuration": {"importance": [1.0, 0.0, 0.0]}}
    quiet: dict[str, Any] = {"gain": 1.01, "attained": 0.9, "doubt": 0.01, **importance}
    run = made.record(**quiet, shares=[0.4, 0.3, 0.3])
    lent = dict.fromkeys(run.domains[1:], made.constant(0.2))
    assert titles(replace(run, by_domain={**run.by_domain, "helps": lent})) == {}
    assert titles(made.record(mode="observe", **quiet)) == {}


def test_where_only_noise_differs_loss_weights_are_what_is_left_to_try() -> None:
    quiet: dict[str, Any] = {"mode": "observe", "gain": 1.01, "doubt": 0.01}
    assert list(titles(made.record(noise=[1.0, 4.0, 2.0], **quiet))) == ['Try policy="joint"']


def test_a_loss_that_rises_again() -> None:
    run = made.record(**LIKE_NOTHING)
    turned = Series(made.EVALUATIONS, np.abs(made.EVALUATIONS / 600 - 1.0) + 1.0)
    for name in run.domains:
        run.by_domain["heldout_loss"][name] = turned  # type: ignore[index]
    assert "lowest at step 600 and has risen by 100 %" in titles(run)["Stop earlier"]
    assert "Stop earlier" not in titles(made.record())


def test_runs_that_are_not_alike() -> None:
    plain = made.record("plain", mode="observe", configuration={"steps": 600, "unit": "token"})
    found = titles(plain, made.record("mixed"))
    assert "differ in unit and steps" in found["Compare like with like"]
