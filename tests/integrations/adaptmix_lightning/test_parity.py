"""The gradient that a Trainer's optimizer sees is that of the objective, written out.

Also tests ``adaptmix_lightning/_weighting.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptmix import Draw, policies
from adaptmix.errors import ObjectiveError
from adaptmix_lightning import AdaptMixCallback
from tests import runs
from tests.integrations.adaptmix_lightning import pl

# Shares that are forced on nine rows draw them many times over.
pytestmark = [*pl.FILTERS, pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")]

WEIGHTS = policies.Static(
    sampling={"0": 0.2, "1": 0.3, "2": 0.5}, loss={"0": 0.5, "1": 2.0, "2": 1.0}
)
IMPORTANCE = {"0": 3.0, "1": 2.0, "2": 1.0}


def callback(**options: Any) -> AdaptMixCallback:
    given: dict[str, Any] = {"policy": WEIGHTS, "importance": IMPORTANCE}
    return AdaptMixCallback(**(given | options), lag=0, update_every=1)


class Checked(pl.Classifier):
    """Compares each step's gradient with that of the objective over the step's rows."""

    def __init__(self, mixer: AdaptMixCallback, **options: Any) -> None:
        super().__init__(**options)
        self.mixer = [mixer]  # in a list, for a module must not hold its trainer's callbacks
        self.errors: list[float] = []
        self.draws: list[Draw] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        inputs, targets, rows = (torch.cat(parts) for parts in zip(*self.batches, strict=True))
        held = torch.zeros(len(inputs), dtype=torch.bool)
        each_size = len(inputs) // len(self.batches)
        for number, draw in enumerate(self.draws[-len(self.batches) :]):
            if draw.held is not None:
                held[number * each_size : (number + 1) * each_size] = draw.held
        self.batches = []
        data, controller = pl.dataset(), self.mixer[0].controller
        # Rows are numbered anew in every part, so domains are known by their inputs.
        domains = [self._domain(data, row, own) for row, own in zip(inputs, rows, strict=True)]
        net = runs.model()
        net.load_state_dict(self.net.state_dict())
        each = F.cross_entropy(net(inputs.double()), targets, reduction="none")
        total = torch.zeros((), dtype=torch.float64)
        for i, name in enumerate(controller.mixture.domains):
            weights = controller.weights.as_dict(controller.mixture.domains)[name]
            mine = torch.tensor([domain == i for domain in domains]) & ~held
            mean = self.mean_loss(name, each[mine], rows[mine])
            total = total + weights["importance"] * weights["loss"] * mean
        wanted = torch.autograd.grad(total, list(net.parameters()))
        expected = torch.cat([part.flatten() for part in wanted])
        self.errors.append(float((self.gradients[-1] - expected).norm() / expected.norm()))

    def mean_loss(self, name: str, losses: Tensor, rows: Tensor) -> Tensor:
        return losses.mean()

    @staticmethod
    def _domain(data: Any, inputs: Tensor, row: Tensor) -> int:
        for i, part in enumerate(data.datasets):
            if int(row) < len(part) and torch.equal(part[int(row)][0].to(inputs.dtype), inputs):
                return i
        raise AssertionError("a row of no domain")


class Manual(Checked):
    """Steps the optimizer itself, every ``accumulation`` batches."""

    def __init__(self, mixer: AdaptMixCallback, *, accumulation: int, **options: Any) -> None:
        super().__init__(mixer, **options)
        self.automatic_optimization = False
        self.accumulation = accumulation

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.per_sample:
            self.manual_backward(self.mixer[0].loss(loss))
        else:
            self.manual_backward(loss / self.accumulation)
        if (batch_idx + 1) % self.accumulation:
            return
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.step()
        optimizer.zero_grad()


# Twenty rows give every domain at least one, so shares are realised ones and steps are exact.
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("seam", ["losses", "head"])
@pytest.mark.parametrize("manual", [False, True])
def test_every_step_is_the_objective_over_its_rows(
    accumulation: int, seam: str, manual: bool
) -> None:
    mixer = callback(
        head="net.2" if seam == "head" else None, accumulation=accumulation if manual else None
    )
    module: Checked
    if manual:
        module = Manual(mixer, accumulation=accumulation, per_sample=seam == "losses")
    else:
        module = Checked(mixer, per_sample=seam == "losses")
    trainer = pl.trainer(
        mixer,
        max_steps=5,
        max_epochs=-1,
        accumulate_grad_batches=1 if manual else accumulation,
    )
    trainer.fit(module, pl.loader(20 // accumulation))
    assert len(module.errors) == 5
    assert max(module.errors) < 1e-12
    weights = mixer.controller.weights
    assert weights.sampling.tolist() == pytest.approx([0.2, 0.3, 0.5])
    assert weights.loss[1] / weights.loss[0] == pytest.approx(4.0)


@pytest.mark.parametrize("seam", ["losses", "head"])
def test_held_out_rows_do_not_count(seam: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = callback(head="net.2" if seam == "head" else None, holdout=0.25)
    module = Checked(mixer, per_sample=seam == "losses")
    module.draws = runs.record_draws(monkeypatch)
    trainer = pl.trainer(mixer, max_steps=5, max_epochs=-1, accumulate_grad_batches=4)
    trainer.fit(module, pl.loader(5))
    held = [int(draw.held.sum()) for draw in module.draws if draw.held is not None]
    assert sum(held) == 5 * 20 // 16
    assert max(module.errors) < 1e-12


def test_gradients_are_measured_alike_at_every_seam() -> None:
    measured = []
    for manual, head in ((False, None), (False, "net.2"), (True, None), (True, "net.2")):
        mixer = callback(policy="variance_aware", head=head, accumulation=4 if manual else None)
        options: dict[str, Any] = {"per_sample": head is None}
        module = Manual(mixer, accumulation=4, **options) if manual else Checked(mixer, **options)
        trainer = pl.trainer(mixer, max_steps=5, accumulate_grad_batches=1 if manual else 4)
        trainer.fit(module, pl.loader(5))
        measured.append(torch.from_numpy(mixer.controller.statistics.grad_var))
    for other in measured[1:]:
        torch.testing.assert_close(other, measured[0], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_observed_losses_are_the_objective_without_loss_weights(accumulation: int) -> None:
    mixer = callback(mode="observe")
    module = Checked(mixer)
    trainer = pl.trainer(mixer, max_steps=5, accumulate_grad_batches=accumulation)
    trainer.fit(module, pl.loader(20 // accumulation))
    assert len(module.errors) == 5
    assert max(module.errors) < 1e-12
    weights = mixer.controller.weights
    assert weights.loss.tolist() == [1.0, 1.0, 1.0]
    assert weights.sampling.tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])


def test_without_weights_the_gradient_would_be_another() -> None:
    mixer = callback(mode="observe")
    module = Checked(mixer, per_sample=False)
    pl.trainer(mixer, max_steps=3).fit(module, pl.loader(20))
    # A mean is trained on as it is; 20 rows cannot be shared as 3 : 2 : 1.
    assert min(module.errors) > 1e-4


def test_clipping_sees_the_weighted_gradient() -> None:
    mixer = callback()

    class Clipped(Checked):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            norms.append(
                [float(p.grad.norm()) for p in self.net.parameters() if p.grad is not None]
            )

    norms: list[list[float]] = []
    module = Clipped(mixer)
    pl.trainer(mixer, max_steps=4, gradient_clip_val=1e-3).fit(module, pl.loader(20))
    assert max(module.errors) < 1e-12
    for step, clipped in zip(module.gradients, norms[1:], strict=False):
        assert float(step.norm()) > 1e-3
        assert sum(norm**2 for norm in clipped) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("seam", ["losses", "head"])
def test_low_precision_is_as_near_as_its_rounding(precision: str, seam: str) -> None:
    mixer = callback(head="net.2" if seam == "head" else None)
    module = Checked(mixer, per_sample=seam == "losses").float()
    pl.trainer(mixer, max_steps=4, precision=precision).fit(module, pl.loader(20))
    # Eight bits of mantissa in every product, against float64: two roundings of 2⁻⁸ and a sum.
    assert max(module.errors) < 0.02


class Tokens(Checked):
    """Returns (B, 4) losses, of which a row supervises one to four, and noise terms."""

    lengths: ClassVar = {"0": 2.5, "1": 2.5, "2": 21 / 9}  # means of 1 + row % 4

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        losses = super().training_step(batch, batch_idx)
        mask = torch.arange(4) < 1 + batch[2][:, None] % 4
        noise = losses.detach()
        return {"loss": losses[:, None].expand(-1, 4), "loss_mask": mask, "noise": noise}

    def mean_loss(self, name: str, losses: Tensor, rows: Tensor) -> Tensor:
        return (losses * (1 + rows % 4)).mean() / self.lengths[name]


def test_token_losses_their_mask_and_noise_come_in_a_dict() -> None:
    mixer = callback(unit="token", tokens_per_row=Tokens.lengths)
    module = Tokens(mixer)
    pl.trainer(mixer, max_steps=4).fit(module, pl.loader(20))
    assert max(module.errors) < 1e-12
    assert mixer.controller.statistics.noise.min() > 0.0


@pytest.mark.parametrize("manual", [False, True])
def test_a_module_that_scales_the_weighted_loss_is_refused(manual: bool) -> None:
    mixer = callback(accumulation=4 if manual else None)

    class Divides(Manual):
        def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            super().manual_backward(loss / 4, *args, **kwargs)

    class DividesToo(Checked):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            super().backward(loss / 4, *args, **kwargs)

    module = Divides(mixer, accumulation=4) if manual else DividesToo(mixer)
    with pytest.raises(ObjectiveError, match=r"got \[0.25\] times the stated"):
        pl.trainer(mixer, max_steps=2).fit(module, pl.loader(5))
