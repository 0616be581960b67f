"""Builds tiny models of common libraries without dropout, makes their inputs and their losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

B, T, V, W = 3, 6, 19, 16

Inputs = dict[str, Tensor]


def losses(model: nn.Module, inputs: Inputs) -> Tensor:
    """(B,) of what a model returns: a cross-entropy with the first class, over its last dim."""
    if "fused_lm_head" in inputs:
        log_probs: Tensor = model(**inputs | {"fused_lm_head": True}).log_probs
        return -log_probs.double().mean(1)
    output = model(**inputs)
    for name in ("logits", "last_hidden_state", "image_embeds"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            output = found
            break
    each = output.double().logsumexp(-1) - output[..., 0].double()
    means: Tensor = each.reshape(len(each), -1).mean(1)
    return means


class Plain(nn.Module):
    """A model of PyTorch, called like the others."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


def words() -> Inputs:
    return {"input_ids": torch.randint(3, V, (B, T))}


def choices() -> Inputs:
    return {"input_ids": torch.randint(3, V, (B, 4, T))}


def both() -> Inputs:
    return words() | {"decoder_input_ids": torch.randint(3, V, (B, T - 1))}


def pictures() -> Inputs:
    return {"pixel_values": torch.randn(B, 3, 32, 32, dtype=torch.float64)}


def sounds() -> Inputs:
    return {"input_values": torch.randn(B, 400, dtype=torch.float64)}


def spectra() -> Inputs:
    features = torch.randn(B, 8, 16, dtype=torch.float64)
    return {"input_features": features, "decoder_input_ids": torch.randint(3, V, (B, T))}


def vectors() -> Inputs:
    return {"x": torch.randn(B, T, W, dtype=torch.float64)}


NONE = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout",
    "attention_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "activation_dropout",
    "dropout_rate",
    "drop_path_rate",
    "classifier_dropout",
    "embedding_dropout",
    "feat_proj_dropout",
    "final_dropout",
    "layerdrop",
    "mask_time_prob",
    "mlp_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
    "seq_classif_dropout",
    "embd_dropout",
)


SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


TEXT: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": W,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    **SPECIAL,
}


GROUPED = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}


GPT2: dict[str, Any] = {
    "vocab_size": V,
    "n_positions": 8,
    "n_embd": W,
    "n_layer": 2,
    "n_head": 2,
    **SPECIAL,
}
TWO_SIDES: dict[str, Any] = {
    "vocab_size": V,
    "d_model": W,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    **SPECIAL,
}
SEEN: dict[str, Any] = {
    "hidden_size": W,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def of(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds a model of transformers without dropout, in float64."""

    def build() -> nn.Module:
        kind = getattr(transformers, config)
        made = kind(**options)
        for part in (made, *(getattr(made, f"{name}_config", None) for name in ("text", "vision"))):
            for name in NONE:
                if isinstance(getattr(part, name, None), float):
                    setattr(part, name, 0.0)
        network: nn.Module = getattr(transformers, model)(made)
        # The grouped products of experts have no double precision.
        network = network if hasattr(made, "num_experts_per_tok") else network.double()
        for parameter in network.parameters():  # nothing that is zero, or one, at the start
            if parameter.ndim == 1 or not parameter.detach().any():
                parameter.data += 0.1 * torch.randn_like(parameter)
        return network.train()

    return build


def causal(kind: str, **options: Any) -> Callable[[], nn.Module]:
    return of(f"{kind}ForCausalLM", f"{kind}Config", **options)


def adapted(**options: Any) -> Callable[[], nn.Module]:
    """Return what builds a Llama with adapters, none of which is zero."""

    def build() -> nn.Module:
        import peft

        kind = options["kind"]
        config = getattr(peft, kind)(**{k: v for k, v in options.items() if k != "kind"})
        network: nn.Module = peft.get_peft_model(causal("Llama", **GROUPED)(), config).double()
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        return network.train()

    return build


def fused(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return what builds a model whose head TRL has fused with the loss."""

    def patched() -> nn.Module:
        from trl.trainer.utils import add_fused_lm_head

        from adaptmix_transformers import _heads  # noqa: F401 (registers TRL's)

        model = build().float()  # TRL's kernels compute in float32
        add_fused_lm_head(model)
        return model

    return patched


def supervised() -> Inputs:
    tokens = words()["input_ids"]
    labels = torch.where(torch.rand(B, T) < 0.7, tokens, -100)
    return {"input_ids": tokens, "labels": labels, "fused_lm_head": torch.ones(B).bool()}


def plain(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Plain(*(layer() for layer in layers)).double()
