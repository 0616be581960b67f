"""A mixture: several domains over the rows of datasets and streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from copy import copy
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import ConcatDataset, Dataset, IterableDataset

from adaptmix._checks import FloatArray, vector
from adaptmix._schedule import Schedule
from adaptmix._text import listed
from adaptmix._types import Domains
from adaptmix.data._rows import PermutedRows, RowSource, WithStreams
from adaptmix.data._stream import ENDLESS, check_stream, first_rows, stream_sizes
from adaptmix.state._identity import digest


class _MapStyle(Protocol):
    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


class Mixture(Dataset[Any]):
    """Rows of one or several datasets, each row in exactly one domain.

    A domain is a property of the row's *index*, so a collator or a dropped column cannot lose it.
    The mixture is itself a map-style dataset over the rows that have an index. Rows of streams are
    read in their order when they are drawn.

    Args:
        datasets: one dataset per domain name: a map-style one (with ``__len__`` and
            ``__getitem__``) or a stream (a torch ``IterableDataset`` or a streaming dataset of
            Hugging Face); or a ``torch.utils.data.ConcatDataset``, whose parts are the domains
            "0", "1", ….
        importance: how much each domain counts in the objective (π), by name: numbers ≥ 0, which
            are scaled to sum to one, or a ``Schedule``, of which policies use the mean. A domain
            with 0 is auxiliary: policy "transfer" trains on it as far as it helps the others. When
            None, proportional to the domains' sizes, or equal if a stream's size is not known.
        sizes: number of rows of each stream, by name. A stream that is not named counts as endless.
            In any case, the end of a stream is found by reading.

    Raises:
        TypeError: a dataset that is neither map-style nor a stream, or names that are not strings.
        ValueError: no domain, an empty domain, or importance or sizes that do not fit the domains.

    Example:
        >>> equal = {"prose": 1.0, "code": 1.0}
        >>> mixture = Mixture({"prose": ["a", "b"], "code": ["x"]}, importance=equal)
        >>> mixture.domains, mixture.importance.tolist(), mixture[2]
        (('prose', 'code'), [0.5, 0.5], 'x')
    """

    streams: Mapping[int, Any] = MappingProxyType({})
    """The datasets that are streams, by the numbers of their domains."""
    apart: Mapping[int, int] = MappingProxyType({})
    """How many of a stream's first rows are not drawn, by the number of its domain."""

    def __init__(
        self,
        datasets: Mapping[str, Any] | ConcatDataset[Any],
        *,
        importance: Mapping[str, float] | Schedule | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        if isinstance(datasets, ConcatDataset):
            datasets = {str(number): part for number, part in enumerate(datasets.datasets)}
        if not isinstance(datasets, Mapping):
            raise TypeError(
                "datasets must map a domain's name to its dataset; "
                f"got {type(datasets).__name__}. For one dataset with labels use "
                "Mixture.from_labels(dataset, labels)."
            )
        names, stored, streams = tuple(datasets), [], {}
        for number, (name, part) in enumerate(datasets.items()):
            if _is_map_style(part):
                stored.append(part)
            else:
                check_stream(name, part)
                streams[number] = part
        self.streams = streams
        told = stream_sizes([names[number] for number in self.streams], sizes)
        rows = [
            told[name] if number in self.streams else len(part)
            for number, (name, part) in enumerate(datasets.items())
        ]
        self._finish(names, rows, importance, order=None)
        self._dataset: _MapStyle = ConcatDataset(stored) if stored else ()

    @classmethod
    def from_labels(
        cls,
        dataset: Any,
        labels: str | Iterable[Any],
        *,
        importance: Mapping[str, float] | Schedule | None = None,
    ) -> Mixture:
        """Make a mixture of one dataset and a label per row.

        Args:
            dataset: a map-style dataset.
            labels: one name or integer per row, or the name of a column that
                ``dataset[column]`` returns (as a Hugging Face dataset does). Domains are sorted
                by label, so that their order does not depend on the order of rows.
            importance: as for the constructor, by label.

        Raises:
            TypeError: labels that are neither names nor integers.
            ValueError: labels whose length is not the dataset's.
        """
        if not _is_map_style(dataset):
            raise TypeError(
                f"dataset must be map-style, with a length; got {type(dataset).__name__}."
            )
        column = dataset[labels] if isinstance(labels, str) else labels
        values = _values(column)
        named = values.dtype.kind != "O" or all(isinstance(v, (str, int)) for v in values.flat)
        if values.ndim != 1 or values.dtype.kind not in "iuUTO" or not named:
            raise TypeError(
                "labels must be one name or integer per row; "
                f"got an array of shape {values.shape} and type {values.dtype}."
            )
        if len(values) != len(dataset):
            raise ValueError(
                f"labels must have one entry per row of the dataset ({len(dataset)}); "
                f"got {len(values)}. Pass the labels of the rows in this very dataset: a subset, "
                "or each fold, has its own."
            )
        if values.dtype.kind not in "iu":
            values = values.astype(str)
        names, codes = np.unique(values, return_inverse=True)
        order = np.argsort(codes, kind="stable")
        if isinstance(importance, Mapping):
            importance = {str(label): value for label, value in importance.items()}
        mixture = cls.__new__(cls)
        sizes = np.bincount(codes).tolist()
        mixture._finish(tuple(map(str, names)), sizes, importance, order=order)
        mixture._dataset = dataset
        return mixture

    def _finish(
        self,
        names: tuple[str, ...],
        sizes: Sequence[int],
        importance: Mapping[str, float] | Schedule | None,
        order: NDArray[np.int64] | None,
    ) -> None:
        if not names:
            raise ValueError("datasets must hold at least one domain; got none.")
        if 0 in sizes:
            empty = names[list(sizes).index(0)]
            raise ValueError(f"datasets must not be empty; {empty!r} has no rows. Leave it out.")
        self._sizes = np.array(sizes, dtype=np.int64)
        self.info = _domains(names, self._sizes, _importance(names, importance))
        self.schedule = _bound(names, importance)
        stored = self._sizes.copy()
        stored[list(self.streams)] = 0
        self._starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(stored)])
        self.stored = int(self._starts[-1])  # rows that have an index; held-out ones, too
        self._order = order
        self._firsts = self._starts
        self._gaps: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        if order is not None:
            self._domain_of: NDArray[np.int64] = np.empty(order.size, dtype=np.int64)
            self._domain_of[order] = np.repeat(np.arange(len(names)), self._sizes)

    def with_importance(self, importance: Mapping[str, float] | Schedule) -> Mixture:
        """Return the same rows and domains with other importance, by name.

        Raises:
            ValueError: importance that does not fit the domains.
        """
        other = copy(self)
        names = self.info.names
        other.info = _domains(names, self._sizes, _importance(names, importance))
        other.schedule = _bound(names, importance)
        return other

    def row_source(self, *, seed: int) -> RowSource:
        """Return what chooses the rows of each domain; a subclass may return its own.

        Args:
            seed: of the run.
        """
        permuted = PermutedRows(self.sizes, self.rows_of, seed=seed, names=self.domains)
        return WithStreams(permuted, list(self.streams)) if self.streams else permuted

    def without(self, apart: NDArray[np.int64], first: Mapping[int, int] | None = None) -> Mixture:
        """Return the same rows and importance, where some are not among ``rows_of`` any domain.

        Args:
            apart: (n,) which ones; not all of any domain.
            first: how many of a stream's first rows, by the number of its domain.
        """
        other = copy(self)
        other.apart = dict(first or {})
        lost = np.bincount(self.domain_of(apart), minlength=len(self.domains))
        other._firsts = self._starts - np.concatenate([[0], np.cumsum(lost)])
        lost[list(other.apart)] = list(other.apart.values())
        other._sizes = np.where(self._sizes == ENDLESS, ENDLESS, self._sizes - lost)
        kept = np.ones(self.stored, dtype=np.bool_)
        kept[apart] = False
        places = np.flatnonzero(~kept if self._order is None else ~kept[self._order])
        other._gaps = places - np.arange(places.size)
        other.info = _domains(self.info.names, other._sizes, self.info.importance)
        return other

    @property
    def domains(self) -> tuple[str, ...]:
        """The K names, in the order of every (K,) vector."""
        return self.info.names

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(K,) number of rows of each domain; 2⁶² stands for that of a stream without end."""
        return self._sizes.copy()

    @cached_property
    def labels_digest(self) -> str:
        """A hash of which row is of which domain; empty where domains are datasets in a row."""
        return "" if self._order is None else digest(self._order)

    @property
    def importance(self) -> FloatArray:
        """(K,) importance π, summing to one."""
        return self.info.importance.copy()

    def domain_of(self, rows: ArrayLike) -> NDArray[np.int64]:
        """Return the domain index of each row.

        Args:
            rows: (N,) row indices in [0, len(mixture)).

        Raises:
            IndexError: a row outside the mixture.
        """
        index, end = np.asarray(rows, dtype=np.int64), self.stored
        if index.size and not 0 <= index.min() <= index.max() < end:
            raise IndexError(f"rows must be in [0, {end}); got {index.min()}…{index.max()}.")
        if self._order is not None:
            return self._domain_of[index]
        return np.searchsorted(self._starts[1:], index, side="right").astype(np.int64)

    def rows_of(self, domains: int | NDArray[np.int64], positions: ArrayLike) -> NDArray[np.int64]:
        """Return the rows at ``positions`` within their domain, or each within its own.

        Args:
            domains: the number of the domain of all of them, or (n,) one of each.
            positions: (n,) each in [0, its domain's size).
        """
        places: NDArray[np.int64] = np.asarray(positions, dtype=np.int64) + self._firsts[domains]
        if self._gaps.size:
            # The n-th row that is left comes after as many others as lie before it.
            places = places + np.searchsorted(self._gaps, places, side="right")
        return places if self._order is None else self._order[places]

    def __len__(self) -> int:
        endless = self._sizes == ENDLESS
        if endless.any():
            raise TypeError(
                f"The length of stream {self.domains[int(endless.argmax())]!r} is not known, and "
                "so neither is that of an epoch. Say how long to train in steps, or how many rows "
                "there are with Mixture(..., sizes={name: rows})."
            )
        return int(self._sizes.sum()) + self._gaps.size + sum(self.apart.values())

    def __repr__(self) -> str:
        K = len(self.domains)
        parts = (
            f"{name!r}: {'a stream' if size == ENDLESS else f'{size} rows'}, importance {share:.3g}"
            for name, size, share in zip(
                self.domains, self._sizes.tolist(), self.info.importance.tolist(), strict=True
            )
        )
        return f"Mixture({{{listed(parts, number=K)}}})"

    def sample(self, domain: int, number: int) -> list[Any]:
        """Return rows that are spread over a domain, or the first ones of a stream.

        Args:
            domain: its number.
            number: of rows, at most.
        """
        if domain in self.streams:
            return first_rows(self.domains[domain], self.streams[domain], number)
        size = int(self._sizes[domain])
        places = np.linspace(0, size - 1, min(number, size)).astype(np.int64)
        return self.__getitems__(self.rows_of(domain, places).tolist())

    def __getitem__(self, row: int) -> Any:
        return self._dataset[row]

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        """Return several rows, at once where the dataset can (as a Hugging Face dataset does)."""
        several = getattr(self._dataset, "__getitems__", None)
        return [self._dataset[row] for row in rows] if several is None else list(several(rows))


def _domains(
    names: tuple[str, ...], sizes: NDArray[np.int64], importance: FloatArray | None
) -> Domains:
    endless = sizes == ENDLESS
    if importance is None and endless.any():
        importance = np.ones(sizes.size)
    return Domains(names, np.where(endless, np.inf, sizes), importance)


def _is_map_style(dataset: Any) -> bool:
    # IterableDataset inherits a __getitem__ that only raises.
    sized = isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")
    return sized and not isinstance(dataset, IterableDataset)


def _values(labels: Iterable[Any]) -> NDArray[Any]:
    # A Hugging Face column reads a slice at once, and row by row when iterated.
    whole: Any = labels[:] if isinstance(labels, Sequence) else labels
    return np.asarray(whole if hasattr(whole, "__array__") else list(whole))


def _bound(
    names: tuple[str, ...], importance: Mapping[str, float] | Schedule | None
) -> Schedule | None:
    return importance.of(names, what="importance") if isinstance(importance, Schedule) else None


def _importance(
    names: tuple[str, ...], importance: Mapping[str, float] | Schedule | None
) -> FloatArray | None:
    if importance is None:
        return None
    if isinstance(importance, Schedule):
        return importance.of(names, what="importance").mean
    if not isinstance(importance, Mapping):
        raise TypeError(f"importance must map names to numbers; got {type(importance).__name__}.")
    for rule, odd in (
        ("name only known domains", set(importance) - set(names)),
        ("name every domain", set(names) - set(importance)),
    ):
        if odd:
            raise ValueError(
                f"importance must {rule}; got {', '.join(map(repr, sorted(map(str, odd))))}. "
                f"The domains are {', '.join(names)}."
            )
    return vector("importance", [importance[name] for name in names])
