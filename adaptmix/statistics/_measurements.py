"""All that a run measures, from micro-batches to running estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from adaptmix._checks import FloatArray
from adaptmix._types import Domains, DomainStats
from adaptmix._warn_once import WarnOnce
from adaptmix.errors import (
    CoverageWarning,
    NonFiniteWarning,
)
from adaptmix.noise import NoiseTerms
from adaptmix.probe._coverage import Coverage
from adaptmix.probe._probe import GradientProbe
from adaptmix.processes import _sums as distributed
from adaptmix.state import _schema as schema
from adaptmix.statistics._gaps import warn_of_coverage, warn_of_gaps
from adaptmix.statistics._lengths import RowLengths
from adaptmix.statistics._running import RunningStatistics
from adaptmix.statistics._sums import FIELDS, DomainSums
from adaptmix.statistics._supplied import Supplied
from adaptmix.statistics._window import Window

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NO_GRADIENT = (
    "loss() must be followed by backward() through the watched model; its probe saw no gradient in "
    "an observed step. Watch the model that is trained, and compile the model, not a whole step of "
    "training."
)


class Agree(Protocol):
    """Lets all processes go on if they are of one mind."""

    def __call__(self, *, problem: str | None, summed: list[list[int]]) -> None:
        """Take what is wrong here, and the shapes of what is to be summed."""


class Measurements:
    """Sums on the device, the window on its way to the host, and running estimates.

    Args:
        domains: of the mixture.
        estimator: of gradient statistics.
        seed: of the run.
        half_life: optimizer steps after which statistics count half.
        per_token: whether losses are sums over a row's tokens (unit "token").
        tokens_per_row: (K,) known mean tokens per row or, where a row has one loss, the share of
            rows that have it; estimated when None.
        gram: whether inner products between domains' mean gradients are kept.
        held: (K,) how many rows of each domain are held out, and ride in batches; none when None.
        warn: of the run.
        group: the processes; all of them when None.
    """

    def __init__(
        self,
        domains: Domains,
        *,
        estimator: str,
        seed: int,
        half_life: float,
        per_token: bool,
        tokens_per_row: list[float] | None,
        gram: bool = False,
        held: NDArray[np.int64] | None = None,
        warn: WarnOnce,
        group: ProcessGroup | None = None,
    ) -> None:
        K = len(domains)
        self._held = np.zeros(K) if held is None else held.astype(np.float64)
        self.probe: GradientProbe | None = None
        self._domains = domains
        self._estimator = estimator
        self._seed = seed
        self._per_token = per_token
        self._lengths = RowLengths(K, tokens_per_row, per_token=per_token)
        self._half_life = half_life
        self._tokens_per_row = tokens_per_row
        self._running = RunningStatistics(K, half_life=half_life, gram=gram, held=self._held)
        self._sums: DomainSums | None = None
        self._window: Window | None = None
        self._supplied = Supplied(gram=gram, riding=bool(self._held.any()))
        self._asked = False
        self._group = group
        self._warn = warn

    def watch(self, model: nn.Module) -> None:
        """Install the gradient probe.

        Raises:
            ValueError: one is installed already, or the model has nothing to watch.
        """
        if self.probe is not None:
            raise ValueError(
                "model must be watched once; this controller's probe is installed already. "
                "Call remove() on the handle that watch() returned first."
            )
        probe = GradientProbe(model, len(self._domains), estimator=self._estimator, seed=self._seed)
        probe.attach()
        self.probe = probe

    @property
    def coverage(self) -> Coverage | None:
        """What the probe sees of the model; None without one."""
        if self.probe is None:
            return None
        return replace(self.probe.coverage, mass=self._running.mass)

    @property
    def misread(self) -> bool:
        """Whether gradient statistics are other domains' than they are taken for."""
        return self.probe is not None and self.probe.misread

    @property
    def lengths(self) -> FloatArray:
        """(K,) what a row's loss is divided by: mean tokens, or losses, per row."""
        return self._lengths.values

    @property
    def lengths_started(self) -> bool:
        """Whether anything tells how many tokens rows have."""
        return self._lengths.started

    def sample_lengths(self, tokens: FloatArray, rows: FloatArray, whole: ArrayLike) -> None:
        """Take (K,) tokens and rows of a sample of each domain, before anything is known."""
        self._lengths.sample(tokens, rows, whole)

    def start_lengths(
        self, domains: Tensor, tokens: Tensor, *, known: bool = True, adapting: bool
    ) -> None:
        """Before anything is known of row lengths, go by the first micro-batch, (B,) each.

        Args:
            domains: (B,) int64.
            tokens: (B,) supervised tokens.
            known: whether they are; every process calls this, whether or not.
            adapting: as for ``RowLengths.start``.

        Raises:
            ValueError: an objective that depends on them, and rows that differ.
        """
        if not self._per_token or self._lengths.started or self._asked:
            return
        self._asked = True
        table = torch.zeros(3, len(self._domains), dtype=torch.float64, device=tokens.device)
        number = tokens.double()
        columns = torch.stack([number, torch.ones_like(number), number**2])
        table.index_add_(1, domains.to(tokens.device), columns * known)
        distributed.sum_over_ranks([table], self._group)
        if table.any():
            self._lengths.start(*table.cpu().numpy(), adapting=adapting)

    def expect(self, *, noise: bool) -> None:
        """Take note of what micro-batches are going to bring: losses, and noise terms or not."""
        self._supplied.losses = True
        self._supplied.noise |= noise

    def record(
        self,
        domains: Tensor,
        losses: Tensor | None,
        tokens: Tensor,
        *,
        noise: NoiseTerms | None,
        fresh: Tensor,
        held: Tensor | None = None,
    ) -> None:
        """Add a micro-batch; the arguments are those of ``DomainSums.add``."""
        tokens = self._counted(tokens)
        self._supplied.noise |= noise is not None
        self._supplied.losses |= losses is not None
        self._on(tokens.device).add(domains, losses, tokens, noise=noise, fresh=fresh, held=held)

    def _counted(self, tokens: Tensor) -> Tensor:
        """Return (B,) tokens, or whether there is any where a row has one loss."""
        return tokens if self._per_token else tokens.clamp(max=1)

    def record_noise(self, domain: int, noise: NoiseTerms) -> None:
        """Add noise terms of rows of one domain that are evaluated apart from training."""
        self._on(noise.residual.device).add_recorded(domain, noise)
        self._supplied.noise = self._supplied.recorded = True

    def close_step(
        self, step: int, *, due: bool, observed: bool, adapting: bool = True, agree: Agree
    ) -> None:
        """Send off what an update needs, at the number of steps completed.

        Args:
            step: optimizer steps completed.
            due: whether an update is, on every process.
            observed: whether the step was to be observed, on every process.
            adapting: whether weights depend on what is observed; otherwise it may be unknown.
            agree: called before anything is summed.

        Raises:
            ValueError: the step should have been observed, but the probe saw no gradient.

        Warns:
            CoverageWarning: the same, where nothing depends on it.
        """
        if self._sums is not None:
            self._sums.finish_step()
        gradients = None if self.probe is None else self.probe.collect()
        if not observed:
            gradients = None
        if not (due or observed):
            return
        missing = observed and self.probe is not None and gradients is None
        if missing and not adapting:
            self._warn(CoverageWarning, f"Gradient variances are unknown: {_NO_GRADIENT}")
        sent = [] if gradients is None else gradients.tensors()
        agree(
            problem=_NO_GRADIENT if missing and adapting else None,
            summed=[list(tensor.shape) for tensor in sent],
        )
        sums = self._sums.take() if due and self._sums is not None else None
        if sums is not None or gradients is not None:
            gram = self._running.gram
            self._window = Window(
                step, sums=sums, gradients=gradients, gram=gram, group=self._group
            )

    @property
    def told(self) -> frozenset[str]:
        """What this process was given; other processes may have been given other things."""
        self._supplied.losses |= self._running.has_losses  # of before it was saved
        return self._supplied.told(watched=self.probe is not None)

    def agree_on(self, told: frozenset[str]) -> None:
        """Go by what any of the processes was given."""
        self._supplied.agreed = told

    def forget_step(self) -> None:
        """Forget the micro-batches of a step that is not going to be finished."""
        if self._sums is not None:
            self._sums.forget_step()
        if self.probe is not None:
            self.probe.forget()

    def read(self) -> bool:
        """Take in what an earlier step sent off; returns whether an update is due on it."""
        if self._window is None:
            return False
        window, self._window = self._window, None
        window.add_to(self._running, self._lengths)
        if self._running.skipped:
            self._warn(
                NonFiniteWarning,
                f"{self._running.skipped:.0f} samples with losses or gradients that are not finite "
                "were left out of the statistics. Unless mixed precision skipped the step, the "
                "optimizer has seen them: clip gradients, lower the learning rate, or scale "
                "losses.",
            )
        return window.due

    def snapshot(self, step: int) -> DomainStats:
        """Return the running estimates at the number of steps completed."""
        return self._running.snapshot(step, lengths=self.lengths)

    def trusts(self, coverage: float) -> bool:
        """Return whether gradient statistics are of so much of the gradient.

        Warns:
            CoverageWarning: once, when they are not, or of less than 0.9 of it.
        """
        found = self.coverage
        return found is None or warn_of_coverage(found, required=coverage, warn=self._warn)

    @property
    def measured(self) -> frozenset[str]:
        """The DomainStats fields that this run measures."""
        return self._supplied.measured

    def warn_of_gaps(self, stats: DomainStats, *, required: frozenset[str]) -> None:
        """Warn of domains that were not seen, or whose noise is no longer out of sample."""
        kept_up = (self._held > 0) | self._supplied.recorded | ("noise" not in required)
        warn_of_gaps(stats, self._domains, in_sample=~kept_up, warn=self._warn)

    def _on(self, device: torch.device) -> DomainSums:
        if self._sums is None:
            self._sums = DomainSums(len(self._domains), device)
        elif self._sums.device != device:
            self._sums.tensor = self._sums.tensor.to(device)
        return self._sums

    def state_dict(self) -> dict[str, Any]:
        """Return all of it; sums of all processes, so every process must call."""
        mine = None if self._sums is None else self._sums.tensor
        sums = distributed.stack_over_ranks(mine, self._group)
        return {
            "running": self._running.state_dict(),
            "lengths": self._lengths.state_dict(),
            "window": None if self._window is None else self._window.state_dict(),
            "sums": None if sums is None else sums.numpy(),
            "noise_given": "noise" in self._supplied.agreed,
            "losses_given": "losses" in self._supplied.agreed,
            "recorded": self._supplied.recorded,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "measurements") -> None:
        """Take over saved measurements; the probe stays as it is.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        K = len(self._domains)
        fields = {
            "running": schema.mapping,
            "lengths": schema.mapping,
            "window": schema.maybe(schema.mapping),
            "sums": schema.maybe(schema.array(None, len(FIELDS), K)),
            **dict.fromkeys(("noise_given", "losses_given", "recorded"), schema.flag),
        }
        saved = schema.read(state, fields, name=name)
        gram = self._running.gram
        running = RunningStatistics(K, half_life=self._half_life, gram=gram, held=self._held)
        running.load_state_dict(saved["running"], name=f"{name}.running")
        lengths = RowLengths(K, self._tokens_per_row, per_token=self._per_token)
        lengths.load_state_dict(saved["lengths"], name=f"{name}.lengths")
        window, sums = saved["window"], None
        if window is not None:
            window = Window.from_state(window, num_domains=K, gram=gram, name=f"{name}.window")
        if saved["sums"] is not None:
            sums = DomainSums(K, torch.device("cpu"))
            sums.tensor += distributed.part_of_rank(torch.from_numpy(saved["sums"]), self._group)
        self._running, self._lengths, self._window, self._sums = running, lengths, window, sums
        supplied = self._supplied
        supplied.noise, supplied.losses = saved["noise_given"], saved["losses_given"]
        supplied.recorded, supplied.agreed = saved["recorded"], self.told
        self._asked = False
