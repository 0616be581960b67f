"""Losses that remember earlier steps: what they remember must not see the proofs' passes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conformance import data
from tests.conformance.harness import Case
from tests.conformance.trainer_kit import OwnLoss, classifier, cross_entropy, logits_of, trainer


class Remembering(OwnLoss):
    """Rows are held near to something that follows the model, step by step."""

    memory: Any = None
    seen: Any = torch.zeros(())
    """What the last loss was computed with."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss, and let the memory follow."""
        labels = inputs.pop("labels")
        if self.memory is None:
            self.memory = self.first(model)
        logits = model(**inputs).logits
        type(self).seen = copy.deepcopy(self.memory).cpu()
        away = (logits - self.told(self.memory, inputs)).square().sum(1).mean()
        self.follow(model, logits.detach())
        total: Tensor = F.cross_entropy(logits, labels) + 0.1 * away
        return total

    def first(self, model: Any) -> Any:
        """Return the memory to begin with."""
        raise NotImplementedError

    @staticmethod
    def told(memory: Any, inputs: Any) -> Tensor:
        """Return what rows are held near to."""
        raise NotImplementedError

    def follow(self, model: Any, logits: Tensor) -> None:
        """Change the memory."""
        raise NotImplementedError

    @classmethod
    def row_loss(cls, model: Any, batch: Any) -> Tensor:
        """The stated loss of one row."""
        given = {name: value for name, value in batch.items() if name != "labels"}
        away = (logits_of(model, batch) - cls.told(cls.seen, given)).square().sum(1).mean()
        return cross_entropy(model, batch) + 0.1 * away


class Centred(Remembering):
    """A running mean, which is another tensor after each step."""

    def first(self, model: Any) -> Any:
        """Return the mean to begin with."""
        return torch.zeros(data.CLASSES, dtype=torch.float64, device=model.device)

    @staticmethod
    def told(memory: Any, inputs: Any) -> Tensor:  # noqa: ARG004
        """Return it."""
        mean: Tensor = memory
        return mean

    def follow(self, model: Any, logits: Tensor) -> None:
        """Take in the batch."""
        self.memory = 0.9 * self.memory + 0.1 * logits.mean(0)


class Taught(Remembering):
    """A teacher whose parameters are a running mean of the model's, in place."""

    seen: Any = None

    def first(self, model: Any) -> Any:
        """Return a teacher that is not the model."""
        teacher = copy.deepcopy(model).requires_grad_(False)
        for parameter in teacher.parameters():
            parameter.add_(0.1)
        return teacher

    @staticmethod
    @torch.no_grad()
    def told(memory: nn.Module | None, inputs: Any) -> Tensor:
        """Return the teacher's logits."""
        logits: Tensor = torch.zeros(()) if memory is None else memory(**inputs).logits
        return logits

    @torch.no_grad()
    def follow(self, model: Any, logits: Tensor) -> None:
        """Follow the model."""
        for mine, theirs in zip(self.memory.parameters(), model.parameters(), strict=True):
            mine.mul_(0.9).add_(theirs, alpha=0.1)


CASES: list[Case] = [
    trainer(
        name,
        classifier(),
        data.classified(),
        kind=kind,
        row_loss=kind.row_loss,
        expect="right",
        policies=("forced",),
    )
    for name, kind in (("running centre", Centred), ("a teacher that follows", Taught))
]
