"""Rows that are packed or flattened: the same objective, statistics and losses as padded ones.

Also tests ``data/_packing.py`` and ``adaptmix_transformers/_packs.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

pytest.importorskip("trl")  # it does not support the oldest transformers
from trl import SFTConfig, SFTTrainer
from trl.trainer import utils as trl_utils

from adaptmix.errors import ObjectiveError
from adaptmix_transformers import AdaptMixCallback, AdaptMixMixin
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_parity import in_double_precision
from tests.integrations.adaptmix_transformers.test_trl import config, tokenizer

__all__ = ["tokenizer"]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
HELD_OUT = hf.rows({"code": 5, "news": 4, "math": 4}, seed=1)
FIELDS = ("seen", "loss_mean", "grad_var", "grad_sq", "noise")
Flattening: Any = DataCollatorWithFlattening
PADDING_FREE: dict[str, Any] = {"padding_free": True, "max_length": None}


class PackedTrainer(AdaptMixMixin, SFTTrainer):  # type: ignore[misc]
    """What a user writes, so that the callback sees the dataset before it is packed."""


class Noisy(hf.Moving):
    """Needs noise terms too, so that they are measured."""

    requires = frozenset({"grad_sq", "noise"})


def callback(**changes: Any) -> AdaptMixCallback:
    """One whose weights move at once, on exact statistics."""
    options: dict[str, Any] = {"policy": Noisy(), "estimator": "exact", "lag": 0}
    return AdaptMixCallback("source", update_every=1, **(options | changes))


def sft(
    folder: Path, words: Any, adaptmix: AdaptMixCallback, kind: Any = None, **changes: Any
) -> Any:
    """An SFTTrainer that keeps gradients and coverage."""
    given: dict[str, Any] = {"callbacks": [adaptmix]} if kind is None else {"adaptmix": adaptmix}
    return (kind or SFTTrainer)(
        model=hf.llama(),
        args=config(SFTConfig, folder, **changes),
        train_dataset=hf.rows(),
        eval_dataset=HELD_OUT,
        processing_class=words,
        **given,
    )


def trained(trainer: Any, adaptmix: AdaptMixCallback) -> dict[str, Any]:
    """What a run did, and that it measured the whole gradient."""
    record, found = hf.Record(), list[Any]()
    trainer.add_callback(record)
    end = adaptmix.on_train_end

    def on_train_end(*args: Any, **kwargs: Any) -> None:
        assert adaptmix._watch is not None
        found.append(adaptmix._watch.coverage)
        end(*args, **kwargs)

    adaptmix.on_train_end = on_train_end  # type: ignore[method-assign]
    trainer.train()
    assert found[0].mass == pytest.approx(1.0)
    assert not found[0].unseen
    statistics = adaptmix.controller.statistics
    return {
        "gradients": torch.stack(record.gradients),
        "shares": adaptmix.controller.weights.sampling,
        **{name: getattr(statistics, name) for name in FIELDS},
        **{f"{k}": v for k, v in trainer.evaluate().items() if k.startswith("eval_loss_")},
    }


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
    assert np.abs(one["shares"] - one["shares"].mean()).max() > 0.01


@pytest.mark.parametrize("unit", ["token", "sample"])
def test_padding_free_sft_is_padded_sft(unit: str, tmp_path: Path, tokenizer: Any) -> None:
    """Also where the head is called with labelled positions alone, as on a GPU."""
    results = []
    for changes, compact in (({}, False), (PADDING_FREE, False), (PADDING_FREE, True)):
        adaptmix = callback(unit=unit)
        trainer = sft(tmp_path, tokenizer, adaptmix, **changes)
        with pytest.MonkeyPatch.context() as patch:
            if compact:
                patch.setattr(trl_utils, "_use_triton", lambda _: True)
            results.append(trained(trainer, adaptmix))
    assert {f"eval_loss_{name}" for name in hf.SIZES} <= results[0].keys()
    assert_same(results[0], results[1], 2e-4)
    assert_same(results[0], results[2], 2e-4)


def short(rows: Any, width: int = 14) -> dict[str, Tensor]:
    """Pack rows in their order into as many of a fixed width as they fill; padding at the ends."""
    packs: list[list[tuple[int, int, int]]] = [[]]
    for row in rows:
        ids, labels = row["input_ids"], [-100, *row["labels"][1:]]
        if len(packs[-1]) + len(ids) > width:
            packs.append([])
        packs[-1] += zip(ids, labels, range(len(ids)), strict=True)
    filled = torch.tensor([pack + [(0, -100, 0)] * (width - len(pack)) for pack in packs])
    return dict(zip(("input_ids", "labels", "position_ids"), filled.unbind(2), strict=True))


@pytest.mark.parametrize("collator", [Flattening(), short])
def test_rows_that_a_collator_packs_are_the_padded_ones(collator: Any, tmp_path: Path) -> None:
    results = []
    for collate in (hf.pad, collator):
        adaptmix, model = callback(lag=1), hf.llama(dtype=torch.float64)
        model.loss_function = in_double_precision
        trainer = hf.make(
            tmp_path,
            adaptmix,
            model=model,
            collator=collate,
            gradient_accumulation_steps=2,
            max_steps=4,
            dataloader_num_workers=int(collate is short),
            trainer_options={"eval_dataset": HELD_OUT},
        )
        results.append(trained(trainer, adaptmix))
    assert_same(results[0], results[1], 1e-9)


def test_packs_in_which_nothing_keeps_rows_apart_are_refused(tmp_path: Path) -> None:
    """Without positions that start anew, attention goes from row to row."""
    collator = Flattening(return_position_ids=False)
    with pytest.raises(ObjectiveError, match="position_ids that start anew in each"):
        hf.train(tmp_path, callback(), collator=collator, max_steps=1)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packs_are_of_one_domain_and_keep_all_that_trl_keeps(
    strategy: str, tmp_path: Path, tokenizer: Any
) -> None:
    packed = {"packing": True, "packing_strategy": strategy, "max_length": 10}
    trainer = sft(tmp_path, tokenizer, callback(), PackedTrainer, **packed)
    own = sft(tmp_path, tokenizer, callback(), **packed)
    for mine, theirs in (
        (trainer.train_dataset, own.train_dataset),
        (trainer.eval_dataset, own.eval_dataset),
    ):
        assert sum(map(len, mine["input_ids"])) == sum(map(len, theirs["input_ids"]))
        assert set(mine["source"]) == set(hf.SIZES)
        assert max(map(len, mine["input_ids"])) <= 10
    first = {name: number + 1 for number, name in enumerate(hf.SIZES)}
    for pack in trainer.train_dataset:
        firsts = {token for token in pack["input_ids"] if token in first.values()}
        assert firsts <= {first[pack["source"]]}
    with pytest.raises(ObjectiveError, match=r"drops the column 'source'.*class PackedTrainer"):
        own.train()


def test_packs_do_not_count_rows(tmp_path: Path, tokenizer: Any) -> None:
    trainer = sft(tmp_path, tokenizer, callback(unit="sample"), PackedTrainer, packing=True)
    with pytest.raises(ObjectiveError, match=r'unit must be "token".*packing=True; got "sample"'):
        trainer.train()


class Coupled(hf.RecordingTrainer):
    """A hinge between the first position of a batch and all others."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
        return torch.relu(1.0 + logits - logits[0, 0].flip(0)).mean()


def test_losses_between_packed_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match="sum of one term per row"):
        hf.train(tmp_path, callback(), kind=Coupled, collator=Flattening())
