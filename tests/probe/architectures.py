"""Common architectures, each built tiny from its configuration, and the losses of their samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

B, T, V, W = 3, 6, 19, 16

Inputs = dict[str, Tensor]
Case = tuple[Callable[[], nn.Module], Callable[[], Inputs]]
"""(builds a model, makes its inputs with samples first)."""


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


def pairs() -> Inputs:
    return words() | pictures()


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


HEAD = lambda: nn.Linear(W, V)  # noqa: E731

ARCHITECTURES: dict[str, Case] = {
    # Decoders.
    "GPT-2": (
        of(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=V,
            n_positions=8,
            n_embd=W,
            n_layer=2,
            n_head=2,
            **SPECIAL,
        ),
        words,
    ),
    "Llama": (causal("Llama", **GROUPED), words),
    "Mistral": (causal("Mistral", **GROUPED), words),
    "Qwen2": (causal("Qwen2", **TEXT, num_key_value_heads=1), words),
    "Qwen3": (causal("Qwen3", **GROUPED), words),
    "Gemma 2": (causal("Gemma2", **GROUPED), words),
    "Gemma 3": (of("Gemma3ForCausalLM", "Gemma3TextConfig", **GROUPED), words),
    "Phi": (causal("Phi", **TEXT), words),
    "Phi-3": (causal("Phi3", **TEXT, num_key_value_heads=1), words),
    "OPT": (
        causal(
            "OPT",
            **{**TEXT, "ffn_dim": 20, "word_embed_proj_dim": W},
        ),
        words,
    ),
    "Bloom": (causal("Bloom", vocab_size=V, hidden_size=W, n_layer=2, n_head=2, **SPECIAL), words),
    "GPT-NeoX": (causal("GPTNeoX", **TEXT), words),
    "Falcon": (causal("Falcon", **TEXT), words),
    "Mixtral": (causal("Mixtral", **GROUPED, num_local_experts=3), words),
    "Qwen2-MoE": (
        causal(
            "Qwen2Moe",
            **TEXT,
            num_key_value_heads=1,
            num_experts=3,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            shared_expert_intermediate_size=12,
        ),
        words,
    ),
    "Mamba": (
        causal("Mamba", vocab_size=V, hidden_size=W, num_hidden_layers=2, state_size=4, **SPECIAL),
        words,
    ),
    # Encoders.
    "BERT": (of("BertForMaskedLM", "BertConfig", **TEXT), words),
    "BERT, multiple choice": (of("BertForMultipleChoice", "BertConfig", **TEXT), choices),
    "RoBERTa": (of("RobertaForMaskedLM", "RobertaConfig", **TEXT), words),
    "DistilBERT": (
        of(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            vocab_size=V,
            dim=W,
            hidden_dim=20,
            n_layers=2,
            n_heads=2,
            max_position_embeddings=16,
            pad_token_id=0,
        ),
        words,
    ),
    "DeBERTa-v2": (
        of(
            "DebertaV2ForSequenceClassification",
            "DebertaV2Config",
            **TEXT,
            relative_attention=True,
            pos_att_type="p2c|c2p",
            position_buckets=4,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
        ),
        words,
    ),
    "ELECTRA": (
        of("ElectraForSequenceClassification", "ElectraConfig", **TEXT, embedding_size=12),
        words,
    ),
    "ModernBERT": (
        of(
            "ModernBertForMaskedLM",
            "ModernBertConfig",
            **TEXT,
            cls_token_id=1,
            sep_token_id=2,
            attn_implementation="sdpa",
        ),
        words,
    ),
    "ALBERT": (of("AlbertForMaskedLM", "AlbertConfig", **TEXT, embedding_size=12), words),
    # Encoders with decoders.
    "T5": (
        of(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=V,
            d_model=W,
            d_kv=8,
            d_ff=20,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
        ),
        both,
    ),
    "BART": (
        of(
            "BartForConditionalGeneration",
            "BartConfig",
            vocab_size=V,
            d_model=W,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=20,
            decoder_ffn_dim=20,
            max_position_embeddings=16,
            **SPECIAL,
        ),
        both,
    ),
    "Whisper": (
        of(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            vocab_size=V,
            num_mel_bins=8,
            d_model=W,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=20,
            decoder_ffn_dim=20,
            max_source_positions=8,
            max_target_positions=16,
            decoder_start_token_id=1,
            **SPECIAL,
        ),
        spectra,
    ),
    # Pictures.
    "ViT": (of("ViTForImageClassification", "ViTConfig", **SEEN), pictures),
    "DeiT": (of("DeiTForImageClassification", "DeiTConfig", **SEEN), pictures),
    "BEiT": (
        of("BeitForImageClassification", "BeitConfig", **SEEN, layer_scale_init_value=0.1),
        pictures,
    ),
    "DINOv2": (of("Dinov2ForImageClassification", "Dinov2Config", **SEEN), pictures),
    "Swin": (
        of(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=4,
            embed_dim=8,
            depths=[2, 1],
            num_heads=[1, 2],
            window_size=4,
        ),
        pictures,
    ),
    "ConvNeXt": (
        of(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[8, 8],
            depths=[1, 1],
            num_stages=2,
            layer_scale_init_value=0.1,
        ),
        pictures,
    ),
    "CLIP": (
        of(
            "CLIPVisionModelWithProjection",
            "CLIPVisionConfig",
            **SEEN,
            projection_dim=8,
        ),
        pictures,
    ),
    # Sounds.
    "wav2vec 2": (
        of(
            "Wav2Vec2ForCTC",
            "Wav2Vec2Config",
            vocab_size=V,
            hidden_size=W,
            intermediate_size=20,
            num_hidden_layers=1,
            num_attention_heads=2,
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            apply_spec_augment=False,
        ),
        sounds,
    ),
    # Adapters.
    "LoRA": (adapted(kind="LoraConfig", r=2, target_modules=["q_proj", "down_proj"]), words),
    "DoRA": (
        adapted(kind="LoraConfig", r=2, use_dora=True, target_modules=["q_proj", "down_proj"]),
        words,
    ),
    "IA3": (
        adapted(
            kind="IA3Config",
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
        words,
    ),
    "prompt tuning": (
        adapted(kind="PromptTuningConfig", num_virtual_tokens=3, task_type="CAUSAL_LM"),
        words,
    ),
    # TRL's fused heads.
    "GPT-2, supervised by TRL": (
        fused(
            of(
                "GPT2LMHeadModel",
                "GPT2Config",
                vocab_size=V,
                n_positions=8,
                n_embd=W,
                n_layer=1,
                n_head=2,
                **SPECIAL,
            )
        ),
        supervised,
    ),
    "Llama, supervised by TRL": (fused(causal("Llama", **GROUPED)), supervised),
    "Gemma 2, supervised by TRL": (
        fused(causal("Gemma2", **GROUPED, final_logit_softcapping=2.0)),
        supervised,
    ),
    "Phi, supervised by TRL": (fused(causal("Phi", **TEXT)), supervised),
    # PyTorch's own.
    "LSTM": (
        plain(lambda: nn.LSTM(W, W, num_layers=2, bidirectional=False, batch_first=True), HEAD),
        vectors,
    ),
    "GRU": (plain(lambda: nn.GRU(W, 8, bidirectional=True, batch_first=True), HEAD), vectors),
    "TransformerEncoder": (
        plain(
            lambda: nn.TransformerEncoder(
                nn.TransformerEncoderLayer(W, 2, 20, dropout=0.0, batch_first=True),
                2,
                enable_nested_tensor=False,
            ),
            HEAD,
        ),
        vectors,
    ),
    "transposed convolution": (
        plain(
            lambda: nn.ConvTranspose1d(T, T, 3, padding=1), nn.PReLU, lambda: nn.LayerNorm(W), HEAD
        ),
        vectors,
    ),
}
