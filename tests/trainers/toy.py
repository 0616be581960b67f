"""A trainer that AdaptMix does not know, and the package that a stranger would write for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from adaptmix import Controller
from adaptmix.errors import ObjectiveError
from adaptmix.trainers import (
    Layout,
    PlanSampler,
    Replacements,
    Settings,
    as_mixture,
    couplings,
    find_loss_inputs,
    loss_gradients,
    make_sampler,
    numbered_loader,
)

_NUMBER = "adaptmix_number"


class ToyTrainer:
    """Somebody else's trainer: a mean loss per batch, and methods that may be replaced."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset[Any],
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
    ) -> None:
        self.model, self.dataset, self.loss = model, dataset, loss
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def make_loader(self) -> Any:
        return DataLoader(self.dataset, self.batch_size, shuffle=True)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        outputs = self.model(batch["x"])
        return outputs, self.loss(outputs, batch["y"])

    def backward(self, outputs: Tensor, loss: Tensor) -> None:
        loss.backward()

    def optimizer_step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self) -> None:
        loader = self.make_loader()
        for _ in range(self.epochs):
            for batch in loader:
                self.backward(*self.forward(batch))
                self.optimizer_step()


class AdaptMix:
    """Adapts how a ``ToyTrainer`` samples its domains; stands on ``adaptmix.trainers`` alone.

    Args:
        trainer: whose ``train`` is called inside ``with``.
        domains: one label per row.
        lag: as for ``Controller``.
        options: further arguments of ``Controller``.
    """

    controller: Controller

    def __init__(
        self, trainer: ToyTrainer, domains: Any, *, lag: int | None = None, **options: Any
    ) -> None:
        self._trainer = trainer
        self._settings = Settings(domains=domains, lag=lag, options=options)
        self._replaced = Replacements(trainer)
        self._sampler: PlanSampler | None = None
        self._number = -1

    def __enter__(self) -> AdaptMix:
        trainer, settings = self._trainer, self._settings
        like = trainer.make_loader()
        layout = Layout(trainer.batch_size, accumulation=1)
        mixture = as_mixture(trainer.dataset, settings.domains, importance=settings.importance)
        self.controller = settings.make_controller(
            mixture, lag=settings.lag_for(like, layout), seed=trainer.seed
        )
        sampler = make_sampler(self.controller, layout, batches=len(like), epochs=trainer.epochs)
        self._sampler = sampler
        self._watch = self.controller.watch(trainer.model)
        self._replaced.replace("make_loader", lambda: numbered_loader(sampler, like, key=_NUMBER))
        self._replaced.replace("forward", self._forward)
        self._replaced.replace("backward", self._backward)
        self._replaced.replace("optimizer_step", self._optimizer_step)
        return self

    def __exit__(self, *_: object) -> None:
        self._replaced.restore()
        self._watch.remove()

    def _forward(self, batch: dict[str, Any]) -> Any:
        self._number = batch.pop(_NUMBER)
        return self._replaced["forward"](batch)

    def _backward(self, outputs: Tensor, loss: Tensor) -> None:
        assert self._sampler is not None
        draw = self._sampler.take(self._number)
        met = find_loss_inputs(loss, [outputs])
        if not self.controller.completed or self.controller.observing:
            self._prove(loss, met, len(draw))
        factors = self.controller.multipliers(draw)
        met.scale(factors)
        self.controller.observe(loss, draw=draw, factors=factors / len(draw), outputs=[outputs])
        self._replaced["backward"](outputs, loss)

    def _prove(self, loss: Tensor, met: Any, rows: int) -> None:
        with self._watch.aside():
            first = loss_gradients(loss, met, twice=True)
            coupled = couplings(met, first, samples=rows, seed=self.controller.completed)
        if coupled is not None:
            raise ObjectiveError(f"The loss must be a sum over rows; in this one {coupled}.")

    def _optimizer_step(self) -> None:
        self._replaced["optimizer_step"]()
        self.controller.step()
