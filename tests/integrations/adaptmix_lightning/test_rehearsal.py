"""The first training step done again on other rows: what it refuses, and what it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from adaptmix.errors import ObjectiveError
from adaptmix_lightning import AdaptMixCallback
from tests.integrations.adaptmix_lightning import pl

pytestmark = pl.FILTERS

_LABELS = ["left", "right"] * 24


class Rows(torch.utils.data.Dataset[Any]):
    """Rows that are dicts."""

    def __len__(self) -> int:
        return len(_LABELS)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(row)
        return {"x": torch.randn(8, generator=generator), "y": torch.tensor(row % 5)}


class OwnNorm(nn.Module):
    """A batch normalisation that is not one of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("spread", torch.ones(8))

    def forward(self, rows: Tensor) -> Any:
        mean: Any = self.mean
        spread: Any = self.spread
        return F.batch_norm(rows, mean, spread, training=self.training)


class Mixes(nn.Module):
    """Mixes rows in training, where no second derivative and no buffer shows it."""

    def forward(self, rows: Tensor) -> Tensor:
        mixed = 0.6 * rows + 0.4 * rows[torch.randperm(len(rows))]
        return mixed if self.training else rows


class Net(LightningModule):
    """Any layers before a head; batches are changed in place, as they may be."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers, nn.Linear(8, 5))
        self.steps, self.largest = 0, [0.0]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch.pop("x").mul_(2.0), batch.pop("y")
        self.steps += 1
        self.largest.append(float(inputs.abs().max()))
        if self.trainer.loggers:
            self.trainer.loggers[0].log_metrics({"own": 1.0}, step=self.steps)
        return F.cross_entropy(self.net(inputs), targets, reduction="none")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)


class Packed(Net):
    """Dropout between layers of an LSTM draws one number per token of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 8, num_layers=2, dropout=0.5, batch_first=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(
            batch["x"].unsqueeze(2), batch["y"] + 2, batch_first=True, enforce_sorted=False
        )
        return super().training_step({**batch, "x": self.rnn(packed)[1][0][-1].clone()}, batch_idx)


class Trimmed(Net):
    """A dropout of one's own, on as many tokens as the longest row of the batch has."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        longest = int(batch["y"].max()) + 2
        kept = torch.rand(len(batch["x"]), longest) < 0.8
        inputs = batch["x"] * F.pad(kept, (0, 8 - longest))
        return super().training_step({**batch, "x": inputs}, batch_idx)


def fit(module: Any, **options: Any) -> None:
    data: DataLoader[Any] = DataLoader(Rows(), batch_size=8, shuffle=True)
    torch.manual_seed(0)
    pl.trainer(AdaptMixCallback(_LABELS), max_steps=3, **options).fit(module, data)


@pytest.mark.parametrize(
    "make",
    [Packed, Trimmed, lambda: Net(OwnNorm()), lambda: Net(nn.BatchNorm1d(8), nn.Dropout(0.5))],
    ids=["packed", "trimmed", "own norm", "layers of torch"],
)
@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
def test_rows_that_meet_in_layers_or_random_numbers_have_losses_of_their_own(make: Any) -> None:
    module = make()
    fit(module)
    assert module.global_step == 3


def test_rows_that_a_layer_mixes_are_refused() -> None:
    with pytest.raises(ObjectiveError, match="rows change with the rows beside them"):
        fit(Net(Mixes(), nn.Dropout(0.5)))


def test_a_module_sees_its_own_steps_only(tmp_path: Any) -> None:
    module, written = Net(), []

    class Logger(CSVLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            written.extend(metrics)

    fit(module, logger=Logger(tmp_path))
    assert module.steps == 3
    assert written.count("own") == 3
    rows = Rows()
    every = max(2.0 * float(rows[i]["x"].abs().max()) for i in range(len(rows)))
    assert len(module.largest) == 4
    assert max(module.largest) <= every
