"""Models and adapters of the Hugging Face libraries, against a loop over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.probe.cases import B, assert_same, attached, observe, reference

pytest.importorskip("transformers")

from tests.probe.building import GPT2, GROUPED, T, V, causal, of

# Of its own making, about its own names.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Logits(nn.Module):
    """Calls a model on tokens, with positions for every row or without."""

    def __init__(self, body: Any, *, places: bool = True) -> None:
        super().__init__()
        self.body, self._places = body, places

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1]).expand(tokens.shape) if self._places else None
        logits: Tensor = self.body(tokens, position_ids=places, use_cache=False).logits
        return logits.double()


def gpt2() -> Any:
    return of("GPT2LMHeadModel", "GPT2Config", **GPT2)()


MODELS: dict[str, Callable[[], Any]] = {
    "GPT-2": gpt2,
    "Llama": causal("Llama", **GROUPED),
    "Llama, tied": causal("Llama", **GROUPED, tie_word_embeddings=True),
    "Qwen3": causal("Qwen3", **GROUPED),
}


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(V, (B, T)), torch.randint(V, (B, T))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_whole_models_are_covered_and_right(name: str, checkpointing: bool, estimator: str) -> None:
    torch.manual_seed(0)
    body = MODELS[name]().double()
    model, data = Logits(body), tokens()
    probe = attached(model, estimator)
    assert probe.coverage.share == 1.0
    want = reference(probe, model, *data)
    if checkpointing:
        body.gradient_checkpointing_enable()
    # The library's own normalisation computes in float32.
    assert_same(observe(probe, model.train(), *data), want, rtol=1e-4)
    assert probe.coverage.share == 1.0


def test_positions_of_one_row_for_all_are_seen(estimator: str) -> None:
    """As GPT-2 has them without ``position_ids``: 0.1 left them out."""
    model, data = Logits(gpt2().double(), places=False), tokens()
    probe = attached(model, estimator)
    assert_same(observe(probe, model, *data), reference(probe, model, *data))
    assert probe.coverage.share == 1.0


def test_adapters_are_all_that_counts(estimator: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, target_modules=["c_attn"], lora_dropout=0.0, fan_in_fan_out=True)
    body = peft.get_peft_model(gpt2(), config).double()
    for name, parameter in body.named_parameters():
        if "lora_B" in name:  # zero at the start, and then A has no gradient
            nn.init.normal_(parameter)
    model, data = Logits(body), tokens()
    probe = attached(model, estimator)
    got = observe(probe, model, *data)
    assert_same(got, reference(probe, model, *data))
    assert probe.coverage.share == 1.0
    assert len(probe._parameters.candidates) == 4
