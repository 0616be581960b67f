"""Advice, stated as such: what the figures suggest to do next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from adaptmix.monitoring import _words as words
from adaptmix.monitoring._comparison import Comparison
from adaptmix.monitoring._exports import StaticWeights, steady
from adaptmix.monitoring._gains import NO_DIFFERENCE, Gains
from adaptmix.monitoring._groups import Group
from adaptmix.monitoring._words import figure, listed, share

KEEP = "Keep these weights, drop the machinery"
_COVERED = 0.9
# Drawn so many times over, and so much more often than all rows on average.
_TIMES_OVER, _MORE_THAN_ALL = 4.0, 2.0
_MOVED = 0.05
# A smaller gain is shown as 1.00.
_SHOWN = 1.005
_NOT_ATTAINED = 0.5
_RISEN = 0.02
# What must be alike for two groups to train the same objective on the same rows.
_ALIKE = {
    "domains": "domains",
    "importance": "importance",
    "sizes": "rows per domain",
    "unit": "unit",
    "rows_per_step": "rows per step",
    "steps": "steps",
}


@dataclass(frozen=True)
class Advice:
    """One thing to do.

    Attributes:
        title: what to do, in a few words.
        text: why, and how.
    """

    title: str
    text: str


def advise(group: Group, gain: Gains, comparison: Comparison | None) -> list[Advice]:
    """Return what the figures of a group, and its comparison if there is one, suggest."""
    found = [
        *_baseline(comparison),
        *_harm(comparison),
        *_nothing_to_gain(group, gain, comparison),
        *_dear(group, gain),
        *_not_attained(group, gain, comparison),
        *_past_the_best(group),
        *_policies(group, gain),
        *_repetition(group),
        *_coverage(group),
        *_noise(group),
        *_constant(group, gain, comparison),
    ]
    return list({item.title: item for item in found}.values())


def _baseline(comparison: Comparison | None) -> Iterator[Advice]:
    if comparison is None:
        return
    one, other = comparison.baseline.first.configuration, comparison.judged.first.configuration
    apart = [
        words
        for key, words in _ALIKE.items()
        if key in one and key in other and one[key] != other[key]
    ]
    if apart:
        yield Advice(
            "Compare like with like",
            f"The runs compared differ in {listed(apart)}, so their losses may differ for that "
            "reason. Observe with the settings of the run that adapts.",
        )


def _nothing_to_gain(group: Group, gain: Gains, comparison: Comparison | None) -> Iterator[Advice]:
    helped = comparison is not None and comparison.objective and comparison.objective.sign < 0
    other = _weighted(group) or gain.lent > 0.0 or (group.observing and _other_policies(group))
    if gain.nothing_to_gain and not other and not helped:
        value = gain.predicted.value
        best = "even the best shares would leave a step's gradient as noisy as it is."
        if value >= _SHOWN:
            best = (
                f"the best shares would make a step's gradient {figure(value)} times less noisy "
                "than proportional sampling."
            )
        yield Advice(
            "Remove AdaptMix",
            f"Domains' gradients are about equally noisy: {best} "
            "Train without it, and measure again when the mixture or the model changes.",
        )


def _other_policies(group: Group) -> bool:
    """Whether something else than the gradient's variance speaks for a policy."""
    return (
        bool(group.first.auxiliary)
        or _noise_apart(group) is not None
        or any(True for _ in _transfer(group))
    )


def _weighted(group: Group) -> bool:
    """Whether loss weights moved."""
    moved = [np.abs(run.final("loss_weight") - 1.0) for run in group.runs]
    return any(np.nanmax(each, initial=0.0) > _MOVED for each in moved)


def _dear(group: Group, gain: Gains) -> Iterator[Advice]:
    """Tell when a larger batch would make gradients as quiet for less time."""
    predicted, cost = gain.predicted.value, group.overhead
    lent = gain.lent > 0.0 or group.first.auxiliary
    if gain.known and not gain.nothing_to_gain and not lent and predicted - 1.0 < cost:
        yield Advice(
            "Pay less for the gain",
            f"Measuring takes {share(cost)} more time. A batch {figure(predicted)} times larger "
            f"makes the gradient as quiet as the best shares do, for at most "
            f"{share(predicted - 1.0)}. Measure less often (`update_every=`), or take the larger "
            "batch. The share of measuring falls as steps take longer.",
        )


def _not_attained(group: Group, gain: Gains, comparison: Comparison | None) -> Iterator[Advice]:
    if group.observing or not gain.worth_it or not gain.attained > 0.0:
        return
    predicted = gain.predicted.value
    if gain.attained < 1.0 - NO_DIFFERENCE:
        yield Advice(
            "Change these shares",
            f"They make the gradient {figure(1.0 / gain.attained)} times noisier than proportional "
            f"sampling does; the best ones would make it {figure(predicted)} times less noisy. "
            'Take off bounds (`pin`, `lower=`), or use `policy="variance_aware"`.',
        )
    elif gain.attained - 1.0 < _NOT_ATTAINED * (predicted - 1.0):
        yield Advice(
            "Give the shares room",
            f"The best shares would make the gradient {figure(predicted)} times less noisy; those "
            f"in force made it {figure(gain.attained)} times. Bounds (`pin`, `lower=`), a small "
            "batch, or statistics that change faster than `half_life` hold them back.",
        )
    elif comparison is not None and comparison.objective and comparison.objective.sign >= 0:
        yield Advice(
            "Use the quieter gradient",
            f"The gradient became {figure(gain.attained)} times less noisy, and the held-out loss "
            "did not follow. A quieter gradient pays when noise limits training: try a higher "
            f"learning rate, a batch {figure(gain.attained)} times smaller, or look at "
            "an earlier step; at the end of a decayed schedule little is left of it.",
        )


def _harm(comparison: Comparison | None) -> Iterator[Advice]:
    if comparison is None or comparison.objective is None:
        return
    judged = comparison.judged
    if comparison.objective.sign > 0:
        if auxiliary := judged.first.auxiliary:
            how = f"Leave {listed(auxiliary)} out, and train on the domains that count alone."
        elif _weighted(judged):
            how = (
                'Loss weights moved, which changes the objective: use `policy="variance_aware"`, '
                "which leaves it as it is, or bound them with `controller.pin(domain, loss=(low, "
                "high))`."
            )
        else:
            how = (
                "Bound the shares with `controller.pin(domain, sampling=(low, high))`, or go back "
                "to training without AdaptMix."
            )
        yield Advice("Stop this set-up", f"Held-out loss is higher than the baseline's. {how}")
    elif comparison.worse:
        first = comparison.worse[0]
        it, its = ("it", "its") if len(comparison.worse) == 1 else ("them", "their")
        yield Advice(
            "Protect the domains that paid",
            f"The held-out loss of {listed(comparison.worse)} is higher than the baseline's. Bound "
            f"{it}, for instance "
            f"`controller.pin({first!r}, sampling=(low, high))`, or raise {its} importance.",
        )


def _past_the_best(group: Group) -> Iterator[Advice]:
    """Tell of a held-out loss that has long been rising again."""
    curve = group.first.heldout()
    if curve is None:
        return
    best = int(curve.values.argmin())
    risen = curve.last - float(curve.values[best])
    if best < curve.values.size - 2 and risen > _RISEN * abs(float(curve.values[best])):
        yield Advice(
            "Stop earlier",
            f"The held-out loss was lowest at step {words.grouped(int(curve.steps[best]))} and has "
            f"risen by {share(risen / abs(float(curve.values[best])))} since: the model learns its "
            "rows by heart. Train for fewer steps, regularise, or add rows.",
        )


def _policies(group: Group, gain: Gains) -> Iterator[Advice]:
    """Say which policy would help an observed run, and why."""
    if not group.observing:
        return
    # It refuses domains of importance 0; "transfer" moves the shares of those that count, too.
    if gain.worth_it and not group.first.auxiliary:
        yield Advice(
            'Try policy="variance_aware"',
            "Variance: domains' gradients differ in noise, so shares can make a step's gradient "
            f"{figure(gain.predicted.value)} times less noisy. It leaves the objective as it is."
            f"{_price(group)}",
        )
    yield from _transfer(group)
    apart = _noise_apart(group)
    if apart is not None:
        noisy, quiet, ratio = apart
        yield Advice(
            'Try policy="joint"',
            f"Noise: the targets of {noisy} are {figure(ratio)} times as noisy as those of "
            f"{quiet}. Loss weights against noise can help where all domains learn the same "
            f"thing; they change the objective, so compare held-out losses.{_price(group)} "
            "Where labels are wrong at random, this policy does little: try "
            'policy="fgls+variance_aware" there.',
        )


def _transfer(group: Group) -> Iterator[Advice]:
    """Say what domains lend each other, where the policy that observed could tell."""
    run = group.first
    helps = np.nan_to_num(run.final("helps"))
    if helps.sum() > _MOVED:
        names = [run.domains[i] for i in np.argsort(-helps, kind="stable") if helps[i] > 0.0]
        yield Advice(
            'Try policy="transfer"',
            f"Transfer: training on {listed(names)} as well takes {share(float(helps.sum()))} of "
            "the mean squared error of the gradient that counts away. It changes the objective, so "
            f"compare held-out losses.{_price(group)}",
        )


def _price(group: Group) -> str:
    """Return what a policy costs: adapting measures what observing measures."""
    cost = group.overhead
    return f" It costs what this run's measuring did, {share(cost)} more time." if cost >= 0 else ""


def _noise_apart(group: Group) -> tuple[str, str, float] | None:
    """Return the noisiest domain, the quietest and their ratio, where they surely differ."""
    run = group.first
    noise, error = run.final("noise"), np.nan_to_num(run.final("noise_error"), nan=np.inf)
    known = np.flatnonzero(np.isfinite(noise) & np.isfinite(error) & (noise > 0.0))
    if known.size < 2:
        return None
    noisy, quiet = known[noise[known].argmax()], known[noise[known].argmin()]
    # Extremes of K are further apart than two chosen beforehand: 3 errors instead of 2.
    sure = noise[noisy] - 3.0 * error[noisy] > 1.2 * (noise[quiet] + 3.0 * error[quiet])
    if not sure:
        return None
    return run.domains[noisy], run.domains[quiet], float(noise[noisy] / noise[quiet])


def _repetition(group: Group) -> Iterator[Advice]:
    run = group.first
    epochs, seen = run.final("epochs"), run.final("samples_seen")
    known = (epochs > 0.0) & (seen > 0.0)
    if not known.any():
        return
    mean = float(seen[known].sum() / (seen[known] / epochs[known]).sum())
    often = known & (epochs > max(_TIMES_OVER, _MORE_THAN_ALL * mean))
    if often.any():
        names = [run.domains[i] for i in np.flatnonzero(often)]
        most = run.domains[int(np.where(often, epochs, 0.0).argmax())]
        yield Advice(
            "Add rows, or bound the share, of what repeats",
            f"{listed(names)} {'was' if len(names) == 1 else 'were'} drawn up to "
            f"{epochs[often].max():.1f} times over, all rows {mean:.1f} times on average. A model "
            "learns such rows by heart, and their gradients look less noisy than new ones' would. "
            f"Bound it with `controller.pin({most!r}, sampling=(0, high))`.",
        )


def _coverage(group: Group) -> Iterator[Advice]:
    covered = group.first.overall.get("coverage")
    if covered is not None and covered.last < _COVERED:
        yield Advice(
            "See more of the model",
            f"Only {share(covered.last)} of the gradient is measured, so shares may follow the "
            "wrong part of it. Register a rule for the modules listed under Warnings "
            "(`adaptmix.register_rule`).",
        )


def _noise(group: Group) -> Iterator[Advice]:
    kinds = {caution.kind for run in group.runs for caution in run.cautions}
    needs = "noise" in group.first.configuration.get("requires", [])
    epochs = group.first.final("epochs")
    repeats = needs and np.nanmax(epochs, initial=0.0) > 1.0
    if "NoiseWarning" in kinds or (repeats and "noise" not in group.first.by_domain):
        yield Advice(
            "Measure noise on held-out rows",
            "Rows that were trained on look less noisy than they are, and loss weights answer to "
            'noise. Leave `holdout` at "auto", or pass terms of rows of your own: '
            "`controller.record_noise(terms, domain)`.",
        )


def _constant(group: Group, gain: Gains, comparison: Comparison | None) -> Iterator[Advice]:
    harmful = comparison is not None and comparison.objective and comparison.objective.sign > 0
    if group.observing or harmful or gain.attained < 1.0 - NO_DIFFERENCE or gain.lent >= 0.0:
        return
    weights = steady(group)
    if weights is not None and _off(weights):
        yield Advice(
            KEEP,
            "Shares and loss weights did not move in the second half of the run. The lines below "
            "train the same objective without measuring anything.",
        )


def _off(weights: StaticWeights) -> bool:
    """Whether weights differ from those of a run without AdaptMix."""
    moved = np.abs(weights.sampling - weights.importance) / np.maximum(weights.importance, 1e-12)
    return bool(max(moved.max(), np.abs(weights.loss - 1.0).max()) > _MOVED)
