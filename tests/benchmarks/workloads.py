"""Small models and four domains of different entropy each, for the benchmark of statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

DOMAINS = 4
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """A model with data for it.

    Args:
        build: makes the model.
        batch: (generator, (B,) domains) -> inputs and targets.
        losses: (model, inputs, targets) -> (B,) losses.
        size: B.
        lr: of AdamW.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator, Tensor], Batch]
    losses: Callable[[nn.Module, Tensor, Tensor], Tensor]
    size: int
    lr: float = 1e-3

    def draw(self, seed: int) -> tuple[Tensor, Batch]:
        """Return (B,) domains, equally many of each, and a batch of them."""
        domains = torch.arange(self.size) % DOMAINS
        return domains, self.batch(torch.Generator().manual_seed(seed), domains)


class CausalLM(nn.Module):
    """A language model that returns logits only, and gives every row its own positions."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        logits: Tensor = self.body(tokens, position_ids=places, use_cache=False).logits
        return logits


def token_losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    each = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten(), reduction="none")
    return each.view(targets.shape).mean(1)


def class_losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets, reduction="none")


def bigrams(vocabulary: int, length: int) -> Callable[[torch.Generator, Tensor], Batch]:
    """Rows of Markov chains over 1/64 to all of the vocabulary, ever less predictable."""
    source = torch.Generator().manual_seed(1)
    states = [vocabulary >> shift for shift in (6, 4, 2, 0)]
    successors, surprise = [1, 2, 4, 8], [0.01, 0.1, 0.3, 0.6]
    follow = [
        torch.randint(n, (n, m), generator=source) for n, m in zip(states, successors, strict=True)
    ]

    def batch(generator: torch.Generator, domains: Tensor) -> Batch:
        rows = []
        for domain in domains.tolist():
            n, row = states[domain], torch.zeros(length + 1, dtype=torch.int64)
            row[0] = torch.randint(n, (), generator=generator)
            choice = torch.randint(successors[domain], (length,), generator=generator)
            fresh = torch.randint(n, (length,), generator=generator)
            jump = torch.rand(length, generator=generator) < surprise[domain]
            for t in range(length):
                row[t + 1] = fresh[t] if jump[t] else follow[domain][row[t], choice[t]]
            rows.append(row)
        tokens = torch.stack(rows)
        return tokens[:, :-1], tokens[:, 1:].contiguous()

    return batch


def classes(shape: tuple[int, ...], number: int) -> Callable[[torch.Generator, Tensor], Batch]:
    """Noisy prototypes of classes, from clear to faint, with 0 to 60 % of the labels at random."""
    source = torch.Generator().manual_seed(1)
    prototypes = torch.randn(number, *shape, generator=source)
    signal, noise = torch.tensor([1.0, 0.5, 0.3, 0.3]), torch.tensor([0.0, 0.1, 0.3, 0.6])

    def batch(generator: torch.Generator, domains: Tensor) -> Batch:
        size = len(domains)
        labels = torch.randint(number, (size,), generator=generator)
        clear = signal[domains].reshape(-1, *[1] * len(shape)) * prototypes[labels]
        inputs = clear + torch.randn(size, *shape, generator=generator)
        drawn = torch.randint(number, (size,), generator=generator)
        wrong = torch.rand(size, generator=generator) < noise[domains]
        return inputs, torch.where(wrong, drawn, labels)

    return batch


def gpt2(layers: int, width: int, heads: int, vocabulary: int, length: int) -> nn.Module:
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return CausalLM(GPT2LMHeadModel(config))


def llama(layers: int, width: int, heads: int, vocabulary: int, length: int) -> nn.Module:
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=688,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=length,
    )
    return CausalLM(LlamaForCausalLM(config))


def mlp() -> nn.Module:
    sizes = (256, 512, 512, 512, 100)
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(sizes):
        layers += [nn.Linear(one, other), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for one, other, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)):
        layers += [nn.Conv2d(one, other, 3, stride, 1), nn.GroupNorm(8, other), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, 10))


V, T = 2048, 128
WORKLOADS = {
    "GPT-2": Workload(lambda: gpt2(4, 256, 4, V, T), bigrams(V, T), token_losses, 16),
    "Llama": Workload(lambda: llama(4, 256, 4, V, T), bigrams(V, T), token_losses, 16),
    "MLP": Workload(mlp, classes((256,), 100), class_losses, 256),
    "CNN": Workload(cnn, classes((3, 32, 32), 10), class_losses, 64),
}
