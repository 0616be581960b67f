"""scikit-learn's digits as three domains that differ in how many of their labels are wrong."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

WRONG = {"experts": 0.0, "crowd": 0.3, "bots": 0.8}
TRAIN, HELD_OUT = 400, 80
Parts = dict[str, TensorDataset]


def digits(seed: int = 0) -> tuple[Parts, Parts, TensorDataset]:
    """Return training rows and held-out rows by domain, and test rows, whose labels are all right.

    Rows are (64,) float32 pixels in [0, 1] and an int64 label; wrong labels are drawn at random.
    """
    pixels, answers = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float() / 16.0, torch.from_numpy(answers)
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=rng)
    train, heldout = Parts(), Parts()
    for name, share in WRONG.items():
        mine, order = order[: TRAIN + HELD_OUT], order[TRAIN + HELD_OUT :]
        wrong = torch.rand(len(mine), generator=rng) < share
        labels = torch.where(wrong, torch.randint(10, wrong.shape, generator=rng), y[mine])
        train[name] = TensorDataset(x[mine[:TRAIN]], labels[:TRAIN])
        heldout[name] = TensorDataset(x[mine[TRAIN:]], labels[TRAIN:])
    return train, heldout, TensorDataset(x[order], y[order])
