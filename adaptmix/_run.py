"""A run: its parts, and how they act together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaptmix._adaptation import Adaptation
from adaptmix._backward import BackwardProof
from adaptmix._loss import DomainLossScaler
from adaptmix._row_proof import RowProof
from adaptmix._schedule import Course
from adaptmix._settings import Drawing, Settings
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix._warn_once import WarnOnce
from adaptmix.data import Count, Draw, Layout, Mixture, Plan, PlanSampler, Segments
from adaptmix.data._elsewhere import Expected, PublishedShares, refuse_rows
from adaptmix.data._holdout import FROM_HELD_OUT, Holdout, holdout_sizes
from adaptmix.data._order import BatchOrder
from adaptmix.data._segments import sample_numbers
from adaptmix.errors import StateError
from adaptmix.monitoring._alarms import Guards
from adaptmix.monitoring._run_log import RunLog
from adaptmix.monitoring._stopwatch import Stopwatch
from adaptmix.monitoring._texts import Caution, installed_version
from adaptmix.noise import NoiseTerms
from adaptmix.policies import Policy
from adaptmix.policies._runner import Steering, requirements
from adaptmix.processes._agreement import Agreement
from adaptmix.statistics import Measurements, known_lengths

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Up to so many, inner products between domains cost less than anything else in an update.
_GRAM_DOMAINS = 256


class Run:
    """The parts of a run, and how they act together.

    ``TrainedRun`` adds what trainers call, and ``Controller`` what users call.

    Args:
        mixture: as for ``Controller``.
        settings: plain options.
        drawing: options of what is drawn.
        policy, tokens_per_row: as for ``Controller``.
        group: the data-parallel processes; all of them when None.
    """

    def __init__(
        self,
        mixture: Mixture | Domains,
        settings: Settings,
        drawing: Drawing,
        *,
        policy: Policy | str,
        tokens_per_row: Mapping[str, float] | Count | None,
        group: ProcessGroup | None,
    ) -> None:
        mixture, drawing = drawing.settled(mixture, tokens_per_row)
        needed = bool(requirements(policy) & FROM_HELD_OUT) and settings.adapting
        adapting = settings.adapting
        sizes = holdout_sizes(drawing.holdout, mixture.sizes, needed=needed, adapting=adapting)
        every, half_life = settings.measure_every, settings.half_life
        self._holdout = Holdout(mixture, sizes, seed=drawing.seed, every=every, half_life=half_life)
        # From here on a domain's rows are those that are trained on.
        self.mixture = mixture = self._holdout.training
        self._settings = settings
        self._warn = WarnOnce()
        self._scaler = DomainLossScaler(settings.unit, self._warn)
        self._guards = Guards(mixture.info, self._warn)
        self._count = tokens_per_row if callable(tokens_per_row) else None
        self._tokens_per_row = known_lengths(mixture.domains, settings.unit, tokens_per_row)
        self._course = Course(mixture.domains, mixture.schedule, drawing.sampling)
        sampler = drawing.counts
        self._steering = Steering(mixture.info, policy, sampler=sampler, course=self._course)
        few = len(mixture.domains) <= _GRAM_DOMAINS
        self._measurements = Measurements(
            mixture.info,
            estimator=settings.estimator,
            seed=drawing.seed,
            half_life=settings.half_life,
            per_token=settings.per_token,
            tokens_per_row=self._tokens_per_row,
            gram=few or "grad_gram" in self._steering.requires,
            held=self._holdout.sizes,
            warn=self._warn,
            group=group,
        )
        self._adaptation = Adaptation(
            mixture.info,
            settings,
            steering=self._steering,
            measurements=self._measurements,
            guards=self._guards,
            warn=self._warn,
        )
        shares = self._adaptation.row_shares
        self._plan = drawing.plan(self._holdout, shares=shares, course=self._course)
        if not adapting and (self._plan.budget or drawing.sampling is not None):
            raise ValueError(
                "when_exhausted, max_epochs and sampling must be left out with "
                'mode="observe", which trains as without AdaptMix; got one of them.'
            )
        self._order = BatchOrder(self._plan)
        self._agreement = Agreement(mixture.domains, group)
        if isinstance(self._plan, Plan):
            self._plan.streams.gather = self._agreement.gather
        self._log = RunLog(mixture.domains, lambda: (self.configuration, self.warnings))
        self._stopwatch = Stopwatch()
        self._proof: BackwardProof | None = BackwardProof()
        self._rows = RowProof(self._measurements, adapting=adapting)
        self._sampler: PlanSampler | Expected | None = None
        self._agreed_starts, self._group = 0, group
        self._step_rows = self._horizon = 0

    @property
    def weights(self) -> Weights:
        """The weights last published; in mode "observe" those of a run without AdaptMix."""
        return self._course.at(self.completed, self._adaptation.weights)

    @property
    def proposed(self) -> Weights:
        """The weights the policy last proposed; in mode "adapt" the same as ``weights``."""
        return self._course.at(self.completed, self._steering.proposed)

    @property
    def statistics(self) -> DomainStats:
        """The running estimates, as of the last update or observation that was read."""
        return self._measurements.snapshot(self.completed)

    @property
    def completed(self) -> int:
        """Optimizer steps trained."""
        return self._plan.completed

    @property
    def observing(self) -> bool:
        """Whether the next step to train is one whose gradients are observed."""
        # The last step before an update, so that the update knows the newest gradients.
        return (self.completed + 1) % self._settings.measure_every == 0

    @property
    def warnings(self) -> list[Caution]:
        """The warnings given since this run began or was resumed."""
        return [Caution(*given) for given in self._warn.messages]

    @property
    def configuration(self) -> dict[str, Any]:
        """What identifies this run in its record, as plain data."""
        return {
            **self._identity(),
            "version": installed_version(),
            "policy": self._steering.given.strip("'"),
            "policy_settings": self._steering.description,
            "requires": sorted(self._steering.requires),
            "rows_per_step": self._step_rows,
            "steps": self._horizon,
        }

    # The loader's side.

    def _layout(self, batch_size: int, accumulation: int) -> Layout:
        return Layout(batch_size, accumulation, *self._agreement.world)

    def _make_sampler(
        self, layout: Layout, steps: int, epoch_steps: int | None, *, finish_epochs: bool = False
    ) -> PlanSampler:
        self._check_step_rows(layout)
        self._holdout.check(layout.step_rows)
        plan = self._plan
        if isinstance(plan, PublishedShares):
            refuse_rows("loader()")

        def begin() -> None:
            self._order.start_anew()
            self._forget_step()
            self._check_step_rows(layout)
            self._sampler = sampler
            self._prepare(layout, steps)

        sampler = PlanSampler(
            plan,
            layout,
            steps=steps,
            epoch_steps=epoch_steps,
            finish_epochs=finish_epochs,
            on_start=begin,
        )
        # A loader that is made and not used changes nothing for the one in use.
        if not self._step_rows:
            self._prepare(layout, steps)
        return sampler

    def _prepare(self, layout: Layout, steps: int) -> None:
        self._step_rows, self._horizon = layout.step_rows, steps
        self._adaptation.prepare(self._plan, batch_size=layout.step_rows, horizon=steps)

    def _check_step_rows(self, layout: Layout) -> None:
        if self.completed and self._step_rows != layout.step_rows:
            raise StateError(
                f"batch_size × processes × accumulation must stay {self._step_rows} in a run; got "
                f"{layout.batch_size} × {layout.world_size} × {layout.accumulation} = "
                f"{layout.step_rows}. Choose batch_size so that the product is the same."
            )

    # The loss's side.

    @property
    def _begins(self) -> bool:
        """Whether an iteration of the loader has begun of which nothing is trained yet."""
        return self._agreed_starts != self._plan.starts

    def _next_draw(self, draw: Draw | None) -> Draw:
        """Return the draw that losses are of, after checking that it is its turn."""
        draw = self._order.draw_of(draw)
        if self._begins:
            self._agree_on_run()
            self._agreed_starts = self._plan.starts
        self._order.check(draw)
        return draw

    def _check_tokens(self, draw: Draw, tokens: Tensor) -> None:
        """Check that the function that counts tokens counts those of the mask."""
        if draw.tokens is None or not (self.observing or self.completed == 0):
            return
        counted = draw.tokens.to(tokens.device)
        if not torch.equal(counted.long(), tokens.long()):
            row = int((counted.long() != tokens.long()).int().argmax())
            raise ValueError(
                "tokens_per_row(batch) must count the tokens that the mask of loss() keeps; got "
                f"{int(counted[row])} for a row of which {int(tokens[row])} are kept. Where labels "
                "are shifted inside of the loss, count batch['labels'][:, 1:]."
            )

    def _record(
        self,
        total: Tensor,
        draw: Draw,
        factors: Tensor,
        values: Tensor | None,
        tokens: Tensor,
        noise: NoiseTerms | Tensor | None,
        segments: Segments | None = None,
        samples: Tensor | None = None,
        outputs: Sequence[Tensor] = (),
    ) -> None:
        self._rows.close()
        samples = None if samples is None else sample_numbers(samples, len(draw))
        terms = None if noise is None else NoiseTerms.of(noise, size=len(draw))
        domains, fresh = (
            part.to(tokens.device, non_blocking=True) for part in (draw.domains, draw.fresh)
        )
        measurements = self._measurements
        # First, for it may refuse what the model ran.
        if measurements.probe is not None and measurements.probe.watching:
            measurements.probe.expect(
                domains,
                factors,
                total,
                segments=segments,
                samples=samples,
                values=values,
                outputs=outputs,
            )
        held = draw.held
        held = None if held is None else held.to(tokens.device, non_blocking=True)
        measurements.record(domains, values, tokens, noise=terms, fresh=fresh, held=held)
        self._order.record(draw)

    def _arm(self) -> None:
        probe = self._measurements.probe
        if probe is not None:
            # The first step is looked at in any case: what cannot be is known before others follow.
            probe.arm(self.observing or not probe.inspected, step=self.completed)

    def _forget_step(self) -> None:
        """Forget what was recorded of an unfinished step."""
        self._measurements.forget_step()
        self._proof = None if self._proof is None else BackwardProof()
        self._arm()

    # What all processes must have in common.

    def _identity(self) -> dict[str, Any]:
        """Return what a run is, in plain values: the same in every process and when it goes on."""
        return {
            "domains": list(self.mixture.domains),
            "sizes": (self.mixture.sizes + self._holdout.sizes).tolist(),
            "importance": self.mixture.importance.tolist(),
            "labels": self.mixture.labels_digest,
            "policy": self._steering.description,
            "tokens_per_row": self._tokens_per_row,
            **self._plan.settings,
            **self._course.settings,
            **asdict(self._settings),
            # Last, for by default it follows from policy and mode: their difference is told first.
            "holdout": self._holdout.sizes.tolist(),
        }

    def _position(self) -> dict[str, Any]:
        """Return where a run is: what processes must have in common at any time."""
        return {
            "completed": self.completed,
            "watched": self._measurements.probe is not None,
            "pins": self._steering.wanted_pins,
            "sampling_weights": self.weights.sampling,
            "objective": self.weights.objective,
            "row_lengths": self._measurements.lengths,
        }

    def _agree_on_run(self) -> None:
        """Let processes go on if they are of one mind about the whole run."""

        def common() -> dict[str, Any]:
            sampler = self._sampler
            loader = {} if sampler is None else sampler.settings
            return {**self._identity(), **loader, **self._position()}

        self._agree(common)

    def _agree_on_step(self, *, problem: str | None, summed: list[list[int]]) -> None:
        """Let processes go on if they are of one mind about where they are.

        Args:
            problem: why this process cannot go on.
            summed: the shapes of what they are going to add up.
        """
        self._agree(lambda: {**self._position(), "summed": summed}, problem=problem)

    def _agree(self, common: Callable[[], dict[str, Any]], *, problem: str | None = None) -> None:
        layout = None if self._sampler is None else self._sampler.layout
        moved = layout and self._agreement.moved(layout.rank, layout.world_size)
        told = self._agreement.reach(
            common, facts=self._measurements.told, problem=moved or problem
        )
        self._measurements.agree_on(told)
        self._adaptation.take_pins(self._plan)
