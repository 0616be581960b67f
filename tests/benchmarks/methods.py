"""Ways to measure gradient variances within domains during a training step: ours and others'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from backpack import backpack, extend
from backpack.extensions import BatchL2Grad
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from adaptmix.probe import GradientProbe
from tests.benchmarks.workloads import DOMAINS, Workload

Scatter = tuple[Tensor, Tensor]
"""(K,) scatter and degrees of freedom of the per-sample gradients of each domain."""


class Method(ABC):
    """Trains a model, and measures at every step.

    Args:
        workload: whose losses are trained.
        model: the model, which the method may wrap.
    """

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        self.losses = workload.losses
        self.model = model

    @abstractmethod
    def step(self, domains: Tensor, inputs: Tensor, targets: Tensor, number: int) -> Scatter | None:
        """Run forward and backward, and return what was measured."""


class Plain(Method):
    """Measures nothing."""

    def step(self, domains: Tensor, inputs: Tensor, targets: Tensor, number: int) -> None:
        self.losses(self.model, inputs, targets).mean().backward()


class Probe(Method):
    """adaptmix; ``every`` is its cadence."""

    def __init__(
        self, workload: Workload, model: nn.Module, estimator: str, *, every: int = 1
    ) -> None:
        super().__init__(workload, model)
        self._every = every
        self._probe = GradientProbe(model, DOMAINS, estimator=estimator)
        self._probe.attach()

    def step(self, domains: Tensor, inputs: Tensor, targets: Tensor, number: int) -> Scatter | None:
        self._probe.arm(number % self._every == 0, step=number)
        loss = self.losses(self.model, inputs, targets).mean()
        self._probe.expect(domains, torch.full((len(domains),), 1.0 / len(domains)), loss)
        loss.backward()
        sums = self._probe.collect()
        if sums is None:
            return None
        return sums.square - sums.gram().diagonal() / sums.count, sums.count - 1.0


def centred(domains: Tensor, gradients: list[Tensor]) -> Scatter:
    """From whole per-sample gradients, one (B, ...) tensor per parameter."""
    count = torch.bincount(domains, minlength=DOMAINS).double()
    scatter = torch.zeros(DOMAINS, dtype=torch.float64)
    for gradient in gradients:
        rows = gradient.flatten(1)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
        sums = rows.new_zeros(DOMAINS, rows.shape[1]).index_add_(0, domains, rows)
        mean = torch.linalg.vector_norm(sums, dim=1, dtype=torch.float64).square() / count
        scatter += torch.zeros_like(scatter).index_add_(0, domains, norms) - mean
    return scatter, count - 1.0


def uncentred(domains: Tensor, norms: Tensor) -> Scatter:
    """From (B,) squared norms alone: the mean gradient counts as variance."""
    total = torch.zeros(DOMAINS, dtype=torch.float64).index_add_(0, domains, norms.double())
    return total, torch.bincount(domains, minlength=DOMAINS).double()


class OpacusSamples(Method):
    """Opacus, whole per-sample gradients."""

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        super().__init__(workload, GradSampleModule(model, loss_reduction="mean", strict=False))

    def step(self, domains: Tensor, inputs: Tensor, targets: Tensor, number: int) -> Scatter:
        self.losses(self.model, inputs, targets).mean().backward()
        gradients = []
        for parameter in self.model.parameters():
            sample: Any = parameter.grad_sample  # type: ignore[attr-defined]
            uses: list[Tensor] = sample if isinstance(sample, list) else [sample]
            gradients.append(torch.stack(uses).sum(0) if len(uses) > 1 else uses[0])
            parameter.grad_sample = None  # type: ignore[attr-defined]
        return centred(domains, gradients)


class OpacusGhost(Method):
    """Opacus, norms only."""

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        wrapped = GradSampleModuleFastGradientClipping(
            model, loss_reduction="mean", use_ghost_clipping=True, strict=False, max_grad_norm=1.0
        )
        super().__init__(workload, wrapped)

    def step(self, domains: Tensor, inputs: Tensor, targets: Tensor, number: int) -> Scatter:
        self.losses(self.model, inputs, targets).mean().backward()
        norms: Tensor = self.model.get_norm_sample()  # type: ignore[operator]
        for parameter in self.model.parameters():
            parameter._norm_sample = None  # type: ignore[attr-defined]
        return uncentred(domains, norms.square())


class BackpackNorms(Method):
    """BackPACK, norms only, of the layers that it knows."""

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        super().__init__(workload, extend(model))

    def step(self, domains: Tensor, inputs: Tensor, targets: Tensor, number: int) -> Scatter:
        with backpack(BatchL2Grad()):
            self.losses(self.model, inputs, targets).mean().backward()
        norms = torch.zeros(len(domains))
        for parameter in self.model.parameters():
            norms += getattr(parameter, "batch_l2", 0.0)
            if hasattr(parameter, "batch_l2"):
                del parameter.batch_l2
        return uncentred(domains, norms * len(domains) ** 2)


class Functional(Method):
    """torch.func, in place of the backward pass."""

    def step(self, domains: Tensor, inputs: Tensor, targets: Tensor, number: int) -> Scatter:
        parameters = dict(self.model.named_parameters())

        def one(values: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
            def call(model: nn.Module, batch: Tensor) -> Any:
                return functional_call(model, values, (batch,))

            return self.losses(_Called(self.model, call), row[None], target[None]).sum()

        gradients, _ = vmap(grad_and_value(one), in_dims=(None, 0, 0))(
            {name: p.detach() for name, p in parameters.items()}, inputs, targets
        )
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].mean(0)
        return centred(domains, list(gradients.values()))


class _Called(nn.Module):
    """A module as seen through a function of it."""

    def __init__(self, model: nn.Module, call: Any) -> None:
        super().__init__()
        self.__dict__["held"] = (model, call)

    def forward(self, inputs: Tensor) -> Any:
        model, call = self.__dict__["held"]
        return call(model, inputs)


METHODS: dict[str, Any] = {
    "plain again": Plain,
    "adaptmix sketch": lambda w, m: Probe(w, m, "sketch"),
    "adaptmix exact": lambda w, m: Probe(w, m, "exact"),
    "adaptmix norm": lambda w, m: Probe(w, m, "norm"),
    "Opacus samples": OpacusSamples,
    "Opacus ghost": OpacusGhost,
    "BackPACK norms": BackpackNorms,
    "torch.func": Functional,
}
