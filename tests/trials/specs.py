"""What one trial is: a run in parts, each stopped or killed, each resumed in another way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.trials.reference import Rules, Stages, scaled


@dataclass(frozen=True)
class Part:
    """What processes train between two stops.

    Attributes:
        mixture: number of the mixture; another one is loaded with ``changed=True``.
        sizes, importance, epochs: of its domains, by name; only some have ``max_epochs``.
        stages, sampling: of the schedules, if any, and how they go over into each other.
        world, workers, accumulation: how it is trained.
        horizon: steps of the whole run.
        passes: the same in epochs of the loader; 0 where steps are asked for.
        steps: after how many to save and stop; the rest of the run when None.
        killed: after which step of this part, and how many seconds later; never when None.
    """

    mixture: int
    sizes: dict[str, int]
    importance: dict[str, float]
    epochs: dict[str, float]
    stages: Stages | None
    sampling: Stages | None
    horizon: int
    passes: int
    world: int = 1
    workers: int = 0
    accumulation: int = 1
    steps: int | None = None
    killed: tuple[int, float] | None = None


@dataclass(frozen=True)
class Spec:
    """A run.

    Attributes:
        parts: in the order in which they are trained.
        pins: by step, after which a domain's share is held: (name, share).
    """

    seed: int
    size: int
    lag: int
    policy: str
    way: str
    counts: str
    held: int
    update_every: int
    measure_every: int
    save_every: int
    pins: dict[int, tuple[str, float]]
    parts: tuple[Part, ...]

    def rules(self, part: Part) -> Rules:
        """What the reference is told of a part."""
        return Rules(
            sizes=part.sizes,
            way=self.way,
            epochs=part.epochs,
            seed=self.seed,
            size=self.size,
            horizon=part.horizon,
            multinomial=self.counts == "multinomial",
            held=self.held,
            every=self.measure_every,
            factors=part.stages if part.sampling is None else part.sampling,
        )

    def prior(self, part: Part) -> list[float]:
        """Importance of a part's domains; of schedules the mean of the stages."""
        if part.stages is None:
            return scaled([part.importance[name] for name in part.sizes])
        names = list(part.sizes)
        stages = [part.stages.at(start, names) for start in part.stages.weights]
        return [sum(column) / len(stages) for column in zip(*stages, strict=True)]

    def first_shares(self, part: Part) -> list[float]:
        """The shares that a run begins with, before a policy says anything."""
        if part.sampling is None:
            return self.prior(part)
        return self.prior(replace(part, stages=part.sampling))


def random_spec(seed: int) -> Spec:
    """Return the spec of a number."""
    rng = np.random.default_rng((2026, seed))

    def chosen(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    policy = chosen("jumping", "jumping", "static", "temperature", "variance_aware", "transfer")
    way = chosen("repeat", "repeat", "drop", "stop_first", "stop_all")
    capped = bool(rng.random() < 0.6)
    counts = (
        "stratified" if capped or way in ("drop", "repeat") else chosen("stratified", "multinomial")
    )
    scheduled = chosen("", "", "importance", "sampling", "both")
    size = 8
    passes = int(rng.integers(1, 4)) if rng.random() < 0.3 else 0
    steps = int(rng.integers(6, 25))
    spec = Spec(
        seed=int(rng.integers(4)),
        size=size,
        lag=int(rng.integers(0, 6)),
        policy=policy,
        way=way,
        counts=counts,
        held=int(rng.choice([0, 0, 1, 4])) if policy != "transfer" else 2,
        update_every=int(rng.integers(1, 4)),
        measure_every=int(rng.integers(1, 4)),
        save_every=int(rng.integers(1, 5)),
        pins={int(rng.integers(steps)): ("d0", 0.3)}
        if not scheduled and rng.random() < 0.3
        else {},
        parts=(),
    )
    sizes = {f"d{i}": int(rng.integers(5, 50)) for i in range(int(rng.integers(2, 6)))}
    mixture: Part | None = None
    parts: list[Part] = []
    number = int(rng.integers(2, 5))
    for place in range(number):
        if mixture is None or rng.random() < 0.35:
            if mixture is not None:
                sizes = _changed(sizes, rng)
            mixture = _mixture(
                len(parts),
                sizes,
                rng,
                spec=spec,
                steps=steps,
                passes=passes,
                capped=capped,
                scheduled=scheduled,
            )
        part = _trained_in_some_way(mixture, spec, rng)
        if place < number - 1:
            if rng.random() < 0.5:
                part = replace(part, killed=(int(rng.integers(0, 8)), float(rng.uniform(0, 0.02))))
            else:
                part = replace(part, steps=int(rng.integers(1, 9)))
        parts.append(part)
    return replace(spec, parts=tuple(parts))


def _changed(sizes: dict[str, int], rng: np.random.Generator) -> dict[str, int]:
    """Return other domains: one is new, one is gone, one has more rows; "d0" stays."""
    found = dict(sizes)
    later = [name for name in found if name != "d0"]
    if len(later) > 1 and rng.random() < 0.6:
        del found[later[int(rng.integers(len(later)))]]
    if rng.random() < 0.6:
        found[f"d{10 + int(rng.integers(5))}"] = int(rng.integers(5, 50))
    if rng.random() < 0.6:
        found["d0"] += int(rng.integers(1, 5))
    names = rng.permutation(list(found)).tolist()
    return {name: found[name] for name in names}


def _mixture(
    number: int,
    sizes: dict[str, int],
    rng: np.random.Generator,
    *,
    spec: Spec,
    steps: int,
    passes: int,
    capped: bool,
    scheduled: str,
) -> Part:
    # Whole numbers give whole counts. Binomial numbers jump where p rounds to above ½ or below.
    off = 0.01 if spec.counts == "multinomial" else 0.0

    def whole(lowest: int) -> float:
        return float(rng.integers(lowest, 6)) * (1.0 + float(rng.uniform(0.0, off)))

    importance = {name: whole(1) for name in sizes}
    if spec.policy == "transfer":  # all but one may only help
        importance |= {name: 0.0 for name in sizes if name != "d0" and rng.random() < 0.5}
    epochs = {n: float(rng.choice([0.5, 1.0, 1.5, 4.0])) for n in sizes if rng.random() < 0.6}
    if spec.way == "repeat" and spec.policy == "transfer":
        epochs = {}

    def stages(lowest: int) -> Stages:
        starts = [0, *sorted(set(rng.integers(1, steps, 2).tolist()))]
        linear = bool(rng.random() < 0.5)
        weights = {
            start: {n: whole(lowest) * (importance[n] > 0) for n in sizes} for start in starts
        }
        for stage in weights.values():
            stage["d0"] = max(stage["d0"], importance["d0"])
        weights[starts[-1]] = {n: w or importance[n] for n, w in weights[starts[-1]].items()}
        return Stages(weights, linear)

    auxiliary = not all(importance.values())
    with_importance = scheduled in ("importance", "both")
    with_sampling = scheduled in ("sampling", "both") and not auxiliary
    return Part(
        mixture=number,
        sizes=sizes,
        importance=importance,
        epochs=epochs if capped else {},
        stages=stages(0) if with_importance and not auxiliary else None,
        sampling=stages(1) if with_sampling else None,
        horizon=passes * -(-sum(sizes.values()) // spec.size) if passes else steps,
        passes=passes,
    )


def _trained_in_some_way(part: Part, spec: Spec, rng: np.random.Generator) -> Part:
    """Return a part with processes, accumulation and workers that its lag allows."""
    world = int(rng.choice([1, 1, 1, 2, 4]))
    accumulation = int(rng.choice([1, 2]))
    workers = int(rng.choice([0, 0, 1, 2]))
    while (accumulation - 1 + workers) // accumulation > spec.lag:
        workers -= 1
    return replace(part, world=world, accumulation=accumulation, workers=workers)
