"""GRPO: a sample is a prompt with its group of completions, which are generated several at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from adaptmix import Controller, Draw
from adaptmix.errors import ObjectiveError, StateError
from adaptmix.trainers import PlanSampler, Repeats, Replacements, as_mixture
from adaptmix_transformers._group_loader import prompt_loader, steps_ahead
from adaptmix_transformers._group_logs import TaskRewards
from adaptmix_transformers._group_rules import BY_TOKENS, refuse_groups
from adaptmix_transformers._group_shape import GroupShape
from adaptmix_transformers._refusals import refuse_settings
from adaptmix_transformers._setup import NUMBER, Settings

_PLACE = "adaptmix_place"
_TOKENS = "num_items_in_batch"


class Groups:
    """Deals a GRPOTrainer's micro-batches from prompts that the plan draws, in whole groups.

    TRL generates completions for several micro-batches at once, and shuffles them. Here they are
    put in order again, so that each micro-batch has the prompts that the plan drew for it, with
    all of their completions: completion g of its prompt j is row g · n + j of n prompts.

    Args:
        trainer: of the run.
        controller: of the run.
        like: the loader that it would train from.
        aside: returns a context of which nothing is measured.
    """

    def __init__(
        self,
        trainer: Any,
        controller: Controller,
        like: Any,
        *,
        aside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._trainer = trainer
        self.controller, self._aside = controller, aside
        self.shape = shape = GroupShape.of(trainer)
        self.sampler = _sampler(controller, trainer, shape, batches=len(like))
        if shape.iterations > 1:
            steps = shape.together // shape.accumulation
            self.sampler.plan.repeats = Repeats(steps, shape.iterations)
        self.loader = prompt_loader(self.sampler, like, shape)
        self.rewards = TaskRewards(controller.mixture.domains)
        self._draws: dict[int, Draw] = {}
        self._trainer._buffered_inputs = None  # those of a run before
        self._replaced = Replacements(trainer)
        for name, replaced in (
            ("_prepare_inputs", self.prepare),
            ("_generate_and_score_completions", self.generate),
            ("_calculate_rewards", self.score),
        ):
            self._replaced.replace(name, replaced)

    def take(self, number: int) -> Draw:
        """Return the draw of a micro-batch, once."""
        return self._draws.pop(number)

    def check_start(self) -> None:
        """Check that a run does not go on within a generation, whose completions are not saved.

        Raises:
            StateError: it does.
        """
        step, every = self._trainer.state.global_step, self.shape.steps
        if step % every:
            raise StateError(
                f"save_steps must be a multiple of {every} for a GRPOTrainer to go on from a "
                f"checkpoint, for completions are generated for so many steps; got one of step "
                f"{step}. Go on from another checkpoint."
            )

    def remove(self) -> None:
        """Give the trainer its methods back."""
        self._replaced.restore()

    def prepare(self, batch: Any) -> Any:
        """Return the inputs of a micro-batch, as the trainer's ``_prepare_inputs`` does.

        Args:
            batch: of the loader.
        """
        trainer, shape = self._trainer, self.shape
        number: int | None = getattr(batch, "number", None)
        if number is None or not trainer.model.training:
            return self._replaced["_prepare_inputs"](batch)
        trainer._step = number  # by which TRL knows when to generate
        if number % shape.period == 0:
            drawn = range(number, number + shape.period)
            self._draws = {each: self.sampler.take(each) for each in drawn}
            completions = [dict(row) for row in batch for _ in range(shape.generations)]
            with self._aside():
                self._replaced["_prepare_inputs"](completions)
            trainer._buffered_inputs = self._in_order(trainer._buffered_inputs)
        part = number % shape.period % shape.together
        return {**trainer._buffered_inputs[part], NUMBER: number}

    def generate(self, inputs: Any) -> Any:
        """Generate and score completions, which keep their place."""
        outputs = self._replaced["_generate_and_score_completions"](inputs)
        if self._trainer.model.training:
            if "pixel_values" in outputs:
                raise ObjectiveError(
                    "AdaptMixCallback does not work with a GRPOTrainer whose prompts have images: "
                    "TRL keeps the patches of all completions in one tensor, and groups cannot be "
                    "told apart in it. Train on text prompts, or leave the callback out."
                )
            outputs[_PLACE] = torch.arange(len(inputs), device=outputs["advantages"].device)
        return outputs

    def score(self, *args: Any) -> Tensor:
        """Compute rewards as the trainer does, and keep those of each task."""
        rewards: Tensor = self._replaced["_calculate_rewards"](*args)
        trainer = self._trainer
        if trainer.model.training:
            weighted = rewards * trainer.reward_weights.to(rewards.device)
            total = weighted.nansum(1).masked_fill(rewards.isnan().all(1), torch.nan)
            domains = self._domains(rewards.device)
            self.rewards.add(total.view(len(domains), -1), domains)
        return rewards

    def _domains(self, device: torch.device) -> Tensor:
        """Return the tasks of all groups of a generation, of all processes."""
        draws = [self._draws[number] for number in sorted(self._draws)[: self.shape.together]]
        mine = torch.cat([draw.domains for draw in draws]).to(device)
        gathered: Tensor = self._trainer.accelerator.gather(mine)
        return gathered

    def _in_order(self, buffered: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the micro-batches of a generation with the groups that were drawn for them."""
        shape = self.shape
        joined = {key: _joined([part[key] for part in buffered]) for key in buffered[0]}
        places = torch.arange(shape.together * shape.completions)
        blocks = places.view(shape.together, shape.prompts, shape.generations).mT.reshape(-1)
        place: Tensor = joined.pop(_PLACE)
        order = place.argsort()[blocks.to(place.device)].view(shape.together, -1)
        if self._trainer.loss_type in BY_TOKENS:
            joined[_TOKENS] = self._weighted_tokens(joined, order)
        return [{key: _picked(value, rows) for key, value in joined.items()} for rows in order]

    def _weighted_tokens(self, joined: Mapping[str, Any], order: Tensor) -> Tensor:
        """Return the tokens of a generation, each counted as often as its group's weight says.

        A loss that divides by the tokens of the generation batch divides by these: on average the
        tokens of prompts drawn by importance, whatever the shares are.
        """
        mask: Tensor = joined["completion_mask"]
        mask = mask * joined["tool_mask"] if joined.get("tool_mask") is not None else mask
        total = torch.zeros((), dtype=torch.float64, device=mask.device)
        for number, rows in zip(sorted(self._draws), order, strict=False):
            counts = self.controller.multipliers(self._draws[number], ahead=True)
            counts = counts.to(mask.device).repeat(self.shape.generations)
            total += counts.double() @ mask[rows].sum(1).double()
        precision = torch.promote_types(self._trainer.model.dtype, torch.float32)
        whole: Tensor = self._trainer.accelerator.gather(total.to(precision)).sum()
        return whole


def start_groups(
    trainer: Trainer,
    settings: Settings,
    like: Any,
    *,
    aside: Callable[[], AbstractContextManager[None]],
) -> Groups:
    """Return what deals a GRPOTrainer's micro-batches, from now until it is removed.

    Args:
        trainer: of the run.
        settings: of the callback.
        like: the loader that it would train from.
        aside: returns a context of which nothing is measured.

    Raises:
        ObjectiveError: groups that cannot be weighted as stated.
        TypeError: a dataset whose rows cannot be drawn by index.
        ValueError: domains or options that do not fit.
    """
    refuse_settings(trainer, like)
    refuse_groups(trainer, settings)
    return Groups(trainer, _controller(settings, trainer, like), like, aside=aside)


def _controller(settings: Settings, trainer: Trainer, like: Any) -> Controller:
    args = trainer.args
    mixture = as_mixture(like.dataset, settings.domains, labelled=trainer.train_dataset)
    if settings.importance is not None:
        mixture = mixture.with_importance(settings.importance)
    seed = args.seed if args.data_seed is None else args.data_seed
    shape = GroupShape.of(trainer)
    lag = max(shape.layout.default_lag(0, 0), steps_ahead(like, shape))
    return settings.make_controller(
        mixture,
        lag=lag if settings.lag is None else settings.lag,
        seed=seed if settings.seed is None else settings.seed,
        unit="sample",
    )


def _sampler(
    controller: Controller, trainer: Trainer, shape: GroupShape, *, batches: int
) -> PlanSampler:
    """Return the sampler of prompts, with whole generations in each epoch and in all."""
    args = trainer.args

    def whole(steps: float) -> int:
        return max(1, -int(-steps // shape.steps)) * shape.steps

    epoch_steps = whole(batches / shape.accumulation)
    steps = args.max_steps if args.max_steps > 0 else args.num_train_epochs * epoch_steps
    return controller.sampler(
        shape.prompts,
        accumulation=shape.accumulation,
        steps=whole(steps),
        epoch_steps=epoch_steps,
    )


def _joined(parts: list[Any]) -> Any:
    """Return a value of several micro-batches, along rows; one that they share as it is."""
    first = parts[0]
    if isinstance(first, Tensor) and first.ndim:
        return torch.cat(parts)
    return [each for part in parts for each in part] if isinstance(first, list) else first


def _picked(value: Any, rows: Tensor) -> Any:
    """Return the rows of a value that has rows."""
    if isinstance(value, Tensor) and value.ndim:
        return value[rows]
    return [value[row] for row in rows.tolist()] if isinstance(value, list) else value
