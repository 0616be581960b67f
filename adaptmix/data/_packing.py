"""Where a collator that packs rows into fewer has put each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptmix.data._segments import Segments

_IDS = "input_ids"
_POSITIONS = "position_ids"


def find_segments(rows: Sequence[Any], batch: Any) -> Segments | None:
    """Return where the tokens of rows are in a batch of fewer, packed rows.

    The rows are found by their tokens, one after the other and in their order, so what is returned
    is proved. Positions between them, as of padding, are of no row. A row may go on in the next
    packed row. Where nothing in the batch keeps rows apart, they see each other in a model with
    attention, and their losses are not those of the rows: this is no packing.

    Args:
        rows: that were collated, mappings with "input_ids".
        batch: what the collator made of them.

    Returns:
        None where the batch has no fewer rows than were collated, or they are not found in it, or
        it has neither ``position_ids`` that start anew in each row nor an attention mask of pairs.
    """
    packed = batch.get(_IDS) if hasattr(batch, "get") else None
    if not isinstance(packed, Tensor) or packed.ndim != 2 or len(packed) >= len(rows):
        return None
    if not all(isinstance(row, Mapping) and len(row.get(_IDS, ())) for row in rows):
        return None
    flat, width = packed.flatten().cpu().numpy(), packed.shape[1]
    ids, place, starts = np.full(len(flat), -1), 0, []
    for number, row in enumerate(rows):
        tokens = np.asarray(row[_IDS])
        while not np.array_equal(flat[place : place + len(tokens)], tokens):
            place = (place // width + 1) * width  # what is left of a packed row is padding
            if place >= len(flat):
                return None
        ids[place : place + len(tokens)] = number
        starts.append(place)
        place += len(tokens)
    if not _apart(batch, packed.shape, starts):
        return None
    return Segments(torch.from_numpy(ids).view(packed.shape))


def _apart(batch: Any, shape: torch.Size, starts: list[int]) -> bool:
    """Return whether a batch tells its model where rows start."""
    mask, positions = batch.get("attention_mask"), batch.get(_POSITIONS)
    if isinstance(mask, Mapping) or (isinstance(mask, Tensor) and mask.ndim > 2):
        return True
    if not isinstance(positions, Tensor) or positions.shape != shape:
        return False
    return not positions.flatten()[starts].any()
