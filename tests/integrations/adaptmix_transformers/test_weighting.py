"""The trainer's own loss stays the loss: its gradient is weighted row by row, or it is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from adaptmix.errors import MissingStatisticError, MissingStatisticWarning, ObjectiveError
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

BOUND = 1e-9  # of float64, in which transformers' BERT computes all of this
CLASS_WEIGHTS = torch.tensor([1.0, 50.0], dtype=torch.float64)


def logits_of(model: Any, batch: MicroBatch) -> Tensor:
    outputs = model(input_ids=batch.inputs["input_ids"])
    logits: Tensor = outputs["logits"]
    return logits


def weighted_mean(model: Any, batch: MicroBatch) -> Tensor:
    """Σ m c ℓ with c = w_y / Σ w_y."""
    labels = batch.inputs["labels"]
    losses = F.cross_entropy(logits_of(model, batch), labels, reduction="none")
    factors = CLASS_WEIGHTS[labels]
    return (batch.multipliers * factors * losses).sum() / factors.sum()


class ClassWeighted(Trainer):
    """A compute_loss of the kind that documentation shows."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Weigh the rare class up."""
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"])
        loss = F.cross_entropy(outputs["logits"], labels, weight=CLASS_WEIGHTS)
        return (loss, outputs) if kwargs.get("return_outputs") else loss


def class_weighted(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
    """The same as a compute_loss_func."""
    return F.cross_entropy(outputs.logits, labels, weight=CLASS_WEIGHTS)


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


class Overridden(Trainer):
    """A compute_loss made of a function of logits, labels and the model."""

    of: Callable[[Tensor, Tensor, Any], Tensor]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        outputs = model(input_ids=inputs["input_ids"])
        loss = type(self).of(outputs["logits"], inputs["labels"], model)
        return (loss, outputs) if kwargs.get("return_outputs") else loss


def overridden(function: Callable[[Tensor, Tensor, Any], Tensor]) -> type[Trainer]:
    return type("Own", (Overridden,), {"of": staticmethod(function)})


def mean_of(
    per_row: Callable[[Tensor, Tensor], Tensor],
    rest: Callable[[Any], Tensor | float] = lambda _: 0.0,
) -> Callable[[Any, MicroBatch], Tensor]:
    """What the optimizer is to see of a mean over rows, and a penalty."""

    def expected(model: Any, batch: MicroBatch) -> Tensor:
        losses = per_row(logits_of(model, batch), batch.inputs["labels"])
        return (batch.multipliers * losses).mean() + rest(model)

    return expected


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    losses = cross_entropy(logits, labels)
    return (1 - (-losses).exp()) ** 2 * losses


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


# Losses that are no sum over rows.


def contrastive(logits: Tensor, *_: Any) -> Tensor:
    return F.cross_entropy(logits @ logits.T, torch.arange(len(logits)))


def pairwise_hinge(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    scores, order = logits[:, 0], torch.sign(labels[:, None] - labels[None, :] + 0.5)
    return F.relu(0.5 - order * (scores[:, None] - scores[None, :])).mean()


def hardest(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    return cross_entropy(logits, labels).topk(3).values.mean()


def between_rows(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    scores = logits[:, 0]
    return cross_entropy(logits, labels).mean() + (scores - scores.roll(1)).abs().mean()


def self_normalised(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    losses = focal(logits, labels)
    return losses.sum() / (1 - logits.softmax(-1)[:, 0]).sum()


def root_mean_square(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    return (logits[:, 0] - labels).square().mean().sqrt()


@pytest.mark.parametrize(
    "loss",
    [contrastive, pairwise_hinge, hardest, between_rows, self_normalised, root_mean_square],
)
@pytest.mark.parametrize("inside", [False, True])
def test_losses_that_compare_rows_are_refused(inside: bool, loss: Any, tmp_path: Path) -> None:
    how: dict[str, Any] = (
        {"model": Net(lambda logits, labels: loss(logits, labels, None), outputs=2)}
        if inside
        else {"kind": overridden(loss)}
    )
    with pytest.raises(ObjectiveError, match="must be a sum of one term per row"):
        compare(tmp_path, mean_of(cross_entropy), data=rare(0), **how)


class LateChoice(Trainer):
    """From its sixth step on it leaves rows out, by a mask that the graph does not show."""

    choose: Callable[[Tensor], Tensor]
    calls = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """A mean of focal losses, of all rows and later of some."""
        self.calls += 1
        losses = focal(model(input_ids=inputs["input_ids"])["logits"], inputs["labels"])
        return type(self).choose(losses) if self.calls > 5 else losses.mean()


@pytest.mark.parametrize(
    "choose",
    [
        lambda losses: losses[losses >= losses.median()].mean(),
        lambda losses: (losses * (losses >= losses.median())).sum() / 4,
        lambda losses: (losses * losses.argsort().argsort()).mean(),
    ],
)
def test_a_choice_of_rows_that_begins_in_mid_run_is_found(choose: Any, tmp_path: Path) -> None:
    kind = type("Own", (LateChoice,), {"choose": staticmethod(choose)})
    settings = {"measure_every": 1, "update_every": 1}
    with pytest.raises(ObjectiveError, match="must be a sum of one term per row"):
        compare(tmp_path, mean_of(focal), kind=kind, settings=settings)


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


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels).mean()


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


# Embeddings of positions are not seen; what is unknown cannot be gone by.
@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
@pytest.mark.filterwarnings("ignore:Nothing is proposed")
@pytest.mark.parametrize(
    ("loss", "known"),
    [
        *((loss, False) for loss in (contrastive, pairwise_hinge, hardest, self_normalised)),
        (lambda z, y, _: focal(z, y).mean(), True),
    ],
)
def test_observing_never_refuses_and_changes_nothing(
    loss: Any, known: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def whole(model: Any, batch: MicroBatch) -> Tensor:
        result: Tensor = loss(logits_of(model, batch), batch.inputs["labels"], model)
        return result

    errors, callback = compare(
        tmp_path,
        whole,
        kind=overridden(loss),
        settings={"mode": "observe", "policy": "variance_aware"},
    )
    assert np.nanmax(errors) < 1e-12  # of steps that have a gradient
    # A row's gradient is that of its own loss; where there is none, nothing is made up.
    assert np.isfinite(callback.controller.statistics.grad_var).all() == known
    assert caplog.text.count("Gradients are not measured in this run: ") == (not known)


def test_unknown_losses_are_said_once_and_reported_as_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="adaptmix")
    _, callback = compare(
        tmp_path, mean_of(focal), kind=overridden(lambda z, y, _: focal(z, y).mean())
    )
    assert np.isnan(callback.controller.statistics.loss_mean).all()
    assert caplog.text.count("Rows' losses are not known") == 1
    with pytest.raises(MissingStatisticError, match=r"policy='joint' needs noise of rows"):
        compare(
            tmp_path,
            mean_of(focal),
            kind=overridden(lambda z, y, _: focal(z, y).mean()),
            settings={"policy": "joint"},
        )


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


def test_observing_rows_that_a_collator_merges(tmp_path: Path) -> None:
    def merge(features: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {name: value[:-1] for name, value in stack(features).items()}

    def whole(model: Any, batch: MicroBatch) -> Tensor:
        return cross_entropy(logits_of(model, batch), batch.inputs["labels"]).mean()

    with pytest.warns(MissingStatisticWarning, match="Nothing is proposed"):
        errors, _ = compare(
            tmp_path,
            whole,
            collator=merge,
            settings={"mode": "observe", "policy": "variance_aware"},
        )
    assert max(errors) < 1e-12


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


class Normed(Net):
    """Batch normalisation below the logits."""

    def __init__(self, loss: Any) -> None:
        super().__init__(loss, outputs=2)
        self.norm = nn.BatchNorm1d(16).double()

    def hidden(self, input_ids: Tensor) -> Tensor:
        """(B, 16)."""
        return torch.as_tensor(self.norm(super().hidden(input_ids)))


@pytest.mark.parametrize("refused", [True, False])
def test_batch_normalisation_hides_no_coupling(refused: bool, tmp_path: Path) -> None:
    if refused:
        model = Normed(lambda z, y: pairwise_hinge(z, y, None))
        with pytest.raises(ObjectiveError, match="must be a sum of one term per row"):
            compare(tmp_path, mean_of(cross_entropy), model=model)
        return
    model = Normed(plain)
    errors, _ = compare(tmp_path, mean_of(cross_entropy), model=model, max_steps=3)
    assert max(errors) < BOUND


def test_losses_without_a_second_derivative_are_tried_on_other_rows(tmp_path: Path) -> None:
    """Connectionist temporal classification has none."""

    def ctc(logits: Tensor, labels: Tensor) -> Tensor:
        spread = logits.unsqueeze(0) * torch.arange(1.0, 6.0).reshape(5, 1, 1)
        sizes = torch.full((len(logits),), 5), torch.ones(len(logits), dtype=torch.long)
        targets = (labels + 1).unsqueeze(1)
        return F.ctc_loss(spread.log_softmax(-1), targets, *sizes, reduction="none")

    errors, _ = compare(
        tmp_path,
        mean_of(ctc),
        model=bert(num_labels=4),
        kind=overridden(lambda z, y, _: ctc(z, y).mean()),
    )
    assert max(errors) < BOUND
