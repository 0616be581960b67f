"""Do domains that only help, help? Policy "transfer" against what people do by hand.

One domain counts and has few rows; three others may help or harm (``transfer_tasks``). Compared
are, trained for as many steps on as large batches from the same initial parameters:

- target only; all pooled in proportion to their rows;
- the best static mixture in hindsight: of all subsets of the auxiliary domains, each with the
  target at a weight of its share of the rows, .25, .5 and .75, the one with the best mean score on
  the *test* rows. Nobody can train that; it is the mark to reach;
- DoGE towards the target (Fan et al. 2024): α ∝ α exp(η cos(∇L_i, ∇L_target)), η = .05;
- uncertainty weighting (Kendall et al. 2018), α ∝ exp(−s), s learned with the model.

Plain SGD, 500 steps of 32 rows, a learning rate that falls to 0 over the second half, float32,
CPU. "transfer" runs as users run it, through a Controller with an update every 5 steps. The score
is the mean of five evaluations over the last quarter of the run. Differences are paired by seed:
their standard errors count.

Usage: ``python -m tests.benchmarks.bench_transfer --runs FOLDER --seeds 0 1 2``, in as many
processes as there are cores, with other ``--seeds`` or ``--tasks`` in each; then the same with
``--table`` in place of ``--seeds``. For the data of digits and hospitals see ``transfer_data``.
Results are in results/transfer.md.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture, policies
from adaptmix.data._rounding import systematic_counts
from tests.benchmarks.saved_runs import arguments, fill, found, mean_error
from tests.benchmarks.transfer_tasks import TASKS, Task

STEPS, BATCH, UPDATE = 500, 32, 5
EVALUATED = tuple(range(STEPS * 3 // 4, STEPS, STEPS // 20))
DOGE_RATE, UNCERTAINTY_RATE = 0.05, 0.05
Params = list[Tensor]


def rate_at(step: int, task: Task) -> float:
    return task.rate * min(1.0, 2.0 - 2.0 * step / STEPS)


def each_loss(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return (…,) losses of (…, out) outputs."""
    if task.regression:
        return (outputs.squeeze(-1) - targets).square() / 2.0
    flat = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


def initial(task: Task, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return task.model()


def forward(params: Params, x: Tensor) -> Tensor:
    """Return (R, N, out) outputs of R models at once."""
    for layer in range(0, len(params), 2):
        x = torch.tanh(x) if layer else x
        x = torch.baddbmm(params[layer + 1].unsqueeze(1), x, params[layer])
    return x


def stacked(net: nn.Sequential, runs: int) -> Params:
    found = []
    for layer in net:
        if isinstance(layer, nn.Linear):
            found += [layer.weight.detach().T, layer.bias.detach()]
    return [p.expand(runs, *p.shape).clone().requires_grad_() for p in found]


class Draws:
    """Rows of each step, without replacement within a pass, at constant shares."""

    def __init__(self, task: Task, shares: np.ndarray[Any, Any], seed: int) -> None:
        rng = np.random.default_rng(seed)
        sizes = [len(y) for _, y in task.parts.values()]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.rows = np.empty((STEPS, BATCH), dtype=np.int64)
        self.domains = np.empty((STEPS, BATCH), dtype=np.int64)
        self.counts = np.array(
            [systematic_counts(BATCH * shares, rng.random()) for _ in range(STEPS)]
        )
        for k, size in enumerate(sizes):
            total = int(self.counts[:, k].sum())
            passes = [rng.permutation(size) for _ in range(total // size + 1)]
            order = np.concatenate(passes)[:total] + starts[k]
            offset = 0
            for step, count in enumerate(self.counts[:, k]):
                before = int(self.counts[step, :k].sum())
                self.rows[step, before : before + count] = order[offset : offset + count]
                self.domains[step, before : before + count] = k
                offset += int(count)


def baselines(task: Task, seed: int, mixtures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the scores of static mixtures (R, K), then of DoGE and of uncertainty weighting."""
    K, runs = len(task.parts), len(mixtures) + 2
    equal = np.full(K, 1.0 / K)
    draws = [Draws(task, shares, seed) for shares in (*mixtures, equal, equal)]
    x, y = (torch.cat([part[i] for part in task.parts.values()]) for i in range(2))
    doge, learned = torch.full((K,), 1.0 / K), torch.full((K,), 1.0 / K)
    spread = torch.zeros(K)  # s of uncertainty weighting
    params = stacked(initial(task, seed), runs)
    scores: list[list[float]] = []
    for step in range(STEPS):
        rows = torch.from_numpy(np.stack([draw.rows[step] for draw in draws]))
        domains = torch.from_numpy(np.stack([draw.domains[step] for draw in draws]))
        counts = torch.from_numpy(np.stack([draw.counts[step] for draw in draws]))
        losses = each_loss(task, forward(params, x[rows]), y[rows])
        sums = torch.zeros(runs, K).scatter_add(1, domains, losses)
        means = sums / counts.clamp(min=1)
        # Static shares are the weights, so that the batch's mean is the objective.
        total = losses[:-2].mean(1).sum() + doge @ means[-2] + learned @ means[-1]
        if step % UPDATE == UPDATE - 1:
            slopes = [
                torch.cat([g[-2].flatten() for g in torch.autograd.grad(
                    means[-2, k], params, retain_graph=True)])
                for k in range(K)
            ]  # fmt: skip
            cosine = torch.stack([F.cosine_similarity(g, slopes[0], dim=0) for g in slopes])
            doge = torch.softmax(doge.log() + UPDATE * DOGE_RATE * cosine, 0)
        gradients = torch.autograd.grad(total, params)
        spread = spread + UNCERTAINTY_RATE * (means[-1].detach() * torch.exp(-spread) - 1.0)
        learned = torch.softmax(-spread, 0)
        with torch.no_grad():
            for p, g in zip(params, gradients, strict=True):
                p -= rate_at(step, task) * g
            if step in EVALUATED:
                outputs = forward(params, task.test[0].expand(runs, -1, -1))
                scores.append([task.score(out) for out in outputs])
    found: np.ndarray[Any, Any] = np.mean(scores, 0)
    return found


def transfer(task: Task, seed: int, policy: Any) -> tuple[float, dict[str, float]]:
    """Return the score of a run of ``policy``, and the objective's mean weights at the end."""
    names = tuple(task.parts)
    mixture = Mixture(
        {name: TensorDataset(*rows) for name, rows in task.parts.items()},
        importance={name: float(name == "target") for name in names},
    )
    net = initial(task, seed)
    controller = Controller(mixture, net, policy=policy, seed=seed, update_every=UPDATE)
    optimizer = torch.optim.SGD(net.parameters(), lr=task.rate)
    scores, weights = [], []
    for step, (x, y) in enumerate(controller.loader(BATCH, steps=STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, task)
        controller.loss(each_loss(task, net(x), y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        if step in EVALUATED:
            with torch.no_grad():
                scores.append(task.score(net(task.test[0])))
            weights.append(controller.weights.objective)
    return float(np.mean(scores)), dict(zip(names, np.mean(weights, 0).tolist(), strict=True))


def grid(task: Task) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the target alone, all in proportion to rows, then the static mixtures."""
    sizes = np.array([float(len(y)) for _, y in task.parts.values()])
    K = len(sizes)
    yield np.eye(K)[0]
    yield sizes / sizes.sum()
    for number in range(1, K):
        for chosen in itertools.combinations(range(1, K), number):
            helpers = np.zeros(K)
            helpers[list(chosen)] = sizes[list(chosen)]
            for own in (sizes[0] / (sizes[0] + helpers.sum()), 0.25, 0.5, 0.75):
                yield (1.0 - own) * helpers / helpers.sum() + own * np.eye(K)[0]


def run(name: str, seed: int, policy: Any) -> dict[str, Any]:
    """Return all scores of one draw of a task, and the weights of "transfer"."""
    task = TASKS[name]()(seed)
    score, objective = transfer(task, seed, policy)
    return {
        "others": baselines(task, seed, np.array(list(grid(task)))).tolist(),
        "transfer": score,
        "objective": objective,
        "harmful": list(task.harmful),
    }


def row(name: str, folder: Path) -> str:
    """Return a row of the table."""
    runs = found(folder, name)
    table = np.array([each["others"] for each in runs])
    mine = np.array([each["transfer"] for each in runs])
    weights, harmful = [each["objective"] for each in runs], runs[0]["harmful"]
    best = int(table[:, :-2].mean(0).argmin())
    better = int(table[:, :2].mean(0).argmin())
    harm = np.mean([sum(w[k] for k in harmful) for w in weights])
    cells = [
        name,
        *[mean_error(table[:, i]) for i in (0, 1, best, -2, -1)],
        f"**{mean_error(mine)}**",
        mean_error(mine - table[:, better]),
        f"{mine.mean() / table[:, best].mean():.2f}",
        f"{np.mean([w['target'] for w in weights]):.2f}",
        f"{harm:.1%}" if harmful else "–",
        str(len(runs)),
    ]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "task",
    "target only",
    "all pooled",
    "best static in hindsight",
    "DoGE",
    "uncertainty",
    "transfer",
    "transfer less the better of the first two",
    "over best static",
    "weight of the target",
    "of harmful domains",
    "seeds",
)


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--doubt", type=float, default=None)
    parser.add_argument("--horizon", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    doubt = {} if options.doubt is None else {"doubt": options.doubt}
    policy = policies.Transfer(horizon=options.horizon, **doubt)
    if options.table:
        print("| " + " | ".join(HEADER) + " |")
        print("|" + "---|" * len(HEADER))
    for name in options.tasks:
        if not options.table:
            fill(options.runs, name, options.seeds, partial(run, policy=policy))
        elif found(options.runs, name):
            print(row(name, options.runs))


if __name__ == "__main__":
    main()
