"""Train a small language model on five domains twice: sampled in proportion, and with adaptmix.

``python examples/quickstart.py`` uses domains cut from this Python installation; ``--data
name=path ...`` your own text files; ``--observe`` only measures what would be gained.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
from quickstart_data import IGNORED, Domain, builtin_domains, text_domains
from quickstart_model import ByteLM
from quickstart_report import Run, draw, table
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from adaptmix import Controller, Mixture, noise
from adaptmix.monitoring import page, read_runs

LENGTH = 64
Domains = dict[str, Domain]


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the unreduced (B, T) losses; 0 where nothing is supervised."""
    return functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )


@torch.no_grad()
def evaluate(
    model: ByteLM, domains: Domains, device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Return each domain's mean held-out loss per row, and its standard error.

    A row's loss is the mean over its answer.
    """
    model.eval()
    means, errors = {}, {}
    for name, domain in domains.items():
        rows = [domain.heldout[i] for i in range(len(domain.heldout))]
        inputs, labels = (torch.stack(part).to(device) for part in zip(*rows, strict=True))
        losses = row_losses(model(inputs), labels).sum(1) / (labels != IGNORED).sum(1)
        means[name] = float(losses.mean())
        errors[name] = float(losses.std() / math.sqrt(len(losses)))
    model.train()
    return means, errors


def train(domains: Domains, args: argparse.Namespace, *, label: str, mode: str) -> Run:
    """Train from scratch and return the trajectories of weights and held-out losses."""
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    model = ByteLM(LENGTH).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min((step + 1) / 50, 1.0) * (0.55 + 0.45 * math.cos(math.pi * step / args.steps))
        ),
    )

    parts = {name: domain.train for name, domain in domains.items()}
    mixture = Mixture(parts, importance=dict.fromkeys(parts, 1.0))
    controller = Controller(mixture, policy="joint", mode=mode, seed=args.seed)
    controller.watch(model)
    controller.log_to(args.out / label)

    names = mixture.domains
    importance = dict(zip(names, mixture.importance.tolist(), strict=True))
    run = Run(label, importance, dict(zip(names, mixture.sizes.tolist(), strict=True)))
    every = max(1, args.steps // 10)
    gains: list[float] = []
    loader = controller.loader(args.batch_size, steps=args.steps)
    for inputs, labels in tqdm(loader, desc=label, unit="step"):
        inputs, labels = inputs.to(device), labels.to(device)
        logits = model(inputs)
        loss = controller.loss(
            row_losses(logits, labels),
            mask=labels != IGNORED,
            noise=noise.softmax(logits, labels),
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        controller.step()

        done = controller.completed
        if done == 1 or done % 10 == 0:
            weights = controller.weights.as_dict(names)
            run.update_steps.append(done)
            for name in names:
                run.sampling.setdefault(name, []).append(weights[name]["sampling"])
                run.loss_weights.setdefault(name, []).append(weights[name]["loss"])
            gains.append(controller.sampling_gain)
        if done % every == 0 or done == args.steps:
            run.eval_steps.append(done)
            evaluated, errors = evaluate(model, domains, device)
            controller.record_evaluation(evaluated, errors=errors)
            for name, value in evaluated.items():
                run.heldout.setdefault(name, []).append(value)

    run.variance_ratio = statistics.median(gains)
    deviation = controller.statistics.grad_var**0.5
    run.grad_std = dict(zip(names, deviation.tolist(), strict=True))
    if mode == "observe":
        print(controller.report())
    return run


def write_page(folder: Path) -> None:
    """Write the page that tells whether it helped, of all runs logged below a folder."""
    verdict = page(read_runs([folder]))
    verdict.save(folder / "report.html")
    print(f"\n{verdict.text}\npage: {folder / 'report.html'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", nargs="+", metavar="NAME=PATH", help="your own text files")
    parser.add_argument("--observe", action="store_true", help="only measure and print")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    args = parser.parse_args()

    started = time.perf_counter()
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    try:
        if args.data:
            paths = {name: path for name, _, path in (pair.partition("=") for pair in args.data)}
            domains = text_domains(paths, length=LENGTH)
        else:
            domains = builtin_domains(length=LENGTH, heldout=300)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    baseline = train(domains, args, label="proportional", mode="observe")
    if args.observe:
        write_page(args.out)
        return
    adapted = train(domains, args, label="adaptmix", mode="adapt")
    print(table(baseline, adapted))
    draw(baseline, adapted, args.out / "trajectories.png")
    print(f"\n{time.perf_counter() - started:.0f} s on {args.device}.")
    print(f"picture: {args.out / 'trajectories.png'}")
    write_page(args.out)
    print(f"TensorBoard: tensorboard --logdir {args.out}")


if __name__ == "__main__":
    main()
