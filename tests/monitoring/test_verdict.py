"""Sentences, each from figures that are known.

Also tests ``monitoring/_comparison.py`` and ``monitoring/_gains.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adaptmix.monitoring import RunRecord, Series
from adaptmix.monitoring import _verdict as verdict
from adaptmix.monitoring._comparison import compare
from adaptmix.monitoring._gains import gains
from adaptmix.monitoring._groups import grouped
from adaptmix.monitoring._verdict import Verdict
from tests.monitoring import made


def judge(before: list[RunRecord], after: list[RunRecord]) -> Verdict:
    baseline, judged = grouped([*before, *after])
    return verdict.compared(compare(baseline, judged), gains(judged))


def test_better_with_standard_errors_of_rows() -> None:
    # Errors of a mean over three: √(3 · 0.006² / 9) = 0.00346; of a difference 0.0049, × 1.96.
    errors = [0.006] * 3
    said = judge(
        [made.record("plain", mode="observe", losses=[2.0] * 3, errors=errors)],
        [made.record("mixed", losses=[2.03, 1.96, 1.947], errors=errors)],
    )
    assert said.tone == "better"
    assert said.headline == "It helped"
    # The mean falls from 3 to 1.979 in 1200 steps and passes 2.0 at 1200 / 1.021 = 1175.3.
    assert said.sentence == (
        "Sampling made the gradient 1.17 times less noisy than proportional sampling; held-out "
        "loss is 0.0210 ± 0.0096 lower after 1\u202f200 steps; the same loss 2.1 % earlier; one "
        "of three domains paid (web)."
    )
    assert said.sure.startswith("± is a 95 % interval from the standard errors of the held-out")


def test_better_over_seeds_that_are_paired() -> None:
    # Changes −0.1, −0.12, −0.08: mean −0.1, deviation 0.02, × 4.303 / √3.
    said = judge(
        made.seeds("plain", [2.0, 2.2, 2.1], mode="observe"),
        made.seeds("mixed", [1.9, 2.08, 2.02]),
    )
    assert "held-out loss is 0.100 ± 0.050 lower" in said.sentence
    assert "no domain is shown to be worse" in said.sentence
    assert said.sure == "± is a 95 % interval over three seeds."


def test_two_seeds_are_few() -> None:
    said = judge(made.seeds("plain", [2.0, 2.2], mode="observe"), made.seeds("mixed", [1.9, 2.11]))
    assert said.sure == (
        "± is a 95 % interval over two seeds. Three or more seeds make it much narrower."
    )


def test_no_difference() -> None:
    said = judge(
        [made.record("plain", mode="observe", losses=[2.0] * 3)],
        [made.record("mixed", losses=[1.99] * 3, attained=1.0)],
    )
    assert (said.tone, said.headline) == ("same", "No difference shown")
    assert said.sentence == (
        "Sampling left the gradient as noisy as it was; held-out loss shows no difference after "
        "1\u202f200 steps (change −0.0100); no domain is shown to be worse."
    )
    assert "Another order of the rows alone moves such a loss by up to 1.0 %" in said.sure


def test_runs_that_are_alike_to_the_last_digit() -> None:
    levels = [2.0, 2.2, 2.1]
    said = judge(
        made.seeds("plain", levels, mode="observe", gain=1.01),
        made.seeds("mixed", levels, gain=1.01, attained=1.0),
    )
    assert said.headline == "No difference shown"
    assert "; held-out loss is the same to the last digit after 1\u202f200 steps;" in said.sentence
    assert said.sure.startswith("Runs of one seed are alike: adapting moved nothing")
    errors = [0.01] * 3
    single = judge(
        [made.record("plain", mode="observe", errors=errors)], [made.record("mixed", errors=errors)]
    )
    assert "held-out loss is the same to the last digit" in single.sentence


def test_worse() -> None:
    said = judge(
        made.seeds("plain", [2.0, 2.0, 2.0], mode="observe"),
        made.seeds("mixed", [2.1, 2.11, 2.12], attained=0.8),
    )
    assert (said.tone, said.headline) == ("worse", "It did harm")
    assert said.sentence == (
        "Sampling made the gradient 1.25 times noisier than proportional sampling; held-out loss "
        "is 0.110 ± 0.025 higher after 1\u202f200 steps; all three domains paid."
    )


@pytest.mark.parametrize(
    ("losses", "clause"),
    [
        ([1.9, 1.9, 1.9], "no domain is shown to be worse"),
        ([2.1, 1.7, 1.7], "one of three domains paid (web)"),
        ([2.1, 2.1, 1.5], "two of three domains paid (web and code)"),
        ([2.1, 2.1, 2.1], "all three domains paid"),
    ],
)
def test_domains_that_paid_are_counted_and_named(losses: list[float], clause: str) -> None:
    baseline, judged = grouped(
        [made.record("plain", mode="observe"), made.record("mixed", losses=losses)]
    )
    assert verdict.paid(compare(baseline, judged)) == clause


def test_one_domain_is_not_counted() -> None:
    one: dict[str, Any] = {
        "names": ["web"],
        "shares": [1.0],
        "weights": [1.0],
        "epochs": [1.0],
    }
    baseline, judged = grouped(
        [
            made.record("plain", mode="observe", losses=[2.0], **one),
            made.record("mixed", losses=[1.5], **one),
        ]
    )
    assert verdict.paid(compare(baseline, judged)) == ""


def test_gradients_that_were_not_measured_are_not_spoken_of() -> None:
    said = judge(
        [made.record("plain", mode="observe", gradients=False)],
        [made.record("mixed", losses=[1.5] * 3, gradients=False)],
    )
    assert said.sentence.startswith("Held-out loss is 0.500 lower")


def test_a_run_alone_is_not_judged() -> None:
    (group,) = grouped([made.record()])
    said = verdict.alone(group, gains(group))
    assert said.tone == "open"
    assert "no observed run beside it, so whether" in said.sentence
    assert 'mode="observe"' in said.sure


def test_a_run_alone_without_held_out_losses_hears_of_both() -> None:
    (group,) = grouped([made.record(losses=None)])
    said = verdict.alone(group, gains(group))
    assert said.headline == "Held-out losses are missing"
    assert said.sentence.endswith(
        "this run has no held-out losses, so whether the held-out loss is lower is not known."
    )
    assert "record_evaluation" in said.sure
    assert 'mode="observe"' in said.sure


def unlike(**changes: Any) -> RunRecord:
    """A run whose held-out losses lack something."""
    run = made.record("mixed", **changes.pop("made", {}))
    table = {**run.by_domain, **changes}
    return replace(run, by_domain={key: value for key, value in table.items() if value})


LATE = Series(made.EVALUATIONS + 1, np.ones(made.EVALUATIONS.size))


@pytest.mark.parametrize(
    ("before", "after", "headline", "words"),
    [
        (None, {"heldout_loss": {}}, "Held-out losses are missing", "these runs have no held-out"),
        (
            (2.0, 2.0, 2.0),
            {"heldout_loss": {}},
            "Held-out losses are missing",
            "mixed has no held-out losses, so whether",
        ),
        (
            (2.0, 2.0, 2.0),
            {"heldout_loss": {"web": LATE}},
            "Not every domain was evaluated",
            "code and news have no held-out loss in every run",
        ),
        (
            (2.0, 2.0, 2.0),
            {"heldout_loss": dict.fromkeys(("web", "code", "news"), LATE)},
            "Evaluated at different steps",
            "no step is there at which all domains",
        ),
        (
            (2.0, 2.0, 2.0),
            {"made": {"configuration": {"importance": [0.5, 0.3, 0.2]}}},
            "Different objectives",
            "the runs have other domains, or weight them otherwise",
        ),
        (
            (2.0, 2.0, 2.0),
            {"made": {"names": ("web", "code", "books")}},
            "Different objectives",
            "the runs have other domains, or weight them otherwise",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_told_what_is_missing(
    before: tuple[float, ...] | None, after: dict[str, Any], headline: str, words: str
) -> None:
    said = judge([made.record("plain", mode="observe", losses=before)], [unlike(**after)])
    assert (said.tone, said.headline) == ("open", headline)
    assert words in said.sentence
    assert said.sentence.startswith("Sampling made the gradient 1.17 times less noisy")
    assert said.sentence.endswith("so whether the held-out loss is lower is not known.")
    assert said.sure


@pytest.mark.parametrize(
    ("options", "headline", "words"),
    [
        (
            {"gain": 1.2, "doubt": 0.02},
            "Worth a try",
            "The best shares would make the gradient 1.20 times less noisy than proportional "
            "sampling (95 % interval 1.16 to 1.24); those that the policy proposes, 1.18 times.",
        ),
        (
            {"gain": 1.2, "doubt": 0.02, "proposed": 1.21},
            "Worth a try",
            "(95 % interval 1.16 to 1.24); the policy's proposals attain that.",
        ),
        (
            {"gain": 1.2, "doubt": 0.02, "proposed": 0.8},
            "Worth a try",
            "those that the policy proposes, 1.25 times noisier.",
        ),
        (
            {"gain": 1.02, "doubt": 0.01},
            "Nothing to gain",
            "The best shares would make the gradient 1.02 times less noisy at most (95 % interval "
            "1.00 to 1.04); sampling has nothing to gain here.",
        ),
        (
            {"gain": 1.0, "doubt": 0.01},
            "Nothing to gain",
            "Even the best shares would leave the gradient as noisy as it is (95 % interval 1.00 "
            "to 1.02); sampling has nothing to gain here.",
        ),
        (
            {"gain": 1.2, "doubt": 0.15},
            "Not sure yet",
            "(95 % interval 1.00 to 1.49); whether that is more than nothing is not sure yet.",
        ),
        ({"gain": 1.2, "doubt": None}, "Worth a try", "1.20 times less noisy than proportional"),
        ({"gradients": False}, "Not measured", "Gradients were not measured, so"),
    ],
)
def test_observed_runs_are_judged_by_what_they_predict(
    options: dict[str, Any], headline: str, words: str
) -> None:
    (group,) = grouped([made.record(mode="observe", **options)])
    said = verdict.observed(group, gains(group))
    assert said.headline == headline
    assert words in said.sentence


def transferred(label: str, *, mode: str, helps: float | None = None, **options: Any) -> RunRecord:
    """A run with a domain that counts and two that are there to help it."""
    importance: dict[str, Any] = {"configuration": {"importance": [1.0, 0.0, 0.0]}}
    run = made.record(label, mode=mode, gain=1.01, attained=0.9, **importance, **options)
    if helps is None:
        return run
    lent = {name: made.constant(helps / 2) for name in run.domains[1:]}
    return replace(run, by_domain={**run.by_domain, "helps": lent})


def test_runs_that_draw_no_helping_rows_are_a_baseline_only() -> None:
    (group,) = grouped([transferred("plain", mode="observe")])
    said = verdict.observed(group, gains(group))
    assert (said.tone, said.headline) == ("open", "Only a baseline")
    assert "draws no rows of code and news, whose importance is 0" in said.sentence
    assert 'policy="transfer"' in said.sure


def test_what_domains_lend_stands_in_place_of_a_variance_that_is_not_aimed_at() -> None:
    said = judge(
        [transferred("plain", mode="observe")],
        [transferred("mixed", mode="adapt", helps=0.66, losses=[1.5, 3.0, 3.0])],
    )
    assert said.headline == "It helped"
    assert said.sentence.startswith(
        "Other domains take 66 % of the gradient's mean squared error away; held-out loss is 0.500 "
        "lower"
    )


@pytest.mark.parametrize(
    ("attained", "text"),
    [
        (1.2, "1.15 times less noisy"),  # all of the bias
        (1.1, "1.07 times less noisy"),  # half of it
        (1.0, "left the gradient as noisy as it was"),
        (0.8, "1.25 times noisier"),
    ],
)
def test_what_noise_alone_would_predict_is_taken_off(attained: float, text: str) -> None:
    run = made.record(gain=1.2, attained=attained)
    overall = {**run.overall, "predicted_gain_bias": made.constant(0.05)}
    (group,) = grouped([replace(run, overall=overall)])
    assert text in verdict.variance(gains(group))


def test_observed_seeds_give_the_interval() -> None:
    runs = [made.record(f"o-{i}", mode="observe", seed=i, gain=1.2 + 0.02 * i) for i in range(3)]
    (group,) = grouped(runs)
    said = verdict.observed(group, gains(group))
    # Mean 1.22, deviation 0.02, × 4.303 / √3 = 0.0497.
    assert "1.22 times less noisy than proportional sampling (95 % interval 1.17 to 1.27)" in (
        said.sentence
    )
    assert said.sure == "The interval is that of three seeds."
