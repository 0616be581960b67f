"""Sums over processes, and their way to the host without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Return (rank, world size); (0, 1) when no process group is initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Add tensors up over all processes, in place, the same bits on each."""
    if world()[1] > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def stack_over_ranks(tensor: Tensor) -> Tensor:
    """Return (world size, *shape): every process's tensor, on each process."""
    size = world()[1]
    if size == 1:
        return tensor.unsqueeze(0).clone()
    parts = [torch.empty_like(tensor) for _ in range(size)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def part_of_rank(stacked: Tensor) -> Tensor:
    """Return this process's part of what ``stack_over_ranks`` gathered.

    With another number of processes than then, the first takes the sum and the others nothing.
    """
    rank, size = world()
    if len(stacked) == size:
        return stacked[rank]
    return stacked.sum(0) if rank == 0 else torch.zeros_like(stacked[0])


class HostCopy:
    """A device tensor on its way to the host; only ``result`` waits for it.

    Args:
        tensor: what to copy. Later changes to it do not reach the copy.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = tensor.detach().to("cpu", copy=True)

    def result(self) -> Tensor:
        """Return the host tensor once it has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
