"""Makes a mixture of a trainer's dataset, and a loader that takes the place of the trainer's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset

from adaptmix._schedule import Schedule
from adaptmix.data._collation import NumberedCollate, NumberedRows
from adaptmix.data._mixture import Mixture
from adaptmix.data._sampler import PlanSampler

# What a new loader keeps of the one it replaces; the plan decides on the rest.
_KEPT = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)


def as_mixture(
    dataset: Any,
    domains: str | Iterable[Any] | None,
    *,
    importance: Mapping[str, float] | Schedule | None = None,
    labelled: Any = None,
) -> Mixture:
    """Return the mixture of a dataset whose rows' domains are given in one of three ways.

    Args:
        dataset: map-style; rows are fetched from it.
        domains: a column's name, one label per row, or None for a ``Mixture`` or a
            ``ConcatDataset``, one domain per part, named by its number.
        importance: as for ``Mixture``.
        labelled: the dataset that has the column, where ``dataset`` lost it; rows are the same.

    Raises:
        TypeError: an iterable dataset, or None for one without parts.
        ValueError: a column that is not there, or labels that do not fit.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "dataset must be map-style, so that rows can be drawn by index, or a Mixture with one "
            f"stream for each domain; got the iterable {type(dataset).__name__}. Use "
            "Mixture({name: stream, ...})."
        )
    if domains is None:
        return _of_parts(dataset, importance)
    if isinstance(domains, str):
        domains = column(dataset if labelled is None else labelled, domains)
    return Mixture.from_labels(dataset, domains, importance=importance)


def _of_parts(dataset: Any, importance: Mapping[str, float] | Schedule | None) -> Mixture:
    if isinstance(dataset, ConcatDataset):
        return Mixture(dataset, importance=importance)
    if not isinstance(dataset, Mixture):
        raise TypeError(
            "domains must be a column's name or one label per row, unless the dataset is a Mixture "
            f"or a ConcatDataset; got None for a {type(dataset).__name__}."
        )
    if importance is not None:
        raise ValueError(
            "importance must be given to the Mixture itself; got a Mixture and importance too. "
            "Use Mixture(datasets, importance=...)."
        )
    return dataset


def column(dataset: Any, name: str) -> Any:
    """Return the labels in a column of a dataset.

    Raises:
        ValueError: there is no such column.
    """
    names = getattr(dataset, "column_names", None)
    if names is not None and name not in names:
        raise ValueError(
            f"domains must name a column of the dataset; got {name!r}, and it has "
            f"{', '.join(names)}. Keep the column in map(), or pass one label per row."
        )
    # A transform makes rows of its own, without the column: read what is stored.
    plain = getattr(dataset, "with_format", None)
    try:
        return dataset[name] if plain is None else plain(None)[name]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"domains must name a column that dataset[name] returns; got {name!r} for a "
            f"{type(dataset).__name__}. Pass one label per row instead."
        ) from error


def loader_options(loader: Any) -> dict[str, Any]:
    """Return the options of a ``DataLoader`` that one in its place keeps.

    Raises:
        TypeError: it is no loader of a map-style dataset.
        ValueError: batches may leave it in another order than they were drawn in.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"The training loader must be a DataLoader; got {type(loader).__name__}, whose rows "
            "cannot be drawn by index."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "The training dataset must be map-style, so that rows can be drawn by index, or a "
            f"Mixture with one stream for each domain; got the iterable "
            f"{type(loader.dataset).__name__}. Use Mixture({{name: stream, ...}})."
        )
    if not getattr(loader, "in_order", True):
        raise ValueError("in_order must be True, so that batches meet their draws; got False.")
    return {name: getattr(loader, name) for name in _KEPT}


def numbered_loader(sampler: PlanSampler, like: Any, *, key: str) -> DataLoader[Any]:
    """Return a ``DataLoader`` in another's place, whose batches carry their numbers.

    Args:
        sampler: draws the rows.
        like: the loader it replaces; collation and worker options are its own.
        key: under which a batch has the number of its micro-batch.

    Raises:
        TypeError: ``like`` is no loader of a map-style dataset.
        LagError: workers prefetch further than the plan's lag.
    """
    plan, options = sampler.plan, loader_options(like)
    sampler.layout.check_lag(plan.lag, **prefetching(like))
    plan.streams.read_with(like.num_workers, like.multiprocessing_context)
    return DataLoader(
        NumberedRows(plan.mixture, seed=plan.row_seed),
        batch_sampler=sampler,
        collate_fn=cast(Any, NumberedCollate(like.collate_fn, key, seed=plan.row_seed)),
        generator=torch.Generator().manual_seed(plan.seed),
        **options,
    )


def prefetching(loader: Any) -> dict[str, int]:
    """Return a loader's ``num_workers`` and ``prefetch_factor``, as numbers."""
    return {"num_workers": loader.num_workers, "prefetch_factor": loader.prefetch_factor or 2}
