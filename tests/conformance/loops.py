"""Set-ups as users write them in a loop of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmix import Controller, Mixture
from adaptmix.policies import Policy
from tests.conformance import data, kit
from tests.conformance.harness import STEPS, Case
from tests.conformance.kit import ROWS, TAGGED, each, own, own_tags, penalty, sorting, tags
from tests.devices import DEVICE, moved

Loop = Callable[[Any, Controller, Any, torch.optim.Optimizer], None]
"""(model, controller, loader, optimizer): trains for all steps."""


class Net(nn.Module):
    """Logits of feature vectors, or of token ids."""

    def __init__(self, *, tokens: bool = False) -> None:
        super().__init__()
        self.body, self.head = kit.network(tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.body(x))
        return logits


def loop(
    name: str,
    body: Loop,
    *,
    rows: data.Rows = ROWS,
    tokens: bool = False,
    controller: dict[str, Any] | None = None,
    loader: dict[str, Any] | None = None,
    collate: Any = data.stack,
    collator: Any = None,
    streamed: bool = False,
    **case: Any,
) -> Case:
    """A case of a plain loop; ``collator`` is the loader's where it is not ``collate``."""
    changed = loader or {}

    def train(live: Any, policy: Policy | str, _: Path) -> None:
        mixture = data.streams(rows) if streamed else Mixture.from_labels(rows, data.DOMAINS)
        options = {"policy": policy, "update_every": 2, "lag": 6} | (controller or {})
        steering = Controller(mixture, **options)
        # Worker processes cannot make tensors of a GPU.
        device = "cpu" if changed.get("num_workers") else DEVICE
        steering.watch(live.to(device))
        batch_of = moved(collator or collate, device)
        batches = steering.loader(8, steps=STEPS, collate_fn=batch_of, **changed)
        body(live, steering, batches, torch.optim.SGD(live.parameters(), lr=0.05))

    model = data.built(lambda: Net(tokens=tokens))
    return kit.case(
        f"loop: {name}", model, train, rows=rows, collate=collate, changes=changed, **case
    )


def simple(losses: Callable[[Any, Any], Tensor] = each, *, accumulation: int = 1) -> Loop:
    """The loop of the README, with these losses."""

    def body(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
        for number, batch in enumerate(loader, start=1):
            controller.loss(losses(model, batch)).backward()
            if number % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
                controller.step()

    return body


def masked(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """Losses of tokens, and which of them count."""
    for batch, draw in loader.with_draws():
        losses, mask = tags(model, batch)
        controller.loss(losses, draw=draw, mask=mask).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()


def reduced(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """A mean where losses of rows are meant."""
    for batch, draw in loader.with_draws():
        controller.loss(F.cross_entropy(model(batch["x"]), batch["labels"]), draw=draw).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()


def divided(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """Losses divided by the accumulation once more."""
    for number, batch in enumerate(loader, start=1):
        (controller.loss(each(model, batch)) / 2).backward()
        if number % 2 == 0:
            controller.step()
            optimizer.step()
            optimizer.zero_grad()


def penalised(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """A penalty beside the weighted loss."""
    for batch, draw in loader.with_draws():
        (controller.loss(each(model, batch), draw=draw) + penalty(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()


def gradient_penalised(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """A penalty on each row's gradient with respect to its input, by double backward."""
    for batch, draw in loader.with_draws():
        controller.loss(sloped(model, batch), draw=draw).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()


def sloped(model: Any, batch: Any) -> Tensor:
    """Losses and the penalty, row by row."""
    x = batch["x"].clone().requires_grad_()
    losses = F.cross_entropy(model(x), batch["labels"], reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    result: Tensor = losses + 0.1 * slope.square().sum(1)
    return result


def skipping(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """Leave out batches whose loss is high."""
    for batch, draw in loader.with_draws():
        losses = each(model, batch)
        if losses.mean() > 1.4:
            continue
        controller.loss(losses, draw=draw).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()


def looking_ahead(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """Fetch the next batch while this one trains, and mix up their draws."""
    batches = loader.with_draws()
    batch, _ = next(batches)
    for following, ahead in batches:
        controller.loss(each(model, batch), draw=ahead).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        batch = following


def peeking(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """Fetch the next batch while this one trains, and leave it to the controller which is which."""
    batches = iter(loader)
    batch = next(batches)
    for following in batches:
        controller.loss(each(model, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        batch = following


def dropping(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """Leave out batches whose loss is high, without draws."""
    for batch in loader:
        losses = each(model, batch)
        if losses.mean() > 1.4:
            continue
        controller.loss(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()


def forgetting(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """Never count a step."""
    for batch, draw in loader.with_draws():
        controller.loss(each(model, batch), draw=draw).backward()
        optimizer.step()
        optimizer.zero_grad()


def second_loader(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """Make another loader, to look at a batch, and not train on it."""
    controller.loader(16, collate_fn=data.stack, steps=STEPS)
    simple()(model, controller, loader, optimizer)


def clipped(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """Two backward passes through one graph."""
    for batch, draw in loader.with_draws():
        loss = controller.loss(each(model, batch), draw=draw)
        loss.backward(retain_graph=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()


def mixed_precision(model: Any, controller: Controller, loader: Any, optimizer: Any) -> None:
    """A scaler, as for fp16, with gradients unscaled before the step."""
    scale = 1024.0
    for batch, draw in loader.with_draws():
        (controller.loss(each(model, batch), draw=draw) * scale).backward()
        for parameter in model.parameters():
            parameter.grad /= scale
        optimizer.step()
        optimizer.zero_grad()
        controller.step()


def sorted_rows(model: Any, batch: Any) -> Tensor:
    """Losses in another order, as of texts that are sorted by length in the loop."""
    order = batch["x"][:, 0].argsort()
    return F.cross_entropy(model(batch["x"][order]), batch["labels"][order], reduction="none")


def centred(model: Any, batch: Any) -> Tensor:
    """Logits less their mean over the batch."""
    logits = model(batch["x"])
    return F.cross_entropy(logits - logits.mean(0), batch["labels"], reduction="none")


def contrastive(model: Any, batch: Any) -> Tensor:
    """Each row is told from the others."""
    logits = model(batch["x"])
    places = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits @ logits.T, places, reduction="none")


CASES = [
    loop("README", simple(), row_loss=own, expect="right"),
    loop(
        "workers",
        simple(),
        row_loss=own,
        loader={"num_workers": 2},
        policies=("forced",),
        expect="right",
    ),
    loop("streams", simple(), row_loss=own, streamed=True, expect="right"),
    loop(
        "accumulation",
        simple(accumulation=4),
        row_loss=own,
        loader={"accumulation": 4},
        expect="right",
    ),
    loop(
        "multinomial counts",
        simple(),
        row_loss=own,
        controller={"counts": "multinomial"},
        expect="right",
    ),
    loop(
        "tokens, unit sample",
        masked,
        rows=TAGGED,
        tokens=True,
        collate=data.pad,
        row_loss=lambda m, b: own_tags(m, b)[0] / own_tags(m, b)[1],
        expect="right",
    ),
    loop(
        "tokens, unit token",
        masked,
        rows=TAGGED,
        tokens=True,
        collate=data.pad,
        row_loss=own_tags,
        controller={
            "unit": "token",
            "tokens_per_row": {
                name: sum(
                    sum(label != -100 for label in row["labels"])
                    for row, domain in zip(TAGGED, data.DOMAINS, strict=True)
                    if domain == name
                )
                / data.SIZES[name]
                for name in data.SIZES
            },
        },
        expect="right",
    ),
    loop(
        "rows without labels",
        masked,
        rows=data.tagged(unsupervised=0.3),
        tokens=True,
        collate=data.pad,
        row_loss=own_tags,
        controller={"unit": "token"},
    ),
    loop("a mean", reduced, row_loss=own, expect="reduction"),
    loop("divided twice", divided, row_loss=own, loader={"accumulation": 2}, expect="accumulation"),
    loop("a penalty", penalised, row_loss=own, penalty=penalty, expect="right"),
    loop("a gradient penalty", gradient_penalised, row_loss=sloped),
    loop("batches left out", skipping, row_loss=own, expect="order|next"),
    loop("batches left out, without draws", dropping, row_loss=own, expect="handed out|step"),
    loop("a batch ahead, without draws", peeking, row_loss=own, expect="handed out"),
    loop("draws mixed up", looking_ahead, row_loss=own, expect="order|next"),
    loop("step() forgotten", forgetting, row_loss=own, expect="step"),
    loop("a second loader", second_loader, row_loss=own),
    loop("two backward passes", clipped, row_loss=own),
    loop("a loss scale", mixed_precision, row_loss=own, expect="right"),
    loop("sorted rows", simple(sorted_rows), row_loss=own, expect="order", policies=("forced",)),
    loop("centred logits", simple(centred), row_loss=own, expect="row", policies=("forced",)),
    loop("contrastive", simple(contrastive), row_loss=own, expect="row", policies=("forced",)),
    loop("a collator that sorts", simple(), collator=sorting, row_loss=own),
    loop("a collator that drops", simple(), collator=kit.dropping, row_loss=own, expect="row"),
]
