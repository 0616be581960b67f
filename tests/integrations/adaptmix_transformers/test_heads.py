"""TRL's fused head tells the noise that whole logits tell."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("trl")  # it does not support the oldest transformers
from trl.trainer import utils as trl_utils

from adaptmix import Segments, noise
from adaptmix_transformers._heads import chunked_head
from adaptmix_transformers._rows import likelihoods
from tests.integrations.adaptmix_transformers import hf


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("shape", [{}, {"final_logit_softcapping": 0.05, "logit_scale": 3.0}])
def test_noise_is_that_of_the_full_formula(
    shape: dict[str, float], compact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of rows that are packed; on a GPU the head is called with labelled positions alone."""
    model = hf.llama()
    for name, value in shape.items():
        setattr(model.config, name, value)
    ids = torch.randint(3, hf.VOCABULARY, (2, 40))
    labels = torch.where(torch.rand(ids.shape) < 0.2, -100, ids)
    with torch.no_grad():
        logits = model(input_ids=ids).logits * shape.get("logit_scale", 1.0)
        cap = shape.get("final_logit_softcapping")
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    trl_utils.add_fused_lm_head(model)
    if compact:
        monkeypatch.setattr(trl_utils, "_use_triton", lambda _: True)
    outputs = model(input_ids=ids, labels=labels, fused_lm_head=True)
    head = chunked_head(outputs.log_probs, outputs.label_mask)
    given = {"label_mask": outputs.label_mask, "head": head}
    rows = likelihoods(outputs.log_probs, given)
    assert rows.noise is not None
    for got, wanted in zip(rows.noise(None), noise.softmax(logits, targets), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    segments = Segments(torch.tensor([[0] * 25 + [1] * 15, [2] * 10 + [3] * 28 + [-1] * 2]))
    own = segments.unpack(targets, fill=-100)
    packed = rows.unpacked(segments).noise
    assert packed is not None
    for got, wanted in zip(packed(None), noise.softmax(segments.unpack(logits), own), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(
        noise.softmax(logits.flatten(0, 1).__getitem__, targets, positions=None),
        noise.softmax(logits, targets, positions=None),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
