"""Random projections of the sides of weights, by signs that are drawn anew at every observation."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Elements of a sample-wise product that are held at once on CPU: what is larger than a cache is
# made of fresh pages each time, which cost more than the arithmetic.
_CHUNK = 2**18
# Up to so many buckets, a product with the projection, which is one pass over the values, takes no
# longer than sums on CPU; on GPUs it never does.
_FEW = 16
# So many blocks of buckets at most are added one by one, where values are so many that a copy of
# them, with signs, would take longer.
_BLOCKS, _MANY = 32, 2**17


def rows_at_once(values: Tensor) -> int:
    """Return how many samples of (b, ...) values to make products of at a time: all on GPUs."""
    if values.device.type != "cpu":
        return max(1, values.shape[0])
    return max(1, _CHUNK // max(1, values.shape[1:].numel()))


def in_parts(like: Tensor, *values: Tensor) -> list[tuple[Tensor, ...]]:
    """Return values of the same samples, as many at a time as of (b, ...) ``like``."""
    step = rows_at_once(like)
    if step >= like.shape[0]:
        return [values]
    return list(zip(*(value.split(step) for value in values), strict=True))


def joined(parts: list[Tensor]) -> Tensor:
    """Return the parts one after the other; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Places:
    """The place of every feature among those of its side, which buckets go by.

    Args:
        sizes: of the sides, in their order.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self._host = torch.cat([torch.arange(size) for size in sizes])
        self._buckets: dict[tuple[torch.device, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self._host)

    def buckets(self, device: torch.device, width: int) -> Tensor:
        """Return (total, 1) the bucket of each feature, of so many."""
        if (device, width) not in self._buckets:
            places = self._host.to(device, non_blocking=True)
            self._buckets[device, width] = (places % width).unsqueeze(1)
        return self._buckets[device, width]


class Signs:
    """All random signs of one observation, the same on every process and after a resume.

    Args:
        places: of the features.
        seed: of the run.
        step: optimizer steps completed at the observation.
    """

    def __init__(self, places: Places, *, seed: int, step: int) -> None:
        total, self._places = len(places), places
        # The data plan draws with the keys 0 and 1 of the same seed.
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, step)))
        drawn = np.frombuffer(generator.bytes((total + 7) // 8), dtype=np.uint8)
        bits = np.unpackbits(drawn, count=total).astype(np.int8)
        self._host = torch.from_numpy(2 * bits - 1)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._matrices: dict[tuple[torch.device, torch.dtype, int], Tensor] = {}

    def matrix(self, device: torch.device, dtype: torch.dtype, width: int) -> Tensor:
        """Return (total, width): the sign of each feature in its bucket, for all sides at once."""
        key = (device, dtype, width)
        if key not in self._matrices:
            signs, buckets = self.on(device, dtype), self._places.buckets(device, width)
            empty = signs.new_zeros(len(signs), width)
            self._matrices[key] = empty.scatter_(1, buckets, signs.unsqueeze(1))
        return self._matrices[key]

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return (total,) values ±1 on a device."""
        if (device, dtype) not in self._copies:
            copy = self._host.to(device, non_blocking=True).to(dtype)
            self._copies[device, dtype] = copy
        return self._copies[device, dtype]


class CountSketch:
    """Sums of signed features: feature f goes to bucket f mod ``width`` with its sign.

    Inner products are kept in expectation over the signs. With no more features than buckets
    there is nothing to sum, and all of them are kept as they are.

    Args:
        size: number of features.
        width: number of buckets.
        start: where its signs are among all.

    Source:
        Charikar, Chen and Farach-Colton, Finding frequent items in data streams, 2002; with
        buckets in a fixed order, for only the signs are needed for unbiasedness.
    """

    def __init__(self, size: int, width: int, *, start: int = 0) -> None:
        self._size = size
        self._width = width
        self._slice = slice(start, start + size)
        self._signs: Signs | None = None

    @property
    def width(self) -> int:
        """The number of features that are left."""
        return min(self._size, self._width)

    def redraw(self, signs: Signs) -> None:
        """Take the signs of another observation."""
        self._signs = signs

    def fold(self, values: Tensor, dim: int) -> Tensor:
        """Return ``values`` with ``width`` buckets along ``dim``, in float32 at least."""
        wide = torch.promote_types(values.dtype, torch.float32)
        if self._size <= self._width:
            return values.to(wide)
        dim = dim % values.ndim
        if values.device.type == "cuda":
            return self._by_product(values.movedim(dim, -1)).movedim(-1, dim).to(wide)
        if self._width <= _FEW and dim == values.ndim - 1 and values.dtype == wide:
            return self._by_product(values).to(wide)
        return self._by_sums(values, dim, wide)

    def _by_product(self, values: Tensor) -> Tensor:
        assert self._signs is not None, "arm() draws the signs before the forward"
        matrix = self._signs.matrix(values.device, values.dtype, self._width)
        return values @ matrix[self._slice]

    def _by_sums(self, values: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        signs = self._taken(values).reshape(-1, *[1] * (values.ndim - 1 - dim))
        whole, rest = divmod(self._size, self._width)
        few = whole <= _BLOCKS and not rest and values.dtype == dtype
        if few and values.numel() > _MANY:
            blocks = zip(values.split(self._width, dim), signs.split(self._width), strict=True)
            first, sign = next(blocks)
            folded: Tensor = first * sign
            for block, sign in blocks:
                folded.addcmul_(block, sign)
            return folded
        return joined([self._sum(v * signs, dim, dtype) for (v,) in in_parts(values, values)])

    def _sum(self, signed: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        size = signed.shape[dim]
        whole = size - size % self._width
        blocks = signed.narrow(dim, 0, whole).unflatten(dim, (-1, self._width))
        folded: Tensor = blocks.sum(dim, dtype=dtype)
        if whole < size:
            rest = size - whole
            folded.narrow(dim, 0, rest).add_(signed.narrow(dim, whole, rest))
        return folded

    def part(self, values: Tensor, start: int, total: int) -> Tensor:
        """Return what features fold to that are zero but for ``values`` from ``start`` on.

        Args:
            values: (…, n) features.
            start: of them; a multiple of the number of buckets.
            total: number of features.
        """
        wide = torch.promote_types(values.dtype, torch.float32)
        if total <= self._width:
            after = total - start - values.shape[-1]
            return functional.pad(values, (start, after)).to(wide)
        signs = self._taken(values)[start : start + values.shape[-1]]
        return self._sum(values * signs, values.ndim - 1, wide)

    def place(self, values: Tensor, starts: Tensor, total: int) -> Tensor:
        """Return (rows, width): what ``total`` features fold to, of which a row has a part.

        Args:
            values: (rows, n) the part.
            starts: (rows,) the first feature of the part.
            total: number of features.
        """
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        where = starts.unsqueeze(1) + torch.arange(values.shape[1], device=values.device)
        if total > self._width:
            wide = wide * self._taken(wide)[where]
            where = where % self._width
        return wide.new_zeros(len(values), self.width).scatter_add_(1, where, wide)

    def lookup(self, indices: Tensor) -> Tensor:
        """Return (*indices.shape, width) float32: what one-hot features fold to."""
        one = torch.ones((), device=indices.device)
        if self._size <= self._width:
            return functional.one_hot(indices, self._size).float()
        images = torch.zeros(*indices.shape, self._width, device=indices.device)
        signs = self._taken(one)[indices].unsqueeze(-1)
        images.scatter_(-1, (indices % self._width).unsqueeze(-1), signs)
        return images

    def _taken(self, like: Tensor) -> Tensor:
        assert self._signs is not None, "arm() draws the signs before the forward"
        return self._signs.on(like.device, like.dtype)[self._slice]
