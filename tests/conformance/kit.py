"""What the set-ups of plain loops and of Lightning share: rows, a network, losses, and a case."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conformance import data
from tests.conformance.harness import Case

ROWS = data.vectors()
TAGGED = data.tagged()


def case(
    name: str,
    model: Any,
    train: Any,
    *,
    rows: data.Rows = ROWS,
    collate: Any = data.stack,
    changes: dict[str, Any] | None = None,
    **stated: Any,
) -> Case:
    """A case of the domains that all data here has.

    Args:
        name: of the case.
        model: makes the model.
        train: trains it.
        rows: of the training data.
        collate: makes a batch of rows.
        changes: options of the trainer or loader, which tell the accumulation.
        stated: what is stated of the loss, and expected.
    """
    named = ("accumulation", "accumulate_grad_batches", "gradient_accumulation_steps")
    accumulation = next((changes[key] for key in named if key in (changes or {})), 1)  # type: ignore[index]
    return Case(
        name=name,
        model=model,
        rows=rows,
        domains=data.DOMAINS,
        train=train,
        collate=collate,
        accumulation=accumulation,
        **stated,
    )


def network(tokens: bool) -> tuple[nn.Module, nn.Module]:
    """The body and the head of a classifier of feature vectors, or of token ids."""
    first: nn.Module = nn.Embedding(data.VOCABULARY, 12) if tokens else nn.Linear(data.FEATURES, 12)
    return nn.Sequential(first, nn.Tanh()), nn.Linear(12, data.CLASSES)


def mean(model: Any, batch: Any) -> Tensor:
    """A mean; of one row, its stated loss."""
    return F.cross_entropy(model(batch["x"]), batch["labels"])


own = mean


def each(model: Any, batch: Any) -> Tensor:
    """Unreduced losses."""
    return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")


def own_tags(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Sum and number of one row's token losses."""
    labels = batch["labels"][0]
    kept = labels != -100
    logits = model(batch["input_ids"])[0]
    return F.cross_entropy(logits[kept], labels[kept], reduction="sum"), kept.sum()


def tags(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Losses of tokens, and which of them count."""
    labels = batch["labels"]
    losses = F.cross_entropy(model(batch["input_ids"]).mT, labels, reduction="none")
    return losses, labels != -100


def penalty(model: Any) -> Tensor:
    """An L2 penalty."""
    total: Tensor = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
    return 0.1 * total


def sorting(rows: Any) -> Any:
    """Collate rows in another order."""
    return data.stack(sorted(rows, key=lambda row: row["x"][0]))


def dropping(rows: Any) -> Any:
    """Collate without some rows."""
    return data.stack([row for row in rows if row["x"][0] < 0.9])
