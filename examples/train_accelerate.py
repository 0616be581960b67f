"""Accelerate: the plain controller, on text.

``accelerate launch --cpu --num_processes 2 examples/train_accelerate.py`` uses two processes;
``--accumulate``, ``--precision`` and ``--resume`` show the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from quickstart_data import IGNORED, builtin_domains
from quickstart_model import ByteLM
from torch.nn import functional as F
from tqdm import tqdm

from adaptmix import Controller, Mixture, noise

LENGTH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16, help="rows per process")
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
    net = ByteLM(LENGTH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(net, optimizer)

    parts = {name: domain.train for name, domain in builtin_domains(length=LENGTH).items()}
    mixture = Mixture(parts, importance=dict.fromkeys(parts, 1.0))
    controller = Controller(mixture, policy="joint")
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
            logits = model(inputs)
            losses = F.cross_entropy(
                logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
            )
            loss = controller.loss(
                losses, mask=labels != IGNORED, noise=noise.softmax(logits, labels)
            )
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
