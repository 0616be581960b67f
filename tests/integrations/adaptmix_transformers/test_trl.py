"""TRL's trainers: the objective through the seams they have, and refusals where rows are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

pytest.importorskip("trl")  # it does not support the oldest transformers
from trl import (
    DPOConfig,
    DPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    pack_dataset,
)

from adaptmix import policies
from adaptmix.errors import ObjectiveError
from adaptmix_transformers import AdaptMixCallback
from adaptmix_transformers import _known as known
from tests import runs
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_parity import (
    WEIGHTS,
    lengths_of,
    objective,
    relative_error,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Of ``words``."""
    return words()


def words() -> Any:
    """Words w4 … w28 are their numbers."""
    known = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, hf.VOCABULARY)}
    inner = Tokenizer(WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def config(kind: Any, folder: Path, **changes: Any) -> Any:
    quiet = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 10,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "max_grad_norm": 0.0,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    return kind(**(quiet | changes))


class Check(TrainerCallback):
    """Compares the gradients of each step with those of a function of its micro-batches."""

    def __init__(self, expected: Any) -> None:
        self.expected = expected
        self.batches: list[dict[str, Tensor]] = []
        self.errors: list[float] = []

    def watch(self, trainer: Any) -> Any:
        """Keep the micro-batches of a trainer."""
        own = trainer.training_step

        def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.batches.append(dict(inputs))
            return own(model, inputs, *args, **kwargs)

        trainer.training_step = training_step
        trainer.add_callback(self)
        return trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare before the optimizer changes the model."""
        model, batches = kwargs["model"], self.batches
        wanted = torch.autograd.grad(self.expected(model, batches), list(model.parameters()))
        flat = torch.cat([gradient.flatten() for gradient in wanted])
        self.errors.append(relative_error(hf.gradient(model), flat))
        self.batches = []


@pytest.mark.parametrize(
    ("unit", "holdout"), [("token", None), ("sample", None), ("token", 0.25), ("sample", 0.25)]
)
def test_sft_is_the_objective(
    unit: str,
    holdout: float | None,
    tmp_path: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = hf.rows()
    draws = runs.record_draws(monkeypatch)
    lengths = lengths_of(data)
    callback = AdaptMixCallback(
        "source",
        policy=WEIGHTS,
        unit=unit,
        importance={"code": 3.0, "news": 2.0, "math": 1.0},
        lag=0,
        update_every=1,
        tokens_per_row=lengths if unit == "token" else None,
        holdout=holdout,
    )

    def expected(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
        held = runs.held_places(draws[-len(batches) :])
        return objective(callback.controller, model, batches, lengths, held)

    check = Check(expected)
    trainer = SFTTrainer(
        model=hf.llama(),
        args=config(SFTConfig, tmp_path, loss_type="nll"),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    check.watch(trainer).train()
    assert len(check.errors) == 4
    assert max(check.errors) < 1e-5
    assert bool(runs.held_places(draws)) == (holdout is not None)


def preferences() -> Dataset:
    rows = []
    for i in range(60):
        # The first word tells the domain.
        words = [f"w{3 + i % 2}", *(f"w{5 + (7 * i + j) % 23}" for j in range(7))]
        rows.append(
            {
                "prompt": " ".join(words[:3]),
                "chosen": " " + " ".join(words[3 : 5 + i % 3]),
                "rejected": " " + " ".join(words[4:6]),
                "source": "ab"[i % 2],
            }
        )
    return Dataset.from_list(rows)


# TRL's fused head uses its weight by function.
@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
@pytest.mark.parametrize("policy", ["static", "default"])
def test_dpo_is_the_objective(policy: str, tmp_path: Path, tokenizer: Any) -> None:
    weights = policies.Static(sampling={"a": 0.25, "b": 0.75}, loss={"a": 1.5, "b": 0.5})
    chosen: dict[str, Any] = {"policy": weights} if policy == "static" else {}
    callback = AdaptMixCallback("source", lag=0, update_every=1, **chosen)
    reference = hf.llama(1).eval()

    def log_odds(model: Any, batch: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        each = -F.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none"
        )
        sums = (each * batch["completion_mask"][:, 1:]).sum(1)
        chosen, rejected = sums.chunk(2)
        return chosen - rejected

    def expected(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
        controller = callback.controller
        losses, domains = [], []
        for batch in batches:
            with torch.no_grad():
                base = log_odds(reference, batch)
            losses.append(-F.logsigmoid(0.1 * (log_odds(model, batch) - base)))
            domains.append(batch["input_ids"].chunk(2)[0][:, 0] - 3)
        loss, domain = torch.cat(losses), torch.cat(domains)
        weights = controller.weights
        factors = weights.importance * weights.loss
        parts = [float(factors[i]) * loss[domain == i].mean() for i in range(2)]
        return torch.stack(parts).sum()

    check = Check(expected)
    trainer = DPOTrainer(
        model=hf.llama(),
        ref_model=reference,
        args=config(DPOConfig, tmp_path, beta=0.1, loss_type=["sigmoid"]),
        train_dataset=preferences(),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    check.watch(trainer).train()
    assert len(check.errors) == 4
    assert max(check.errors) < 1e-5
    if policy == "default":
        assert np.isfinite(callback.controller.statistics.grad_var).all()
    with pytest.raises(ObjectiveError, match=r"one term per pair.*got aot"):
        DPOTrainer(
            model=hf.llama(),
            ref_model=reference,
            args=config(DPOConfig, tmp_path, loss_type=["aot"]),
            train_dataset=preferences(),
            processing_class=tokenizer,
            callbacks=[AdaptMixCallback("source")],
        ).train()


@pytest.mark.parametrize("changes", [{}, {"center_rewards_coefficient": 0.1}])
def test_reward_models_are_the_objective(
    changes: dict[str, Any], tmp_path: Path, tokenizer: Any
) -> None:
    callback = AdaptMixCallback("source", lag=0, update_every=1)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    options: dict[str, Any] = {"num_attention_heads": 2, "pad_token_id": 0, "num_labels": 1}
    kind: Any = LlamaForSequenceClassification
    model = kind(LlamaConfig(vocab_size=hf.VOCABULARY, **shape, **options))
    centre = changes.get("center_rewards_coefficient", 0.0)

    def expected(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
        losses, domains = [], []
        for batch in batches:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            chosen, rejected = model(**inputs).logits[:, 0].chunk(2)
            losses.append(-F.logsigmoid(chosen - rejected) + centre * (chosen + rejected) ** 2)
            domains.append(batch["input_ids"].chunk(2)[0][:, 0] - 3)
        loss, domain = torch.cat(losses), torch.cat(domains)
        weights = callback.controller.weights
        factors = weights.importance * weights.loss
        return torch.stack([float(factors[i]) * loss[domain == i].mean() for i in range(2)]).sum()

    check = Check(expected)
    trainer = RewardTrainer(
        model=model,
        args=config(RewardConfig, tmp_path, **changes),
        train_dataset=preferences(),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    check.watch(trainer).train()
    assert len(check.errors) == 4
    assert max(check.errors) < 1e-5
    assert np.isfinite(callback.controller.statistics.grad_var).all()


@pytest.mark.parametrize("name", ["KTOTrainer", "RLOOTrainer"])
def test_trainers_whose_rows_have_no_loss_are_refused_by_name(name: str) -> None:
    import trl

    trainer = object.__new__(getattr(trl, name))
    with pytest.raises(ObjectiveError, match=f"does not work with {name}: "):
        known.refuse_trainer(trainer)


def test_sft_through_another_loss_and_with_packed_rows(tmp_path: Path, tokenizer: Any) -> None:
    """DFT weighs each token by its probability; rows are packed within domains."""
    packed: dict[tuple[int, ...], str] = {}
    for name in hf.SIZES:
        part = hf.rows().filter(lambda row, name=name: row["source"] == name)
        rows = pack_dataset(part.select_columns(["input_ids"]), 8, strategy="wrapped")
        whole = [tuple(row["input_ids"]) for row in rows if len(row["input_ids"]) == 8]
        packed |= dict.fromkeys(whole, name)
    callback = AdaptMixCallback("source", policy=WEIGHTS, lag=0, update_every=1)

    def expected(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
        values: dict[str, list[Tensor]] = {name: [] for name in hf.SIZES}
        for batch in batches:
            ids = batch["input_ids"]
            logits = model(input_ids=ids).logits[:, :-1]
            log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            losses = -(log_probs * log_probs.exp().detach()).mean(1)
            for row, loss in zip(ids.tolist(), losses, strict=True):
                values[packed[tuple(row)]].append(loss)
        weights = callback.controller.weights.as_dict(callback.controller.mixture.domains)
        parts = [
            weights[name]["importance"] * weights[name]["loss"] * torch.stack(losses).mean()
            for name, losses in values.items()
        ]
        return torch.stack(parts).sum()

    check = Check(expected)
    trainer = SFTTrainer(
        model=hf.llama(),
        args=config(SFTConfig, tmp_path, loss_type="dft"),
        train_dataset=Dataset.from_list(
            [{"input_ids": list(row), "source": name} for row, name in packed.items()]
        ),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    check.watch(trainer).train()
    assert max(check.errors) < 1e-5


def gpt2() -> Any:
    shape = GPT2Config(vocab_size=hf.VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(shape)


@pytest.mark.parametrize(("build", "chunk"), [(gpt2, 4096), (hf.llama, 16)])
def test_sft_measures_all_of_the_gradient(
    build: Any, chunk: int, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a micro-batch has more tokens than the head takes at once."""
    monkeypatch.setattr("trl.kernels.chunked_logprob.TOKEN_CHUNK_SIZE", chunk)
    callback = AdaptMixCallback("source", update_every=2)
    trainer = SFTTrainer(
        model=build(),
        args=config(SFTConfig, tmp_path, loss_type="nll", max_steps=6),
        train_dataset=hf.rows(),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    found: list[Any] = []
    end = callback.on_train_end

    def on_train_end(*args: Any, **kwargs: Any) -> None:
        assert callback._watch is not None
        found.append(callback._watch.coverage)
        end(*args, **kwargs)

    callback.on_train_end = on_train_end  # type: ignore[method-assign]
    trainer.train()
    (coverage,) = found
    assert coverage.least == pytest.approx(1.0)  # the mass is not measured where all is seen
    assert not coverage.unseen
    assert "grad_var" in callback.controller.statistics.supplied()
