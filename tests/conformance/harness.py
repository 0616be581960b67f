"""Judges a small training set-up: is every step's gradient the stated one, or was it refused?

A case says how a user would train, and what one row's loss is when written out. The harness trains
it for a number of steps, and before each optimizer step compares every parameter's gradient with
that of the weighted objective, computed by a second copy of the model from the rows that the plan
drew. A case ends in *right*, or *refused* with a sentence of AdaptMix; everything else is *wrong*.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from adaptmix import Controller, Draw, Weights
from adaptmix.policies import Policy

STEPS = 30
_MODULES = ("adaptmix.", "adaptmix_transformers.", "adaptmix_lightning.")

RowLoss = Callable[[Any, Any], Any]
"""(model, batch of one row) -> () loss of the row, or (sum over its tokens, number of them)."""

Terms = Callable[[Any, Any], Tensor]
"""(model, micro-batch) -> (B,) parts of the loss that the user wrote, one a row."""


@dataclass(frozen=True)
class Forced:
    """The same uneven shares and loss weights at every update, whatever the domains are called.

    Shares move away from importance and loss weights from one, so that a gradient that is not
    weighted, or weighted with another row's factor, shows.
    """

    requires = frozenset[str]()

    def init(self, domains: Any, run: Any) -> dict[str, Any]:
        """Return the weights as arrays."""
        pi = domains.importance
        ramp = np.arange(1.0, len(pi) + 1.0)
        share = pi * ramp[::-1] ** 0.7
        loss = ramp / float(pi @ ramp)
        return {"sampling": share / share.sum(), "loss": loss, "importance": pi}

    def update(self, stats: Any, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the same weights again."""
        return Weights(**state), state


POLICIES: dict[str, Policy | str] = {"forced": Forced(), "default": "variance_aware"}


@dataclass(frozen=True)
class Case:
    """One training set-up.

    Args:
        name: unique; shown by the tests.
        model: makes the model, the same one each time it is called.
        rows: the training rows, in the dataset's order.
        domains: the domain of each row.
        train: trains the model for ``STEPS`` steps with a policy, given an empty folder.
        collate: makes a batch of rows, in their order.
        row_loss: the stated loss of a row; it is averaged over rows, or over tokens where it
            returns (sum, number).
        terms: instead of ``row_loss``, for a loss with a normaliser of its own.
        penalty: what the loss has beside rows' losses, if anything.
        accumulation: micro-batches of a step.
        expect: "right", or a pattern of the sentence it is refused with, or None for either.
        tolerance: of the relative error of the gradient.
        policies: which of ``POLICIES`` it is trained with.
    """

    name: str
    model: Callable[[], nn.Module]
    rows: Sequence[Any]
    domains: Sequence[str]
    train: Callable[[Any, Policy | str, Path], None]
    collate: Callable[[list[Any]], Any]
    row_loss: RowLoss | None = None
    terms: Terms | None = None
    penalty: Callable[[Any], Tensor] | None = None
    accumulation: int = 1
    expect: str | None = None
    tolerance: float = 1e-5
    policies: tuple[str, ...] = tuple(POLICIES)


@dataclass
class Verdict:
    """How a case ended.

    Attributes:
        outcome: "right", "refused" or "wrong".
        errors: relative error of the gradient, step by step.
        message: of the refusal, or what was wrong.
        weighted: whether any multiplier was other than one.
    """

    outcome: str = "wrong"
    errors: list[float] = field(default_factory=list)
    message: str = ""
    weighted: bool = False

    def __str__(self) -> str:
        worst = max(self.errors, default=float("nan"))
        return f"{self.outcome} after {len(self.errors)} steps, {worst:.2g} off: {self.message}"


class Judge:
    """Compares each optimizer step of one case with its written-out objective."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.verdict = Verdict()
        self.draws: dict[int, Draw] = {}
        self.controllers: list[Controller] = []
        self.live, self.reference = case.model(), case.model()
        self.tokens = self._mean_tokens()

    def _mean_tokens(self) -> dict[str, float]:
        """Return each domain's mean tokens per row, over all of its rows."""
        row_loss = self.case.row_loss
        counts: dict[str, list[float]] = {}
        for row, name in zip(self.case.rows, self.case.domains, strict=True):
            loss = None
            if row_loss is not None:
                loss = row_loss(self.reference, self.case.collate([row]))
            counts.setdefault(name, []).append(float(loss[1]) if isinstance(loss, tuple) else 1.0)
        return {name: float(np.mean(values)) for name, values in counts.items()}

    def on_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Check before a step, or after its closure where it has one; a hook of all optimizers."""
        closure = kwargs.get("closure") or next((a for a in args if callable(a)), None)
        if closure is None:
            self.check()
            return None

        def checked() -> Any:
            result = closure()
            self.check()
            return result

        # The hook's first argument is the optimizer itself.
        return [a for a in args if a is not closure], {**kwargs, "closure": checked}

    def check(self) -> None:
        """Compare the gradients that an optimizer is about to use."""
        live = [p for p in self.live.parameters() if p.requires_grad]
        wanted = self._wanted(len(self.verdict.errors), live)
        got = [torch.zeros_like(p) if p.grad is None else p.grad for p in live]
        flat = torch.cat([g.double().cpu().flatten() for g in got])
        expected = torch.cat([g.double().flatten() for g in wanted])
        error = float((flat - expected).norm() / expected.norm().clamp(min=1e-12))
        self.verdict.errors.append(error)

    def _wanted(self, step: int, live: list[nn.Parameter]) -> list[Tensor]:
        """Return the gradient of the objective at the parameters in force, one tensor each."""
        trained = [p for p in self.reference.parameters() if p.requires_grad]
        with torch.no_grad():
            for mine, theirs in zip(trained, live, strict=True):
                mine.copy_(theirs)
        total = self._objective(step)
        parts = torch.autograd.grad(total, trained, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g for p, g in zip(trained, parts, strict=True)
        ]

    def _places(self, labels: list[str], rows: list[int]) -> list[int]:
        """Return which rows of the case these are; with streams, they are numbered by domain."""
        if not self.controllers[-1].mixture.streams:
            return rows
        own: dict[str, list[int]] = {name: [] for name in self.case.domains}
        for place, name in enumerate(self.case.domains):
            own[name].append(place)
        return [own[name][row % len(own[name])] for name, row in zip(labels, rows, strict=True)]

    def _objective(self, step: int) -> Tensor:
        case, weights = self.case, self.controllers[-1].weights
        names = self.controllers[-1].mixture.domains
        first = step * case.accumulation
        draws = [self.draws[number] for number in range(first, first + case.accumulation)]
        size = sum(len(draw) for draw in draws)
        counts = weights.importance * weights.loss
        total = torch.zeros((), dtype=torch.float64)
        for draw in draws:
            labels = [names[i] for i in draw.domains.tolist()]
            places = self._places(labels, draw.rows.tolist())
            if labels != [case.domains[row] for row in places]:
                raise AssertionError("rows are of other domains than they say")
            rows = [case.rows[row] for row in places]
            share = draw.domain_shares
            if case.terms is not None:
                lengths = np.array([self.tokens[name] for name in names])
                factors = counts / (share * lengths / float(share @ lengths)).clip(1e-300)
                picked = torch.from_numpy(factors)[draw.domains]
                parts = case.terms(self.reference, case.collate(rows))
                total = total + picked @ parts.double() / case.accumulation
                self._note(picked)
                continue
            assert case.row_loss is not None
            for row, name, i in zip(rows, labels, draw.domains.tolist(), strict=True):
                loss = case.row_loss(self.reference, case.collate([row]))
                factor = counts[i] / (share[i] * size)
                if isinstance(loss, tuple):
                    loss, factor = loss[0], factor / self.tokens[name]
                total = total + factor * loss.double()
            self._note(torch.from_numpy(counts / share.clip(1e-300))[draw.domains])
        return total if case.penalty is None else total + case.penalty(self.reference).double()

    def _note(self, multipliers: Tensor) -> None:
        self.verdict.weighted |= bool((multipliers - 1.0).abs().max() > 0.05)


@contextmanager
def _recorded(judge: Judge) -> Iterator[None]:
    """Let a judge see every draw, controller and optimizer step."""
    build, start = Draw.build.__func__, Controller.__init__  # type: ignore[attr-defined]

    def recording_build(kind: Any, *args: Any, **kwargs: Any) -> Draw:
        draw: Draw = build(kind, *args, **kwargs)
        judge.draws[draw.ordinal] = draw
        return draw

    def recording_start(self: Controller, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        judge.controllers.append(self)

    handle = register_optimizer_step_pre_hook(judge.on_step)
    Draw.build = classmethod(recording_build)  # type: ignore[assignment]
    Controller.__init__ = recording_start  # type: ignore[method-assign]
    try:
        yield
    finally:
        handle.remove()
        Draw.build = classmethod(build)  # type: ignore[assignment]
        Controller.__init__ = start  # type: ignore[method-assign]


def run(case: Case, policy: str, folder: Path) -> Verdict:
    """Train a case with one of ``POLICIES``, and return how it ended."""
    judge = Judge(case)
    verdict = judge.verdict
    try:
        with _recorded(judge):
            case.train(judge.live, POLICIES[policy], folder)
    except Exception as error:
        verdict.message = f"{type(error).__name__}: {error}"
        worst = max(verdict.errors, default=0.0)
        if _is_refusal(error) and worst <= case.tolerance:
            verdict.outcome = "refused"
        return verdict
    off = [number for number, error in enumerate(verdict.errors) if not error <= case.tolerance]
    if off:
        verdict.message = f"the gradient is off in steps {off}"
    elif len(verdict.errors) != STEPS:
        verdict.message = f"it took {len(verdict.errors)} optimizer steps of {STEPS}"
    else:
        verdict.outcome = "right"
    return verdict


def _is_refusal(error: Exception) -> bool:
    """Return whether adaptmix raised an error on purpose, with a sentence that helps.

    It says what is wrong and what to do: two sentences at least.
    """
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = any(f"/{name.rstrip('.')}/" in last for name in _MODULES)
    text = str(error)
    helpful = len(text) > 60 and text.rstrip().endswith(".") and text.count(". ") + text.count("? ")
    kind = isinstance(error, (ValueError, TypeError, RuntimeError))
    return bool(ours and kind and helpful)


def by_name(cases: Sequence[Case]) -> Mapping[str, Case]:
    """Return cases by their names, which must differ."""
    named = {case.name: case for case in cases}
    if len(named) != len(cases):
        raise ValueError("cases must have names of their own")
    return named
