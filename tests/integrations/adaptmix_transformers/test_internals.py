"""What is used of transformers' internals is as it is thought to be; refusals name their reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)
from transformers.pytorch_utils import Conv1D

from adaptmix import Mixture
from adaptmix.probe._compiled import any_compiled
from adaptmix.probe.rules._linear import Matrix
from adaptmix.probe.rules._registry import find_rule
from adaptmix.trainers import count_labels
from adaptmix_transformers import _internals as internals
from tests.integrations.adaptmix_transformers import hf


def test_the_trainer_is_found_while_it_is_made(tmp_path: Path) -> None:
    class Finder(TrainerCallback):
        """Looks for its trainer."""

        found: Trainer | None = None

        def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Look."""
            self.found = internals.find_trainer(self)

    finder = Finder()
    trainer = hf.make(tmp_path, None)
    assert internals.find_trainer(finder) is None
    other = Trainer(hf.llama(), hf.arguments(tmp_path), callbacks=[finder])
    assert finder.found is other
    assert internals.is_attached(other, finder)
    assert not internals.is_attached(trainer, finder)


def test_what_the_trainer_does_to_a_loss(tmp_path: Path) -> None:
    trainer = hf.make(tmp_path, None, gradient_accumulation_steps=3)
    trainer.current_gradient_accumulation_steps = 3
    assert internals.loss_divisor(trainer, torch.tensor(5)) == 1
    assert internals.loss_divisor(trainer, None) == 3
    assert internals.world_factor(trainer, torch.tensor(5)) == 1
    assert internals.backward_scale(trainer) == 1.0
    assert internals.smoothing(trainer) == 0.0
    smoothed = hf.make(tmp_path, None, label_smoothing_factor=0.2)
    assert internals.smoothing(smoothed) == 0.2
    trainer.loss_is_scaled_for_ga = False
    assert internals.loss_divisor(trainer, torch.tensor(5)) == 3
    assert internals.rows_per_process(trainer) == 8
    assert not any_compiled(trainer.model.modules())
    assert isinstance(internals.core_model(trainer), LlamaForCausalLM)
    assert internals.tensorboard_writer(trainer) is None


def test_the_core_knows_the_transposed_linear_layer() -> None:
    """0.1 had a second, slower rule here, which replaced that of the core."""
    kind: Any = Conv1D
    rule = find_rule(kind(3, 5))
    assert isinstance(rule, Matrix) and rule.inputs_dim == 0


def test_which_models_shift_labels() -> None:
    shape: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = BertForMaskedLM(BertConfig(vocab_size=9, intermediate_size=8, **shape))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_ff=8, num_layers=1))
    assert internals.shifts_labels(hf.llama())
    assert not internals.shifts_labels(bert)
    assert not internals.shifts_labels(t5)
    assert not internals.shifts_labels(torch.nn.Linear(2, 2))


def test_evaluation_columns_and_collators_are_put_back(tmp_path: Path) -> None:
    data = hf.rows()
    trainer = hf.make(tmp_path, None, trainer_options={"eval_dataset": {"new": data}})
    assert internals.evaluated(trainer, "new") is data
    assert internals.evaluated(trainer, data) is data
    assert "source" not in internals.used_columns(trainer, data).column_names
    own, sampler = trainer.data_collator, trainer._get_eval_sampler

    def mine(collate: Any) -> Any:
        return "mine", collate

    with internals.evaluating(trainer, "new", data, [1, 2], mine) as asked:
        assert asked == "new"
        assert trainer.eval_dataset["new"] == [1, 2]
        assert trainer.data_collator[0] == "mine"
        assert trainer._get_eval_sampler([1, 2]).data_source is data
    assert trainer.data_collator is own
    assert trainer._get_eval_sampler == sampler
    assert trainer.eval_dataset["new"] is data


def test_tokens_are_counted_without_touching_the_runs_randomness() -> None:
    def masking(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = hf.pad(features)
        hidden = torch.rand(batch["labels"].shape) < 0.5
        return batch | {"labels": batch["labels"].masked_fill(hidden, -100)}

    mixture = Mixture.from_labels(hf.rows(), hf.rows()["source"])
    before = torch.get_rng_state()
    first, second = (count_labels(mixture, masking, shifted=True, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second
    whole = count_labels(mixture, hf.pad, shifted=True, seed=3)
    lengths = {name: [] for name in hf.SIZES}  # type: dict[str, list[int]]
    for row in hf.rows():
        lengths[row["source"]].append(len(row["labels"]) - 1)
    assert whole.tokens == pytest.approx({name: sum(n) / len(n) for name, n in lengths.items()})
    labelless = count_labels(
        mixture, lambda rows: {"input_ids": hf.pad(rows)["input_ids"]}, shifted=True, seed=3
    )
    assert labelless.tokens is None
    assert labelless.supervised is None


def test_lengths_of_rows_are_found(tmp_path: Path) -> None:
    data = hf.rows()
    lengths = [len(row) for row in data["input_ids"]]
    for rows in (data, data.add_column("length", [length + 1 for length in lengths])):
        trainer = hf.make(tmp_path, None, data=rows, **hf.GROUPED)
        loader = trainer.get_train_dataloader()
        assert internals.groups_by_length(loader)
        added = int("length" in rows.column_names)
        assert internals.row_lengths(trainer, loader) == [length + added for length in lengths]


def test_a_batch_is_handed_over_as_the_trainer_does(tmp_path: Path) -> None:
    trainer = hf.make(tmp_path, None)
    batch = hf.pad([hf.rows()[0]])
    assert internals.on_device(trainer, batch)["labels"].tolist() == batch["labels"].tolist()


def test_causal_models_shift_labels_whatever_they_are_called() -> None:
    sizes: dict[str, Any] = {"vocab_size": hf.VOCABULARY, "n_embd": 8, "n_layer": 1, "n_head": 2}
    kind: Any = transformers.GPT2LMHeadModel
    assert internals.shifts_labels(kind(transformers.GPT2Config(**sizes)))
    assert internals.shifts_labels(hf.llama())
    assert not internals.shifts_labels(torch.nn.Linear(1, 1))


def test_only_datasets_of_a_known_length_have_one(tmp_path: Path) -> None:
    stream = hf.rows().to_iterable_dataset()
    for sizes, known in ((None, False), ({"web": 80}, True)):
        data = Mixture({"web": stream}, sizes=sizes)
        loader = hf.make(tmp_path, None, data=data).get_train_dataloader()
        assert internals.has_length(loader) == known
        assert internals.shuffles(loader)
