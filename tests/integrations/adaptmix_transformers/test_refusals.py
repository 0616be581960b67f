"""Settings, samplers and data that do not work are refused by the names that users gave them.

Also tests ``adaptmix_transformers/_known.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)
from transformers import LlamaForCausalLM, Trainer
from transformers.modeling_outputs import CausalLMOutputWithPast

from adaptmix.errors import ObjectiveError
from adaptmix_transformers import AdaptMixCallback
from adaptmix_transformers import _internals as internals
from tests.integrations.adaptmix_transformers import hf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"accelerator_config": {"dispatch_batches": True}},
            r"dispatch_batches=True\. Leave it out",
        ),
        ({"accelerator_config": {"split_batches": True}}, r"split_batches=True\. Leave it out"),
    ],
)
def test_settings_that_change_who_reads_which_rows_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ObjectiveError, match=f"does not work with .*{message}"):
        hf.train(tmp_path, AdaptMixCallback("source"), **changes)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("is_deepspeed_enabled", "does not work with deepspeed"),
        ("is_fsdp_enabled", "does not work with fsdp"),
    ],
)
def test_sharded_training_is_refused(flag: str, message: str, tmp_path: Path) -> None:
    trainer = hf.make(tmp_path, AdaptMixCallback("source"))
    setattr(trainer, flag, True)
    with pytest.raises(ObjectiveError, match=message):
        trainer.train()


def test_a_cross_entropy_that_overwrites_logits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Liger's takes the place of torch's when it is applied; for some models it is the default."""

    def liger_cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError  # its kernels need a GPU

    trainer = hf.make(tmp_path, AdaptMixCallback("source"))
    liger_cross_entropy.__module__ = "liger_kernel.transformers.functional"
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", liger_cross_entropy)
    with pytest.raises(ObjectiveError, match=r"Liger's cross_entropy.*over the logits"):
        trainer.train()


def _drawn_by(make: Callable[[Any], Any]) -> type[Trainer]:
    class Own(Trainer):
        """Draws rows in a way of its own."""

        def _get_train_sampler(self, *args: Any) -> Any:
            return make(self.train_dataset)

    return Own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rows: list(range(len(rows))), r"drawn by list of Own\._get_train_sampler"),
        (
            lambda rows: RandomSampler(rows, replacement=True),
            r"RandomSampler\(replacement=True\) of Own\._get_train_sampler, which .* replace",
        ),
        (
            lambda rows: RandomSampler(rows, num_samples=20),
            r"RandomSampler \(20 of 80 rows\) of Own",
        ),
        (SequentialSampler, r"SequentialSampler \(rows in the order of the dataset\) of Own"),
        (lambda _: None, r"SequentialSampler \(rows in the order of the dataset\) of Own"),
        (
            lambda rows: WeightedRandomSampler([1.0] * len(rows), len(rows)),
            r"WeightedRandomSampler of Own.*AdaptMixCallback\(importance=\{domain: weight\}\)",
        ),
    ],
)
def test_samplers_of_ones_own_are_refused(
    make: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        hf.train(tmp_path, AdaptMixCallback("source"), kind=_drawn_by(make))


def test_an_order_that_is_asked_for_is_refused_by_its_argument(tmp_path: Path) -> None:
    if "train_sampling_strategy" not in hf.GROUPED:
        pytest.skip("older releases of transformers have no such argument")
    with pytest.raises(ObjectiveError, match=r"of train_sampling_strategy='sequential', which"):
        hf.train(tmp_path, AdaptMixCallback("source"), train_sampling_strategy="sequential")


def test_samplers_that_shuffle_as_the_trainer_does_pass(tmp_path: Path) -> None:
    callback = AdaptMixCallback("source")
    hf.train(tmp_path, callback, kind=_drawn_by(RandomSampler), max_steps=2)
    assert callback.controller.completed == 2
    assert not internals.groups_by_length(hf.make(tmp_path, None).get_train_dataloader())
    assert internals.shuffles(hf.make(tmp_path, None).get_train_dataloader())
    trainer = hf.make(tmp_path, None)
    assert internals.overriding((trainer.get_train_dataloader,)) is None


class OwnLoader(Trainer):
    """Makes its own loader, of smaller batches than the arguments say."""

    def get_train_dataloader(self) -> Any:
        """Return it."""
        rows: Any = self.train_dataset
        rows = rows.remove_columns("source")
        return DataLoader(rows, batch_size=4, shuffle=True, collate_fn=hf.pad)


def test_loaders_of_ones_own_have_the_plans_batches(tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match=r"per_device_train_batch_size=8 rows.*got 4"):
        hf.train(tmp_path, AdaptMixCallback("source"), kind=OwnLoader)
    # The domains come apart from rows, whose column the loader left out.
    callback = AdaptMixCallback(hf.rows()["source"])
    trainer = hf.train(tmp_path, callback, kind=OwnLoader, per_device_train_batch_size=4)
    assert trainer.state.global_step == callback.controller.completed == 8


def test_streams_are_refused(tmp_path: Path) -> None:
    stream = hf.rows().to_iterable_dataset()
    with pytest.raises(
        (ObjectiveError, TypeError), match=r"must be map-style.*Mixture\(\{name: stream"
    ):
        hf.train(tmp_path, AdaptMixCallback("source"), data=stream)


def test_a_column_that_was_lost_is_named(tmp_path: Path) -> None:
    data = hf.rows().remove_columns("source")
    assert isinstance(data, Dataset)
    with pytest.raises(ValueError, match=r"got 'source', and it has input_ids, labels\. Keep"):
        hf.train(tmp_path, AdaptMixCallback("source"), data=data)
    with pytest.raises(ValueError, match="controller must be read after Trainer"):
        print(AdaptMixCallback("source").controller)


class LigerFusedLinearCrossEntropyFunction(torch.autograd.Function):
    """Stands in for Liger's kernel, which needs a GPU: loss and gradients, without logits kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        with torch.enable_grad():
            inputs = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            loss = F.cross_entropy(inputs[0] @ inputs[1].T, target, ignore_index=-100)
            ctx.save_for_backward(*torch.autograd.grad(loss, inputs))
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return *(gradients[0] * part for part in ctx.saved_tensors), None


class Fused(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """What apply_liger_kernel_to_llama makes of a model."""

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        hidden = self.model(input_ids, attention_mask=kwargs["attention_mask"])[0]
        kernel: Any = LigerFusedLinearCrossEntropyFunction
        loss = kernel.apply(
            hidden[:, :-1].flatten(0, 1), self.lm_head.weight, labels[:, 1:].flatten()
        )
        shown = (hidden,) if self.config.output_hidden_states else None
        return CausalLMOutputWithPast(loss=loss, logits=None, hidden_states=shown)


@pytest.mark.parametrize("hidden", [False, True])
def test_losses_that_are_fused_with_the_head_are_refused_by_name(
    hidden: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Fused(hf.llama(output_hidden_states=hidden).config)
    message = r"LigerFusedLinearCrossEntropyFunction computes it from hidden .* Switch the fused"
    with pytest.raises(ObjectiveError, match=message):
        hf.train(tmp_path, AdaptMixCallback("source"), model=model)
    callback = AdaptMixCallback("source", mode="observe")
    hf.train(tmp_path, callback, model=model, max_steps=2)
    assert callback.controller.completed == 2


class Late(hf.RecordingTrainer):
    """A hinge on the batch's mean that joins the loss in mid-run."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["return_outputs"] = True
        loss, outputs = super().compute_loss(model, inputs, **kwargs)
        if self.state.global_step >= 12:
            loss = loss + F.relu(outputs.logits.mean() + 1.0)
        return loss


def test_a_hinge_between_rows_that_begins_in_mid_run_is_refused(tmp_path: Path) -> None:
    callback = AdaptMixCallback("source", policy="static", update_every=4)
    with pytest.raises(ObjectiveError, match=r"Relu of a value that depends on several rows"):
        hf.train(tmp_path, callback, kind=Late, max_steps=30)
    assert 12 <= callback.controller.completed < 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "variance-aware"}, "policy must be"),
        ({"policy": 3}, "policy"),
        ({"mode": "watch"}, "mode must be"),
        ({"unit": "batch"}, "unit must be"),
        ({"counts": "poisson"}, "counts must be"),
        ({"estimator": "hessian"}, "estimator must be"),
        ({"lag": -1}, "lag must be"),
        ({"update_every": 0}, "update_every must be"),
        ({"measure_every": 0.5}, "measure_every must be"),
        ({"half_life": 0.0}, "half_life must be"),
        ({"min_coverage": 2.0}, "min_coverage must be"),
        ({"importance": {"a": -1.0, "b": 2.0}}, "importance must be"),
        ({"importance": {"a": 1.0}, "tokens_per_row": {"b": 2.0}}, "tokens_per_row must name"),
        ({"tokens_per_row": len}, "tokens_per_row must map"),
        ({"head": 3}, "head must be"),
        ({"head": "out", "unit": "token"}, 'unit must be "sample" with head'),
        ({"loss": "mean"}, "loss must be a function"),
        ({"domains": 3}, "domains must be"),
        ({"sampler": "stratified"}, "unexpected keyword argument 'sampler'"),
    ],
)
def test_wrong_options_fail_where_they_are_written(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        AdaptMixCallback(**options)
