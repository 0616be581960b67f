"""The controller: watches a training run and acts on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.data import default_collate

from adaptmix._checks import choice, integer
from adaptmix._foreign import ForeignRun
from adaptmix._schedule import Schedule
from adaptmix._settings import Drawing, Settings
from adaptmix._text import listed
from adaptmix._types import Domains
from adaptmix.data import Count, Draw, Loader, Mixture, Segments
from adaptmix.noise import NoiseTerms
from adaptmix.policies import Policy
from adaptmix.policies._bounds import Bound
from adaptmix.processes._sums import group_of
from adaptmix.processes._tensor_parallel import refuse_tensor_parallel
from adaptmix.statistics import Watch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Controller(ForeignRun):
    """Online sampling and loss weights for one training run.

    Args:
        mixture: the domains and their rows; ``Domains`` where another loader draws the rows, each
            row's domain on its own. ``counts``, ``lag`` and ``seed_rows`` do nothing then.
        model: the model whose gradients are measured, as by ``watch``. When None, call ``watch``.
        policy: a policy or its name. The default adapts sampling alone and leaves the objective as
            it is. A name, and the class behind it, draw noisy statistics towards their common value
            first (``policies.Shrink``). A chain and a policy of your own are used as they are.
        update_every: optimizer steps between updates of the weights.
        measure_every: optimizer steps between measurements of per-sample gradients;
            ``update_every`` when None.
        estimator: what gradient statistics are computed from. "sketch": random projections of each
            sample's gradient, unbiased; "exact": whole per-sample gradients; "norm": gradients of
            normalisation layers alone, with which only ratios of variances are roughly right.
        counts: "stratified": each domain's rows in a batch are its share, rounded up or down;
            "multinomial": each row's domain is drawn on its own.
        lag: optimizer steps from new shares to the first rows drawn with them, and the most that
            loader workers may prefetch.
        seed: seed of the draws of rows and of the random projections, >= 0.
        unit: "sample": the objective is Σ π w (mean loss per row); "token": Σ π w (mean loss per
            supervised token).
        mode: "adapt" trains on Σ π w (mean loss per unit), drawn with the weights of the policy.
            "observe" draws rows by importance, trains on Σ π (mean loss per unit), which is where
            an adapting run starts, and logs the weights that it would use.
        half_life: optimizer steps after which a measurement counts half.
        tokens_per_row: for unit "token", the mean number of supervised tokens per row of each
            domain, by name; or a function from a batch to each row's number, (B,), with which a
            sample of each domain is counted before training. When None, all rows must have equally
            many. For unit "sample", the share of each domain's rows that have any supervised label;
            estimated during training when None.
        min_coverage: share of the gradient's squared norm that the probe must see for the weights
            to move on its statistics, in [0, 1]; with 0 they always move.
        when_exhausted: what a domain does that reaches ``max_epochs``. "repeat": its share is held
            back, so that it does not before the run ends. "drop": it leaves the objective, and the
            others' importance is scaled up. "stop_first": the run ends. "stop_all": the run ends
            once all domains have reached it.
        sampling: shares by name, or a ``Schedule`` of them, in place of the policy's.
        seed_rows: whether ``seed`` also seeds the random numbers that rows and collate_fn use.
        max_epochs: how often each row may be drawn, in all or by domain. None: 1 with "drop" and
            "stop_first", without limit otherwise.
        holdout: share or number of each domain's rows that are never trained on, a quarter at most.
            A few join each measured step with multiplier 0, to measure losses and noise. "auto":
            2 % (16 to 2 000 rows) where the policy reads these, and none in mode "observe".
        process_group: the data-parallel ranks; all ranks when None. Tensor-parallel ranks see the
            same rows, so pass ``mesh["dp"].get_group()`` there.

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
        row_lengths: ArrayLike | None = None,
        **dataloader_options: Any,
    ) -> Loader:
        """Return the loader of this run. It yields the batches that ``collate_fn`` makes.

        Args:
            batch_size: rows of a micro-batch on this process.
            epochs: length of the run in passes of ⌈rows / global batch⌉ steps each; 1 when neither
                is given. One iteration is one pass, or the rest of it after a stop.
            steps: length of the run in optimizer steps. One iteration is all that are left.
            num_workers: worker processes. The rows that are drawn do not depend on them.
            collate_fn: as for ``torch.utils.data.DataLoader``.
            accumulation: micro-batches per optimizer step.
            row_lengths: (rows of the mixture,) by which each step's rows are cut into micro-batches
                from the longest to the shortest, so that less is padded. The gradient of the step
                stays the same.
            dataloader_options: further ``DataLoader`` options.

        Raises:
            TypeError: an option that the plan decides.
            ValueError: an option out of its range, or both ``epochs`` and ``steps``.
            LagError: workers would run further ahead than ``lag``.
            StateError: another global batch than the restored run's.

        Warns:
            LengthGroupingWarning: ``row_lengths``, where a step has only one micro-batch.
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
        if row_lengths is not None:
            sampler.group_by_length(row_lengths)
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

        The model may be compiled, wrapped or sharded before or afterwards. Compiled code ignores
        hooks. So if any part of the model is compiled, all compiled code of the process runs
        uncompiled during a measured step.

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
            mask: which entries of ``losses`` are supervised, in the same shape; all when None.
            segments: where rows are packed. ``losses`` and ``mask`` are then (P, T), and
                ``noise`` has one term per drawn row, as from ``segments.unpack(logits)``.
            samples: (R,) integers in [0, B), where the model ran R rows for the B drawn ones, as
                for pairs or crops: which drawn row each belongs to. ``arange(B).repeat(2)`` means
                all first halves, then all second ones; ``arange(B).repeat_interleave(2)`` means
                two rows after each other. ``losses`` keeps one entry per drawn row.
            draw: what ``with_draws()`` or ``foreign()`` gave; of the batch handed out when None.

        Raises:
            BatchOrderError: a batch out of turn; or without ``draw``, not exactly one batch that
                was handed out and is not trained yet, as in a loop that looks ahead.
            ObjectiveError: other rows ran than the draw's, or a row's loss depends on others.
            MissingStatisticError: in the first call, a statistic that the policy needs is missing.
            TypeError: losses or noise that are no tensors.
            ValueError: reduced losses, or losses, draws or segments of other rows.
            ProcessMismatchError: in the first call, processes that differ.
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
            MissingStatisticError: a statistic that the policy needs is missing.
            ObjectiveError: in the first step, losses that were divided by the accumulation.
            ProcessMismatchError: when an update is due, processes that differ.
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
        """Hold or bound one domain's weights, whatever the policy says.

        The other domains keep their proportions. Before training, bounds hold from the first batch
        on. During a run, loss weights change at once and shares ``lag`` + 1 steps later. Each call
        replaces the domain's bounds, and ``pin(domain)`` takes them off. With several processes all
        of them must call it, and the bounds hold from the next update on.

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
