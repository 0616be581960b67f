"""Does AdaptMix help? Train a small language model without it and with it, and read the verdict.

    pip install ".[examples]"                             # in a clone of adaptmix
    python quickstart.py                                  # on text that every Python carries
    python quickstart.py --data mine=a.txt yours=b.txt    # on your own files

Two of Python's domains are long text. Two are questions with a short answer: the gradient of such a
row varies more, so AdaptMix draws more of them. What is trained stays the mean over domains.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sysconfig
import unicodedata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm

from adaptmix import Controller, Mixture
from adaptmix.monitoring import page, read_runs

LENGTH, HELD_OUT, IGNORED = 48, 200, -100
Parts = tuple[TensorDataset, TensorDataset]  # rows to train on, held-out rows
Domains = dict[str, Parts]


def cut(texts: list[bytes], answers: list[int]) -> Parts:
    """Return a row for each text, of which the last ``answers[i]`` bytes are predicted."""
    padded = b"".join(text[-LENGTH - 1 :].rjust(LENGTH + 1, b"\0") for text in texts)
    data = torch.frombuffer(bytearray(padded), dtype=torch.uint8).view(-1, LENGTH + 1).long()
    question = torch.arange(LENGTH) < LENGTH - torch.tensor(answers)[:, None]
    inputs, labels = data[:, :-1], data[:, 1:].masked_fill(question, IGNORED)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:10_000]
    train, held = order[HELD_OUT:], order[:HELD_OUT]
    return TensorDataset(inputs[train], labels[train]), TensorDataset(inputs[held], labels[held])


def long_text(text: bytes) -> Parts:
    rows = [text[i : i + LENGTH + 1] for i in range(0, len(text) - LENGTH, LENGTH)]
    return cut(rows, [LENGTH] * len(rows))


def questions(pairs: list[tuple[str, str]]) -> Parts:
    return cut([(q + answer).encode() for q, answer in pairs], [len(a) for _, a in pairs])


def python_text() -> Domains:
    """Return four domains of every complete Python: code, prose, and two kinds of questions."""
    code = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    manual = importlib.import_module("pydoc_data.topics").topics
    named = [(c, name) for c in map(chr, range(0x3000)) if (name := unicodedata.name(c, ""))]
    return {
        "code": long_text(b"\n".join(path.read_bytes() for path in code)),
        "manual": long_text("\n".join(manual.values()).encode()),
        "category": questions([(f"{name}: ", unicodedata.category(c)) for c, name in named]),
        "code point": questions([(f"{name} = ", f"{ord(c):04X}") for c, name in named]),
    }


class ByteLM(nn.Module):
    """Predicts the next byte: (B, T) integers to (B, T, 256) logits."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, dim), nn.Embedding(LENGTH, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 256))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(LENGTH, device=tokens.device).expand_as(tokens)
        x = self.blocks(self.bytes(tokens) + self.places(places), mask=self.mask, is_causal=True)
        logits: Tensor = self.head(x)
        return logits


def row_losses(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return (B,) losses, each the mean over the bytes that are predicted."""
    logits = model(inputs).flatten(0, 1)
    losses = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(labels).sum(1) / (labels != IGNORED).sum(1)


def train(domains: Domains, folder: Path, mode: str, seed: int, args: argparse.Namespace) -> None:
    """Train from scratch. This is the loop that you have, with AdaptMix in it."""
    torch.manual_seed(seed)
    model = ByteLM().to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps)

    parts = {name: rows for name, (rows, _) in domains.items()}
    mixture = Mixture(parts, importance=dict.fromkeys(parts, 1.0))  # each domain counts the same
    controller = Controller(mixture, model, mode=mode, seed=seed + args.reshuffle)
    controller.log_to(folder)
    loader = controller.loader(args.batch_size, steps=args.steps)  # instead of a DataLoader
    for batch in tqdm(loader, desc=folder.name, unit="step"):
        inputs, labels = (part.to(args.device) for part in batch)
        losses = row_losses(model, inputs, labels)
        controller.loss(losses).backward()  # instead of losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        controller.step()
        if controller.completed % max(1, args.steps // 5) == 0:
            evaluate(model, domains, controller, args.device)


@torch.no_grad()
def evaluate(model: nn.Module, domains: Domains, controller: Controller, device: str) -> None:
    """Tell the controller every domain's held-out loss and its standard error."""
    means, errors = {}, {}
    for name, (_, heldout) in domains.items():
        losses = row_losses(model, *(part.to(device) for part in heldout.tensors))
        means[name] = float(losses.mean())
        errors[name] = float(losses.std()) / math.sqrt(len(losses))
    controller.record_evaluation(means, errors=errors)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawTextHelpFormatter)
    parser.description = __doc__
    parser.add_argument("--data", nargs="+", metavar="NAME=PATH", help="your own text files")
    parser.add_argument("--seeds", type=int, default=3, help="runs without and runs with it")
    parser.add_argument("--reshuffle", type=int, default=0, help="another order of the rows")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    return parser


def main() -> None:
    args = options().parse_args()
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    files = dict(pair.split("=", 1) for pair in args.data or [])
    own = {name: long_text(Path(path).read_bytes()) for name, path in files.items()}
    domains = own or python_text()

    for seed in range(args.seeds):
        train(domains, args.out / f"without-{seed}", "observe", seed, args)
        train(domains, args.out / f"with-{seed}", "adapt", seed, args)
    verdict = page(read_runs([args.out]))
    verdict.save(args.out / "report.html")
    print(f"\n{verdict.text}\npage: {args.out / 'report.html'}")


if __name__ == "__main__":
    main()
