"""The controller: watches a training run and acts on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import default_collate

from adaptmix._checks import choice, integer
from adaptmix._foreign import ForeignRun
from adaptmix._schedule import Schedule
from adaptmix._settings import Drawing, Settings
from adaptmix._text import listed
from adaptmix._types import Domains
from adaptmix.data import Count, Draw, Loader, Mixture, Segments
from adaptmix.monitoring._report import report
from adaptmix.noise import NoiseTerms
from adaptmix.policies import Policy
from adaptmix.policies._bounds import Bound
from adaptmix.processes._sums import group_of, world
from adaptmix.processes._tensor_parallel import refuse_tensor_parallel
from adaptmix.statistics import Watch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.utils.tensorboard import SummaryWriter


class Controller(ForeignRun):
    """Online sampling and loss weights for one training run.

    Args:
        mixture: the domains and their rows; ``Domains`` where another loader draws the rows.
        model: the model whose gradients are measured, as by ``watch``; ``watch`` it later if None.
        policy: a policy or its name. The default adapts sampling alone and leaves the objective as
            it is. A policy that has a name, and the name, shrink noisy statistics first
            (``policies.Shrink``). A chain, and a policy of your own, is used as it is.
        update_every: optimizer steps between updates of the weights.
        measure_every: optimizer steps between measurements of per-sample gradients;
            ``update_every`` when None.
        estimator: how gradient statistics are measured. "sketch": from random projections of each
            sample's gradient, without bias; "exact": from whole per-sample gradients; "norm": from
            those of normalisation layers alone, where only ratios of variances are right, roughly.
        counts: "stratified": each domain's rows in a batch are its share, rounded up or down;
            "multinomial": each row's domain is drawn on its own.
        lag: optimizer steps until new shares are drawn with. Loader workers may run ahead by it.
        seed: of the random draws of rows and of the projections, >= 0.
        unit: "sample": the objective is Σ π w (mean loss per row); "token": Σ π w (mean loss per
            supervised token).
        mode: "adapt" trains on Σ π w (mean loss per unit), drawn with the weights of the policy.
            "observe" measures and logs what would be done. It draws rows by importance and trains
            on Σ π (mean loss per unit): the objective that an adapting run starts from.
        half_life: optimizer steps after which a measurement counts half.
        tokens_per_row: for ``unit="token"``: mean supervised tokens per row of each domain, by
            name, or a function of a batch that returns each row's, (B,), by which a sample of each
            domain is counted before training. When None, all rows must have the same number. With
            unit "sample": the share of each domain's rows that have a supervised label at all;
            estimated while training when None.
        min_coverage: share of the gradient's squared norm that the probe must see for the weights
            to move on its statistics, in [0, 1]; with 0 they always move.
        when_exhausted: what happens once a domain was drawn ``max_epochs`` times over: "repeat",
            that is not before the run's end; "drop", the objective is that of the others, their
            importance scaled up; "stop_first", the run ends; "stop_all", once all were used up.
        sampling: shares by name, or a ``Schedule`` of them, in place of the policy's.
        seed_rows: whether what rows and collate_fn draw at random follows from ``seed``, too.
        max_epochs: how often each row may be drawn, in all or by domain. None: 1 with "drop" and
            "stop_first", without limit otherwise.
        holdout: share or number of each domain's rows that are never trained on, a quarter at most.
            A few ride in each measured step, with multiplier 0, and tell losses and noise. "auto":
            2 % (16 to 2 000 rows) where the policy reads these, and none in mode "observe".
        process_group: the data-parallel ranks, which train on different rows; all ranks when None.
            Tensor-parallel ranks must see the same rows: give them ``mesh["dp"].get_group()``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.

    Source:
        Salmani et al., Sampling and Loss Weights in Multi-Domain Training, arXiv:2511.06913.
    """

    def __init__(
        self,
        mixture: Mixture | Domains,
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
        when_exhausted: str = "repeat",
        max_epochs: Mapping[str, float] | float | None = None,
        sampling: Schedule | Mapping[str, float] | None = None,
        holdout: str | float | None = "auto",
        seed_rows: bool = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        settings = Settings(
            mode=mode,
            unit=unit,
            update_every=update_every,
            measure_every=update_every if measure_every is None else measure_every,
            estimator=estimator,
            half_life=half_life,
            min_coverage=min_coverage,
        )
        drawing = Drawing(
            counts=counts,
            lag=lag,
            seed=seed,
            when_exhausted=when_exhausted,
            max_epochs=max_epochs,
            sampling=sampling,
            holdout=holdout,
            seed_rows=seed_rows,
        )
        group = group_of(process_group)
        super().__init__(
            mixture, settings, drawing, policy=policy, tokens_per_row=tokens_per_row, group=group
        )
        if model is not None:
            self.watch(model)

    def __repr__(self) -> str:
        names, shares = self.mixture.domains, self.weights.sampling
        drawn = (f"{name} {share:.3g}" for name, share in zip(names, shares, strict=True))
        length = f" of {self._horizon}" if self._horizon else ""
        return (
            f"Controller(policy={self._steering.given}, mode={self._settings.mode!r}, "
            f"completed={self.completed}{length}, shares: {listed(drawn, number=len(names))})"
        )

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
            look=self._rows.look,
            **dataloader_options,
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
        if self._group is None and self._agreement.world[1] > 1:
            refuse_tensor_parallel(model)
        self._measurements.watch(model)
        self._agreement.device = next(model.parameters()).device
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

        Its gradient, summed over the micro-batches of a step and averaged over processes, is that
        of Σ π w L in expectation. Do not divide it by the accumulation.

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
            draw: what ``with_draws()`` or ``foreign()`` gave; of the batch handed out when None.

        Raises:
            BatchOrderError: a batch out of turn; or without ``draw``, no batch or several that were
                handed out and not trained, as by a loop that looks ahead.
            ObjectiveError: other rows ran than the draw's, or a row's loss depends on others.
            MissingStatisticError: in the first call, the policy needs what the run does not supply.
            TypeError: losses or noise that are no tensors.
            ValueError: losses that are reduced, or with a draw or segments that are not theirs.
            ProcessMismatchError: the first time in a run, processes that do not agree.
        """
        self._agreement.device = losses.device if isinstance(losses, Tensor) else None
        if begins := self._begins:
            self._measurements.expect(noise=noise is not None)
        draw = self._next_draw(draw)
        rows = self._scaler.rows(losses, draw, mask, segments)
        self._check_tokens(draw, rows.tokens)
        if begins:
            self._adaptation.check_supplied()
        self._rows.check(losses, segments, samples)
        adapting = self._settings.adapting
        self._measurements.start_lengths(draw.domains, rows.tokens, adapting=adapting)
        # An observed run has weights, too: importance and loss weights of 1.
        total, factors = self._scaler.weighted(
            rows,
            draw,
            self.weights,
            lengths=self._measurements.lengths,
            micro_rows=draw.layout.process_rows,
        )
        self._record(total, draw, factors, rows.values, rows.tokens, noise, segments, samples)
        if self._proof is not None and total.requires_grad:
            self._proof.watch(total)
        return total

    def step(self) -> None:
        """Count an optimizer step, and update the weights when that is due.

        Raises:
            BatchOrderError: called without ``loss``, or before all micro-batches of the step.
            MissingStatisticError: the policy needs what the run does not supply.
            ObjectiveError: in the first step, losses that were divided by the accumulation.
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
        if updated and self._adaptation.update(self.statistics, self._plan):
            self._log.write_update(self.completed, self.scalars, self._measurements.coverage)
        self._measurements.close_step(
            self.completed,
            due=self.completed % self._settings.update_every == 0,
            observed=observed,
            adapting=self._settings.adapting,
            agree=self._agree_on_step,
        )
        self._arm()
        self._stopwatch.tick(measured=observed or updated)

    def pin(self, domain: str, *, sampling: Bound | None = None, loss: Bound | None = None) -> None:
        """Hold or bound one domain's weights, whatever the policy says; the others keep proportion.

        Before training they hold from the first batch on. In a run, new loss weights count at
        once, and new shares ``lag`` + 1 steps later. Each call replaces the domain's bounds, and
        ``pin(domain)`` takes them off. With several processes all of them must call it; it then
        counts from the next update on.

        Args:
            domain: its name.
            sampling: the share to hold, or (lowest, highest).
            loss: the loss weight to hold, or (lowest, highest).

        Raises:
            ValueError: an unknown domain, or bounds that no weights meet.
        """
        index = self.mixture.domains.index(choice("domain", domain, self.mixture.domains))
        self._steering.pin(index, sampling=sampling, loss=loss)
        if self._agreement.world[1] == 1 or self._plan.untouched:
            self._adaptation.take_pins(self._plan)

    def log_to(self, target: str | PathLike[str] | SummaryWriter) -> None:
        """Log every update to TensorBoard, from the first process only.

        Where something cannot be written, a LoggingWarning says so and training goes on.

        Args:
            target: a directory, or a SummaryWriter.
        """
        if world()[0] == 0:
            self._log.open(target, step=self.completed)
            if self._step_rows:
                self._log.write_texts(self.completed)

    def report(self, *, html: str | PathLike[str] | None = None) -> str:
        """Return a table of the proposed weights and the statistics, and what they predict.

        Args:
            html: file for the page that says whether it helped, made of what ``log_to`` wrote so
                far; no page when None. ``adaptmix report`` makes one of several runs.

        Raises:
            ValueError: ``html`` without ``log_to``.
            ImportError: ``html`` without the extra "report".
        """
        if html is not None:
            self._log.page(self.completed).save(html)
        return report(self.mixture.domains, self.proposed, self.statistics, **self._shown)
