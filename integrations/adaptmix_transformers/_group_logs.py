"""What rewards tell of each task: their mean, and how many groups have nothing to learn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptmix.trainers import PREFIX, safe_names


class TaskRewards:
    """Sums the rewards of each task's groups between two logs.

    Args:
        domains: names of the tasks.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        self._names = safe_names(domains)
        self._sums = torch.zeros(3, len(self._names), dtype=torch.float64)

    def add(self, rewards: Tensor, domains: Tensor) -> None:
        """Add groups of all processes.

        Args:
            rewards: (N, G) of each group's completions; NaN where there is none.
            domains: (N,) int64, the groups' tasks.
        """
        rewards, domains = rewards.detach().double().cpu(), domains.cpu()
        known = rewards.isfinite()
        highest = rewards.masked_fill(~known, -torch.inf).amax(1)
        lowest = rewards.masked_fill(~known, torch.inf).amin(1)
        # Without a difference within the group, all advantages are zero.
        silent = (highest <= lowest).double()
        means = rewards.masked_fill(~known, 0.0).sum(1) / known.sum(1).clamp(min=1)
        columns = torch.stack([means, silent, torch.ones_like(means)])
        self._sums.index_add_(1, domains, columns)

    def take(self) -> dict[str, float]:
        """Return what to log of the tasks that were drawn since the last call."""
        rewards, silent, groups = self._sums.clone()
        self._sums.zero_()
        logs: dict[str, float] = {}
        for index, name in enumerate(self._names):
            number = float(groups[index])
            if number:
                logs[f"{PREFIX}reward/{name}"] = float(rewards[index]) / number
                logs[f"{PREFIX}zero_advantage/{name}"] = float(silent[index]) / number
        return logs
