"""Tasks in which one domain counts and others may help: made up, digits, hospitals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks.transfer_data import load

Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One draw of a task.

    Attributes:
        parts: rows by domain; the first domain is the one that counts.
        test: rows of the target that nobody trains on.
        layers: widths of the model, a perceptron with tanh, linear where there are two.
        rate: learning rate; it falls to 0 over the second half.
        metric: "excess" (squared error above that of the true coefficients, whose outputs are the
            test's targets), "squared", "log-loss" or "error".
        harmful: domains that only do harm.
    """

    parts: dict[str, Rows]
    test: Rows
    layers: tuple[int, ...]
    rate: float
    metric: str
    harmful: tuple[str, ...] = ()

    @property
    def regression(self) -> bool:
        return self.test[1].is_floating_point()

    def model(self) -> nn.Sequential:
        parts: list[nn.Module] = []
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            parts += [nn.Linear(before, after), nn.Tanh()]
        return nn.Sequential(*parts[:-1])

    def score(self, outputs: Tensor) -> float:
        """Return the metric, less is better, for the (N, out) outputs of the test rows."""
        _, y = self.test
        if self.regression:
            return float((outputs.squeeze(1) - y).square().mean())
        if self.metric == "error":
            return float((outputs.argmax(1) != y).float().mean())
        return float(nn.functional.cross_entropy(outputs, y))


def _tensor(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)


# Rows of the target, distances of the others' optima, noise and input scales of all four.
LINEAR = {
    "near": (40, (0.1, 0.3, 0.1), (1, 1, 1, 1), (1, 1, 1, 1)),
    "mixed": (40, (0.1, 1, 3), (1, 1, 1, 1), (1, 1, 1, 1)),
    "far": (40, (2, 3, 3), (1, 1, 1, 1), (1, 1, 1, 1)),
    "target rich": (2000, (0.3, 1, 3), (1, 1, 1, 1), (1, 1, 1, 1)),
    "one very noisy": (100, (0.1, 0.1, 1), (1, 5, 1, 1), (1, 1, 1, 1)),
    "scales": (100, (0.1, 0.1, 1), (1, 1, 1, 1), (1, 0.3, 2, 1)),
}


def _optima(rng: np.random.Generator, dim: int, distances: tuple[float, ...]) -> list[Any]:
    target = rng.standard_normal(dim)
    target /= np.linalg.norm(target)
    away = rng.standard_normal((len(distances), dim))
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    return [target, *(target + np.array(distances)[:, None] * away)]


def linear(name: str) -> Callable[[int], Task]:
    """Return linear regression with 20 inputs and three auxiliary domains of 1 000 rows."""
    rows, distances, noises, scales = LINEAR[name]

    def draw(seed: int) -> Task:
        rng = np.random.default_rng(1000 + seed)
        optima = _optima(rng, 20, distances)
        parts = {}
        sizes = (rows, 1000, 1000, 1000)
        for label, n, optimum, noise, scale in zip(
            ("target", "a", "b", "c"), sizes, optima, noises, scales, strict=True
        ):
            x = scale * rng.standard_normal((n, 20))
            parts[label] = (_tensor(x), _tensor(x @ optimum + noise * rng.standard_normal(n)))
        x = rng.standard_normal((4000, 20))
        harmful = tuple(k for k, d in zip("abc", distances, strict=True) if d >= 3)
        return Task(parts, (_tensor(x), _tensor(x @ optima[0])), (20, 1), 0.02, "excess", harmful)

    return draw


def logistic(seed: int) -> Task:
    """Logistic regression, 10 inputs: 60 rows of the target; near, far, and opposite domains."""
    rng = np.random.default_rng(2000 + seed)
    optima = [2.0 * optimum for optimum in _optima(rng, 10, (0.2, 1.0))]
    optima.append(-optima[0])

    def rows(n: int, optimum: Any) -> Rows:
        x = rng.standard_normal((n, 10))
        y = rng.random(n) < 1.0 / (1.0 + np.exp(-x @ optimum))
        return _tensor(x), torch.tensor(y, dtype=torch.long)

    sizes = (60, 1000, 1000, 1000)
    labels = ("target", "near", "far", "opposite")
    parts = {
        label: rows(n, optimum) for label, n, optimum in zip(labels, sizes, optima, strict=True)
    }
    return Task(parts, rows(4000, optima[0]), (10, 2), 0.1, "log-loss", ("opposite",))


def digits(target_rows: int) -> Callable[[int], Task]:
    """Return KEEL's optdigits: the target's clean rows; wrong labels, rotated, permuted labels."""
    data = load("digits")
    x, y = data["x"] / 8.0 - 1.0, data["y"].astype(int)

    def draw(seed: int) -> Task:
        rng = np.random.default_rng(3000 + seed)
        order = rng.permutation(len(y))
        cut = np.cumsum([target_rows, 400, 400, 400])
        own, wrong, turned, mixed, rest = np.split(order, cut)
        noisy = np.where(rng.random(400) < 0.3, rng.integers(0, 10, 400), y[wrong])
        rotated = np.rot90(x[turned].reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
        labels = torch.long
        parts = {
            "target": (_tensor(x[own]), torch.tensor(y[own], dtype=labels)),
            "wrong labels": (_tensor(x[wrong]), torch.tensor(noisy, dtype=labels)),
            "rotated": (_tensor(rotated.copy()), torch.tensor(y[turned], dtype=labels)),
            "permuted labels": (
                _tensor(x[mixed]),
                torch.tensor(rng.permutation(10)[y[mixed]], dtype=labels),
            ),
        }
        test = (_tensor(x[rest[:2000]]), torch.tensor(y[rest[:2000]], dtype=labels))
        return Task(parts, test, (64, 64, 10), 0.1, "error", ("permuted labels",))

    return draw


def hospitals(target: str, target_rows: int) -> Callable[[int], Task]:
    """Return the event within three years at one hospital, with the other one's patients."""
    data, tables = load("hospitals"), {}
    for name in ("gbsg", "rotterdam"):
        x = data[f"{name}.x"].astype(float)
        x[:, 3:6] = np.log1p(x[:, 3:6])
        tables[name] = (x, data[f"{name}.y"])
    other = "rotterdam" if target == "gbsg" else "gbsg"
    mean, deviation = tables[other][0].mean(0), tables[other][0].std(0) + 1e-9

    def rows(x: Any, y: Any) -> Rows:
        return _tensor((x - mean) / deviation), torch.tensor(y, dtype=torch.long)

    def draw(seed: int) -> Task:
        rng = np.random.default_rng(4000 + seed)
        x, y = tables[target]
        order = rng.permutation(len(y))
        own, test = order[:target_rows], order[-200:]
        helper_x, helper_y = tables[other]
        parts = {
            "target": rows(x[own], y[own]),
            "other hospital": rows(helper_x, helper_y),
            "permuted events": rows(helper_x, rng.permutation(helper_y)),
        }
        harmful = ("permuted events",)
        return Task(parts, rows(x[test], y[test]), (7, 2), 0.1, "log-loss", harmful)

    return draw


TASKS: dict[str, Callable[[], Callable[[int], Task]]] = {
    **{f"linear: {name}": lambda name=name: linear(name) for name in LINEAR},  # type: ignore[misc]
    "logistic": lambda: logistic,
    "digits, 30 rows": lambda: digits(30),
    "digits, 60 rows": lambda: digits(60),
    "digits, 400 rows": lambda: digits(400),
    "hospitals, 40 rows of gbsg": lambda: hospitals("gbsg", 40),
    "hospitals, 80 rows of gbsg": lambda: hospitals("gbsg", 80),
    "hospitals, 400 rows of gbsg": lambda: hospitals("gbsg", 400),
    "hospitals, 80 rows of rotterdam": lambda: hospitals("rotterdam", 80),
}
