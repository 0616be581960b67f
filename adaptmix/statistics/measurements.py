"""All that a run measures, from micro-batches to running estimates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptmix import distributed
from adaptmix.checks import FloatArray
from adaptmix.errors import NoiseWarning, NonFiniteWarning, UnseenDomainWarning, WarnOnce
from adaptmix.noise import NoiseTerms
from adaptmix.statistics.coverage import Coverage
from adaptmix.statistics.lengths import RowLengths
from adaptmix.statistics.probe import GradientProbe
from adaptmix.statistics.running import RunningStatistics
from adaptmix.statistics.sums import DomainSums
from adaptmix.statistics.window import Window
from adaptmix.types import Domains, DomainStats

_FROM_DRAWS = frozenset({"count", "seen", "age"})
_FROM_LOSSES = frozenset({"loss_mean", "loss_var"})
_FROM_PROBE = frozenset({"grad_var", "grad_sq", "grad_gram"})


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
        warn: of the run.
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
        warn: WarnOnce,
    ) -> None:
        K = len(domains)
        self.probe: GradientProbe | None = None
        self._domains = domains
        self._estimator = estimator
        self._seed = seed
        self._per_token = per_token
        self._lengths = RowLengths(K, tokens_per_row, per_token=per_token)
        self._running = RunningStatistics(K, half_life=half_life)
        self._sums: DomainSums | None = None
        self._window: Window | None = None
        self._noise_given = False
        self._losses_given = False
        self._held_out = False
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
        return None if self.probe is None else self.probe.coverage

    @property
    def lengths(self) -> FloatArray:
        """(K,) what a row's loss is divided by: mean tokens, or losses, per row."""
        return self._lengths.values

    def start_lengths(self, domains: Tensor, tokens: Tensor) -> None:
        """Before anything is known of row lengths, go by the first micro-batch, (B,) each."""
        if not self._per_token or self._lengths.started:
            return
        table = torch.zeros(2, len(self._domains), dtype=torch.float64, device=tokens.device)
        columns = torch.stack([tokens.double(), torch.ones_like(tokens, dtype=torch.float64)])
        table.index_add_(1, domains, columns)
        distributed.sum_over_ranks([table])
        self._lengths.start(*table.cpu().numpy())

    def record(
        self,
        domains: Tensor,
        losses: Tensor | None,
        tokens: Tensor,
        *,
        noise: NoiseTerms | None,
        fresh: Tensor,
    ) -> None:
        """Add a micro-batch; the arguments are those of ``DomainSums.add``."""
        tokens = self._counted(tokens)
        self._noise_given |= noise is not None
        self._losses_given |= losses is not None
        self._on(tokens.device).add(domains, losses, tokens, noise=noise, fresh=fresh)

    def _counted(self, tokens: Tensor) -> Tensor:
        """Return (B,) tokens, or whether there is any where a row has one loss."""
        return tokens if self._per_token else tokens.clamp(max=1)

    def record_noise(self, domain: int, noise: NoiseTerms) -> None:
        """Add noise terms of one domain's held-out rows."""
        self._on(noise.residual.device).add_held_out(domain, noise)
        self._noise_given = self._held_out = True

    def close_step(self, step: int, *, due: bool, observed: bool) -> None:
        """Send off what an update needs, at the number of steps completed.

        Raises:
            ValueError: the step should have been observed, but the probe saw no gradient.
        """
        gradients = None
        if self.probe is not None and observed:
            gradients = self.probe.collect()
            if gradients is None:
                raise ValueError(
                    "loss() must be followed by backward() through the watched model; its probe "
                    "saw no gradient in an observed step. Watch the model that is trained, and "
                    "compile the model, not a whole step of training."
                )
        sums = self._sums.take() if due and self._sums is not None else None
        if sums is not None or gradients is not None:
            self._window = Window(step, sums=sums, gradients=gradients)

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

    @property
    def measured(self) -> frozenset[str]:
        """The DomainStats fields that this run measures."""
        probe = _FROM_PROBE if self.probe is not None else frozenset()
        noise = frozenset({"noise"}) if self._noise_given else frozenset()
        told = self._losses_given or self._running.has_losses  # of before it was saved
        losses = _FROM_LOSSES if told else frozenset()
        return _FROM_DRAWS | losses | probe | noise

    def warn_of_gaps(self, stats: DomainStats, *, required: frozenset[str]) -> None:
        """Warn of domains that were not seen, or whose noise is no longer out of sample."""
        names = self._domains.names
        unseen = np.flatnonzero(stats.seen == 0)
        if unseen.size:
            self._warn(
                UnseenDomainWarning,
                f"{unseen.size} of {len(names)} domains were not sampled yet (the first is "
                f"{names[unseen[0]]!r}); they get the others' mean statistics.",
            )
        repeating = np.flatnonzero(stats.seen > self._domains.sizes)
        if repeating.size and not self._held_out and "noise" in required:
            self._warn(
                NoiseWarning,
                f"Domain {names[repeating[0]]!r} repeats: its noise is kept as estimated in the "
                "first pass, for fitted rows look less noisy than they are. Pass held-out rows to "
                "controller.record_noise(noise, domain) to keep it up to date.",
            )

    def _on(self, device: torch.device) -> DomainSums:
        if self._sums is None:
            self._sums = DomainSums(len(self._domains), device)
        elif self._sums.device != device:
            self._sums.tensor = self._sums.tensor.to(device)
        return self._sums

    def state_dict(self) -> dict[str, Any]:
        """Return all of it; sums of all processes, so every process must call."""
        sums = None if self._sums is None else self._sums.tensor
        return {
            "running": self._running.state_dict(),
            "lengths": self._lengths.state_dict(),
            "window": None if self._window is None else self._window.state_dict(),
            "sums": None if sums is None else distributed.stack_over_ranks(sums).cpu(),
            "noise_given": self._noise_given,
            "held_out": self._held_out,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved measurements; the probe stays as it is."""
        self._running.load_state_dict(state["running"])
        self._lengths.load_state_dict(state["lengths"])
        window, sums = state["window"], state["sums"]
        self._window = None if window is None else Window.from_state(window)
        self._sums = None
        if sums is not None:
            self._sums = DomainSums(len(self._domains), torch.device("cpu"))
            self._sums.tensor += distributed.part_of_rank(sums)
        self._noise_given = bool(state["noise_given"])
        self._held_out = bool(state["held_out"])
