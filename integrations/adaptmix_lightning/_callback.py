"""The callback that a Trainer is given."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from adaptmix import Controller, Schedule
from adaptmix.errors import ObjectiveError
from adaptmix.noise import NoiseTerms
from adaptmix.policies import Policy
from adaptmix.trainers import Layout, Settings, TrainerBoard, WarnOnce, Watch
from adaptmix_lightning import _internals as internals
from adaptmix_lightning import _logs as logs
from adaptmix_lightning import _state as state
from adaptmix_lightning._loader import PlannedLoader
from adaptmix_lightning._setup import controller_of, sampler_of
from adaptmix_lightning._weighting import Weighting, reduced, wrap_training_step

_log = logging.getLogger("adaptmix")


class AdaptMixCallback(Callback):
    """Adapts how a Trainer samples its domains, and how much each counts, while it trains.

    The training loader is replaced by one that draws the same dataset's rows by domain; batches
    keep their structure. Rows are weighted in one of three ways: ``training_step`` returns
    unreduced losses (B,) or (B, T), as a tensor or as ``"loss"`` of a dict (which may also have
    ``"loss_mask"`` and ``"noise"``); or it returns a mean loss and ``head`` names the module that
    makes the logits; or it calls ``callback.loss(losses)`` itself.

    With ``accumulate_grad_batches`` the objective is the mean of the batches' means, as Lightning
    has it. Batches are all of one size, so that it is the mean over the step's rows too.

    Args:
        domains: a column's name in the training dataset, one label per row, or None for a
            ``ConcatDataset`` or an ``adaptmix.Mixture`` (one domain per part).
        policy: as for ``Controller``. The default adapts sampling and leaves the objective as it
            is; "joint" and "fgls" adapt loss weights, from noise terms that ``training_step``
            supplies.
        importance: how much each domain matters, by name; as much as its share of rows when None.
        unit: as for ``Controller``.
        head: name of the module at whose output rows are weighted, where ``training_step`` returns
            the mean of one term per row of that output; not used when None.
        lag: as for ``Controller``. When None, 16, or the steps that workers prefetch if more.
        seed: as for ``Controller``; that of ``seed_everything`` when None, or 0.
        mode: "adapt", or "observe" to measure and log what would be done, with rows drawn by
            importance. A mean loss is then trained on as it is. Unreduced losses are reduced to
            Σ π (mean loss per unit), as in ``Controller``; in expectation that is their mean.
        accumulation: batches per optimizer step with manual optimization; 1 when None. With
            automatic optimization the trainer's own counts.
        update_every, measure_every, estimator, counts, half_life, min_coverage, tokens_per_row,
            holdout, seed_rows, when_exhausted, max_epochs, sampling: as for ``Controller``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        domains: str | Iterable[Any] | None = None,
        *,
        policy: Policy | str = "variance_aware",
        importance: Mapping[str, float] | Schedule | None = None,
        unit: str = "sample",
        head: str | None = None,
        lag: int | None = None,
        seed: int | None = None,
        mode: str = "adapt",
        tokens_per_row: Mapping[str, float] | Callable[[Any], Any] | None = None,
        accumulation: int | None = None,
        update_every: int = 10,
        measure_every: int | None = None,
        estimator: str = "sketch",
        counts: str = "stratified",
        half_life: float = 50.0,
        min_coverage: float = 0.9,
        when_exhausted: str = "repeat",
        max_epochs: Mapping[str, float] | float | None = None,
        sampling: Schedule | Mapping[str, float] | None = None,
        holdout: str | float | None = "auto",
        seed_rows: bool = True,
    ) -> None:
        if accumulation is not None and (type(accumulation) is not int or accumulation < 1):
            raise ValueError(
                f"accumulation must be a whole number of batches, at least 1; got {accumulation!r}."
            )
        self._settings = Settings(
            domains=domains,
            policy=policy,
            importance=importance,
            unit=unit,
            head=head,
            lag=lag,
            seed=seed,
            mode=mode,
            tokens_per_row=tokens_per_row,
            options={
                "update_every": update_every,
                "measure_every": measure_every,
                "estimator": estimator,
                "counts": counts,
                "half_life": half_life,
                "min_coverage": min_coverage,
                "when_exhausted": when_exhausted,
                "max_epochs": max_epochs,
                "sampling": sampling,
                "holdout": holdout,
                "seed_rows": seed_rows,
            },
        )
        self._head, self._accumulation, self._adapting = head, accumulation, mode != "observe"
        self._trainer: Trainer | None = None
        self._module: LightningModule | None = None
        self._controller: Controller | None = None
        self._loader: PlannedLoader | None = None
        self._weighting: Weighting | None = None
        self._watch: Watch | None = None
        self._boards: list[TrainerBoard] = []
        self._state: Mapping[str, Any] | None = None
        self._undo: list[Callable[[], None]] = []
        self._limit, self._steps, self._warn_of_logs = 1.0, 0, WarnOnce()

    @property
    def controller(self) -> Controller:
        """The controller of the run in progress, or of the last one.

        Raises:
            ValueError: no run has begun.
        """
        if self._controller is None:
            raise ValueError("controller must be read after Trainer.fit() began; it has not.")
        return self._controller

    def loader(self, dataloader: Any) -> PlannedLoader:
        """Return what to pass to ``fit`` in a loader's place, explicitly.

        ``trainer.fit(module, callback.loader(dataloader))`` does what ``trainer.fit(module,
        dataloader)`` does, and cannot be trained without the callback.

        Raises:
            ObjectiveError: not one ``DataLoader`` of rows in random or given order.
            TypeError: a loader of an iterable dataset.
        """
        internals.refuse_loader(dataloader)
        return PlannedLoader(dataloader)

    def loss(
        self,
        losses: Tensor,
        *,
        mask: Tensor | None = None,
        noise: NoiseTerms | Tensor | None = None,
    ) -> Tensor:
        """Return the scalar to return from ``training_step``, or to pass to ``manual_backward``.

        With manual optimization there is nothing left to divide by the accumulation.

        Args:
            losses: (B,) or (B, T, …) unreduced losses of the batch.
            mask: which entries of ``losses`` are supervised; all when None.
            noise: terms of ``adaptmix.noise``, or (B,) squared residuals.

        Raises:
            ObjectiveError: called outside of a training step, or twice in one.
        """
        if self._weighting is None:
            raise ObjectiveError(
                "callback.loss() must be called in training_step; no fit is running."
            )
        return self._weighting.loss(losses, mask=mask, noise=noise)

    # Attaching.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put plan and weighting between the trainer and what the user gave it.

        Raises:
            ObjectiveError: a setting that does not work.
        """
        if stage != "fit":
            return
        self._release()
        internals.refuse_unsupported(trainer, pl_module)
        # A trainer that fits again goes on counting steps and epochs, and so does the plan.
        goes_on = trainer is self._trainer and trainer.global_step > 0
        if goes_on and self._controller is not None:
            self._controller.abandon_step()  # where an exception cut it short
            self._weighting = None
        self._state = self.state_dict() if goes_on else None
        self._trainer, self._module = trainer, pl_module
        self._controller = self._loader = self._weighting = None
        limit = self._limit = trainer.limit_train_batches
        internals.take_over_source(trainer, self._train_dataloader)
        self._undo = [
            lambda: internals.give_source_back(trainer),
            lambda: setattr(trainer, "limit_train_batches", limit),
            wrap_training_step(pl_module, self._training_step),
        ]

    def _train_dataloader(self, given: Any) -> Any:
        trainer = self._trainer
        if trainer is None or not self._attached:
            return given.like if isinstance(given, PlannedLoader) else given
        loader = given if isinstance(given, PlannedLoader) else self.loader(given)
        like = loader.like
        rows = Layout(like.batch_size, self._batches_per_step)
        controller = controller_of(self._settings, like, rows)
        loader.bind(
            sampler_of(controller, trainer, like, rows, limit=self._limit),
            handed_out=lambda: internals.handed_out(trainer),
        )
        # Epochs are limited there, to whole steps; Lightning would cut the last step short.
        trainer.limit_train_batches = 1.0
        self._controller, self._loader = controller, loader
        self._take_state()
        return loader

    @property
    def _batches_per_step(self) -> int:
        trainer, module = self._trainer, self._module
        if trainer is not None and module is not None and module.automatic_optimization:
            return int(trainer.accumulate_grad_batches)
        return 1 if self._accumulation is None else self._accumulation

    @property
    def _attached(self) -> bool:
        """Whether the trainer has this callback; its tuner takes callbacks out for a while."""
        callbacks = getattr(self._trainer, "callbacks", ())
        return self in callbacks

    def _training_step(self, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._trainer is None or not self._trainer.training:
            return native(*args, **kwargs)
        if not self._attached:
            return reduced(native(*args, **kwargs))
        if self._weighting is None:
            raise ObjectiveError("training_step must be called after on_train_start; it was not.")
        self._weighting.begin(native, args, kwargs)
        with self._weighting.watching((args, kwargs)):
            output = native(*args, **kwargs)
        return self._weighting.output(output)

    # Events.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start watching the module, where its device and its weights are final.

        Raises:
            ObjectiveError: several optimizers, or a loader that is not the plan's.
        """
        internals.refuse_optimizers(trainer)
        self._take_state()
        controller, loader, self._steps = self.controller, self._loader, trainer.global_step
        assert loader is not None
        if self._steps and not controller.completed:
            state.warn_of_fresh_start()
        self._weighting = Weighting(
            trainer,
            pl_module,
            controller,
            loader,
            adapting=self._adapting,
            head=self._head,
            accumulation=self._batches_per_step,
            watch=lambda: self._watch,
        )
        if any(name.startswith("grad_") for name in controller.requires):
            self._watch = controller.watch(pl_module)
        coverage = None if self._watch is None else self._watch.coverage
        self._boards = logs.begin(trainer, controller, coverage, self._warn_of_logs)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Record a loss whose rows are weighted at a head."""
        if self._weighting is not None:
            self._weighting.before_backward(loss)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Check that the gradients of the first step are those of the stated loss."""
        if self._weighting is not None:
            self._weighting.before_optimizer_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step once the optimizer has taken it, and update the weights when that is due.

        Raises:
            ObjectiveError: a batch that was not weighted, or steps that are not the plan's.
        """
        if self._weighting is None:
            return
        taken, self._steps = trainer.global_step - self._steps, trainer.global_step
        if self._weighting.finish_batch(optimizer_steps=taken):
            self.controller.step()
            trainer.should_stop |= self.controller.ended
            logs.write(trainer, self._boards, self.controller, self._warn_of_logs)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was found."""
        logs.write_texts(self._boards, self.controller, self._warn_of_logs)
        _log.info("%s", self.controller.report())

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give trainer and module back as they were."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give trainer and module back as they were."""
        if stage == "fit":
            self._release()

    def _release(self) -> None:
        if self._watch is not None:
            self._watch.remove()
        if self._weighting is not None:
            self._weighting.remove()
        for undo in self._undo:
            undo()
        self._watch, self._undo = None, []

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state; every process must call it, as Lightning does."""
        if self._controller is None:
            return {}
        unfinished = self._weighting is not None and self._weighting.recorded > 0
        return state.of(self._controller, unfinished=unfinished)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until there is a controller to load it."""
        self._state = state_dict

    def _take_state(self) -> None:
        kept, self._state = self._state, None
        if kept:
            state.load(self.controller, kept)
