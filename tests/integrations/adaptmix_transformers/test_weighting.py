"""The trainer's own loss stays the loss: its gradient is weighted row by row, or it is refused.

Also tests ``adaptmix_transformers/_capture.py`` and ``adaptmix_transformers/_proofs.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from adaptmix.errors import ObjectiveError
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.losses import (
    MicroBatch,
    Net,
    bert,
    compare,
    rare,
    stack,
)
from tests.integrations.adaptmix_transformers.overrides import (
    BOUND,
    ClassWeighted,
    class_weighted,
    cross_entropy,
    focal,
    logits_of,
    mean_of,
    overridden,
    plain,
    weighted_mean,
)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("by", ["method", "function"])
def test_class_weights_are_kept(by: str, seed: int, tmp_path: Path) -> None:
    """The first batch has no row of the rare class, most times."""
    how: dict[str, Any] = (
        {"kind": ClassWeighted}
        if by == "method"
        else {"trainer_options": {"compute_loss_func": class_weighted}}
    )
    errors, _ = compare(
        tmp_path, weighted_mean, model=bert(seed), data=rare(seed), data_seed=seed, **how
    )
    assert len(errors) == 12
    assert max(errors) < BOUND


def test_a_resumed_run_trains_on_the_same_loss(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "max_steps": 10}
    compare(tmp_path, weighted_mean, kind=ClassWeighted, **saving)
    for step in (5, 10):
        errors, _ = compare(
            tmp_path / "resumed",
            weighted_mean,
            kind=ClassWeighted,
            resume=str(tmp_path / f"checkpoint-{step}"),
            **(saving | {"max_steps": step + 3}),
        )
        assert len(errors) == 3
        assert max(errors) < BOUND


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)


def absolute(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits[:, 0] - labels).abs() + (logits[:, 1] - labels).abs()


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    return F.multi_margin_loss(logits, labels, reduction="none")


@pytest.mark.parametrize("per_row", [cross_entropy, focal, smoothed, absolute, margin])
@pytest.mark.parametrize("classes", [2, 4])
def test_any_mean_over_rows(classes: int, per_row: Any, tmp_path: Path) -> None:
    errors, _ = compare(
        tmp_path,
        mean_of(per_row),
        model=bert(num_labels=classes),
        data=rare(1, classes=classes),
        kind=overridden(lambda logits, labels, _: per_row(logits, labels).mean()),
    )
    assert max(errors) < BOUND


def squares(model: Any) -> Tensor:
    return 100.0 * torch.stack([p.square().sum() for p in model.parameters()]).sum()


def absolutes(model: Any) -> Tensor:
    return 0.01 * torch.stack([p.abs().sum() for p in model.parameters()]).sum()


class FromStart:
    """A penalty towards initial weights, which is 0 at the start and has no gradient there."""

    def __init__(self, model: Any) -> None:
        self.start = [p.detach().clone() for p in model.parameters()]

    def __call__(self, model: Any) -> Tensor:
        pairs = zip(model.parameters(), self.start, strict=True)
        return 5.0 * torch.stack([(p - s).square().sum() for p, s in pairs]).sum()


@pytest.mark.parametrize("with_losses", [False, True])
@pytest.mark.parametrize("penalty", ["squares", "absolutes", "from start"])
def test_penalties_are_kept_as_they_are(penalty: str, with_losses: bool, tmp_path: Path) -> None:
    model = bert()
    kinds: dict[str, Any] = {"squares": squares, "absolutes": absolutes}
    rest = kinds.get(penalty) or FromStart(model)

    def own(outputs: Any, inputs: Any) -> Tensor:
        return cross_entropy(outputs["logits"], inputs["labels"])

    errors, callback = compare(
        tmp_path,
        mean_of(cross_entropy, rest),
        model=model,
        kind=overridden(lambda z, y, m: cross_entropy(z, y).mean() + rest(m)),
        settings={"loss": own} if with_losses else {},
    )
    assert max(errors) < BOUND
    assert np.isfinite(callback.controller.statistics.loss_mean).all()


def test_normalised_domain_weights_are_kept(tmp_path: Path) -> None:
    """Each row's factor is of its first token, and they are divided by their sum."""

    def factors(inputs: Any) -> Tensor:
        return torch.as_tensor(1.0 + (inputs["input_ids"][:, 0] % 3).double())

    class Normalised(Trainer):
        """A compute_loss that weighs rows, and normalises."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            losses = cross_entropy(model(**inputs)["logits"], inputs["labels"])
            return torch.as_tensor((factors(inputs) * losses).sum() / factors(inputs).sum())

    def expected(model: Any, batch: MicroBatch) -> Tensor:
        losses = cross_entropy(logits_of(model, batch), batch.inputs["labels"])
        each = factors(batch.inputs)
        total: Tensor = (batch.multipliers * each * losses).sum() / each.sum()
        return total

    errors, _ = compare(tmp_path, expected, kind=Normalised)
    assert max(errors) < BOUND


def second_head(model: Any, inputs: Any) -> Tensor:
    return cross_entropy(model.out(model.hidden(inputs["input_ids"])), inputs["labels"]).mean()


class SecondForward(Trainer):
    """A part of the loss that goes round the model's outputs."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Add it."""
        first: Any = super().compute_loss(model, dict(inputs))
        return first + second_head(model, inputs)


class Temperature(Net):
    """A learnt temperature between logits and loss."""

    def __init__(self) -> None:
        super().__init__(lambda logits, labels: cross_entropy(logits * self.heat, labels).mean())
        self.heat = nn.Parameter(torch.ones((), dtype=torch.float64))


class Uncertainty(Net):
    """A learnt weight of the task (Kendall et al.)."""

    def __init__(self) -> None:
        super().__init__(
            lambda z, y: cross_entropy(z, y).mean() * (-self.log_var).exp() + self.log_var
        )
        self.log_var = nn.Parameter(torch.zeros((), dtype=torch.float64))


class Probabilities(Net):
    """Shows probabilities only, which the loss is not made of."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss and probabilities."""
        logits = self.out(self.hidden(input_ids))
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits, labels).mean(), "probs": logits.softmax(-1)}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"model": Net(plain), "kind": SecondForward}, "through the model's outputs only"),
        ({"model": Temperature()}, "parameters beside the model's outputs scale"),
        ({"model": Uncertainty()}, "parameters beside the model's outputs scale"),
        ({"model": Probabilities()}, "its outputs are loss, probs, and it is made of none"),
    ],
    ids=["second head", "temperature", "uncertainty", "probabilities"],
)
def test_what_goes_round_the_outputs_is_refused(
    how: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        compare(tmp_path, mean_of(cross_entropy), **how)


def test_a_head_is_weighted_by_its_name(tmp_path: Path) -> None:
    errors, callback = compare(
        tmp_path, mean_of(cross_entropy), model=Probabilities(), settings={"head": "out"}
    )
    assert max(errors) < BOUND
    assert np.isfinite(callback.controller.statistics.loss_mean).all()


def test_losses_of_the_user_must_be_those_that_are_trained_on(tmp_path: Path) -> None:
    def other(outputs: Any, inputs: Any) -> Tensor:
        return torch.as_tensor((outputs["logits"][:, 0] - inputs["labels"]).square())

    with pytest.raises(ObjectiveError, match="loss=f must return the losses"):
        compare(tmp_path, mean_of(cross_entropy), settings={"loss": other})


def test_reported_losses_are_those_of_the_domains(tmp_path: Path) -> None:
    _, callback = compare(
        tmp_path,
        mean_of(cross_entropy),
        settings={"measure_every": 1, "update_every": 1},
        max_steps=2,
        learning_rate=0.0,
        per_device_train_batch_size=100,
    )
    assert np.isfinite(callback.controller.statistics.loss_mean).all()


def test_the_model_is_seen_but_not_changed(tmp_path: Path) -> None:
    """Rehearsing leaves random states, buffers and counters as they were."""

    class Counting(ClassWeighted):
        """Counts its calls."""

        calls: int
        seen: list[int]

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            """Count."""
            self.calls = getattr(self, "calls", 0) + 1
            self.seen = [*getattr(self, "seen", []), self.calls]
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainers = []
    for callback in (AdaptMixCallback("source", unit="sample"), None):
        trainer = Counting(
            model=bert(),
            args=hf.arguments(tmp_path, max_steps=4),
            train_dataset=rare(0),
            data_collator=stack,
            callbacks=[] if callback is None else [callback],
        )
        trainer.calls, trainer.seen = 0, []
        trainer.train()
        trainers.append(trainer)
    assert [(trainer.calls, trainer.seen) for trainer in trainers] == [(4, [1, 2, 3, 4])] * 2


class Twice(Trainer):
    """Two forward passes, of which both count."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Add their losses and what they differ by."""
        one, two = (model(input_ids=inputs["input_ids"] + i)["logits"] for i in range(2))
        parts = cross_entropy(one, inputs["labels"]) + (one - two).square().sum(1)
        return parts.mean()


def test_two_forward_passes_are_weighted_in_both(tmp_path: Path) -> None:
    def expected(model: Any, batch: MicroBatch) -> Tensor:
        one, two = (model(input_ids=batch.inputs["input_ids"] + i)["logits"] for i in range(2))
        parts = cross_entropy(one, batch.inputs["labels"]) + (one - two).square().sum(1)
        return torch.as_tensor((batch.multipliers * parts).mean())

    errors, _ = compare(tmp_path, expected, kind=Twice, model=bert(vocab_size=hf.VOCABULARY + 1))
    assert max(errors) < BOUND
