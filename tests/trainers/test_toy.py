"""The kit is enough for a trainer that AdaptMix does not know: its steps follow the objective.

Also tests ``trainers/_settings.py``, ``trainers/_steps.py`` and ``_trained.py``.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from adaptmix import Domains
from adaptmix.errors import ObjectiveError
from adaptmix.trainers import Settings
from tests.trainers.toy import AdaptMix, ToyTrainer

SIZES = {"a": 40, "b": 24, "c": 16}
LABELS = [name for name, size in SIZES.items() for _ in range(size)]


class Rows(Dataset[Any]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        scale = torch.tensor([1.0, 3.0, 9.0]).repeat_interleave(torch.tensor([*SIZES.values()]))
        self.x = scale[:, None] * torch.randn(80, 4, generator=generator, dtype=torch.float64)
        self.y = torch.randint(3, (80,), generator=generator)

    def __len__(self) -> int:
        return 80

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"x": self.x[row], "y": self.y[row], "domain": "abc".index(LABELS[row])}


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


class Checked(ToyTrainer):
    """Compares the gradient of every step with that of the objective over its rows."""

    steps = 0

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        twin = copy.deepcopy(self.model)
        each = F.cross_entropy(twin(batch["x"]), batch["y"], reduction="none")
        importance = torch.tensor([*SIZES.values()]) / 80.0
        # Σ π (mean loss of the domain's rows); every batch of sixteen has some of each.
        sum(importance[i] * each[batch["domain"] == i].mean() for i in range(3)).backward()  # type: ignore[union-attr]
        self.wanted = gradients(twin)
        return super().forward(batch)

    def optimizer_step(self) -> None:
        got = nn.utils.parameters_to_vector(gradients(self.model))
        wanted = nn.utils.parameters_to_vector(self.wanted)
        assert (got - wanted).norm() <= 1e-6 * wanted.norm()  # multipliers are float32
        self.steps += 1
        super().optimizer_step()


def trainer(loss: Any = F.cross_entropy, **options: Any) -> Checked:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return Checked(model, Rows(), loss, batch_size=16, **options)


def test_every_step_of_an_unknown_trainer_follows_the_objective() -> None:
    made = trainer(epochs=24)
    with AdaptMix(made, LABELS, update_every=2, lag=2) as adapting:
        made.train()
    controller = adapting.controller
    assert made.steps == controller.completed == 120
    # The ratio is 1.44 to 1.58 with ten seeds.
    assert controller.weights.sampling[2] > 1.25 * controller.weights.importance[2]
    assert "make_loader" not in vars(made)


def test_a_loss_that_is_no_sum_over_rows_is_refused() -> None:
    def centred(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs - outputs.mean(0), targets)

    made = trainer(centred)
    with (
        AdaptMix(made, LABELS),
        pytest.raises(ObjectiveError, match="gradient depends on other rows"),
    ):
        made.train()


def test_an_argument_of_the_settings_is_no_option_of_the_controller() -> None:
    with pytest.raises(TypeError, match=r"got lag\. Pass it to Settings itself"):
        Settings(options={"lag": 2})


def test_rows_of_somebody_elses_loader_need_a_loop_of_ones_own() -> None:
    with pytest.raises(TypeError, match=r"got Domains\. .* need a loop of your own"):
        Settings(domains=Domains(["a", "b"], importance=[1, 1]))  # type: ignore[arg-type]
