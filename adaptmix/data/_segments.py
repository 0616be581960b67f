"""Packed rows: several rows of a draw, one after the other, in one row of the model's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Segments:
    """The drawn row, of the B in a micro-batch, that each position of P packed rows belongs to.

    Domains, loss weights and gradient statistics stay those of the rows that were drawn. Build it
    on the CPU from the collator's tensors: positions are sorted there, and ids on another device
    would make the host wait.

    Args:
        ids: (P, T) integers in [−1, B). Each is the number of the drawn row that the position
            belongs to, in the order of the draw; −1 marks padding.

    Raises:
        TypeError: ids that are no tensor of integers.
        ValueError: ids that are not (P, T), below −1, or that leave out a row below the highest.

    Example:
        >>> segments = Segments(torch.tensor([[0, 0, 1, -1], [2, 2, 2, 2]]))
        >>> segments.unpack(torch.arange(8).view(2, 4))
        tensor([[0, 1, 0, 0],
                [2, 0, 0, 0],
                [4, 5, 6, 7]])
    """

    def __init__(self, ids: Tensor) -> None:
        self.ids = _on_host("ids", ids)
        flat = self.ids.flatten()
        if int(flat.min()) < -1:
            raise ValueError(f"ids must be at least −1, which is no row; got {int(flat.min())}.")
        counts = torch.bincount(flat + 1)[1:]
        if not len(counts) or not bool(counts.all()):
            missing = int((counts == 0).int().argmax()) if len(counts) else 0
            raise ValueError(
                f"ids must hold every row that was drawn; row {missing} has no position. Pack all "
                "rows of a micro-batch, and cut long ones rather than leaving them out."
            )
        self.mask = torch.arange(int(counts.max())) < counts.unsqueeze(1)
        self._places = torch.zeros(self.mask.shape, dtype=torch.int64)
        # By row, and within a row in order: what −1 marks comes first and is left out.
        self._places[self.mask] = flat.argsort(stable=True)[int((flat < 0).sum()) :]
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_positions(cls, positions: Tensor) -> Segments:
        """Return the segments of packed rows by their positions, which start anew at 0 in each.

        Args:
            positions: (P, T) ``position_ids`` as a flattening collator makes them, without padding.

        Raises:
            TypeError: as the constructor.
            ValueError: as the constructor, or a packed row that does not start at 0.
        """
        host = _on_host("positions", positions)
        if host[:, 0].any():
            raise ValueError("positions must start at 0 in every packed row.")
        return cls((host == 0).flatten().cumsum(0).sub(1).view(host.shape))

    def __len__(self) -> int:
        """Return B, the number of rows that are packed."""
        return len(self.mask)

    @property
    def shape(self) -> torch.Size:
        """(P, T)."""
        return self.ids.shape

    @property
    def neighbour(self) -> int | None:
        """A row that comes after another one in the same packed row; None where none does."""
        for packed in self.ids:
            held = packed[packed >= 0]
            if len(held) and int(held[-1]) != int(held[0]):
                return int(held[-1])
        return None

    def spread(self, values: Tensor, positions: int) -> Tensor:
        """Return (P, positions) values of the first positions, given (B,) of rows; 0 in padding.

        Args:
            values: of each row.
            positions: at most T.
        """
        ids = self.ids[:, :positions].to(values.device, non_blocking=True)
        return torch.where(ids < 0, values.new_zeros(()), values[ids.clamp(min=0)])

    def completed(self, values: Tensor, *, fill: Any = 0) -> Tensor:
        """Return (P, T, …) of (P, T, …) or (P, T − 1, …) values, as next-token predictions are.

        Args:
            values: of all positions, or of all but the last of each packed row.
            fill: what the last positions then hold.

        Raises:
            ValueError: values of other positions.
        """
        if values.ndim < 2 or (len(values), values.shape[1] + 1) != self.shape:
            return self._checked(values)
        last = values.new_full((len(values), 1, *values.shape[2:]), fill)
        return torch.cat([values, last], dim=1)

    def _checked(self, values: Tensor) -> Tensor:
        if values.shape[:2] != self.shape:
            raise ValueError(
                f"values must have the shape of the packed rows {tuple(self.shape)} first; got "
                f"{tuple(values.shape)}."
            )
        return values

    def unpack(self, values: Tensor, *, fill: Any = 0) -> Tensor:
        """Return (B, L, …) values, row by row, of packed (P, T, …) ones; gradients flow back.

        Args:
            values: of each position.
            fill: what rows shorter than the longest, of L positions, are filled up with.

        Raises:
            ValueError: values that are not (P, T, …).
        """
        self._checked(values)
        if values.device not in self._copies:
            self._copies[values.device] = (
                self._places.to(values.device, non_blocking=True),
                self.mask.to(values.device, non_blocking=True),
            )
        places, mask = self._copies[values.device]
        rows = values.flatten(0, 1).index_select(0, places.flatten())
        rows = rows.view(*places.shape, *values.shape[2:])
        return torch.where(mask.view(*mask.shape, *[1] * (rows.ndim - 2)), rows, fill)


def _on_host(name: str, values: Any) -> Tensor:
    """Return (P, T) int64 values on the CPU, after checking what they are."""
    if not isinstance(values, Tensor) or values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a tensor of integers; got {kind}.")
    if values.ndim != 2 or not values.numel():
        raise ValueError(f"{name} must have shape (P, T), not empty; got {tuple(values.shape)}.")
    return values.detach().long().cpu()


def sample_numbers(samples: Tensor, size: int) -> Tensor:
    """Return (R,) int64 numbers of samples, after checking them.

    Args:
        samples: the sample that each row inside a model is of. Values on another device than the
            CPU are not looked at, for that would be waited for.
        size: B, of samples.

    Raises:
        TypeError: no tensor of integers.
        ValueError: not (R,), or numbers outside [0, B).
    """
    if not isinstance(samples, Tensor) or samples.is_floating_point() or samples.is_complex():
        kind = samples.dtype if isinstance(samples, Tensor) else type(samples).__name__
        raise TypeError(f"samples must be a tensor of integers; got {kind}.")
    if samples.ndim != 1 or not samples.numel():
        raise ValueError(f"samples must have shape (R,), not empty; got {tuple(samples.shape)}.")
    if samples.device.type == "cpu" and not 0 <= int(samples.min()) <= int(samples.max()) < size:
        raise ValueError(
            f"samples must be numbers of the draw's rows, in [0, {size}); got "
            f"{int(samples.min())} to {int(samples.max())}."
        )
    return samples.detach().long()
