"""Models with parts that a probe by layers would miss, or mistake."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.probe.cases import (
    Stack,
)

V = 11


class Gain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(x, gain)
        return x * gain

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, gain = ctx.saved_tensors
        return gradient * gain, (gradient * x).flatten(0, -2).sum(0)


class Hidden(Gain):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = Multiply.apply(x, self.gain)  # type: ignore[no-untyped-call]
        return output


class Places(nn.Module):
    """Positions without a batch dim of their own, as GPT-2 has them."""

    def __init__(self, width: int, *, batched: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(V, width), nn.Embedding(6, width)
        self.batched = batched

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        output: Tensor = self.words(x) + self.places(places[None] if self.batched else places)
        return output


class OwnPlaces(nn.Module):
    """Every row of a batch has positions of its own, which are counted through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(V, width), nn.Embedding(64, width)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.numel()).view(x.shape)
        output: Tensor = self.words(x) + self.places(places)
        return output


class PackedRows(nn.Module):
    """A recurrent network over rows that are sorted by length and packed, and put back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) % 3 + 4
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output: Tensor = pad_packed_sequence(
            self.network(packed)[0], batch_first=True, total_length=x.shape[1]
        )[0]
        return output


class Twice(nn.Module):
    """One table for words and places, of which the second use only has samples."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(V, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.table(torch.arange(x.shape[1])) + self.table(x)
        return output


class Functional(nn.Module):
    """Ties the head to the embedding by a function; with or without a module call beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(V, width), nn.Linear(width, width)
        self.hidden = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        body = functional.relu(self.body(self.words(x)))
        return functional.linear(
            functional.linear(body, self.hidden.weight, self.hidden.bias), self.words.weight
        )


class Unbatched(nn.Module):
    """Attention over all samples as one sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        output: Tensor = self.attention(rows, rows, rows)[0]
        return output.view(x.shape)


class Weighted(nn.Module):
    """A module whose own parameter is another module's too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.tied = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x)) @ self.tied
        return output


def stack(middle: nn.Module, width: int = 8) -> Stack:
    return Stack(nn.Embedding(V, width), [middle], nn.Linear(width, V))
