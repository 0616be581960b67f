"""What a run tells of itself: gains, charts, tables and pages."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from adaptmix._checks import choice, number
from adaptmix._run import Run
from adaptmix._simplex import normalise
from adaptmix.monitoring._efficiency import predicted_gain, sampling_gain
from adaptmix.monitoring._exports import StaticWeights, lines_to_paste
from adaptmix.monitoring._quantities import Update, scalars
from adaptmix.monitoring._report import report
from adaptmix.processes._sums import world

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class ReportedRun(Run):
    """A run that tells what it sees, does and predicts."""

    def log_to(self, target: str | PathLike[str] | SummaryWriter) -> None:
        """Log every update to TensorBoard, from the first process only.

        If a file cannot be written, a LoggingWarning says so and training goes on.

        Args:
            target: a directory, or a SummaryWriter.
        """
        if world()[0] == 0:
            self._log.open(target, step=self.completed)
            if self._step_rows:
                self._log.write_texts(self.completed)

    def report(self, *, html: str | PathLike[str] | None = None, lines: bool = False) -> str:
        """Return a table of the proposed weights and the statistics, and what they predict.

        Args:
            html: file for a page that says whether AdaptMix helped, from what ``log_to`` wrote so
                far; no page when None. ``adaptmix report`` makes a page of several runs.
            lines: whether to add the proposed weights as lines to paste into the configuration of
                trainers and libraries with fixed mixture weights.

        Raises:
            ValueError: ``html`` without ``log_to``.
            ImportError: ``html`` without the extra "report".
        """
        if html is not None:
            self._log.page(self.completed).save(html)
        text = report(self.mixture.domains, self.proposed, self.statistics, **self._shown)
        if not lines:
            return text
        fixed = StaticWeights.of(self.mixture.domains, self.proposed)
        return f"{text}\n\n{lines_to_paste(fixed, unit=self._settings.unit)}"

    def record_evaluation(
        self, losses: Mapping[str, float], *, errors: Mapping[str, float] | None = None
    ) -> None:
        """Log held-out losses, and be warned when a domain gets worse.

        Args:
            losses: mean held-out loss by domain name.
            errors: their standard errors, for instance the rows' standard deviation over the
                square root of their number. A comparison of two runs takes its intervals from them.

        Raises:
            TypeError: a loss or an error that is no number.
            ValueError: an unknown domain, a loss that is not finite, or a negative error.
        """
        for name in losses:
            choice("domain", name, self.mixture.domains)
        for name, error in (errors or {}).items():
            choice("domain", name, self.mixture.domains)
            number(f"errors[{name!r}]", error, minimum=0.0)
        self._guards.check_losses(losses)
        self._log.write_evaluation(self.completed, losses, errors)

    def _repr_html_(self) -> str | None:
        """Show the page of a run that is logged, in notebooks."""
        return self._log.page(self.completed)._repr_html_() if self._log.opened else None

    @property
    def predicted_gain(self) -> float:
        """Gradient variance of sampling by importance over that of the best shares."""
        return predicted_gain(self.proposed, self.statistics, **self._drawing)

    @property
    def sampling_gain(self) -> float:
        """Gradient variance of sampling by importance over that of the proposed shares."""
        return sampling_gain(self.proposed, self.statistics, **self._drawing)

    @property
    def _drawing(self) -> dict[str, Any]:
        """What the variance of a step depends on beside weights and statistics."""
        return {"rows": self._step_rows or None, "sampler": self._plan.counts}

    @property
    def _shown(self) -> dict[str, Any]:
        """What the report tells beside weights and statistics."""
        observing = not self._settings.adapting
        told = {
            "unit": self._settings.unit,
            "observing": observing,
            "figures": self._steering.figures,
        }
        return {**told, **self._drawing}

    def scalars(self) -> dict[str, float]:
        """Return what TensorBoard shows of the last update, by tag without its "adaptmix/"."""
        measurements = self._measurements
        shares = self._plan.shares_at(self.completed)
        in_force = (
            self._adaptation.row_shares if shares is None else shares
        ) * measurements.lengths
        return scalars(
            Update(
                self.mixture.domains,
                self.proposed,
                self.statistics,
                in_force=normalise(in_force),
                sizes=self.mixture.info.sizes,
                lengths=measurements.lengths,
                drawing=self._drawing,
                per_token=self._settings.per_token,
                observing=not self._settings.adapting,
                coverage=measurements.coverage,
                overhead=self._stopwatch.overhead,
                figures=self._steering.figures,
            )
        )
