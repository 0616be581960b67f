"""A run's rows as one would write them down: one by one, in plain numbers, from the start."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

SNAP = 1e-9
WORD = 2**64


@dataclass(frozen=True)
class Stages:
    """Weights by the step from which they hold, as ``Schedule`` has them."""

    weights: dict[int, dict[str, float]]
    linear: bool

    def at(self, step: int, names: list[str]) -> list[float]:
        """The weights of a step, summing to one."""
        starts = sorted(self.weights)
        before = max(start for start in starts if start <= step)
        later = [start for start in starts if start > step]
        found = self._stage(before, names)
        if self.linear and later:
            part = (step - before) / (later[0] - before)
            after = self._stage(later[0], names)
            found = [(1 - part) * a + part * b for a, b in zip(found, after, strict=True)]
        return found

    def factors(self, step: int, names: list[str]) -> list[float]:
        """The weights of a step over the mean ones; 1 where a domain never has any."""
        stages = [self._stage(start, names) for start in sorted(self.weights)]
        mean = [math.fsum(column) / len(stages) for column in zip(*stages, strict=True)]
        at = self.at(step, names)
        return [a / m if m > 0 else 1.0 for a, m in zip(at, mean, strict=True)]

    def _stage(self, start: int, names: list[str]) -> list[float]:
        return scaled([self.weights[start][name] for name in names])


@dataclass
class Rules:
    """What a run is told: its domains and how their rows are drawn."""

    sizes: dict[str, int]
    way: str = "repeat"
    epochs: dict[str, float] = field(default_factory=dict)  # those that are limited
    seed: int = 0
    size: int = 8  # rows of a step
    horizon: int = 1  # steps
    multinomial: bool = False
    held: int = 0  # held-out rows of each domain, a quarter at most
    every: int = 1  # steps between measured ones
    half_life: float = 50.0
    factors: Stages | None = None  # of the shares

    @property
    def names(self) -> list[str]:
        """The domains."""
        return list(self.sizes)

    def apart(self, name: str) -> int:
        """How many rows of a domain are held out."""
        return min(self.held, self.sizes[name] // 4)

    def trained(self, name: str) -> int:
        """How many rows of a domain are trained on."""
        return self.sizes[name] - self.apart(name)

    def limit(self, name: str) -> float:
        """How many rows a domain may give in all."""
        default = 1.0 if self.way in ("stop_first", "drop") else math.inf
        epochs = self.epochs.get(name, default)
        return math.floor(epochs * self.trained(name) + SNAP) if epochs < math.inf else math.inf


@dataclass
class Step:
    """What a step is made of, in the order it is trained; (domain, row of it) each."""

    rows: list[tuple[str, int]]
    fresh: list[bool]
    held: list[bool]
    divisors: list[float]
    spent: list[bool]


class Reference:
    """The rows of a run, step after step.

    Attributes:
        published: shares by the step from which they are in force.
        drawn: how many rows each domain has given.
        times: how often each row was drawn, by (domain, row of it).
    """

    def __init__(self, rules: Rules, shares: list[float]) -> None:
        self.rules = rules
        self.published = {0: shares}
        self.drawn = dict.fromkeys(rules.names, 0)
        self.known: set[str] = set()  # domains whose rows were drawn under another size
        self.times: Counter[tuple[str, int]] = Counter()

    def goes_on(self, rules: Rules, prior: dict[str, float]) -> None:
        """Go on with another mixture: known domains where they were, new ones from the prior."""
        old, self.rules = self.rules, rules
        for start, shares in self.published.items():
            kept = dict(zip(old.names, shares, strict=True))
            # Those that are new, and those that had no share and count now.
            begin = [n for n in rules.names if not kept.get(n) and (n not in kept or prior[n] > 0)]
            left = math.fsum(prior[name] for name in rules.names if name not in begin)
            total = math.fsum(kept[name] for name in rules.names if name not in begin)
            self.published[start] = [
                prior[n] if n in begin else left * kept[n] / (total or 1.0) for n in rules.names
            ]
        drawn: dict[str, int] = {}
        for name in rules.names:
            same = name in old.sizes and (old.sizes[name], old.apart(name)) == (
                rules.sizes[name],
                rules.apart(name),
            )
            drawn[name] = self.drawn[name] if same else 0
            if not same and name in old.sizes and self.drawn[name]:
                self.known.add(name)
            if not same:
                self.times = Counter({k: v for k, v in self.times.items() if k[0] != name})
        self.drawn = drawn
        self.known &= set(rules.names)
        self.times = Counter({k: v for k, v in self.times.items() if k[0] in rules.sizes})

    def too_short(self, completed: int) -> bool:
        """Whether limits leave fewer rows than a run that must not end before has steps for."""
        left = sum(max(self.rules.limit(n) - self.drawn[n], 0) for n in self.rules.names)
        return (
            self.rules.way == "repeat" and left < (self.rules.horizon - completed) * self.rules.size
        )

    def step(self, number: int) -> Step | None:
        """Return the next step, after those before it; None where the run ends before it."""
        rules, names, before = self.rules, self.rules.names, self.drawn
        if rules.way == "stop_all" and all(before[n] >= rules.trained(n) for n in names):
            return None
        riding = self._riding(number)
        rows = rules.size - len(riding)
        shares = self._shares(number, rows)
        if shares is None:
            return None
        rng = np.random.default_rng(np.random.SeedSequence(rules.seed, spawn_key=(0, number)))
        if rules.multinomial:
            counts, divisors = rng.multinomial(rows, shares).tolist(), shares
        else:
            counts = rounded([rows * p for p in shares], rng)
            sure = [rows * p >= 1 - SNAP for p in shares]
            realised = zip(counts, sure, shares, strict=True)
            divisors = [c / rows if certain else p for c, certain, p in realised]
        after = {name: before[name] + count for name, count in zip(names, counts, strict=True)}
        if rules.way == "stop_first" and any(after[n] > rules.limit(n) for n in names):
            return None
        taken = [(name, k) for name in names for k in range(before[name], after[name])]
        order = rng.permutation(rules.size).tolist()
        found = Step([], [], [], [d * (rows / rules.size) for d in divisors], [])
        rides = iter(riding)
        for place in order:
            if place >= rows:
                found.rows.append(next(rides))
            else:
                name, k = taken[place]
                found.rows.append((name, self._row(name, k)))
                self.times[found.rows[-1]] += 1
            found.held.append(place >= rows)
            fresh = place < rows and taken[place][1] < rules.trained(taken[place][0])
            found.fresh.append(fresh and taken[place][0] not in self.known)
        bounds = rules.way != "stop_first" and any(rules.limit(n) < math.inf for n in names)
        found.spent = [bounds and before[n] >= rules.limit(n) for n in names]
        self.drawn = after
        return found

    def _row(self, name: str, number: int) -> int:
        """The n-th row that a domain gives: of an order of its own in each epoch."""
        rules = self.rules
        epoch, place = divmod(number, rules.trained(name))
        apart = {
            order(name, -1, k, rules.sizes[name], rules.seed) for k in range(rules.apart(name))
        }
        rows = [row for row in range(rules.sizes[name]) if row not in apart]
        return rows[order(name, epoch, place, len(rows), rules.seed)]

    def _riding(self, step: int) -> list[tuple[str, int]]:
        """The held-out rows of a step: domains in turn, and the rows of each in turn."""
        rules = self.rules
        turns = [name for name in rules.names if rules.apart(name)]
        if not turns or (step + 1) % rules.every:
            return []
        needed = math.ceil(16 * 2 * len(turns) * rules.every / rules.half_life)
        sixteenths = min(max(rules.size, needed), rules.size * 4)
        number = (step + 1) // rules.every
        found = []
        for slot in range((number - 1) * sixteenths // 16, number * sixteenths // 16):
            name = turns[slot % len(turns)]
            turn = slot // len(turns) % rules.apart(name)
            found.append((name, order(name, -1, turn, rules.sizes[name], rules.seed)))
        return found

    def _shares(self, step: int, rows: int) -> list[float] | None:
        """The shares in force, as stages and what is left of the domains make them."""
        rules = self.rules
        shares = self.published[max(start for start in self.published if start <= step)]
        if rules.factors is not None:
            factors = rules.factors.factors(step, rules.names)
            shares = scaled([p * f for p, f in zip(shares, factors, strict=True)])
        limits = [rules.limit(name) for name in rules.names]
        if rules.way == "stop_first" or min(limits) == math.inf:
            return shares
        left = [max(m - self.drawn[n], 0) for m, n in zip(limits, rules.names, strict=True)]
        if rules.way == "repeat":
            left = [each / max(rules.horizon - step, 1) for each in left]
        most = [each / rows for each in left]
        if all(p <= m for p, m in zip(shares, most, strict=True)):
            return shares
        most = [min(m, 1.0) for m in most]
        possible = any(p > 0 and m > 0 for p, m in zip(shares, most, strict=True))
        if math.fsum(most) < 1 - SNAP or not possible:
            return None
        return filled(shares, most)


def scaled(values: list[float]) -> list[float]:
    """Scale values to sum to one."""
    total = math.fsum(values)
    return [value / total for value in values]


def filled(shares: list[float], most: list[float]) -> list[float]:
    """Shares in proportion as far as bounds allow; the rest goes to those that have none.

    Where all that have a share are full, the others get what is left alike.
    """
    full = [p > 0 for p in shares]
    if math.fsum(m for m, some in zip(most, full, strict=True) if some) < 1:
        rest = 1 - math.fsum(m for m, some in zip(most, full, strict=True) if some)
        others = [0.0 if some else m for m, some in zip(most, full, strict=True)]
        level = _level([float(not some) for some in full], others, rest)
        return [m if some else min(level, m) for m, some in zip(most, full, strict=True)]
    level = _level(shares, most, 1.0)
    return [min(level * p, m) for p, m in zip(shares, most, strict=True)]


def _level(shares: list[float], most: list[float], total: float) -> float:
    """The level at which bounded shares add up to a total."""
    low, high = 0.0, 1e9
    for _ in range(200):
        level = math.sqrt(low * high) if low > 1e-9 else (low + high) / 2
        enough = math.fsum(min(level * p, m) for p, m in zip(shares, most, strict=True)) >= total
        low, high = (low, level) if enough else (level, high)
    return high


def rounded(expected: list[float], rng: np.random.Generator) -> list[int]:
    """Madow's systematic sampling of the fractions, domain by domain in a random order."""
    order = rng.permutation(len(expected)).tolist()
    counts = [math.floor(each + SNAP) for each in expected]
    missing, tick = round(math.fsum(expected)) - sum(counts), rng.random()
    if missing <= 0:
        return counts
    fractions = [max(each - count, 0.0) for each, count in zip(expected, counts, strict=True)]
    fractions = [0.0 if f < SNAP else f for f in fractions]
    scale, edge, given = missing / math.fsum(fractions), 0.0, 0
    last = max(k for k, i in enumerate(order) if fractions[i] > 0.0)
    for k, i in enumerate(order):
        edge = edge + fractions[i] * scale if k < last else float(missing)
        reached = min(math.floor(edge + tick), missing)
        counts[i] += reached - given
        given = reached
    return counts


def order(name: str, epoch: int, place: int, size: int, seed: int) -> int:
    """The value at one place of a random order of 0, …, size − 1."""
    words = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(4, np.uint64).tolist()
    number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    own = mixed(words[0] + number * (words[1] | 1))
    key = mixed(own + epoch * (words[2] | 1))
    stride = mixed(key ^ words[3]) | 1
    if size <= 32:
        hashes = [mixed(key + k * stride) for k in range(size)]
        return sum(other < hashes[place] for other in hashes)
    shift = size.bit_length() // 2
    columns = (size - 1 >> shift) + 1
    value, first = place, True
    while first or value >= size:
        first = False
        left, right, current = value >> shift, value % 2**shift, key
        for _ in range(5):
            left = (left + (mixed(right ^ current) >> 32) * columns // 2**32) % columns
            current = (current + stride) % WORD
            right = (right + (mixed(left ^ current) >> 32)) % 2**shift
            current = (current + stride) % WORD
        value = left * 2**shift + right
    return value ^ (key >> 40) % 2 if value < 2 else value


def mixed(word: int) -> int:
    """A 64-bit word with its bits mixed, as MurmurHash3 does at its end."""
    word = word * 0xFF51AFD7ED558CCD % WORD
    word ^= word >> 32
    word = word * 0xC4CEB9FE1A85EC53 % WORD
    return word ^ word >> 32
