"""Whatever model or trainer computes the loss, its gradient is that of the stated objective."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

from adaptmix.errors import ObjectiveError
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_parity import WEIGHTS, relative_error

Batch = dict[str, Tensor]
ACCUMULATION = 2


def per_row(losses: Tensor, mask: Tensor) -> Tensor:
    """(B,) means over what is supervised."""
    return (losses * mask).sum(1) / mask.sum(1)


def causal(model: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Row losses of a causal LM, mean over next tokens."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels, reduction="none", label_smoothing=smoothing
    )
    return per_row(losses, labels != -100)


def written_out(
    callback: AdaptMixCallback, model: Any, batches: list[Batch], rows: Callable[..., Tensor]
) -> Tensor:
    """Return Σ π w (mean row loss of each domain) over the rows of a step."""
    losses = torch.cat([rows(model, batch) for batch in batches])
    first = torch.cat([batch["input_ids"][:, 0] for batch in batches])
    weights = callback.controller.weights.as_dict(callback.controller.mixture.domains)
    parts = [
        weights[name]["importance"] * weights[name]["loss"] * losses[first == number + 1].mean()
        for number, name in enumerate(hf.SIZES)
    ]
    return torch.stack(parts).sum()


class Check(TrainerCallback):
    """Compares the gradient of each step with that of a function of its micro-batches."""

    def __init__(self, trainer: Any, expected: Callable[[Any, list[Batch]], Tensor]) -> None:
        self.trainer, self.expected = trainer, expected
        self.errors: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare before the optimizer changes the model."""
        model = kwargs["model"]
        trained = [p for p in model.parameters() if p.requires_grad]
        wanted = torch.autograd.grad(
            self.expected(model, self.trainer.batches[-ACCUMULATION:]), trained, allow_unused=True
        )
        pairs = [(p.grad, g) for p, g in zip(trained, wanted, strict=True) if g is not None]
        got = torch.cat([mine.flatten() for mine, _ in pairs if mine is not None])
        self.errors.append(
            relative_error(got, torch.cat([theirs.flatten() for _, theirs in pairs]))
        )


def check(
    folder: Path,
    rows: Callable[..., Tensor],
    *,
    rest: Callable[[Any, Batch], Tensor] | None = None,
    scale: float = 1.0,
    bound: float = 1e-5,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> AdaptMixCallback:
    """Train three steps, and compare each."""
    callback = AdaptMixCallback(
        "source", policy=WEIGHTS, unit="sample", lag=0, update_every=1, **(settings or {})
    )
    options: dict[str, Any] = {
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 10,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": 3,
    }
    trainer = hf.make(folder, callback, **(options | changes))

    def expected(model: Any, batches: list[Batch]) -> Tensor:
        objective = scale * written_out(callback, model, batches, rows)
        parts = [] if rest is None else [rest(model, batch) for batch in batches]
        return objective + sum(parts)

    checked = Check(trainer, expected)
    trainer.add_callback(checked)
    trainer.train()
    assert len(checked.errors) == 3
    assert max(checked.errors) < bound
    return callback


def test_label_smoothing(tmp_path: Path) -> None:
    check(
        tmp_path,
        lambda model, batch: causal(model, batch, smoothing=0.1),
        label_smoothing_factor=0.1,
    )


# peft asks transformers by the name that every supported release has.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_low_rank_adapters(tmp_path: Path) -> None:
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(hf.llama(), adapters)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros at first, and so would be the gradient of A
            nn.init.normal_(parameter)
    check(tmp_path, causal, model=model)


def sequences(features: list[dict[str, Any]]) -> Batch:
    """Rows with one label each."""
    batch = hf.pad(features)
    batch["labels"] = batch["input_ids"].sum(1) % 3
    return batch


def test_sequence_classification(tmp_path: Path) -> None:
    def rows(model: Any, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return F.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")

    check(tmp_path, rows, model=bert(num_labels=3), collator=sequences)


def bert(**changes: Any) -> Any:
    """A classifier without dropout, which would differ between two forward passes."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    quiet: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=hf.VOCABULARY, intermediate_size=48, **shape, **quiet, **changes)
    return BertForSequenceClassification(config)


def test_regression(tmp_path: Path) -> None:
    def numbers(features: list[dict[str, Any]]) -> Batch:
        batch = sequences(features)
        batch["labels"] = batch["labels"].float()
        return batch

    def rows(model: Any, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        losses: Tensor = (model(**inputs).logits[:, 0] - batch["labels"]).square()
        return losses

    check(tmp_path, rows, model=bert(num_labels=1), collator=numbers)


def test_several_labels(tmp_path: Path) -> None:
    def several(features: list[dict[str, Any]]) -> Batch:
        batch = sequences(features)
        batch["labels"] = F.one_hot(batch["labels"], 3).float()
        return batch

    def rows(model: Any, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return F.binary_cross_entropy_with_logits(
            model(**inputs).logits, batch["labels"], reduction="none"
        ).mean(1)

    model = bert(num_labels=3, problem_type="multi_label_classification")
    check(tmp_path, rows, model=model, collator=several)


def test_encoder_and_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_layers": 1, "num_heads": 2}
    config: Any = T5Config(vocab_size=hf.VOCABULARY, dropout_rate=0.0, **shape)
    config.decoder_start_token_id = 0

    def rows(model: Any, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        labels = batch["labels"]
        losses = F.cross_entropy(model(**inputs).logits.transpose(1, 2), labels, reduction="none")
        return per_row(losses, labels != -100)

    check(tmp_path, rows, model=T5ForConditionalGeneration(config))


def test_auxiliary_losses_stay_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads: dict[str, Any] = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
    }
    config = MixtralConfig(
        vocab_size=hf.VOCABULARY,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
        **shape,
        **heads,
    )

    def rest(model: Any, batch: Batch) -> Tensor:
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        added: Tensor = 0.5 * outputs.aux_loss
        return added

    model = MixtralForCausalLM(config)
    check(tmp_path, causal, model=model, rest=rest)


class Penalised(hf.RecordingTrainer):
    """A user's compute_loss that does more with the model's loss."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Twice the model's loss, and a penalty."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        penalty = sum(p.square().sum() for p in model.parameters())
        if isinstance(loss, tuple):
            return 2.0 * loss[0] + 0.01 * penalty, loss[1]
        return 2.0 * loss + 0.01 * penalty


def test_what_compute_loss_makes_of_the_models_loss_is_kept(tmp_path: Path) -> None:
    def rest(model: Any, _: Batch) -> Tensor:
        return 0.01 * torch.stack([p.square().sum() for p in model.parameters()]).sum()

    check(tmp_path, causal, kind=Penalised, rest=rest, scale=2.0)


def test_a_compute_loss_func_is_found_out(tmp_path: Path) -> None:
    def mean(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs.logits[:, :-1].transpose(1, 2)
        total = F.cross_entropy(logits, labels[:, 1:], reduction="sum")
        loss: Tensor = total / num_items_in_batch
        return loss

    check(tmp_path, causal, trainer_options={"compute_loss_func": mean})


class Network(nn.Module):
    """A model that is none of transformers', with a loss no rule gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Embedding(hf.VOCABULARY, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the mean of a loss of its own."""
        scores = self.out(self.body(input_ids).mean(1))
        if labels is None:
            return {"scores": scores}
        return {"loss": self.losses(scores, labels).mean(), "scores": scores}

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(B,) losses."""
        return F.cross_entropy(scores, labels, reduction="none").pow(1.5)


def only(features: list[dict[str, Any]]) -> Batch:
    """Rows with one label each, and no mask."""
    batch = sequences(features)
    del batch["attention_mask"]
    return batch


def network_rows(model: Any, batch: Batch) -> Tensor:
    """(B,) losses of a Network."""
    scores = model(batch["input_ids"])["scores"]
    losses: Tensor = model.losses(scores, batch["labels"])
    return losses


def test_a_users_own_losses(tmp_path: Path) -> None:
    model = Network()
    check(
        tmp_path,
        network_rows,
        model=model,
        collator=only,
        settings={
            "loss": lambda outputs, inputs: model.losses(outputs["scores"], inputs["labels"])
        },
    )


def test_a_named_head(tmp_path: Path) -> None:
    callback = check(
        tmp_path, network_rows, model=Network(), collator=only, settings={"head": "out"}
    )
    assert callback.controller.statistics.seen.sum() == 40
    assert torch.isnan(torch.from_numpy(callback.controller.statistics.loss_mean)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "neck"}, r"head must name a module of the model; got 'neck'"),
        ({"head": "out", "unit": "token"}, r'unit must be "sample" with head'),
    ],
)
def test_heads_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ObjectiveError, ValueError), match=message):
        callback = AdaptMixCallback("source", **settings)
        hf.train(tmp_path, callback, model=Network(), collator=only)


class Rescaled(Trainer):
    """A user's training_step that scales the loss behind compute_loss."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Differentiate half of the loss."""
        inputs = self._prepare_inputs(inputs)
        loss: Any = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        (0.5 * loss).backward()
        return torch.as_tensor(loss).detach()


class Forgetful(Trainer):
    """A user's training_step that passes on only what it knows."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Drop the batch's number."""
        known = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        return super().training_step(model, known, *args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Rescaled, r"got \[0\.5\d*\] times the stated loss's gradient"),
        (Forgetful, r"A training batch must carry its number"),
    ],
)
def test_a_trainer_that_goes_round_the_seam_is_stopped(
    kind: type[Trainer], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        hf.train(tmp_path, AdaptMixCallback("source"), kind=kind)


def test_a_model_whose_loss_is_not_what_it_seems_is_stopped(tmp_path: Path) -> None:
    model = hf.llama()

    def unlike(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
        own = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return own**2

    model.loss_function = unlike
    with pytest.raises(ObjectiveError, match=r"must be a sum of one term per row"):
        hf.train(tmp_path, AdaptMixCallback("source"), model=model)


def test_rows_that_a_collator_merges_are_refused(tmp_path: Path) -> None:
    def merge(features: list[dict[str, Any]]) -> Batch:
        return {name: value[:-1] for name, value in hf.pad(features).items()}

    with pytest.raises(ObjectiveError, match=r"must have the 8 rows that were drawn; got 7"):
        hf.train(tmp_path, AdaptMixCallback("source", unit="token"), collator=merge)


def test_the_model_gets_its_loss_function_back(tmp_path: Path) -> None:
    model = hf.llama()
    before = model.loss_function
    hf.train(tmp_path, AdaptMixCallback("source"), model=model, max_steps=2)
    assert model.loss_function is before
    assert "_loss_function" not in vars(model)
    model.loss_function = before
    hf.train(tmp_path, AdaptMixCallback("source"), model=model, max_steps=2)
    assert vars(model)["_loss_function"] is before
