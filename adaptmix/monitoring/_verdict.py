"""The verdict: one sentence, and how sure it is. Made of figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptmix.monitoring._comparison import RESHUFFLED, Comparison, Outcome, same_objective
from adaptmix.monitoring._gains import NO_DIFFERENCE, Gains
from adaptmix.monitoring._groups import Group
from adaptmix.monitoring._record import RunRecord, unevaluated
from adaptmix.monitoring._words import (
    counted,
    figure,
    grouped,
    listed,
    number,
    sentence,
    share,
    signed,
    with_margin,
)

BETTER, WORSE, SAME, OPEN = "better", "worse", "same", "open"
_OBSERVE = (
    'Train once more with mode="observe" and the same seed, and give both runs to '
    "`adaptmix report`."
)
_EVALUATE = (
    "Call `controller.record_evaluation(losses)` with a held-out loss of every domain, at the same "
    "steps of every run. The Hugging Face Trainer's evaluations do so themselves, where "
    "`eval_loss_<domain>` is among their metrics."
)
_EARLIER = 0.01
# Shares that come so near to the best ones attain what these predict.
_ATTAINED = 0.01


@dataclass(frozen=True)
class Verdict:
    """What is said first.

    Attributes:
        tone: "better", "worse", "same", or "open" where nothing was compared.
        headline: a few words.
        sentence: one sentence.
        sure: how sure it is, one or two sentences.
    """

    tone: str
    headline: str
    sentence: str
    sure: str


def compared(comparison: Comparison, gain: Gains) -> Verdict:
    """Return the verdict on a group of runs that has a baseline."""
    outcome = comparison.objective
    if outcome is None:
        return _open(gain, *uncompared(comparison.baseline.runs + comparison.judged.runs))
    clauses = (variance(gain), heldout(outcome), earlier(outcome), paid(comparison))
    tone = {-1: BETTER, 0: SAME, 1: WORSE}[outcome.sign]
    headline = {BETTER: "It helped", SAME: "No difference shown", WORSE: "It did harm"}[tone]
    return Verdict(tone, headline, sentence([c for c in clauses if c]), how_sure(comparison))


def alone(group: Group, gain: Gains) -> Verdict:
    """Return the verdict on an adapting group that nothing is compared with."""
    if any(run.heldout() is None for run in group.runs):
        headline, why, how = uncompared(group.runs)
        how = f"{how} {_OBSERVE}"
    else:
        headline, how = "Nothing to compare with", _OBSERVE
        why = f"{_these(len(group.runs))} no observed run beside {_it(len(group.runs))}"
    return _open(gain, headline, why, how)


def _open(gain: Gains, headline: str, why: str, how: str) -> Verdict:
    clauses = [variance(gain), f"{why}, so whether the held-out loss is lower is not known"]
    return Verdict(OPEN, headline, sentence([clause for clause in clauses if clause]), how)


def uncompared(runs: Sequence[RunRecord]) -> tuple[str, str, str]:
    """Return why the held-out losses of runs cannot be compared.

    Returns:
        A headline, a clause that says what is missing, and what to do.
    """
    if not same_objective(runs):
        return (
            "Different objectives",
            "the runs have other domains, or weight them otherwise",
            "Give every run the same domains and the same `importance=`.",
        )
    without = [run.label for run in runs if not run.of("heldout_loss")]
    if len(without) == len(runs):
        why = f"{_these(len(runs))} no held-out losses"
        return "Held-out losses are missing", why, _EVALUATE
    if without:
        why = f"{listed(without)} {_has(len(without))} no held-out losses"
        return "Held-out losses are missing", why, _EVALUATE
    lacking = {name: None for run in runs for name in unevaluated(run)}
    if lacking:
        why = f"{listed(list(lacking))} {_has(len(lacking))} no held-out loss in every run"
        return "Not every domain was evaluated", why, _EVALUATE
    return (
        "Evaluated at different steps",
        "no step is there at which all domains of all runs were evaluated",
        "Evaluate all domains of every run at the same steps.",
    )


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def _these(count: int) -> str:
    return "this run has" if count == 1 else "these runs have"


def _it(count: int) -> str:
    return "it" if count == 1 else "them"


def observed(group: Group, gain: Gains) -> Verdict:
    """Return the verdict on runs that only measured."""
    if auxiliary := group.first.auxiliary:
        text = (
            f"an observed run draws no rows of {listed(auxiliary)}, whose importance is 0, so what "
            "training on them would gain is not known"
        )
        how = (
            'Train once more with `policy="transfer"` and the same seed, and give both runs to '
            "`adaptmix report`."
        )
        return Verdict(OPEN, "Only a baseline", sentence([text]), how)
    if not gain.known:
        text = "gradients were not measured, so what sampling would gain is not known"
        return Verdict(OPEN, "Not measured", sentence([text]), "Call `controller.watch(model)`.")
    estimate = gain.predicted
    interval = (
        f" (95 % interval {figure(max(estimate.low, 1.0))} to {figure(estimate.high)})"
        if estimate.sure
        else ""
    )
    source = {
        "seeds": f"The interval is that of {counted(len(group.runs), 'seed')}.",
        "estimates": "The interval follows from the standard errors of one run's statistics; "
        "what noise alone would predict is taken off.",
        "": "One run without standard errors does not tell how sure this is.",
    }[estimate.source]
    best = f"the best shares would make the gradient {figure(estimate.value)} times less noisy"
    if gain.nothing_to_gain:
        text = f"{best} at most{interval}"
        if estimate.value < 1.005:
            text = f"even the best shares would leave the gradient as noisy as it is{interval}"
        text = sentence([text, "sampling has nothing to gain here"])
        return Verdict(SAME, "Nothing to gain", text, source)
    if gain.worth_it:
        text = sentence([f"{best} than proportional sampling{interval}", _proposal(gain)])
        return Verdict(BETTER, "Worth a try", text, source)
    text = sentence([f"{best}{interval}", "whether that is more than nothing is not sure yet"])
    return Verdict(OPEN, "Not sure yet", text, f"{source} Observe for longer.")


def _proposal(gain: Gains) -> str:
    if not gain.proposed > 0.0:
        return ""
    if gain.proposed > gain.predicted.value - _ATTAINED:
        return "the policy's proposals attain that"
    if gain.proposed < 1.0 - NO_DIFFERENCE:
        return f"those that the policy proposes, {figure(1.0 / gain.proposed)} times noisier"
    return f"those that the policy proposes, {figure(gain.proposed)} times"


def variance(gain: Gains) -> str:
    """Return what the gradient gained, as a clause; "" when gradients were not measured."""
    attained = gain.attained
    if gain.lent >= 0.0:
        return f"other domains take {share(gain.lent)} of the gradient's mean squared error away"
    if not attained > 0.0:
        return ""
    if attained > 1.0 + NO_DIFFERENCE:
        return (
            f"sampling made the gradient {figure(attained)} times less noisy than proportional "
            "sampling"
        )
    if attained < 1.0 - NO_DIFFERENCE:
        return (
            f"sampling made the gradient {figure(1.0 / attained)} times noisier than proportional "
            "sampling"
        )
    return "sampling left the gradient as noisy as it was"


def heldout(outcome: Outcome) -> str:
    """Return how the held-out loss changed, as a clause."""
    change, after = outcome.change, f"after {grouped(outcome.step)} steps"
    if _alike(outcome):
        return f"held-out loss is the same to the last digit {after}"
    if outcome.sign == 0:
        moved = signed(change.value, change.margin)
        return f"held-out loss shows no difference {after} (change {moved})"
    words = "lower" if change.value < 0.0 else "higher"
    return f"held-out loss is {with_margin(abs(change.value), change.margin)} {words} {after}"


def _alike(outcome: Outcome) -> bool:
    """Whether every run ended exactly where its baseline did."""
    change = outcome.change
    return change.value == 0.0 and not (change.source == "seeds" and change.margin > 0.0)


def earlier(outcome: Outcome) -> str:
    """Return how much earlier the baseline's loss was reached; "" where it was not."""
    if outcome.sign >= 0 or outcome.saved < _EARLIER:
        return ""
    return f"the same loss {share(outcome.saved)} earlier"


def paid(comparison: Comparison) -> str:
    """Return which domains got worse, as a clause; "" where domains were not evaluated."""
    all_of_them, worse = len(comparison.domains), comparison.worse
    if all_of_them < 2:
        return ""
    if not worse:
        return "no domain is shown to be worse"
    if len(worse) == all_of_them:
        return f"all {counted(all_of_them, 'domain')} paid"
    return f"{number(len(worse))} of {counted(all_of_them, 'domain')} paid ({listed(worse)})"


def how_sure(comparison: Comparison) -> str:
    """Return what the intervals rest on."""
    outcome = comparison.objective
    source = "" if outcome is None else outcome.change.source
    runs = [len(group.runs) for group in (comparison.baseline, comparison.judged)]
    if outcome is not None and _alike(outcome):
        return (
            "Runs of one seed are alike: adapting moved nothing. Weights stay where the measured "
            "gain is not beyond chance."
        )
    if source == "seeds":
        seeds = (
            number(runs[0]) if runs[0] == runs[1] else f"{number(runs[0])} and {number(runs[1])}"
        )
        few = " Three or more seeds make it much narrower." if max(runs) < 3 else ""
        return f"± is a 95 % interval over {seeds} seeds.{few}"
    if source == "rows":
        return (
            "± is a 95 % interval from the standard errors of the held-out rows; it is wider than "
            "it need be where both runs were evaluated on the same rows, and does not hold what "
            "another seed would change. Train three seeds each to be sure."
        )
    return (
        f"One run each, and no standard errors. Another order of the rows alone moves such a loss "
        f"by up to {share(RESHUFFLED)}, so a smaller change counts as none. Train three seeds "
        "each to be sure."
    )
