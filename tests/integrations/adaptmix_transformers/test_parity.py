"""The gradient that a Trainer's optimizer sees is that of the objective, written out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from adaptmix import Controller, Draw, policies
from adaptmix_transformers import AdaptMixCallback
from tests import runs
from tests.integrations.adaptmix_transformers import hf

WEIGHTS = policies.Static(
    sampling={"code": 0.2, "news": 0.3, "math": 0.5}, loss={"code": 0.5, "news": 2.0, "math": 1.0}
)


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of predicting each next token, and which are supervised; one row at a time."""
    losses, masks = [], []
    for row, answers in zip(logits, labels, strict=True):
        losses.append(F.cross_entropy(row[:-1], answers[1:], reduction="none", ignore_index=-100))
        masks.append(answers[1:] != -100)
    return torch.stack(losses), torch.stack(masks)


def objective(
    controller: Controller,
    model: Any,
    batches: list[dict[str, Tensor]],
    lengths: dict[str, float],
    held: Collection[tuple[int, int]] = (),
) -> Tensor:
    """Return Σ π w L over a step's rows, L being a domain's mean over its rows or tokens.

    Rows that are ``held``, each a micro-batch and a place in it, are left out.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in controller.mixture.domains}
    named = {number + 1: name for number, name in enumerate(hf.SIZES)}
    for micro, batch in enumerate(batches):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        losses, masks = token_losses(logits, batch["labels"])
        firsts = batch["input_ids"][:, 0].tolist()
        for place, (first, row, mask) in enumerate(zip(firsts, losses, masks, strict=True)):
            if (micro, place) in held:
                continue
            name = named[first]
            total = (row * mask).sum()
            values[name].append(
                total / lengths[name] if controller.unit == "token" else total / mask.sum()
            )
    weights = controller.weights.as_dict(controller.mixture.domains)
    total = torch.zeros(())
    for name, parts in values.items():
        factor = weights[name]["importance"] * weights[name]["loss"]
        total = total + factor * torch.stack(parts).mean()
    return total


def lengths_of(data: Any) -> dict[str, float]:
    """Mean supervised tokens per row: the first token of a row is not predicted."""
    tokens: dict[str, list[int]] = {}
    for row in data:
        tokens.setdefault(row["source"], []).append(len(row["labels"]) - 1)
    return {name: sum(counts) / len(counts) for name, counts in tokens.items()}


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm().clamp(min=1e-12))


class Check(TrainerCallback):
    """Compares the gradient of each step with the objective over its rows.

    ``gather`` makes the micro-batches of all processes of those of this one.
    """

    def __init__(
        self,
        callback: AdaptMixCallback,
        lengths: dict[str, float],
        gather: Callable[[list[dict[str, Tensor]]], list[dict[str, Tensor]]],
    ) -> None:
        self.callback, self.lengths, self.gather = callback, lengths, gather
        self.trainer: Any = None
        self.errors: list[float] = []
        self.draws: list[Draw] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare before the optimizer changes the model."""
        model = kwargs["model"]
        mine = [
            {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            for batch in self.trainer.batches[-args.gradient_accumulation_steps :]
        ]
        held = runs.held_places(self.draws[-len(mine) :])
        expected = objective(self.callback.controller, model, self.gather(mine), self.lengths, held)
        wanted = torch.autograd.grad(expected, list(model.parameters()))
        flat = torch.cat([gradient.flatten() for gradient in wanted])
        self.errors.append(relative_error(hf.gradient(model), flat))


def in_double_precision(
    logits: Tensor, labels: Tensor, num_items_in_batch: Any = None, **_: Any
) -> Tensor:
    """What a causal LM of transformers trains on, which computes it in float32 whatever it is."""
    flat = logits[:, :-1].flatten(0, 1)
    if num_items_in_batch is None:
        return F.cross_entropy(flat, labels[:, 1:].flatten())
    total = F.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch
    return torch.as_tensor(total)


def gradient_errors(
    folder: Path | str,
    unit: str,
    *,
    dtype: torch.dtype = torch.float64,
    rows: int = 20,
    accumulation: int = 1,
    gather: Callable[[list[dict[str, Tensor]]], list[dict[str, Tensor]]] = lambda mine: mine,
    draws: list[Draw] | None = None,
    **changes: Any,
) -> list[float]:
    """Train with ``rows`` rows a step on this process; return each step's relative error.

    A quarter of the rows are held out where ``draws``, those of this process, tell which.
    """
    data = hf.rows()
    lengths = lengths_of(data)
    callback = AdaptMixCallback(
        "source",
        policy=WEIGHTS,
        unit=unit,
        importance={"code": 3.0, "news": 2.0, "math": 1.0},
        lag=0,
        update_every=1,
        tokens_per_row=lengths if unit == "token" else None,
        holdout=None if draws is None else 0.25,
    )
    check = Check(callback, lengths, gather)
    check.draws = [] if draws is None else draws
    model = hf.llama(dtype=dtype)
    if dtype == torch.float64:
        model.loss_function = in_double_precision
    check.trainer = hf.make(
        folder,
        callback,
        model=model,
        data=data,
        max_grad_norm=0.0,
        per_device_train_batch_size=rows // accumulation,
        gradient_accumulation_steps=accumulation,
        **changes,
    )
    check.trainer.add_callback(check)
    check.trainer.train()
    weights = callback.controller.weights
    assert weights.sampling.tolist() == pytest.approx([0.2, 0.5, 0.3])  # sorted by name
    assert weights.loss[2] / weights.loss[0] == pytest.approx(4.0)
    return check.errors


# The bound in float32 is rounding's; in float64 it is that of the model's own float32 parts, which
# both sides share, so that what is left is rounding again.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("unit", ["token", "sample"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_every_step_is_the_objective_over_its_rows(
    dtype: torch.dtype, bound: float, unit: str, accumulation: int, tmp_path: Path
) -> None:
    # Twenty rows give every domain at least one whatever the unit, so shares are the realised ones.
    errors = gradient_errors(tmp_path, unit, dtype=dtype, accumulation=accumulation, max_steps=5)
    assert len(errors) == 5
    assert max(errors) < bound


@pytest.mark.parametrize("unit", ["token", "sample"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_held_out_rows_and_their_labels_do_not_count(
    unit: str, accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer divides by all tokens of the step, those of held-out rows included."""
    draws = runs.record_draws(monkeypatch)
    errors = gradient_errors(tmp_path, unit, accumulation=accumulation, max_steps=5, draws=draws)
    assert sum(int(draw.held.sum()) for draw in draws if draw.held is not None) == 5 * 20 // 16
    assert max(errors) < 1e-10
