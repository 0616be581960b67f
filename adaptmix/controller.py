"""The controller: watches a training run and acts on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from adaptmix._checks import FloatArray, choice, integer, number
from adaptmix._loss import UNITS, DomainLossScaler
from adaptmix._simplex import normalise
from adaptmix._text import listed
from adaptmix._types import COUNTS, DomainStats, Weights
from adaptmix.data import Count, Draw, Layout, Loader, Mixture, Plan, PlanSampler, sample_lengths
from adaptmix.data._order import BatchOrder
from adaptmix.data._segments import Segments, sample_numbers
from adaptmix.errors import (
    MissingStatisticError,
    MissingStatisticWarning,
    StateError,
    TooFewRowsWarning,
    WarnOnce,
)
from adaptmix.monitoring import Page, page, read_runs
from adaptmix.monitoring._alarms import Guards
from adaptmix.monitoring._efficiency import predicted_gain, sampling_gain
from adaptmix.monitoring._quantities import scalars
from adaptmix.monitoring._report import report
from adaptmix.monitoring._stopwatch import Stopwatch
from adaptmix.monitoring._tensorboard import TensorBoardLog
from adaptmix.monitoring._texts import Caution, installed_version
from adaptmix.noise import NoiseTerms
from adaptmix.policies import Policy
from adaptmix.policies._bounds import Bound
from adaptmix.policies._runner import Steering
from adaptmix.probe import ESTIMATORS
from adaptmix.processes import _sums as distributed
from adaptmix.processes._tensor_parallel import refuse_tensor_parallel
from adaptmix.state import _checkpoint as checkpoint
from adaptmix.state import _schema as schema
from adaptmix.statistics import Measurements, Watch, known_lengths
from adaptmix.trainers._head import BackwardProof

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.utils.tensorboard import SummaryWriter

_MODES = ("adapt", "observe")
# Up to so many, inner products between domains cost less than anything else in an update.
_GRAM_DOMAINS = 256


class Controller:
    """Online sampling and loss weights for one training run.

    Args:
        mixture: the domains and their rows.
        model: to watch from the beginning, as ``watch`` does; none when None.
        policy: a policy or its name. The default adapts sampling alone and leaves the objective as
            it is, whatever is measured. Policies by name shrink noisy statistics first
            (``policies.Shrink``); a policy object is used as it is.
        update_every: optimizer steps between updates of the weights.
        measure_every: optimizer steps between measurements of per-sample gradients;
            ``update_every`` when None.
        estimator: of gradient statistics. "sketch": unbiased, from random projections of each
            sample's gradient, a few percent of a step per measurement; "exact": from whole
            per-sample gradients; "norm": from those of normalisation layers only, the cheapest,
            whose variances are right relative to each other only, and roughly.
        counts: "stratified": each domain's rows in a batch are its share, rounded up or down;
            "multinomial": each row's domain is drawn on its own.
        lag: steps until new shares are drawn with; at least how far the loader's workers run ahead.
        seed: of everything that is drawn.
        unit: "sample": the objective is Σ π w (mean loss per row); "token": Σ π w (mean loss per
            supervised token).
        mode: "adapt" trains on Σ π w (mean loss per unit), drawn with the weights of the policy.
            "observe" measures and logs what would be done, and trains on Σ π (mean loss per unit),
            drawn by importance: what an adapting run starts from, and is compared with.
        half_life: optimizer steps after which statistics count half.
        tokens_per_row: for ``unit="token"``: mean supervised tokens per row of each domain, by
            name, or a function of a batch that returns each row's, (B,), by which a sample of each
            domain is counted before training. When None, all rows must have the same number. With
            unit "sample": the share of each domain's rows that have a supervised label at all;
            estimated while training when None.
        min_coverage: share of the gradient's squared norm that the probe must see for the weights
            to move on its statistics, in [0, 1]; with 0 they always move.
        process_group: the data-parallel processes, which train on different rows; all processes
            when None. Ranks that share a model's layers (tensor parallelism) have to see the same
            rows, so each of them belongs to a group of its own: ``mesh["dp"].get_group()``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.

    Source:
        Salmani et al., Sampling and Loss Weights in Multi-Domain Training, arXiv:2511.06913.
    """

    def __init__(
        self,
        mixture: Mixture,
        model: nn.Module | None = None,
        *,
        policy: Policy | str = "variance_aware",
        update_every: int = 10,
        measure_every: int | None = None,
        estimator: str = "sketch",
        counts: str = "stratified",
        lag: int = 16,
        seed: int = 0,
        unit: str = "sample",
        mode: str = "adapt",
        half_life: float = 50.0,
        tokens_per_row: Mapping[str, float] | Count | None = None,
        min_coverage: float = 0.9,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if not isinstance(mixture, Mixture):
            raise TypeError(
                f"mixture must be an adaptmix.Mixture; got {type(mixture).__name__}. "
                "Make one with Mixture({name: dataset}) or Mixture.from_labels(dataset, labels)."
            )
        self.mixture = mixture
        self._update_every = integer("update_every", update_every, minimum=1)
        self._estimator = choice("estimator", estimator, ESTIMATORS)
        every = update_every if measure_every is None else measure_every
        self._measure_every = integer("measure_every", every, minimum=1)
        self._mode = choice("mode", mode, _MODES)
        self._adapting = mode == "adapt"
        self._group = distributed.group_of(process_group)
        self._half_life = number("half_life", half_life, minimum=0.0, strict=True)
        self._min_coverage = number("min_coverage", min_coverage, minimum=0.0, maximum=1.0)
        self._scaler = DomainLossScaler(choice("unit", unit, UNITS))
        self._steering = Steering(mixture.info, policy, sampler=choice("counts", counts, COUNTS))
        self._warn = WarnOnce()
        self._guards = Guards(mixture.info, self._warn)
        self._tokens_per_row = known_lengths(mixture.domains, unit, tokens_per_row)
        self._measurements = Measurements(
            mixture.info,
            estimator=estimator,
            seed=seed,
            half_life=self._half_life,
            per_token=unit == "token",
            tokens_per_row=self._tokens_per_row,
            gram=self._keeps_gram(),
            warn=self._warn,
            group=process_group,
        )
        self._weights = Weights.proportional(mixture.importance)
        self._plan = Plan(mixture, shares=self._row_shares(), lag=lag, seed=seed, counts=counts)
        self._count = tokens_per_row if callable(tokens_per_row) else None
        self._board: TensorBoardLog | None = None
        self._stopwatch = Stopwatch()
        self._proof: BackwardProof | None = BackwardProof()
        self._order = BatchOrder(self._plan)
        self._sampler: PlanSampler | None = None
        self._agreed_starts = 0
        self._device: torch.device | None = None
        self._step_rows = self._horizon = 0
        if model is not None:
            self.watch(model)

    def __repr__(self) -> str:
        names, shares = self.mixture.domains, self._weights.sampling
        drawn = (f"{name} {share:.3g}" for name, share in zip(names, shares, strict=True))
        length = f" of {self._horizon}" if self._horizon else ""
        return (
            f"Controller(policy={self._steering.given}, mode={self._mode!r}, "
            f"completed={self.completed}{length}, shares: {listed(drawn, number=len(names))})"
        )

    # What the user calls.

    def loader(
        self,
        batch_size: int,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        accumulation: int = 1,
        **dataloader_options: Any,
    ) -> Loader:
        """Return the loader of this run; it iterates batches as ``collate_fn`` makes them.

        Args:
            batch_size: rows of a micro-batch on this process.
            epochs: length of the run in passes of ⌈rows / global batch⌉ steps each. An iteration
                is one pass, or what is left of it after a stop. 1 when None, without ``steps``.
            steps: length of the run in optimizer steps; an iteration is all that are left.
            num_workers: worker processes; what is drawn does not depend on them.
            collate_fn: as for ``torch.utils.data.DataLoader``.
            accumulation: micro-batches per optimizer step.
            dataloader_options: further ``DataLoader`` options.

        Raises:
            TypeError: an option that the plan decides.
            ValueError: an option out of its range, or both ``epochs`` and ``steps``.
            LagError: workers would run further ahead than ``lag``.
            StateError: another global batch than the restored run's.
        """
        layout = self._layout(batch_size, accumulation)
        epoch_steps = None
        if steps is None:
            epoch_steps = layout.epoch_steps(len(self.mixture))
            steps = epoch_steps * integer("epochs", 1 if epochs is None else epochs, minimum=1)
        elif epochs is not None:
            raise ValueError(
                f"epochs and steps must not both be given; got {epochs} and {steps}. Either one is "
                "the length of the whole run."
            )
        sampler = self._make_sampler(layout, steps, epoch_steps, finish_epochs=True)
        self.count_tokens(collate_fn or default_collate)
        return Loader(
            sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            count=self._count,
            hand_out=self._order.hand_out,
            **dataloader_options,
        )

    def count_tokens(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        """Count the tokens of some rows of each domain, if ``tokens_per_row`` is a function.

        ``loader`` does so by itself. Call it where a trainer makes the loader.

        Args:
            collate_fn: makes a batch of rows.

        Raises:
            ValueError: ``tokens_per_row`` does not return one number per row.
        """
        if self._count is None or self.completed:
            return
        sample = sample_lengths(self.mixture, collate_fn, self._count, seed=self._plan.seed)
        if sample is not None:
            self._measurements.sample_lengths(sample.tokens, sample.rows, sample.whole)
            self._plan.begin_with(self._row_shares())

    def sampler(
        self,
        batch_size: int,
        *,
        accumulation: int = 1,
        steps: int | None = None,
        epoch_steps: int | None = None,
    ) -> PlanSampler:
        """Return the batch sampler of this run, for trainers that make the loader themselves.

        Args:
            batch_size: rows of a micro-batch on this process.
            accumulation: micro-batches per optimizer step.
            steps: optimizer steps of the whole run; one pass over the rows when None.
            epoch_steps: optimizer steps of one iteration; all that are left when None.

        Raises:
            ValueError: an option out of its range.
            StateError: another global batch than the restored run's.
        """
        layout = self._layout(batch_size, accumulation)
        steps = layout.epoch_steps(len(self.mixture)) if steps is None else steps
        return self._make_sampler(layout, steps, epoch_steps)

    def _layout(self, batch_size: int, accumulation: int) -> Layout:
        return Layout(batch_size, accumulation, *distributed.world(self._group))

    def _make_sampler(
        self, layout: Layout, steps: int, epoch_steps: int | None, *, finish_epochs: bool = False
    ) -> PlanSampler:
        self._check_step_rows(layout)

        def prepare() -> None:
            self._step_rows, self._horizon = layout.step_rows, steps
            self._steering.prepare(batch_size=layout.step_rows, horizon=steps)

        def begin() -> None:
            self._order.start_anew()
            self.abandon_step()
            self._check_step_rows(layout)
            self._sampler = sampler
            prepare()

        sampler = PlanSampler(
            self._plan,
            layout,
            steps=steps,
            epoch_steps=epoch_steps,
            finish_epochs=finish_epochs,
            on_start=begin,
        )
        # A loader that is made and not used changes nothing for the one in use.
        if not self._step_rows:
            prepare()
        return sampler

    def _check_step_rows(self, layout: Layout) -> None:
        if self.completed and self._step_rows != layout.step_rows:
            raise StateError(
                f"batch_size × processes × accumulation must stay {self._step_rows} in a run; got "
                f"{layout.batch_size} × {layout.world_size} × {layout.accumulation} = "
                f"{layout.step_rows}. Choose batch_size so that the product is the same."
            )

    def watch(self, model: nn.Module) -> Watch:
        """Install the gradient probe on a model; returns a handle with ``remove()``.

        The model may be compiled, wrapped and sharded, before or after. Compiled code ignores
        hooks, so from before an observed step until after it all compiled code of the process
        runs uncompiled, if the model or a part of it is compiled.

        Raises:
            ValueError: a probe is installed already, or the model has no parameters to watch; or
                its parameters are spread by tensor parallelism, and no ``process_group`` was given.
        """
        if self._group is None and distributed.world()[1] > 1:
            refuse_tensor_parallel(model)
        self._measurements.watch(model)
        self._device = next(model.parameters()).device
        self._arm()
        return Watch(self._measurements)

    def loss(
        self,
        losses: Tensor,
        *,
        noise: NoiseTerms | Tensor | None = None,
        mask: Tensor | None = None,
        segments: Segments | None = None,
        samples: Tensor | None = None,
        draw: Draw | None = None,
    ) -> Tensor:
        """Return the scalar to call ``backward()`` on, and record the statistics.

        Summed over the micro-batches of a step and averaged over processes, its gradient is that
        of Σ π w L in expectation. There is nothing left to divide by accumulation.

        Args:
            losses: (B,) or (B, T, …) unreduced losses of this micro-batch.
            noise: terms of ``adaptmix.noise``, or (B,) squared residuals.
            mask: which entries of ``losses`` are supervised, the same shape; all when None.
            segments: of rows that are packed; ``losses`` and ``mask`` are then (P, T), and
                ``noise`` has one term per drawn row, as from ``segments.unpack(logits)``.
            samples: (R,) integers in [0, B), where the model ran R rows for the B that were drawn,
                as for pairs or several crops: the row of the draw that each is of.
                ``torch.arange(B).repeat(2)`` are all chosen answers and then all rejected ones,
                ``torch.arange(B).repeat_interleave(2)`` two crops after each other. ``losses``
                keeps one entry per drawn row.
            draw: what ``loader.with_draws()`` yielded with the batch; that of the batch that the
                loader handed out last when None.

        Raises:
            BatchOrderError: a batch out of turn; or without ``draw``, no batch or several that were
                handed out and not trained, as by a loop that looks ahead.
            SeamError: the model ran other rows than ``samples``, or the draw, tells.
            TypeError: losses or noise that are no tensors.
            ValueError: losses that are reduced or not the draw's, a draw of another controller,
                segments of other rows.
            ProcessMismatchError: the first time in a run, processes that do not agree.
        """
        self._device = losses.device if isinstance(losses, Tensor) else None
        draw = self._next_draw(draw)
        rows = self._scaler.rows(losses, draw, mask, segments)
        domains = draw.domains.to(rows.values.device, non_blocking=True)
        self._check_tokens(draw, rows.tokens)
        measurements = self._measurements
        measurements.start_lengths(domains, rows.tokens, adapting=self._adapting)
        # An observed run has weights, too: importance and loss weights of 1.
        total, factors = self._scaler.weighted(
            rows,
            domains,
            draw,
            self._weights,
            lengths=measurements.lengths,
            micro_rows=draw.layout.process_rows,
        )
        self._record(total, draw, factors, rows.values, rows.tokens, noise, segments, samples)
        if self._proof is not None and total.requires_grad:
            self._proof.watch(total)
        return total

    def multipliers(self, draw: Draw | None = None) -> Tensor:
        """Return what each row's share of a mean loss is to be multiplied by, (B,).

        A loss that is a mean over rows (tokens, with unit "token") has the gradient of Σ π w L, in
        expectation, once its rows' gradients are multiplied so; ``adaptmix.trainers`` does that
        where losses cannot be had row by row. Call ``observe`` for the same batch afterwards.

        Args:
            draw: as for ``loss``.

        Raises:
            BatchOrderError: as ``loss`` does.
            ValueError: a draw of another controller.
        """
        draw = self._next_draw(draw)
        if not self._adapting:
            return torch.ones(len(draw))
        return self._scaler.multipliers(draw, self._weights, lengths=self._measurements.lengths)

    def expected_tokens(self, draw: Draw) -> float:
        """Return the mean tokens of the rows of a step that a draw is of; losses with "sample".

        With unit "sample" a row has one loss, or none where all of its labels are masked.
        """
        return self._scaler.mean_length(draw, self._measurements.lengths)

    def observe(
        self,
        loss: Tensor,
        *,
        factors: Tensor,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        noise: NoiseTerms | Tensor | None = None,
        samples: Tensor | None = None,
        outputs: Sequence[Tensor] = (),
        draw: Draw | None = None,
    ) -> None:
        """Record the statistics of a micro-batch whose weighted loss was computed elsewhere.

        Args:
            loss: () the scalar that ``backward()`` is called on.
            factors: (B,) what ``loss`` multiplies each row's own loss by: its mean over tokens, or
                with unit "token" their sum.
            losses: as for ``loss``; unknown when None.
            mask: as for ``loss``; without ``losses`` it tells tokens alone.
            noise: as for ``loss``.
            samples: as for ``loss``.
            outputs: the tensors that rows' losses are computed from, where ``loss`` has more than
                these, such as a penalty on parameters.
            draw: as for ``loss``.

        Raises:
            BatchOrderError: as ``loss`` does.
            SeamError: as ``loss`` does.
            TypeError: as ``loss`` does.
            ValueError: as ``loss`` does.
        """
        self._device = loss.device
        draw = self._next_draw(draw)
        values, tokens = None, torch.ones(len(draw), device=loss.device)
        if losses is not None:
            rows = self._scaler.rows(losses, draw, mask)
            values, tokens = rows.values, rows.tokens
        elif mask is not None:
            tokens = mask.reshape(len(draw), -1).sum(1)
        domains = draw.domains.to(tokens.device, non_blocking=True)
        told = losses is not None or mask is not None
        self._measurements.start_lengths(domains, tokens, known=told, adapting=self._adapting)
        factors = factors.to(loss.device, non_blocking=True)
        self._record(loss, draw, factors, values, tokens, noise, samples=samples, outputs=outputs)

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
        measurements.record(domains, values, tokens, noise=terms, fresh=fresh)
        self._order.record(draw)

    def record_noise(self, noise: NoiseTerms | Tensor, domain: str) -> None:
        """Add noise terms of held-out rows, once training has been through all of a domain.

        Args:
            noise: terms of ``adaptmix.noise``, or (B,) squared residuals, of rows that are never
                trained on.
            domain: the name of the domain that all of them are of.

        Raises:
            TypeError: noise that is no tensor.
            ValueError: an unknown domain.
        """
        index = self.mixture.domains.index(choice("domain", domain, self.mixture.domains))
        self._measurements.record_noise(index, NoiseTerms.of(noise))

    def step(self) -> None:
        """Count an optimizer step, and update the weights when that is due.

        Raises:
            BatchOrderError: called without ``loss``, or before all micro-batches of the step.
            MissingStatisticError: the policy needs what the run does not supply.
            SeamError: in the first step, losses that were divided by the accumulation once more.
            ProcessMismatchError: when an update is due, processes that do not agree.
        """
        accumulation = self._order.accumulation
        self._order.check_complete()
        if self._proof is not None and accumulation > 1:
            self._proof.refuse_division(accumulation)
        observed, self._proof = self.observing, None
        self._order.next_step()
        self._plan.advance()
        updated = self._measurements.read()
        if updated:
            self._update()
        due = self.completed % self._update_every == 0
        self._measurements.close_step(
            self.completed,
            due=due,
            observed=observed,
            adapting=self._adapting,
            agree=self._agree_on_step,
        )
        self._arm()
        self._stopwatch.tick(measured=observed or updated)

    def abandon_step(self) -> None:
        """Forget what was recorded of a step that was not finished; it is trained anew.

        For a step that an exception cut short, such as a lack of memory. Iterating a loader and
        loading a state do it by themselves. Set gradients to zero, too. Between steps it does
        nothing.
        """
        self._measurements.forget_step()
        self._order.abandon_step()
        if self._proof is not None:
            self._proof = BackwardProof()
        self._arm()

    def pin(self, domain: str, *, sampling: Bound | None = None, loss: Bound | None = None) -> None:
        """Hold or bound one domain's weights, whatever the policy says; the others keep proportion.

        New loss weights count at once, new shares ``lag`` + 1 steps later. Each call replaces the
        domain's bounds, so that ``pin(domain)`` takes them off. With several processes all of them
        call it, and it counts from the next step on in which an update is due, when they are
        known to have asked for the same.

        Args:
            domain: its name.
            sampling: the share to hold, or (lowest, highest).
            loss: the loss weight to hold, or (lowest, highest).

        Raises:
            ValueError: an unknown domain, or bounds that no weights meet.
        """
        index = self.mixture.domains.index(choice("domain", domain, self.mixture.domains))
        self._steering.pin(index, sampling=sampling, loss=loss)
        if distributed.world(self._group)[1] == 1:
            self._take_pins()

    def record_evaluation(
        self, losses: Mapping[str, float], *, errors: Mapping[str, float] | None = None
    ) -> None:
        """Log held-out losses, and be warned when a domain gets worse.

        Args:
            losses: mean held-out loss by domain name.
            errors: their standard errors, for instance the rows' standard deviation over the
                square root of their number; they tell how sure a comparison of two runs is.

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
        self._record_texts()
        if self._board is not None:
            self._board.write_evaluation(self.completed, losses, errors)

    def log_to(self, target: str | PathLike[str] | SummaryWriter) -> None:
        """Log every update to TensorBoard, from the first process only.

        What cannot be written is a LoggingWarning, and training goes on without a log.

        Args:
            target: a directory, or a SummaryWriter.
        """
        if distributed.world()[0] == 0:
            self._board = TensorBoardLog(target, self.mixture.domains, step=self.completed)
            if self._step_rows:
                self._record_texts()

    # What the user reads.

    @property
    def weights(self) -> Weights:
        """The weights last published; in mode "observe" those of a run without adaptmix."""
        return self._weights

    @property
    def proposed(self) -> Weights:
        """The weights the policy last proposed; in mode "adapt" the same as ``weights``."""
        return self._steering.proposed

    @property
    def statistics(self) -> DomainStats:
        """The running estimates, as of the last update or observation that was read."""
        return self._measurements.snapshot(self.completed)

    @property
    def completed(self) -> int:
        """Optimizer steps trained."""
        return self._plan.completed

    @property
    def unit(self) -> str:
        """What the objective averages over: "sample" or "token"."""
        return self._scaler.unit

    @property
    def requires(self) -> frozenset[str]:
        """The statistics that the policy reads."""
        return self._steering.requires

    @property
    def observing(self) -> bool:
        """Whether the next step to train is one whose gradients are observed."""
        # The last step before an update, so that the update knows the newest gradients.
        return (self.completed + 1) % self._measure_every == 0

    @property
    def predicted_gain(self) -> float:
        """How many times quieter the gradient is with the best shares than by importance."""
        return predicted_gain(self.proposed, self.statistics, **self._drawing)

    @property
    def sampling_gain(self) -> float:
        """How many times quieter the gradient is with the proposed shares than by importance."""
        return sampling_gain(self.proposed, self.statistics, **self._drawing)

    @property
    def _drawing(self) -> dict[str, Any]:
        """What the variance of a step depends on beside weights and statistics."""
        return {"rows": self._step_rows or None, "sampler": self._plan.counts}

    def scalars(self) -> dict[str, float]:
        """Return what TensorBoard shows of the last update, by tag without its "adaptmix/"."""
        measurements = self._measurements
        in_force = self._plan.shares_at(self.completed) * measurements.lengths
        return scalars(
            self.mixture.domains,
            weights=self.proposed,
            stats=self.statistics,
            in_force=normalise(in_force),
            sizes=self.mixture.info.sizes,
            lengths=measurements.lengths,
            drawing=self._drawing,
            per_token=self.unit == "token",
            observing=not self._adapting,
            coverage=measurements.coverage,
            overhead=self._stopwatch.overhead,
        )

    @property
    def configuration(self) -> dict[str, Any]:
        """What identifies this run in its record, as plain data."""
        return {
            **self._identity(),
            "version": installed_version(),
            "policy": self._steering.given.strip("'"),
            "policy_settings": self._steering.description,
            "requires": sorted(self.requires),
            "rows_per_step": self._step_rows,
            "steps": self._horizon,
        }

    @property
    def warnings(self) -> list[Caution]:
        """The warnings given since this run began or was resumed."""
        return [Caution(*given) for given in self._warn.messages]

    def report(self, *, html: str | PathLike[str] | None = None) -> str:
        """Return a table of the proposed weights and the statistics, and what they predict.

        Args:
            html: where to write the page that tells whether it helped, from what ``log_to`` wrote
                so far; ``adaptmix report`` writes it of several runs. Not written when None.

        Raises:
            ValueError: ``html`` without ``log_to``.
            ImportError: ``html`` without the extra "report".
        """
        if html is not None:
            self._page().save(html)
        return report(
            self.mixture.domains,
            self.proposed,
            self.statistics,
            unit=self.unit,
            observing=not self._adapting,
            **self._drawing,
        )

    def _page(self) -> Page:
        if self._board is None or not self._board.folder:
            raise ValueError(
                "report(html=...) must have a record to read; call controller.log_to(directory) "
                "before training. Runs that a trainer's logger wrote are read by `adaptmix report`."
            )
        self._record_texts()
        self._board.flush()
        return page(read_runs([self._board.folder]))

    def _repr_html_(self) -> str | None:
        """Show the page of a run that is logged, in notebooks."""
        return None if self._board is None else self._page()._repr_html_()

    def _record_texts(self) -> None:
        if self._board is not None:
            self._board.write_texts(self.completed, self.configuration, self.warnings)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as plain tensors, numbers and strings.

        Every process must call it, for sums that are not yet added up are gathered. What it
        returns is the same on all, and any number of processes may load it.

        Raises:
            ValueError: called between the micro-batches of a step.
            ProcessMismatchError: processes that do not agree.
        """
        if self._order.micro:
            raise ValueError(
                f"state_dict() must be called between optimizer steps; got {self._order.micro} "
                "micro-batches of an unfinished one. Call step() first, or abandon_step() to leave "
                "it out."
            )
        self._agree_on_run()
        state = {
            **self._identity(),
            "step_rows": self._step_rows,
            "plan": self._plan.state_dict(),
            "measurements": self._measurements.state_dict(),
            "steering": self._steering.state_dict(),
            "guards": self._guards.state_dict(),
            "warned": sorted(self._warn.given),
        }
        return checkpoint.seal(checkpoint.encode(state))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved controller stopped.

        Raises:
            StateError: the state is damaged, or of another mixture, seed or configuration. The
                controller is then as it was.
        """
        saved = checkpoint.unseal(state)
        identity = self._identity()
        checkpoint.expect(saved, names=self.mixture.domains, **identity)
        parts: dict[str, Any] = {
            "plan": self._plan,
            "measurements": self._measurements,
            "steering": self._steering,
            "guards": self._guards,
        }
        fields = {
            **dict.fromkeys(identity, schema.anything),
            **dict.fromkeys(parts, schema.mapping),
            "step_rows": schema.integer(),
            "warned": schema.several(schema.text),
        }
        saved = schema.read(saved, fields)
        if self._step_rows and saved["step_rows"] != self._step_rows:
            raise StateError(
                f"batch_size × processes × accumulation must stay {saved['step_rows']}, as in the "
                f"saved run; got {self._step_rows}. Make the loader with that product."
            )
        with checkpoint.damage():
            # Whatever is refused is refused by a copy first, so that all of it is taken or nothing.
            for name, part in parts.items():
                copy(part).load_state_dict(saved[name])
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        self._warn.given = set(saved["warned"])
        self._step_rows = saved["step_rows"]
        self._weights = self.proposed if self._adapting else self._weights
        if self._board is not None:
            self._board.restart(self.completed)
        self._order.start_anew()
        self.abandon_step()

    def __reduce__(self) -> Any:
        raise TypeError(
            "A Controller must not be copied or pickled: it is part of a run, with its model, its "
            "loader and its logs. Build another one with the same arguments, and call its "
            "load_state_dict(controller.state_dict())."
        )

    def _identity(self) -> dict[str, Any]:
        """Return what a run is, in plain values: the same in every process and when it goes on."""
        return {
            "domains": list(self.mixture.domains),
            "sizes": self.mixture.sizes.tolist(),
            "importance": self.mixture.importance.tolist(),
            "labels": self.mixture.labels_digest,
            "policy": self._steering.description,
            "mode": self._mode,
            "tokens_per_row": self._tokens_per_row,
            "seed": self._plan.seed,
            "lag": self._plan.lag,
            "counts": self._plan.counts,
            "unit": self._scaler.unit,
            "update_every": self._update_every,
            "measure_every": self._measure_every,
            "estimator": self._estimator,
            "half_life": self._half_life,
            "min_coverage": self._min_coverage,
        }

    # How it works.

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
        """Let processes go on if they are of one mind; all of them call this in the same places.

        Args:
            common: returns what they must have in common.
            problem: why this process cannot go on.

        Raises:
            ProcessMismatchError: they are not.
            ValueError: a problem, where there is one process only.
        """
        here = distributed.world(self._group)
        layout = None if self._sampler is None else self._sampler.layout
        if layout is not None and here != (layout.rank, layout.world_size):
            problem = (
                f"the loader was made as rank {layout.rank} of {layout.world_size} processes, and "
                f"this is rank {here[0]} of {here[1]}. Make the loader after "
                "torch.distributed.init_process_group(), and anew when processes change."
            )
        told = distributed.agree(
            common,
            facts=self._measurements.told,
            problem=problem,
            names=self.mixture.domains,
            group=self._group,
            device=self._device,
        )
        self._measurements.agree_on(told)
        self._take_pins()

    def _position(self) -> dict[str, Any]:
        """Return where a run is: what processes must have in common at any time."""
        return {
            "completed": self.completed,
            "watched": self._measurements.probe is not None,
            "pins": self._steering.wanted_pins,
            "sampling_weights": self._weights.sampling,
            "loss_weights": self._weights.loss,
            "row_lengths": self._measurements.lengths,
        }

    def _take_pins(self) -> None:
        if self._steering.take_pins():
            self._publish(between_steps=False)

    def _arm(self) -> None:
        probe = self._measurements.probe
        if probe is not None:
            # The first step is looked at in any case: what cannot be is known before others follow.
            probe.arm(self.observing or not probe.inspected, step=self.completed)

    def _keeps_gram(self) -> bool:
        """Return whether (K, K) sums are kept: for predicted variances, or for the policy."""
        few = len(self.mixture.domains) <= _GRAM_DOMAINS
        return few or "grad_gram" in self._steering.requires

    def _next_draw(self, draw: Draw | None) -> Draw:
        """Return the draw that losses are of, after checking that it is its turn."""
        draw = self._order.draw_of(draw)
        if self._agreed_starts != self._plan.starts:
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

    def _update(self) -> None:
        """Let the policy act on the newest statistics, if they are of the gradient."""
        stats = self.statistics
        self._guards.check_repetition(stats.seen)
        reads = any(name.startswith("grad_") for name in self.requires)
        trusted = self._measurements.trusts(self._min_coverage) and not self._measurements.misread
        if (not reads or trusted) and not self._act(stats):
            return
        if self._board is not None:
            coverage = self._measurements.coverage
            self._record_texts()
            self._board.write(self.completed, self.scalars(), coverage=coverage)

    def _act(self, stats: DomainStats) -> bool:
        """Let the policy propose weights and publish them; returns whether it could."""
        try:
            known = self._steering.update(stats, measured=self._measurements.measured)
        except MissingStatisticError as error:
            if self._adapting:
                raise
            self._warn(MissingStatisticWarning, f"Nothing is proposed: {error}")
            return False
        if not known:
            self._warn(
                TooFewRowsWarning,
                "The policy waits for statistics: no row of an observed step told what it needs. "
                "Gradients overflowed, or no row was fresh where noise is needed.",
            )
            return False
        self._measurements.warn_of_gaps(stats, required=self._steering.requires)
        estimated = bool(self._steering.requires)
        self._guards.check_weights(self.proposed, stats, estimated=estimated)
        self._publish()
        return True

    def _publish(self, *, between_steps: bool = True) -> None:
        if self._adapting:
            self._weights = self.proposed
            self._plan.publish(self._row_shares(), between_steps=between_steps)

    def _row_shares(self) -> FloatArray:
        """Return the shares of rows: sampling weights are shares of the objective's unit."""
        return normalise(self._weights.sampling / self._measurements.lengths)
