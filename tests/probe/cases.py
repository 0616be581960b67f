"""Models for the probe, and its sums by the slow, obvious loop over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from adaptmix.probe._probe import GradientProbe
from adaptmix.probe.estimators._gradients import GradientSums

K = 3
DOMAINS = torch.tensor([0, 1, 2, 0, 2, 2, 0])
B = len(DOMAINS)
FACTORS = torch.tensor([0.1, 3.0, 0.5, -2.0, 0.7, 1e-3, 40.0], dtype=torch.float64)


class Stack(nn.Module):
    """A stem, blocks that may be checkpointed or the same module several times, and a head."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.reentrant is None or not torch.is_grad_enabled():
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        output: Tensor = self.head(x)
        return output


class Tokens(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.places = nn.Embedding(16, width)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        output: Tensor = self.words(x) + self.places(places)
        return output


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.RMSNorm(width), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = x + self.act(self.after(self.out(mixed)))
        return output


class MultiHead(nn.Module):
    """PyTorch's attention, whose projections are functions.

    Args:
        width: of queries and outputs.
        of: "itself", "another" with keys that are values, or "two" with values of their own.
        options: of ``nn.MultiheadAttention``.
    """

    def __init__(self, width: int, *, of: str = "itself", **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, **options)
        self.keys = None if of == "itself" else nn.Linear(width, self.attention.kdim)
        self.values = nn.Linear(width, self.attention.vdim) if of == "two" else None

    def forward(self, x: Tensor) -> Tensor:
        keys = x if self.keys is None else self.keys(x)
        values = keys if self.values is None else self.values(x)
        first = self.attention.batch_first
        # The attention goes by which of them are one object.
        turned = {id(t): t if first else t.transpose(0, 1) for t in (x, keys, values)}
        mixed: Tensor = self.attention(*(turned[id(t)] for t in (x, keys, values)))[0]
        return x + (mixed if first else mixed.transpose(0, 1))


def block(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width))


def mlp() -> Stack:
    return Stack(nn.Linear(5, 8), [block(8), block(8)], nn.Linear(8, 4, bias=False))


def repeated() -> Stack:
    shared = block(8)
    return Stack(nn.Linear(5, 8), [shared, block(8), shared], nn.Linear(8, 4))


def conv1d() -> Stack:
    middle = nn.Sequential(nn.Conv1d(6, 6, 4, padding="same", groups=3), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 4))
    return Stack(nn.Conv1d(3, 6, 3, stride=2, padding=1), [middle], head)


def conv2d() -> Stack:
    middle = nn.Sequential(
        nn.Conv2d(6, 12, (3, 2), padding="same", groups=2, dilation=(1, 2)),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 3, 3, padding="valid", bias=False),
        nn.LayerNorm((3, 2, 2)),
    )
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    return Stack(nn.Conv2d(2, 6, 3, stride=(2, 1), padding=(1, 0)), [middle], head)


def transformer() -> Stack:
    stem, head = Tokens(11, 8), nn.Linear(8, 11, bias=False)
    head.weight = stem.words.weight
    return Stack(stem, [Attention(8), Attention(8)], nn.Sequential(nn.LayerNorm(8), head))


def multi_head() -> Stack:
    encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    blocks = [
        MultiHead(8, batch_first=True),
        MultiHead(8, of="another", bias=False),
        MultiHead(8, of="two"),
        encoder,
    ]
    return Stack(Tokens(11, 8), blocks, nn.Linear(8, 11))


Case = tuple[Callable[[], Stack], Callable[[], tuple[Tensor, Tensor]]]


def _vectors(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(B, *shape, dtype=torch.float64), torch.randint(4, (B,)))


def _tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(11, (B, 6)), torch.randint(11, (B, 6))


CASES: dict[str, Case] = {
    "mlp": (mlp, _vectors(5)),
    "repeated": (repeated, _vectors(5)),
    "conv1d": (conv1d, _vectors(3, 11)),
    "conv2d": (conv2d, _vectors(2, 7, 6)),
    "transformer": (transformer, _tokens),
    "multi_head": (multi_head, _tokens),
}


def losses(output: Tensor, targets: Tensor) -> Tensor:
    """(B,) mean cross-entropy of each sample."""
    each = functional.cross_entropy(output.flatten(0, -2), targets.flatten(), reduction="none")
    return each.reshape(len(targets), -1).mean(1)


def reference(
    probe: GradientProbe,
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    domains: Tensor = DOMAINS,
) -> GradientSums:
    """What ``by_sample`` returns of a model whose losses are those of ``losses``."""

    def loss(j: int) -> Tensor:
        return losses(model(inputs[j : j + 1]), targets[j : j + 1]).sum()

    return by_sample(probe, model, loss, domains, K)


def by_sample(
    probe: GradientProbe,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    domains: Tensor,
    number_of_domains: int,
) -> GradientSums:
    """The sums by autograd, one sample after the other, but for parameters known to be hidden.

    Of whole gradients or of sketches of whole gradients, as ``probe`` has them.

    Args:
        probe: attached to the model.
        model: of the losses.
        loss: returns that of sample j, with all of its rows.
        domains: (B,) of the samples.
        number_of_domains: K.
    """
    seen = probe._parameters
    numbers = {seen._numbers[id(p)]: p for p in model.parameters() if id(p) in seen._numbers}
    candidates = [numbers[index] for index in seen.candidates]
    if probe._projections is not None:
        probe._projections.redraw(0)
    square, rows = torch.zeros(number_of_domains, dtype=torch.float64), []
    for j, domain in enumerate(domains.tolist()):
        gradients = torch.autograd.grad(loss(j), candidates, materialize_grads=True)
        vectors = [
            (torch.zeros_like(g) if seen.refused(index) else g)[None].double()
            for index, g in zip(seen.candidates, gradients, strict=True)
        ]
        if probe._projections is not None:
            named = zip(seen.candidates, vectors, strict=True)
            vectors = [torch.cat([probe._projections.sketch(*one) for one in named], dim=1)]
        rows.append(vectors)
        square[domain] += sum(vector.square().sum() for vector in vectors)
    members = functional.one_hot(domains, number_of_domains).double()
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    sums = [torch.tensordot(members.T, column, 1) for column in columns]
    return GradientSums(
        members.sum(0), square, sums, torch.zeros((), dtype=torch.float64), torch.zeros(2)
    )


def observe(
    probe: GradientProbe,
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    domains: Tensor = DOMAINS,
    factors: Tensor = FACTORS,
    parts: int = 1,
    proved: bool = True,
    after: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> GradientSums | None:
    """One observed step of ``parts`` micro-batches, ``proved`` to be read right."""
    probe.arm(True, step=0)
    for part in torch.arange(len(domains)).chunk(parts):
        each = losses(model(inputs[part]), targets[part])
        loss = (factors[part] * each).sum()
        probe.expect(domains[part], factors[part], loss, values=each if proved else None)
        after(loss).backward()
    return probe.collect()


def attached(model: nn.Module, estimator: str = "exact") -> GradientProbe:
    probe = GradientProbe(model, K, estimator=estimator, seed=3)
    probe.attach()
    return probe


def assert_same(got: GradientSums | None, want: GradientSums, rtol: float = 1e-10) -> None:
    assert got is not None
    compared = ((sums.count, sums.square, sums.skipped, *sums.vectors) for sums in (got, want))
    for one, other in zip(*compared, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol, check_dtype=False)
