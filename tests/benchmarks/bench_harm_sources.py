"""Does AdaptMix do harm with many sources, few rows a step, and importance by size?

The Debian reference manual in eight languages, each language a source of rows of 64 bytes, with
12 000 rows for the first, half of that for the second, a third for the third and so on. Importance
is by size, which is the default. 16 rows a step, so most sources have one row or none in it. A
transformer of two layers, 48 wide, predicts each next byte; AdamW, learning rate 2e-3.

Three runs a seed, which begin with the same parameters: ``shuffled`` rows without adaptmix,
``observe``, which draws by importance and changes nothing else, and ``adapt``, the default.
Held-out losses of the last 256 rows of each text are weighted by importance. The results are in
tests/benchmarks/results/harm.md.

Setup: ``apt-get download debian-reference-{de,en,es,fr,id,it,ja,pt}``, then ``dpkg -x FILE texts``
for each. Usage: ``nice python -m tests.benchmarks.bench_harm_sources texts --seeds 6``.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from adaptmix import Controller, Mixture

LENGTH, WIDTH, ROWS, HELD_OUT, BATCH = 64, 48, 12_000, 256, 16
KINDS = ("shuffled", "observe", "adapt")
Parts = dict[str, TensorDataset]


class Model(nn.Module):
    """A transformer that predicts each next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, rows: Tensor) -> Tensor:
        """Return (B, T - 1, 256) logits of the bytes after the first."""
        given = rows[:, :-1]
        mask = nn.Transformer.generate_square_subsequent_mask(given.shape[1])
        places = self.places(torch.arange(given.shape[1]))
        logits: Tensor = self.head(self.body(self.bytes(given) + places, mask=mask, is_causal=True))
        return logits


def sources(folder: Path) -> tuple[Parts, Parts]:
    """Return training and held-out rows of each language."""
    train, held_out = Parts(), Parts()
    found = sorted(folder.rglob("debian-reference.*.txt.gz"))
    if len(found) != 8:
        raise SystemExit(f"{folder} must hold the manual in eight languages; got {len(found)}.")
    for rank, path in enumerate(found, start=1):
        text = np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8)
        rows = torch.from_numpy(text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH).copy())
        name = path.name.split(".")[1]
        train[name] = TensorDataset(rows[: min(ROWS, len(rows) - HELD_OUT) // rank].long())
        held_out[name] = TensorDataset(rows[-HELD_OUT:].long())
    return train, held_out


def losses_of(model: nn.Module, rows: Tensor) -> Tensor:
    """Return (B,) mean losses of rows."""
    logits = model(rows)
    return F.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(1)


def train(parts: Parts, kind: str, *, seed: int, steps: int) -> nn.Module:
    """Return a trained model."""
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    if kind == "shuffled":
        whole: DataLoader[list[Tensor]] = DataLoader(
            ConcatDataset(parts.values()), batch_size=BATCH, shuffle=True
        )
        batches = iter(whole)
        for _ in range(steps):
            losses_of(model, next(batches)[0]).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model
    controller = Controller(Mixture(parts), model, mode=kind, seed=seed)
    for (rows,) in controller.loader(batch_size=BATCH, steps=steps):
        controller.loss(losses_of(model, rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    print(controller.report(), flush=True)
    return model


@torch.no_grad()
def evaluate(model: nn.Module, parts: Parts) -> list[float]:
    """Return the mean held-out loss of each source."""
    model.train(False)
    return [float(losses_of(model, part.tensors[0]).mean()) for part in parts.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts, held_out = sources(args.folder)
    sizes = np.array([len(part) for part in parts.values()])
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for seed in range(args.seeds):
        for kind, results in found.items():
            means = evaluate(train(parts, kind, seed=seed, steps=args.steps), held_out)
            results.append([*means, float(np.array(means) @ sizes / sizes.sum())])
            print(seed, kind, np.round(results[-1], 4).tolist(), flush=True)
    values = {kind: np.array(results) for kind, results in found.items()}
    print("\n| source | rows | shuffled | observe | adapt | adapt against observe |")
    print("|---|---|---|---|---|---|")
    rows = [*map(str, sizes.tolist()), str(sizes.sum())]
    for i, name in enumerate([*parts, "weighted"]):
        cells = [told(values[kind][:, i]) for kind in KINDS]
        change = 100.0 * (values["adapt"][:, i] / values["observe"][:, i] - 1.0)
        print(f"| {name} | {rows[i]} | {' | '.join(cells)} | {told(change, '+.2f')} % |")


def told(values: np.ndarray, form: str = ".4f") -> str:
    """Return mean ± standard error over seeds."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{format(values.mean(), form)} ± {format(error, form.lstrip('+'))}"


if __name__ == "__main__":
    main()
