"""The callback that a Trainer is given."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from transformers import Trainer, TrainerCallback

from adaptmix import Controller, Schedule
from adaptmix.errors import ObjectiveError
from adaptmix.policies import Policy
from adaptmix.trainers import (
    PREFIX,
    PlanSampler,
    Replacements,
    Watch,
    numbered_loader,
)
from adaptmix_transformers import _checkpoints as checkpoints
from adaptmix_transformers import _heads  # noqa: F401 (registers the heads that TRL fuses)
from adaptmix_transformers import _internals as internals
from adaptmix_transformers import _known as known
from adaptmix_transformers._entries import wrap_entries
from adaptmix_transformers._evaluation import Evaluation
from adaptmix_transformers._groups import Groups, start_groups
from adaptmix_transformers._logs import Logs
from adaptmix_transformers._reading import UserLoss
from adaptmix_transformers._refusals import refuse_unnumbered, refuse_unsupported
from adaptmix_transformers._setup import NUMBER, Settings, controller_of, sampler_of
from adaptmix_transformers._weighting import Weighting

_log = logging.getLogger("adaptmix")


class AdaptMixCallback(TrainerCallback):
    """Adapts how a Trainer samples its domains, and how much each counts, while it trains.

    Args:
        domains: a column's name in the training dataset, one label per row, or None for a
            ``ConcatDataset`` or an ``adaptmix.Mixture`` (one domain per part).
        policy: as for ``Controller``. The default adapts sampling and leaves the objective as it
            is. "joint" and "fgls" adapt loss weights. They need noise terms, which the callback
            computes for cross-entropy and squared error of logits and labels, and for pairs.
        importance: how much each domain matters, by name; as without AdaptMix when None.
        unit: "token", "sample", or None for what the trainer averages over: tokens where labels
            are token by token, rows elsewhere.
        loss: a function of the model's outputs and the batch that returns the unreduced losses,
            (B,) or (B, T), behind the trainer's loss, or these and their mask. They are reported,
            and checked against the trainer's loss by gradients. When None, the losses are
            recognised by their gradient.
        head: name of the module at whose output rows are weighted; the model's outputs when None.
        lag: as for ``Controller``. When None, 16, or the steps that workers prefetch if more.
        seed: as for ``Controller``; the trainer's ``data_seed`` or ``seed`` when None.
        mode: "adapt", or "observe" to train on the trainer's own loss, and measure and log.
        tokens_per_row: mean supervised tokens of each domain's rows; from a sample when None.
        eval_domains: one label per evaluation row, where neither the column nor the parts of the
            evaluation dataset say.
        update_every, measure_every, estimator, counts, half_life, min_coverage, holdout,
            seed_rows, when_exhausted, max_epochs, sampling: as for ``Controller``.

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
        unit: str | None = None,
        loss: UserLoss | None = None,
        head: str | None = None,
        lag: int | None = None,
        seed: int | None = None,
        mode: str = "adapt",
        tokens_per_row: Mapping[str, float] | None = None,
        eval_domains: Iterable[Any] | None = None,
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
        self._settings = Settings(
            domains=domains,
            policy=policy,
            importance=importance,
            unit=unit,
            loss=loss,
            head=head,
            lag=lag,
            seed=seed,
            mode=mode,
            tokens_per_row=tokens_per_row,
            eval_domains=eval_domains,
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
        self._trainer: Trainer | None = None
        self._methods: Any = {}
        self._inside = False
        self._controller: Controller | None = None
        self._sampler: PlanSampler | None = None
        self._weighting: Weighting | None = None
        self._evaluation: Evaluation | None = None
        self._groups: Groups | None = None
        self._watch: Watch | None = None
        self._logs = Logs()

    @property
    def controller(self) -> Controller:
        """The controller of the run in progress, or of the last one.

        Raises:
            ValueError: no run has begun.
        """
        if self._controller is None:
            raise ValueError("controller must be read after Trainer.train() began; it has not.")
        return self._controller

    # Attaching.

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the trainer that is being made with this callback."""
        trainer = internals.find_trainer(self)
        if trainer is not None:
            self.attach(trainer)

    def attach(self, trainer: Trainer) -> None:
        """Attach to a trainer; needed only after ``trainer.add_callback(callback)``.

        From here on, methods of the trainer are replaced while it trains or evaluates, and given
        back each time that it has, or an exception ends it.

        Raises:
            ValueError: this callback has a trainer already, or the trainer another such callback.
        """
        if self._trainer is not None and self._trainer is not trainer:
            raise ValueError(
                "An AdaptMixCallback must belong to one Trainer, and this one has another. Make a "
                "new AdaptMixCallback for each Trainer, as for each fold or run."
            )
        kind = type(self)
        others = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, kind)]
        if self._trainer is not None or any(other is not self for other in others):
            raise ValueError(
                "A Trainer must have one AdaptMixCallback; got a second one. Leave one out of "
                "callbacks=[...]; attach() is for trainer.add_callback(callback) alone."
            )
        self._trainer = trainer
        self._methods = Replacements(trainer)
        self._evaluation = Evaluation(trainer, self._methods, self._settings)
        if getattr(trainer, "adaptmix", None) is not self:  # AdaptMixMixin enters by itself
            wrap_entries(trainer, self.running)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Adapt what the trainer does inside, and give its methods back afterwards."""
        trainer, evaluation, methods = self._trainer, self._evaluation, self._methods
        if trainer is None or evaluation is None or self._inside:
            yield
            return
        if not internals.is_attached(trainer, self):
            yield
            return
        self._inside = True
        try:
            for name, replaced in {
                "get_train_dataloader": self._train_dataloader,
                "compute_loss": self._compute_loss,
                "log": self._log_scalars,
                "_save_optimizer_and_scheduler": self._save,
                "_load_optimizer_and_scheduler": self._load,
            }.items():
                methods.replace(name, replaced)
            if not known.trains_groups(trainer):  # it generates what it evaluates
                methods.replace("get_eval_dataloader", evaluation.dataloader)
                methods.replace("prediction_step", evaluation.prediction_step)
                methods.replace("evaluation_loop", evaluation.loop)
            yield
        finally:
            self._inside = False
            methods.restore()
            self._release()

    # What the trainer's methods become.

    def _train_dataloader(self) -> Any:
        trainer, evaluation = self._trainer, self._evaluation
        like = self._methods["get_train_dataloader"]()
        self._release()
        if trainer is None or evaluation is None:
            return like
        settings, methods = self._settings, self._methods
        if settings.mode == "adapt":
            known.refuse_trainer(trainer)
        if known.trains_groups(trainer):
            self._groups = start_groups(trainer, settings, like, aside=self._aside)
            controller, self._sampler = self._groups.controller, self._groups.sampler
        else:
            refuse_unsupported(trainer, like, methods["get_train_dataloader"])
            controller = controller_of(settings, trainer, like, native=methods["compute_loss"])
            self._sampler = sampler_of(controller, trainer, like)
        self._controller = evaluation.controller = controller
        self._weighting = Weighting(
            trainer, controller, settings, methods["compute_loss"], lambda: self._watch
        )
        evaluation.rule = lambda: None if self._weighting is None else self._weighting.rule
        if self._groups is not None:
            return self._groups.loader
        return numbered_loader(self._sampler, like, key=NUMBER)

    def _aside(self) -> AbstractContextManager[None]:
        """Return a context of which nothing is measured."""
        return nullcontext() if self._watch is None else self._watch.aside()

    def _compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        number = inputs.pop(NUMBER, None)
        num_items = kwargs.get("num_items_in_batch")

        def native(given: Any, tokens: Any) -> Any:
            if "num_items_in_batch" in kwargs:
                kwargs["num_items_in_batch"] = tokens
            return self._methods["compute_loss"](
                model, given, return_outputs=return_outputs, **kwargs
            )

        if number is None and self._evaluation is not None:
            if self._weighting is not None and model.training:
                refuse_unnumbered()
            return self._evaluation.loss(native, model, inputs, num_items)
        if self._weighting is None or self._sampler is None:
            raise ObjectiveError(
                "Batches of an AdaptMix loader must be trained in the run it is of."
            )
        draw = (self._groups or self._sampler).take(number)
        if not self._weighting.rehearsed:
            self._weighting.rehearse(native, model, inputs, draw, num_items)
        if self._watch is None and self._needs_gradients:
            self._watch = self.controller.watch(model)  # compiled and wrapped by now
        return self._weighting(native, model, inputs, draw, num_items)

    @property
    def _needs_gradients(self) -> bool:
        return any(name.startswith("grad_") for name in self.controller.requires)

    def _log_scalars(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        if self._weighting is not None and self._trainer is not None and "loss" in logs:
            logs |= self._logs.write(self.controller, self._trainer.state.global_step)
            logs |= {} if self._groups is None else self._groups.rewards.take()
        return self._methods["log"](logs, *args, **kwargs)

    def _save(self, output_dir: str) -> None:
        self._methods["_save_optimizer_and_scheduler"](output_dir)
        if self._trainer is not None and self._weighting is not None:
            here = self._trainer.args.should_save
            checkpoints.write(self.controller, output_dir, here=here)

    def _load(self, folder: str | None) -> None:
        self._methods["_load_optimizer_and_scheduler"](folder)
        if folder is not None and self._weighting is not None:
            checkpoints.load(self.controller, folder)

    # Events.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the place in a resumed epoch, and lay out the charts.

        Raises:
            ObjectiveError: the callback was added to the trainer without ``attach``.
        """
        trainer, sampler = self._trainer, self._sampler
        if trainer is None or sampler is None or self._weighting is None:
            raise ObjectiveError(
                "AdaptMixCallback must be given to Trainer(callbacks=[...]), and training begin "
                "with trainer.train(); after trainer.add_callback(callback) call "
                "callback.attach(trainer)."
            )
        if sampler.epoch_steps is not None and not args.ignore_data_skip:
            sampler.expect_skip(state.global_step % sampler.epoch_steps)
        if self._groups is not None:
            self._groups.check_start()
        coverage = None if self._watch is None else self._watch.coverage
        self._logs.begin(trainer, self.controller, coverage)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that gradients of the stated loss arrived.

        Raises:
            ObjectiveError: they are not.
        """
        if self._weighting is not None:
            self._weighting.check_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step, and update the weights when that is due."""
        self.controller.step()
        if self.controller.ended:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the progress bar, which comes after this callback, readable."""
        logs = kwargs.get("logs", {})
        for key in [key for key in logs if key.startswith(PREFIX)]:
            del logs[key]

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Chart the held-out losses of the domains."""
        if self._controller is not None:
            self._logs.write_evaluation(self.controller, state.global_step, kwargs["metrics"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what was found."""
        self._logs.write_texts(self.controller, state.global_step)
        _log.info("%s", self.controller.report())

    def _release(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        if self._weighting is not None:
            self._weighting.remove()
            self._weighting = None
        if self._groups is not None:
            self._groups.remove()
            self._groups = None
