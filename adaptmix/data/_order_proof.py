"""The proof that a collator keeps the rows it is given, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptmix.data._randomness import Randomness

# Rows that are collated in several orders: enough to tell a sorted batch from one in its order.
_ROWS = 8
_DEPTH = 4
# Rows that random numbers change are nearer to themselves than to others, by this factor at least,
# if there are enough of them to tell.
_NEARER, _ENOUGH = 0.7, 4
# Stands for a dim in a path whose entries are all rows, then all rows again.
_COPIES = -1

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Proof:
    """What collating some rows in several orders has shown.

    Attributes:
        kept: where in the batch rows are, in the order in which they were given.
        fault: what the collator does to rows, if it moves them.
        unclear: whether rows are seen and cannot be told apart.
    """

    kept: tuple[Path, ...] = ()
    fault: str | None = None
    unclear: bool = False


def prove_order(collate: Callable[[list[Any]], Any], rows: Sequence[Any]) -> Proof:
    """Collate some of the rows in several orders, with the same random numbers, and compare.

    Let f be a permutation of n rows. A collator that keeps rows makes of rows f(0), f(1), … the
    rows f(0), f(1), … of the batch that it makes of rows 0, 1, …; one that always moves row i to
    σ(i) does so only if σ and f commute. No σ but the identity commutes with both a cycle of all
    rows and an exchange of two. A collator that sorts makes the same batch for every f.

    Random states are the caller's own afterwards, and ``rows`` are copied first.

    Args:
        collate: makes a batch of rows.
        rows: of one micro-batch.
    """
    some = rows[:_ROWS]
    n = len(some)
    if n < 2:
        return Proof()
    randomness = Randomness(collate)
    try:
        return _prove(lambda order: collate([deepcopy(some[i]) for i in order]), n, randomness)
    except Exception:
        # It takes no such number of rows, or they cannot be copied: nothing is known.
        return Proof(unclear=True)
    finally:
        randomness.restore()


def _prove(collate: Callable[[list[int]], Any], n: int, randomness: Randomness) -> Proof:
    def collated(order: list[int]) -> dict[Path, list[Any]]:
        randomness.restore()
        return dict(_leaves(collate(order), n))

    first, repeated = collated([*range(n)]), collated([0] * n)
    # What is the same for other rows, such as weights of classes, tells nothing of them.
    first = {
        path: leaf
        for path, leaf in first.items()
        if path not in repeated or not _all_same(leaf, repeated[path])
    }
    findings: dict[Path, set[str]] = {path: set() for path in first}
    for order in _orders(n):
        other = collated(order)
        for path in first:
            if path in other:
                findings[path].add(_finding(first[path], other[path], order))
    told = any(f & {"kept", "moved"} and "unclear" not in f for f in findings.values())
    if n >= _ENOUGH and not told:
        # Random numbers are the same at the same places, whatever row is there: take new ones.
        others = [(order, dict(_leaves(collate(order), n))) for order in _cycles(n)]
        for path, found in findings.items():
            if "unclear" in found and all(path in other for _, other in others):
                likely = {_likely(first[path], other[path], order) for order, other in others}
                findings[path] = likely if len(likely) == 1 else {"unclear"}
    return _judged(findings, first)


def _judged(findings: dict[Path, set[str]], leaves: dict[Path, list[Any]]) -> Proof:
    # Where copies of rows keep their order, dim 1 is of as many tokens as there are rows.
    copied = {
        p[:-1] for p, f in findings.items() if p[-1] == _COPIES and f and f <= {"kept", "alike"}
    }
    findings = {p: f for p, f in findings.items() if p[-1] != _COPIES and p[:-1] not in copied}
    kept = tuple(p for p, f in findings.items() if "kept" in f and f <= {"kept", "alike"})
    moved = [p for p, f in findings.items() if "moved" in f and "unclear" not in f]
    moved = [path for path in moved if not any(_nested(path, other) for other in kept)]
    # Beside rows that keep their order, numbers may be of something else, such as of classes.
    moved = [path for path in moved if not kept or not _single_numbers(leaves[path])]
    if moved:
        return Proof(fault=_fault(moved[0]))
    unclear = any("unclear" in found for found in findings.values())
    return Proof(kept, unclear=unclear and not kept)


def rows_at(batch: Any, path: Path) -> int | None:
    """Return how many rows a batch has at a place of ``Proof.kept``; None where it is gone."""
    for step in path[:-1]:
        try:
            batch = getattr(batch, step) if isinstance(step, _Attribute) else batch[step]
        except (KeyError, IndexError, AttributeError, TypeError):
            return None
    if isinstance(batch, (Tensor, np.ndarray)):
        return int(batch.shape[path[-1]]) if batch.ndim > path[-1] else None
    return len(batch) if hasattr(batch, "__len__") else None


def tensors_of(batch: Any, *, depth: int = _DEPTH) -> Iterator[Tensor]:
    """Yield the tensors of a batch, however it is nested."""
    if isinstance(batch, Tensor):
        yield batch
    elif depth and not isinstance(batch, str):
        for _, part in _parts(batch):
            yield from tensors_of(part, depth=depth - 1)


class _Attribute(str):
    """A step of a path that is an attribute, not a key."""


def _orders(n: int) -> list[list[int]]:
    """Return the orders to compare with."""
    same = list(range(n))
    if n == 2:  # an exchange commutes with itself, so that rows are repeated too
        return [[1, 0], [0, 0], [1, 1]]
    return [[*same[1:], 0], [1, 0, *same[2:]]]


def _cycles(n: int) -> list[list[int]]:
    """Return two orders in which no row is in its place."""
    return [[*range(1, n), 0], [n - 1, *range(n - 1)]]


def _leaves(batch: Any, n: int, path: Path = ()) -> Iterator[tuple[Path, list[Any]]]:
    """Yield what has n entries, one a row as far as can be seen, by where it is.

    The last part of a path is the dim of rows.
    """
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biuf":
        batch = torch.from_numpy(batch)
    if isinstance(batch, Tensor):
        dim = next((d for d in range(min(2, batch.ndim)) if batch.shape[d] == n), None)
        if dim is not None:
            yield (*path, dim), list(batch.detach().movedim(dim, 0))
        if dim == 1 and batch.shape[0] and batch.shape[0] % n == 0:
            yield (*path, _COPIES), list(batch.detach().unflatten(0, (-1, n)).movedim(1, 0))
        return
    if isinstance(batch, (list, tuple)) and len(batch) == n:
        yield (*path, 0), list(batch)
    if len(path) < _DEPTH:
        for step, part in _parts(batch):
            yield from _leaves(part, n, (*path, step))


def _parts(batch: Any) -> list[tuple[Any, Any]]:
    if isinstance(batch, Mapping) or (hasattr(batch, "keys") and hasattr(batch, "__getitem__")):
        return [(key, batch[key]) for key in batch.keys()]  # noqa: SIM118
    if isinstance(batch, (list, tuple)):
        return [(number, part) for number, part in enumerate(batch) if not isinstance(part, str)]
    if is_dataclass(batch):
        return [(_Attribute(f.name), getattr(batch, f.name)) for f in fields(batch)]
    return [(_Attribute(name), part) for name, part in getattr(batch, "__dict__", {}).items()]


def _finding(first: list[Any], other: list[Any], order: list[int]) -> str:
    """Return what became of the rows: "kept", "moved", "alike" or "unclear"."""
    n = len(order)
    same = [[_same(other[i], first[j]) for j in range(n)] for i in range(n)]
    if all(same[i][order[i]] for i in range(n)):
        told = any(not _same(first[order[i]], first[i]) for i in range(n))
        return "kept" if told else "alike"
    if len(set(order)) < n:
        return "moved" if all(any(row) for row in same) else "alike"  # padded to other lengths
    if all(any(row) for row in same):
        return "moved"
    return "unclear"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    if type(a) is not type(b):
        return False
    parts = list(zip(_parts(a), _parts(b), strict=False))
    if parts and not isinstance(a, str):
        alike = len(_parts(a)) == len(_parts(b))
        return alike and all(x[0] == y[0] and _same(x[1], y[1]) for x, y in parts)
    try:
        return bool(a == b)
    except (TypeError, ValueError, RuntimeError):
        return False


def _likely(first: list[Any], other: list[Any], order: list[int]) -> str:
    """Return what most likely became of rows that random numbers changed.

    Rows that were kept are nearer to those of ``order`` than to those in their own place, and
    rows that were sorted the other way round.
    """
    rows = (*first, *other)
    if not all(isinstance(row, Tensor) for row in rows):
        return "unclear"
    if len({row.shape for row in rows}) != 1 or not first[0].numel():
        return "unclear"
    here, there = torch.stack(other).flatten(1), torch.stack(first).flatten(1)

    def apart(rows: Tensor) -> float:
        if here.is_floating_point():
            return float((here - rows).double().square().mean(1).sqrt().mean())
        return float((here != rows).double().mean())

    kept, moved = apart(there[order]), apart(there)
    if min(kept, moved) > _NEARER * max(kept, moved):
        return "unclear"
    return "kept" if kept < moved else "moved"


def _all_same(a: list[Any], b: list[Any]) -> bool:
    return all(_same(x, y) for x, y in zip(a, b, strict=True))


def _nested(path: Path, other: Path) -> bool:
    """Return whether one of two places is inside the other."""
    short = min(len(path), len(other)) - 1
    return path != other and len(path) != len(other) and path[:short] == other[:short]


def _single_numbers(leaf: list[Any]) -> bool:
    return all(not isinstance(row, Tensor) or row.ndim == 0 for row in leaf)


def _fault(path: Path) -> str:
    where = "".join(
        f".{step}" if isinstance(step, _Attribute) else f"[{step!r}]" for step in path[:-1]
    )
    return (
        f"collate_fn must keep rows in the order it is given them; got batch{where} in another, so "
        "that rows would be weighted as rows of other domains. Do not sort or shuffle in "
        "collate_fn: sort inside the model and undo it there, as pack_padded_sequence(..., "
        "enforce_sorted=False) does."
    )
