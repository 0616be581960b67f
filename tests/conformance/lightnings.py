"""Set-ups as users of Lightning write them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from adaptmix.policies import Policy
from adaptmix_lightning import AdaptMixCallback
from tests.conformance import data, kit
from tests.conformance.harness import STEPS, Case
from tests.conformance.kit import (
    ROWS,
    TAGGED,
    dropping,
    each,
    mean,
    own,
    own_tags,
    penalty,
    sorting,
    tags,
)
from tests.devices import USE_CPU


class Module(LightningModule):
    """A classifier whose ``training_step`` is f(module, batch)."""

    def __init__(self, step: Callable[[Any, Any], Any], *, tokens: bool = False) -> None:
        super().__init__()
        self.body, self.head = kit.network(tokens)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.body(x))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Do what the case does."""
        return self.step(self, batch)

    def configure_optimizers(self) -> Any:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Manual(Module):
    """Steps its optimizer itself; the loss goes through the callback."""

    callback: list[AdaptMixCallback]

    def __init__(self, step: Callable[[Any, Any], Any]) -> None:
        super().__init__(step)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Weight, differentiate and step."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.callback[0].loss(self.step(self, batch)))
        optimizer.step()


def lightning(
    name: str,
    step: Callable[[Any, Any], Any],
    *,
    rows: data.Rows = ROWS,
    module: Any = None,
    callback: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    collate: Any = data.stack,
    collator: Any = None,
    workers: int = 0,
    tokens: bool = False,
    streamed: bool = False,
    **case: Any,
) -> Case:
    """A case of Lightning; ``collator`` is the loader's where it is not ``collate``."""
    changed = trainer or {}

    def train(live: Any, policy: Policy | str, folder: Path) -> None:
        mixer = AdaptMixCallback(
            None if streamed else data.DOMAINS,
            policy=policy,
            **({"update_every": 2, "lag": 6} | (callback or {})),
        )
        if isinstance(live, Manual):
            live.callback = [mixer]
        loader: Any = DataLoader(
            data.streams(rows) if streamed else rows,  # type: ignore[arg-type]
            batch_size=8,
            shuffle=not streamed,
            collate_fn=collator or collate,
            num_workers=workers,
        )
        Trainer(
            accelerator="cpu" if USE_CPU else "gpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_steps=STEPS,
            default_root_dir=folder,
            callbacks=[mixer],
            **changed,
        ).fit(live, loader)

    model = data.built(module or (lambda: Module(step, tokens=tokens)))
    return kit.case(
        f"Lightning: {name}", model, train, rows=rows, collate=collate, changes=changed, **case
    )


def masked(module: Any, batch: Any) -> dict[str, Tensor]:
    """Losses of tokens and which of them count, as the callback takes them."""
    losses, mask = tags(module, batch)
    return {"loss": losses, "loss_mask": mask}


def mean_of_tags(module: Any, batch: Any) -> Tensor:
    """A mean over the tokens that count."""
    return F.cross_entropy(module(batch["input_ids"]).mT, batch["labels"])


def pairs(rows: Any) -> tuple[Tensor, Tensor]:
    """A batch that is a tuple, as most of Lightning's are."""
    batch = data.stack(rows)
    return batch["x"], batch["labels"]


def _bad_rows(rows: Any) -> Any:
    """Leave out a whole batch now and then, as for unreadable files."""
    return None if rows[0]["x"][0] > 0.9 else data.stack(rows)


def _shuffled(module: Any, batch: Any) -> Tensor:
    order = torch.argsort(batch["x"][:, 0])
    return F.cross_entropy(module(batch["x"][order]), batch["labels"][order], reduction="none")


def _mixed(module: Any, batch: Any) -> Tensor:
    """Mixup: a row's loss is of two rows."""
    order = torch.randperm(len(batch["x"]))
    logits, labels = module(0.7 * batch["x"] + 0.3 * batch["x"][order]), batch["labels"]
    first, second = (F.cross_entropy(logits, y, reduction="none") for y in (labels, labels[order]))
    return 0.7 * first + 0.3 * second


def _reduced(of: Any, module: Any, batch: Any) -> Tensor:
    """A mean."""
    losses: Tensor = of(module, batch)
    return losses.mean()


def _harder(module: Any, batch: Any) -> Tensor:
    """Rows are chosen by a mask, which the graph does not show."""
    losses = each(module, batch)
    return 2.0 * losses * (losses >= losses.median())


CASES = [
    lightning("unreduced losses", each, row_loss=own, expect="right"),
    lightning("streams", each, row_loss=own, expect="right", streamed=True),
    lightning("two workers", each, row_loss=own, expect="right", workers=2, policies=("forced",)),
    lightning(
        "accumulation",
        each,
        row_loss=own,
        trainer={"accumulate_grad_batches": 3},
        expect="right",
    ),
    lightning("a dict", lambda m, b: {"loss": each(m, b)}, row_loss=own, expect="right"),
    lightning(
        "tuple batches",
        lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"),
        row_loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        collate=pairs,
        expect="right",
    ),
    lightning("a mean and no head", mean, row_loss=own, expect="reduction|head"),
    lightning("a mean and a head", mean, row_loss=own, callback={"head": "head"}, expect="right"),
    lightning(
        "a head and a penalty",
        lambda m, b: mean(m, b) + penalty(m),
        row_loss=own,
        penalty=penalty,
        callback={"head": "head"},
        expect="right",
    ),
    lightning(
        "a head and accumulation",
        mean,
        row_loss=own,
        callback={"head": "head"},
        trainer={"accumulate_grad_batches": 2},
        expect="right",
    ),
    lightning(
        "a head that is not the last",
        mean,
        row_loss=own,
        callback={"head": "body"},
    ),
    lightning(
        "a head and a contrastive loss",
        lambda m, b: (
            F.cross_entropy(
                F.normalize(m(b["x"]), dim=1) @ F.normalize(m.head.weight @ m.head.weight.T, dim=1),
                b["labels"],
            )
            + m(b["x"]).mean(0).square().sum()
        ),
        row_loss=own,
        callback={"head": "head"},
        expect="row|once",
    ),
    lightning(
        "a head and ignored targets",
        mean_of_tags,
        rows=TAGGED,
        collate=data.pad,
        tokens=True,
        row_loss=lambda m, b: own_tags(m, b)[0] / own_tags(m, b)[1],
        callback={"head": "head"},
        expect="loss_mask",
    ),
    lightning(
        "tokens and their mask",
        masked,
        rows=TAGGED,
        collate=data.pad,
        tokens=True,
        row_loss=lambda m, b: own_tags(m, b)[0] / own_tags(m, b)[1],
        expect="right",
    ),
    lightning(
        "tokens, unit token",
        masked,
        rows=TAGGED,
        collate=data.pad,
        tokens=True,
        row_loss=own_tags,
        callback={"unit": "token"},
    ),
    lightning(
        "manual optimization", each, module=lambda: Manual(each), row_loss=own, expect="right"
    ),
    lightning(
        "a hinge between rows from step 16 on",
        lambda m, b: mean(m, b) + F.relu(m(b["x"]).mean() + 9.0) * (m.global_step >= 16),
        row_loss=own,
        callback={"head": "head"},
        expect="once|row",
    ),
    lightning("unreadable batches", each, collator=_bad_rows, row_loss=own),
    lightning("unreadable rows", each, collator=dropping, row_loss=own, expect="row"),
    lightning("a collator that sorts", each, collator=sorting, row_loss=own),
    *(
        lightning(
            f"{name}, {'a head' if head else 'unreduced losses'}",
            partial(_reduced, of) if head else of,
            row_loss=own,
            callback={"head": "head"} if head else None,
            expect="one term per row",
            policies=("forced",),
        )
        for name, of in (("mixup", _mixed), ("the harder half", _harder))
        for head in (True, False)
    ),
    lightning("rows reordered in the module", _shuffled, row_loss=own),
    lightning("batches left out", lambda *_: None, row_loss=own, expect="loss"),
]
