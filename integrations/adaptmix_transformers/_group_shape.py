"""How a GRPOTrainer cuts prompts and completions into micro-batches and generation batches."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import Any

from transformers import Trainer

from adaptmix.trainers import Layout
from adaptmix_transformers import _internals as internals


@dataclass(frozen=True)
class GroupShape:
    """The numbers that a GRPOTrainer's steps are made of, on one process.

    Attributes:
        completions: of a micro-batch, ``per_device_train_batch_size``.
        generations: completions of a prompt, ``num_generations``.
        accumulation: micro-batches of an optimizer step.
        together: micro-batches whose completions are generated at once, ``steps_per_generation``.
        iterations: how often they are trained on, ``num_iterations``.
    """

    completions: int
    generations: int
    accumulation: int
    together: int
    iterations: int

    @classmethod
    def of(cls, trainer: Trainer) -> GroupShape:
        """Return those of a GRPOTrainer."""
        args: Any = trainer.args
        return cls(
            completions=internals.rows_per_process(trainer),
            generations=int(args.num_generations),
            accumulation=int(args.gradient_accumulation_steps),
            together=int(args.steps_per_generation),
            iterations=int(args.num_iterations),
        )

    @property
    def prompts(self) -> int:
        """Prompts of a micro-batch."""
        return self.completions // self.generations

    @property
    def period(self) -> int:
        """Micro-batches from one generation to the next."""
        return self.together * self.iterations

    @property
    def steps(self) -> int:
        """Optimizer steps after which a step and a generation begin together again."""
        return lcm(self.period, self.accumulation) // self.accumulation

    @property
    def layout(self) -> Layout:
        """How the prompts of a step are cut into micro-batches."""
        return Layout(self.prompts, self.accumulation)

    def batches_ahead(self, *, num_workers: int, prefetch_factor: int) -> int:
        """Return how many micro-batches are drawn beyond the one that is handed out."""
        return num_workers * prefetch_factor + self.period - 1
