"""Sums over processes, and their way to the host without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def world(group: ProcessGroup | None = None) -> tuple[int, int]:
    """Return (rank, size) in a group, all processes when None; (0, 1) where none is initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(group), dist.get_world_size(group)
    return 0, 1


def group_of(process_group: Any) -> ProcessGroup | None:
    """Return a group that a user named, after checking that this process is in it.

    Raises:
        TypeError: no process group.
        ValueError: a group of other processes.
    """
    if process_group is None:
        return None
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:  # what new_group gives the others
        raise ValueError(
            f"process_group must hold this process, rank {dist.get_rank()}; it does not. Make a "
            "group for each set of data-parallel processes, and pass each process its own."
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup; got "
            f'{type(process_group).__name__}. Of a device mesh take mesh["dp"].get_group().'
        )
    return process_group


def sum_over_ranks(tensors: Sequence[Tensor], group: ProcessGroup | None = None) -> None:
    """Add tensors up over all processes, in place, the same bits on each."""
    if world(group)[1] > 1:
        for tensor in tensors:
            dist.all_reduce(tensor, group=group)


def gather(
    value: Any, group: ProcessGroup | None = None, *, device: torch.device | None = None
) -> list[Any]:
    """Return every process's value, a small one that can be pickled; all of them call this.

    Args:
        value: of this process.
        group: the processes; all of them when None.
        device: that this process computes on; the current one when None.
    """
    size = world(group)[1]
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    # NCCL sends from the current device, which not every script sets.
    on_cuda = device is not None and device.type == "cuda"
    with torch.cuda.device(device) if on_cuda else nullcontext():
        dist.all_gather_object(values, value, group=group)
    return values


def stack_over_ranks(tensor: Tensor | None, group: ProcessGroup | None = None) -> Tensor | None:
    """Return (world size, *shape): every process's tensor on the host, on each process.

    A process that has none counts as zeros; None where no process has any.
    """
    device = None if tensor is None else tensor.device
    told = gather(None if tensor is None else tensor.cpu(), group, device=device)
    parts = [part for part in told if part is not None]
    if not parts:
        return None
    return torch.stack([torch.zeros_like(parts[0]) if part is None else part for part in told])


def part_of_rank(stacked: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return this process's part of what ``stack_over_ranks`` gathered.

    With another number of processes than then, the first takes the sum and the others nothing.
    """
    rank, size = world(group)
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
