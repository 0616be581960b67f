"""The controller: watches a training run and acts on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from adaptmix import checkpoint, distributed
from adaptmix.checks import FloatArray, choice, integer, number
from adaptmix.data import Draw, Layout, Loader, Mixture, Plan, PlanSampler
from adaptmix.efficiency import predicted_gain
from adaptmix.errors import StateError, TooFewRowsWarning, WarnOnce
from adaptmix.guards import Guards
from adaptmix.loss import UNITS, DomainLossScaler
from adaptmix.monitoring import Page, page, read_runs
from adaptmix.monitoring.quantities import scalars
from adaptmix.monitoring.stopwatch import Stopwatch
from adaptmix.monitoring.texts import Caution, installed_version
from adaptmix.noise import NoiseTerms
from adaptmix.pins import Bound
from adaptmix.policies import Policy
from adaptmix.report import report
from adaptmix.seams import BackwardProof
from adaptmix.segments import Segments
from adaptmix.simplex import normalise
from adaptmix.statistics import ESTIMATORS, Measurements, Watch, known_lengths
from adaptmix.steering import Steering
from adaptmix.tensorboard import TensorBoardLog
from adaptmix.types import DomainStats, Weights

_MODES = ("adapt", "observe")


class Controller:
    """Online sampling and loss weights for one training run.

    Args:
        mixture: the domains and their rows.
        policy: a policy, its name, or None: "joint" when the run supplies noise terms,
            "variance_aware" otherwise, which leaves the objective as it is. Policies by name
            shrink noisy statistics first (``policies.Shrink``); a policy object is used as it is.
        update_every: optimizer steps between updates of the weights.
        observe_every: optimizer steps between observations of per-sample gradients;
            ``update_every`` when None.
        estimator: of gradient statistics. "sketch": unbiased, from random projections of each
            sample's gradient, a few percent of a step per observation; "exact": from whole
            per-sample gradients; "norm": from those of normalisation layers only, the cheapest,
            whose variances are right relative to each other only, and roughly.
        sampler: "stratified": each domain's rows in a batch are its share, rounded up or down;
            "multinomial": each row's domain is drawn on its own.
        lag: steps until new shares are drawn with; at least how far the loader's workers run ahead.
        seed: of everything that is drawn.
        unit: "sample": the objective is Σ π w (mean loss per row); "token": Σ π w (mean loss per
            supervised token).
        mode: "adapt", or "observe" to measure and log what would be done and change nothing: rows
            are drawn by importance and the loss is their plain mean.
        half_life: optimizer steps after which statistics count half.
        tokens_per_row: mean supervised tokens per row of each domain, for ``unit="token"``;
            estimated while training when None.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.

    Source:
        Salmani et al., Sampling and Loss Weights in Multi-Domain Training, arXiv:2511.06913.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        policy: Policy | str | None = None,
        update_every: int = 10,
        observe_every: int | None = None,
        estimator: str = "sketch",
        sampler: str = "stratified",
        lag: int = 16,
        seed: int = 0,
        unit: str = "sample",
        mode: str = "adapt",
        half_life: float = 50.0,
        tokens_per_row: Mapping[str, float] | None = None,
    ) -> None:
        if not isinstance(mixture, Mixture):
            raise TypeError(
                f"mixture must be an adaptmix.Mixture; got {type(mixture).__name__}. "
                "Make one with Mixture({name: dataset}) or Mixture.from_labels(dataset, labels)."
            )
        self.mixture = mixture
        self._update_every = integer("update_every", update_every, minimum=1)
        self._estimator = choice("estimator", estimator, ESTIMATORS)
        every = update_every if observe_every is None else observe_every
        self._observe_every = integer("observe_every", every, minimum=1)
        self._adapting = choice("mode", mode, _MODES) == "adapt"
        self._half_life = number("half_life", half_life, minimum=0.0, strict=True)
        self._scaler = DomainLossScaler(choice("unit", unit, UNITS))
        self._steering = Steering(mixture.info, policy, sampler=sampler)
        self._warn = WarnOnce()
        self._guards = Guards(mixture.domains, self._warn)
        self._measurements = Measurements(
            mixture.info,
            estimator=estimator,
            seed=seed,
            half_life=self._half_life,
            per_token=unit == "token",
            tokens_per_row=known_lengths(mixture.domains, unit, tokens_per_row),
            warn=self._warn,
        )
        self._weights = Weights.proportional(mixture.importance)
        self._plan = Plan(mixture, shares=self._row_shares(), lag=lag, seed=seed, sampler=sampler)
        self._board: TensorBoardLog | None = None
        self._stopwatch = Stopwatch()
        self._proof: BackwardProof | None = BackwardProof()
        self._micro = 0
        self._layout = Layout(1)
        self._step_rows = self._horizon = 0

    # What the user calls.

    def loader(
        self,
        batch_size: int,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        accumulation: int = 1,
        steps: int | None = None,
        **dataloader_options: Any,
    ) -> Loader:
        """Return the loader of this run; it iterates (batch, draw).

        Args:
            batch_size: rows of a micro-batch on this process.
            num_workers: worker processes; what is drawn does not depend on them.
            collate_fn: as for ``torch.utils.data.DataLoader``.
            accumulation: micro-batches per optimizer step.
            steps: optimizer steps of the whole run; as many as show every row once on average
                when None. A restored controller goes on where it stopped.
            dataloader_options: further ``DataLoader`` options.

        Raises:
            TypeError: an option that the plan decides.
            ValueError: an option out of its range.
            LagError: workers would run further ahead than ``lag``.
            StateError: another global batch than the restored run's.
        """
        sampler = self.sampler(batch_size, accumulation=accumulation, steps=steps)
        return Loader(sampler, num_workers=num_workers, collate_fn=collate_fn, **dataloader_options)

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
            steps: as for ``loader``.
            epoch_steps: optimizer steps of one iteration; all that are left when None.

        Raises:
            ValueError: an option out of its range.
            StateError: another global batch than the restored run's.
        """
        rank, world_size = distributed.world()
        layout = Layout(batch_size, accumulation, rank, world_size)
        step_rows = layout.step_rows
        if self.completed and self._step_rows != step_rows:
            raise StateError(
                f"batch_size × processes × accumulation must stay {self._step_rows} in a run; got "
                f"{batch_size} × {world_size} × {accumulation} = {step_rows}. Choose batch_size so "
                "that the product is the same."
            )
        if steps is None:
            steps = max(1, len(self.mixture) // step_rows)
        sampler = PlanSampler(self._plan, layout, steps=steps, epoch_steps=epoch_steps)
        self._layout, self._step_rows, self._horizon = layout, step_rows, steps
        self._steering.prepare(batch_size=step_rows, horizon=steps)
        return sampler

    def watch(self, model: nn.Module) -> Watch:
        """Install the gradient probe on a model; returns a handle with ``remove()``.

        The model may be compiled, wrapped and sharded, before or after. Compiled code ignores
        hooks, so from before an observed step until after it all compiled code of the process
        runs uncompiled, if the model or a part of it is compiled.

        Raises:
            ValueError: a probe is installed already, or the model has no parameters to watch.
        """
        self._measurements.watch(model)
        self._arm()
        return Watch(self._measurements)

    def loss(
        self,
        losses: Tensor,
        draw: Draw,
        *,
        noise: NoiseTerms | Tensor | None = None,
        mask: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Tensor:
        """Return the scalar to call ``backward()`` on, and record the statistics.

        Summed over the micro-batches of a step and averaged over processes, its gradient is that
        of Σ π w L in expectation. There is nothing left to divide by accumulation.

        Args:
            losses: (B,) or (B, T, …) unreduced losses of this micro-batch.
            draw: what the loader yielded with the batch.
            noise: terms of ``adaptmix.noise``, or (B,) squared residuals.
            mask: which entries of ``losses`` are supervised, the same shape; all when None.
            segments: of rows that are packed; ``losses`` and ``mask`` are then (P, T), and
                ``noise`` has one term per drawn row, as from ``segments.unpack(logits)``.

        Raises:
            TypeError: losses or noise that are no tensors.
            ValueError: losses that are reduced or not the draw's, a draw of another controller or
                of another step, segments of other rows.
        """
        self._check_draw(draw)
        rows = self._scaler.rows(losses, draw, mask, segments)
        domains = draw.domains.to(rows.values.device, non_blocking=True)
        measurements = self._measurements
        measurements.start_lengths(domains, rows.tokens)
        if self._adapting:
            total, factors = self._scaler.weighted(
                rows,
                domains,
                draw,
                self._weights,
                lengths=measurements.lengths,
                micro_rows=self._layout.process_rows,
            )
        else:
            total, factors = self._scaler.plain(rows, self._layout.accumulation)
        self._record(total, draw, factors, rows.values, rows.tokens, noise, segments)
        if self._proof is not None and total.requires_grad:
            self._proof.watch(total)
        return total

    def multipliers(self, draw: Draw) -> Tensor:
        """Return what each row's share of a mean loss is to be multiplied by, (B,).

        A loss that is a mean over rows (tokens, with unit "token") has the gradient of Σ π w L, in
        expectation, once its rows' gradients are multiplied so; ``adaptmix.seams`` does that where
        rows' losses cannot be had one by one. Call ``observe`` for the same draw afterwards.

        Raises:
            ValueError: a draw of another controller or of another step.
        """
        self._check_draw(draw)
        if not self._adapting:
            return torch.ones(len(draw))
        return self._scaler.multipliers(draw, self._weights, lengths=self._measurements.lengths)

    def observe(
        self,
        loss: Tensor,
        draw: Draw,
        *,
        factors: Tensor,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        noise: NoiseTerms | Tensor | None = None,
    ) -> None:
        """Record the statistics of a micro-batch whose weighted loss was computed elsewhere.

        Args:
            loss: () the scalar that ``backward()`` is called on.
            draw: what the micro-batch was drawn as.
            factors: (B,) what ``loss`` multiplies each row's own loss by: its mean over tokens, or
                with unit "token" their sum.
            losses: as for ``loss``; unknown when None.
            mask: as for ``loss``.
            noise: as for ``loss``.

        Raises:
            TypeError: as ``loss`` does.
            ValueError: as ``loss`` does.
        """
        self._check_draw(draw)
        values, tokens = None, torch.ones(len(draw), device=loss.device)
        if losses is not None:
            rows = self._scaler.rows(losses, draw, mask)
            values, tokens = rows.values, rows.tokens
            domains = draw.domains.to(values.device, non_blocking=True)
            self._measurements.start_lengths(domains, tokens)
        factors = factors.to(loss.device, non_blocking=True)
        self._record(loss, draw, factors, values, tokens, noise)

    def _record(
        self,
        total: Tensor,
        draw: Draw,
        factors: Tensor,
        values: Tensor | None,
        tokens: Tensor,
        noise: NoiseTerms | Tensor | None,
        segments: Segments | None = None,
    ) -> None:
        terms = None if noise is None else NoiseTerms.of(noise, size=len(draw))
        domains, fresh = (
            part.to(tokens.device, non_blocking=True) for part in (draw.domains, draw.fresh)
        )
        measurements = self._measurements
        measurements.record(domains, values, tokens, noise=terms, fresh=fresh)
        if measurements.probe is not None and self.observing:
            measurements.probe.expect(domains, factors, total, segments=segments, values=values)
        self._micro += 1

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
            ValueError: called without ``loss``, or before all micro-batches of the step.
            MissingStatisticError: the policy needs what the run does not supply.
            SeamError: in the first step, losses that were divided by the accumulation once more.
        """
        accumulation = self._layout.accumulation
        if self._micro != accumulation:
            raise ValueError(
                f"step() must follow {accumulation} calls of loss(), one per micro-batch; "
                f"got {self._micro}. Call controller.loss(...) first, and step() once per "
                "optimizer.step()."
            )
        if self._proof is not None and accumulation > 1:
            self._proof.refuse_division(accumulation)
        observed, self._proof = self.observing, None
        self._micro = 0
        self._plan.advance()
        updated = self._measurements.read()
        if updated:
            self._update()
        due = self.completed % self._update_every == 0
        self._measurements.close_step(self.completed, due=due, observed=observed)
        self._arm()
        self._stopwatch.tick(measured=observed or updated)

    def pin(self, domain: str, *, sampling: Bound | None = None, loss: Bound | None = None) -> None:
        """Hold or bound one domain's weights, whatever the policy says; the others keep proportion.

        New loss weights count at once, new shares ``lag`` + 1 steps later. Each call replaces the
        domain's bounds, so that ``pin(domain)`` takes them off.

        Args:
            domain: its name.
            sampling: the share to hold, or (lowest, highest).
            loss: the loss weight to hold, or (lowest, highest).

        Raises:
            ValueError: an unknown domain, or bounds that no weights meet.
        """
        index = self.mixture.domains.index(choice("domain", domain, self.mixture.domains))
        self._steering.pin(index, sampling=sampling, loss=loss)
        self._publish(between_steps=False)

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
        """The statistics that the policy reads; with policy None those of either choice."""
        return self._steering.requires

    @property
    def observing(self) -> bool:
        """Whether the next step to train is one whose gradients are observed."""
        # The last step before an update, so that the update knows the newest gradients.
        return (self.completed + 1) % self._observe_every == 0

    @property
    def predicted_gain(self) -> float:
        """How many times quieter the gradient is with the best shares than by importance."""
        return predicted_gain(self.proposed, self.statistics, sampler=self._plan.sampler)

    @property
    def _drawing(self) -> dict[str, Any]:
        """What the variance of a step depends on beside weights and statistics."""
        return {"sampler": self._plan.sampler}

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
            "mode": "adapt" if self._adapting else "observe",
            "requires": sorted(self.requires),
            "rows_per_step": self._step_rows,
            "steps": self._horizon,
        }

    @property
    def warnings(self) -> list[Caution]:
        """The warnings given since this run began or was resumed."""
        return [Caution(*given) for given in self._warn.messages]

    def report(self, *, html: str | PathLike[str] | None = None) -> str:
        """Return a table of the proposed weights, the statistics and the predicted gain.

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
            self.mixture.domains, self.proposed, self.statistics, sampler=self._plan.sampler
        )

    def _page(self) -> Page:
        if self._board is None:
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
        """
        if self._micro:
            raise ValueError(
                f"state_dict() must be called between optimizer steps; got {self._micro} "
                "micro-batches of an unfinished one. Call step() first."
            )
        state = {
            **self._identity(),
            "step_rows": self._step_rows,
            "plan": self._plan.state_dict(),
            "measurements": self._measurements.state_dict(),
            "steering": self._steering.state_dict(),
            "guards": self._guards.state_dict(),
            "warned": sorted(self._warn.given),
        }
        return dict(checkpoint.encode(state))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved controller stopped.

        Raises:
            StateError: the state is damaged, or of another mixture, seed or configuration.
        """
        saved = checkpoint.decode(state)
        checkpoint.expect(saved, **self._identity())
        if self._step_rows and saved["step_rows"] != self._step_rows:
            raise StateError(
                f"batch_size × processes × accumulation must stay {saved['step_rows']}, as in the "
                f"saved run; got {self._step_rows}. Make the loader with that product."
            )
        with checkpoint.damage():
            self._plan.load_state_dict(saved["plan"])
            self._measurements.load_state_dict(saved["measurements"])
            self._steering.load_state_dict(saved["steering"])
            self._guards.load_state_dict(saved["guards"])
            self._warn.given = set(saved["warned"])
            self._step_rows = int(saved["step_rows"])
        self._weights = self.proposed if self._adapting else self._weights
        self._arm()

    def _identity(self) -> dict[str, Any]:
        return {
            "schema": checkpoint.SCHEMA,
            "domains": list(self.mixture.domains),
            "sizes": self.mixture.sizes.tolist(),
            "importance": self.mixture.importance.tolist(),
            "seed": self._plan.seed,
            "lag": self._plan.lag,
            "sampler": self._plan.sampler,
            "unit": self._scaler.unit,
            "update_every": self._update_every,
            "observe_every": self._observe_every,
            "estimator": self._estimator,
            "half_life": self._half_life,
        }

    # How it works.

    def _arm(self) -> None:
        if self._measurements.probe is not None:
            self._measurements.probe.arm(self.observing, step=self.completed)

    def _check_draw(self, draw: Draw) -> None:
        if not isinstance(draw, Draw):
            raise TypeError(f"draw must be what the loader yielded; got {type(draw).__name__}.")
        if draw.plan is not self._plan:
            raise ValueError(
                "draw must be one of this controller's; got another controller's. Use the loader "
                "and the loss of the same controller."
            )
        expected = self.completed * self._layout.accumulation + self._micro
        if draw.ordinal != expected:
            raise ValueError(
                f"draw must be number {expected}, the next to train; got {draw.ordinal}. Call "
                "loss() once for every batch in order, and step() after each optimizer.step(). "
                "Rows are this process's already: keep a loader out of Accelerator.prepare, and "
                "use setup_dataloaders(..., use_distributed_sampler=False) in Fabric."
            )

    def _update(self) -> None:
        """Let the policy act on the newest statistics."""
        stats = self.statistics
        if not self._steering.update(stats, measured=self._measurements.measured):
            self._warn(
                TooFewRowsWarning,
                "The policy waits for statistics: no domain had two rows in an observed step, or "
                "none was fresh, or gradients overflowed. Use larger batches or more accumulation.",
            )
            return
        self._measurements.warn_of_gaps(stats, required=self._steering.requires)
        self._guards.check_weights(self.proposed)
        self._publish()
        if self._board is not None:
            coverage = self._measurements.coverage
            self._record_texts()
            self._board.write(self.completed, self.scalars(), coverage=coverage)

    def _publish(self, *, between_steps: bool = True) -> None:
        if self._adapting:
            self._weights = self.proposed
            self._plan.publish(self._row_shares(), between_steps=between_steps)

    def _row_shares(self) -> FloatArray:
        """Return the shares of rows: sampling weights are shares of the objective's unit."""
        return normalise(self._weights.sampling / self._measurements.lengths)
