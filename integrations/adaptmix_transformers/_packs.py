"""TRL's packing, domain by domain, so that every pack is of one domain."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import Trainer

from adaptmix.errors import ObjectiveError

_log = logging.getLogger("adaptmix")
_IDS = "input_ids"
_WINDOW = 2**16  # rows that are packed together; TRL's 1000 leave a pack half full each time


def pack_by_domain(own: Callable[..., Any], domains: object, args: Any, kwargs: Any) -> Any:
    """Return what a trainer's ``_prepare_dataset`` makes of a dataset, packed within domains.

    The trainer's method is called once for each domain, without packing, so tokenising and labels
    are its own; so are the packs, of more rows at a time. A row that is cut keeps its domain in
    each piece.

    Args:
        own: the trainer's method.
        domains: a column of the dataset; it is packed as the trainer does where it has none.
        args: of ``own``.
        kwargs: of ``own``.
    """
    try:
        given = inspect.signature(own).bind(*args, **kwargs)
    except TypeError:
        return own(*args, **kwargs)
    asked = given.arguments
    dataset: Any = asked.get("dataset")
    names = getattr(dataset, "column_names", None) or ()
    packing = asked.get("packing") and getattr(asked.get("args"), "max_length", None) is not None
    if not packing or domains not in names or not hasattr(dataset, "select"):
        return own(*args, **kwargs)
    from datasets import concatenate_datasets

    config = asked["args"]
    asked["packing"] = False
    asked["args"] = copy.copy(config)
    asked["args"].max_length = None  # packing cuts rows, or goes on with them in another pack
    labels = np.asarray(dataset.with_format(None)[domains])
    parts = []
    for label in dict.fromkeys(labels.tolist()):
        asked["dataset"] = dataset.select(np.flatnonzero(labels == label))
        packs = packs_of(own(*given.args, **given.kwargs), config)
        parts.append(packs.add_column(domains, [label] * len(packs)))
        _report(label, packs, config.max_length)
    return concatenate_datasets(parts)


def packs_of(rows: Any, config: Any) -> Any:
    """Return the packs that TRL makes of rows, a large number of them at a time.

    Args:
        rows: a dataset with ``input_ids`` and ``labels``.
        config: TRL's, with the packs' length and strategy.
    """
    from trl import pack_dataset

    together = {"batch_size": _WINDOW, "num_proc": config.dataset_num_proc}
    rows = rows.select_columns([_IDS, "labels"])
    packs = pack_dataset(rows, config.max_length, config.packing_strategy, together)
    return packs.shuffle(seed=config.seed) if config.shuffle_dataset else packs


def _report(label: Any, packs: Any, longest: int) -> None:
    lengths = np.array([len(ids) for ids in packs.with_format(None)[_IDS]])
    _log.info(
        "Domain %s is in %d packs of at most %d tokens, which are %.1f %% full.",
        label,
        len(packs),
        longest,
        100.0 * lengths.mean() / longest if len(lengths) else 0.0,
    )


def refuse_mixed_packs(trainer: Trainer, domains: object, unit: str | None) -> None:
    """Refuse packs that have rows of several domains, or an objective that counts rows.

    Args:
        trainer: of the run.
        domains: of the callback.
        unit: of the callback.

    Raises:
        ObjectiveError: such packs, or such an objective.
    """
    if not getattr(trainer.args, "packing", False):
        return
    names = getattr(trainer.train_dataset, "column_names", None) or ()
    if isinstance(domains, str) and domains not in names:
        raise ObjectiveError(
            f"With packing=True, TRL drops the column {domains!r} and mixes domains in a pack "
            "before the callback sees the dataset. Let the callback be there first, so that each "
            "domain is packed by itself: class PackedTrainer(AdaptMixMixin, SFTTrainer): pass, and "
            "PackedTrainer(..., adaptmix=AdaptMixCallback(...)) in the place of callbacks=[...]. "
            "Or use padding_free=True, max_length=None, which needs no packs."
        )
    if unit == "sample":
        raise ObjectiveError(
            'unit must be "token" or left out with packing=True; got "sample", and a pack has '
            "several rows, which would share one row's weight. For rows that count the same use "
            "padding_free=True, max_length=None, and packing=False."
        )
