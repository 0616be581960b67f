"""Common architectures, each built tiny from its configuration, and the losses of their samples."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from tests.probe.building import (
    GPT2,
    GROUPED,
    SEEN,
    SPECIAL,
    TEXT,
    TWO_SIDES,
    Inputs,
    T,
    V,
    W,
    adapted,
    both,
    causal,
    choices,
    fused,
    of,
    pictures,
    plain,
    sounds,
    spectra,
    supervised,
    vectors,
    words,
)


class Windows(nn.Module):
    """Swin's attention as timm and torchvision write it: a sample has several windows."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(W, 3 * W), nn.Linear(W, W)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(-1, T // 2, W)
        qkv = self.qkv(windows).reshape(len(windows), T // 2, 3, 2, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*qkv.unbind(0))
        mixed = mixed.transpose(1, 2).reshape(windows.shape)
        attended: Tensor = self.proj(mixed).reshape(x.shape)
        return x + attended


Case = tuple[Callable[[], nn.Module], Callable[[], Inputs]]
"""(builds a model, makes its inputs with samples first)."""


HEAD = lambda: nn.Linear(W, V)  # noqa: E731

ARCHITECTURES: dict[str, Case] = {
    # Decoders.
    "GPT-2": (of("GPT2LMHeadModel", "GPT2Config", **GPT2), words),
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
            **TWO_SIDES,
            max_position_embeddings=16,
        ),
        both,
    ),
    "Whisper": (
        of(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            **TWO_SIDES,
            num_mel_bins=8,
            max_source_positions=8,
            max_target_positions=16,
            decoder_start_token_id=1,
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
        fused(of("GPT2LMHeadModel", "GPT2Config", **GPT2 | {"n_layer": 1})),
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
    "attention within windows, in one projection": (plain(Windows, HEAD), vectors),
    "transposed convolution": (
        plain(
            lambda: nn.ConvTranspose1d(T, T, 3, padding=1), nn.PReLU, lambda: nn.LayerNorm(W), HEAD
        ),
        vectors,
    ),
}
