"""Fixed weights, as lines to paste into a trainer's configuration."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import Weights
from adaptmix.monitoring._groups import Group
from adaptmix.monitoring._record import RunRecord, Series

# Shares and loss weights that move by less over the second half of a run stay as they are.
_STEADY = 0.05
_PLAIN = re.compile(r"[A-Za-z_][\w,-]*")


@dataclass(frozen=True, eq=False)
class StaticWeights:
    """Weights that do not change.

    Attributes:
        names: K domains.
        importance: (K,) π.
        sampling: (K,) p, which sums to one.
        loss: (K,) w; NaN where a domain only helps.
        objective: (K,) share of each domain in what is trained, which sums to one.
    """

    names: tuple[str, ...]
    importance: FloatArray
    sampling: FloatArray
    loss: FloatArray
    objective: FloatArray

    @classmethod
    def of(cls, names: tuple[str, ...], weights: Weights) -> StaticWeights:
        """Return the weights of domains ``names`` as they are."""
        return cls(names, weights.importance, weights.sampling, weights.loss, weights.objective)


def steady(group: Group) -> StaticWeights | None:
    """Return what a group's runs settled on, mean over the second half; None if it kept moving."""
    shares, losses = [], []
    for run in group.runs:
        sampling, loss = (_settled(run, name) for name in ("sampling_weight", "loss_weight"))
        if sampling is None or loss is None:
            return None
        shares.append(sampling)
        losses.append(loss)
    sampling, loss, first = np.mean(shares, 0), np.mean(losses, 0), group.first
    used = first.importance * loss
    return StaticWeights(
        first.domains, first.importance, sampling / sampling.sum(), loss, used / used.sum()
    )


def _settled(run: RunRecord, quantity: str) -> FloatArray | None:
    """Return (K,) means over the second half; None if one moved or is not known."""
    table = run.of(quantity)
    means = []
    for name in run.domains:
        late = _second_half(table[name]) if name in table else None
        if late is None or np.ptp(late) > 2.0 * _STEADY * max(late.mean(), 1e-12):
            return None
        means.append(float(late.mean()))
    return np.array(means)


def _second_half(series: Series) -> FloatArray | None:
    late: FloatArray = series.values[series.steps >= series.steps[-1] / 2]
    return late if late.size > 2 else None


def adaptmix_lines(weights: StaticWeights) -> str:
    """Return the policy of these weights, which measures nothing and keeps what was gained."""
    sampling = _mapping(weights.names, weights.sampling)
    loss = _mapping(weights.names, weights.loss)
    return f"policy=policies.Static(\n    sampling={sampling},\n    loss={loss},\n)"


def mixture_lines(weights: StaticWeights) -> dict[str, str]:
    """Return the lines for trainers that know mixing proportions and no loss weights, by trainer.

    These draw each domain by its share of the *objective*, so that the same thing is trained. With
    the shares of ``sampling`` instead, each row's loss would have to be multiplied by π w / p.
    """
    shares = [round(float(share), 4) for share in weights.objective]
    named = list(zip(map(_quoted, weights.names), shares, strict=True))
    listed = ",".join(f"{share:g}" for share in shares)
    streams = "".join(f"  {name}:\n    proportion: {share:g}\n" for name, share in named)
    blend = "".join(f"  - {share:g}\n  - {name}\n" for name, share in named)
    return {
        "LLaMA-Factory": (
            f"dataset: {_quoted(','.join(weights.names))}\nmix_strategy: interleave_over\n"
            f"interleave_probs: {listed}"
        ),
        "LLM Foundry, Streaming": f"streams:\n{streams}".rstrip(),
        "NeMo, Megatron": f"data_prefix:\n{blend}".rstrip(),
        "Hugging Face datasets": f"interleave_datasets(parts, probabilities=[{listed}])",
    }


def lines_to_paste(weights: StaticWeights, *, unit: str) -> str:
    """Return all of these lines, each kind below a comment that names its trainer.

    Args:
        weights: to keep.
        unit: "sample" or "token", which shares are shares of.
    """
    by_trainer = mixture_lines(weights)
    if not np.isnan(weights.loss).any():
        by_trainer = {"AdaptMix, without measuring": adaptmix_lines(weights), **by_trainer}
    told = (
        f"Lines to paste, as weights are now. Mixing proportions are shares of the objective, in "
        f"{unit}s, so that the same thing is trained without loss weights."
    )
    return "\n\n".join([told, *(f"# {name}\n{lines}" for name, lines in by_trainer.items())])


def _mapping(names: tuple[str, ...], values: FloatArray) -> str:
    return json.dumps(
        {name: round(float(value), 4) for name, value in zip(names, values, strict=True)},
        ensure_ascii=False,
    )


def _quoted(name: str) -> str:
    """Return a name as YAML takes it."""
    return name if _PLAIN.fullmatch(name) else json.dumps(name)
