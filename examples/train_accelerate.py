"""Accelerate: the plain controller, on digits from three scanners that differ in contrast.

    pip install ".[transformers,examples]"  # in a clone of AdaptMix
    python train_accelerate.py
    accelerate launch --cpu --num_processes 2 train_accelerate.py    # two processes

``--accumulate``, ``--precision`` and ``--resume`` show the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm

from adaptmix import Controller, Mixture

CONTRAST = {"bright": 3.0, "grey": 1.0, "dark": 0.3}


def scans() -> dict[str, TensorDataset]:
    """Return each scanner's digits: (64,) pixels and a label a row."""
    pixels, answers = load_digits(return_X_y=True)
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(pixels).float() / 16.0, torch.from_numpy(answers)
    parts = zip(CONTRAST.items(), order.chunk(3), strict=True)
    return {name: TensorDataset(x[rows] * scale, y[rows]) for (name, scale), rows in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32, help="rows per process")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--out", type=Path, default=Path("runs/accelerate"))
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)

    accelerator = Accelerator(
        mixed_precision=args.precision, gradient_accumulation_steps=args.accumulate
    )
    set_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    model, optimizer = accelerator.prepare(net, optimizer)

    controller = Controller(Mixture(scans()))
    controller.watch(accelerator.unwrap_model(model))
    controller.log_to(args.out)
    accelerator.register_for_checkpointing(controller)
    if args.resume:
        accelerator.load_state(str(args.out / "last"))

    # Not through accelerator.prepare: it yields this process's rows already.
    loader = controller.loader(args.batch_size, accumulation=args.accumulate, steps=args.steps)
    for batch in tqdm(loader, disable=not accelerator.is_main_process):
        inputs, labels = (part.to(accelerator.device) for part in batch)
        with accelerator.accumulate(model):
            losses = F.cross_entropy(model(inputs), labels, reduction="none")
            loss = controller.loss(losses)
            # backward() divides by the accumulation, and the loss is divided already.
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            controller.step()

    accelerator.save_state(str(args.out / "last"))
    accelerator.print(controller.report())


if __name__ == "__main__":
    main()
