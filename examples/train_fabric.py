"""Fabric: the plain controller, on handwritten digits from three sources with wrong labels.

    pip install ".[lightning,examples]"     # in a clone of AdaptMix
    python train_fabric.py
    fabric run --devices 2 train_fabric.py    # two processes

``--accumulate``, ``--precision`` and ``--resume`` show the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm

from adaptmix import Controller, Mixture, noise

WRONG = {"experts": 0.0, "crowd": 0.3, "bots": 0.8}  # share of labels that are random
Parts = dict[str, TensorDataset]


def digits() -> tuple[Parts, Parts, TensorDataset]:
    """Return training and held-out rows by domain, and test rows, whose labels are all right."""
    pixels, answers = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float() / 16.0, torch.from_numpy(answers)
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(len(y), generator=rng)
    train, heldout = Parts(), Parts()
    for name, share in WRONG.items():
        mine, order = order[:480], order[480:]
        wrong = torch.rand(480, generator=rng) < share
        labels = torch.where(wrong, torch.randint(10, (480,), generator=rng), y[mine])
        train[name] = TensorDataset(x[mine[:400]], labels[:400])
        heldout[name] = TensorDataset(x[mine[400:]], labels[400:])
    return train, heldout, TensorDataset(x[order], y[order])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32, help="rows per process")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--out", type=Path, default=Path("runs/fabric"))
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)

    fabric = Fabric(precision=args.precision)
    fabric.launch()
    fabric.seed_everything(0)
    train, heldout, test = digits()
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=2e-3))

    controller = Controller(Mixture(train), policy="fgls+variance_aware", holdout=None)
    controller.watch(net)
    controller.log_to(args.out)
    state = {"model": model, "optimizer": optimizer, "controller": controller}
    if args.resume:
        fabric.load(args.out / "last.ckpt", state)

    # Not through fabric.setup_dataloaders: it yields this process's rows already.
    loader = controller.loader(args.batch_size, accumulation=args.accumulate, steps=args.steps)
    for number, batch in enumerate(tqdm(loader, disable=not fabric.is_global_zero), start=1):
        begins = (number - 1) % args.accumulate == 0
        if begins and controller.completed % 20 == 0:  # fitted rows look less noisy than they are
            for name, rows in heldout.items():
                x, y = fabric.to_device(rows.tensors)
                with torch.no_grad():
                    controller.record_noise(noise.softmax(net(x), y), name)
        inputs, labels = fabric.to_device(batch)
        unfinished = number % args.accumulate != 0
        with fabric.no_backward_sync(model, enabled=unfinished):
            logits = model(inputs)
            losses = F.cross_entropy(logits, labels, reduction="none")
            fabric.backward(controller.loss(losses))
        if unfinished:
            continue
        optimizer.step()
        optimizer.zero_grad()
        controller.step()

    fabric.save(args.out / "last.ckpt", state)
    x, y = fabric.to_device(test.tensors)
    fabric.print(f"accuracy on right labels: {(net(x).argmax(-1) == y).float().mean():.3f}")
    fabric.print(controller.report())


if __name__ == "__main__":
    main()
