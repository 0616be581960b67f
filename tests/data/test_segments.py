"""Packed rows: domains, weights and statistics are those of the rows that were drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmix import Controller, Mixture, Segments, noise, policies
from adaptmix.errors import PackingWarning
from adaptmix.probe._probe import GradientProbe
from adaptmix.probe.estimators._gradients import GradientSums

V, T, WIDTH = 11, 12, 8
Row = list[int]


class Attention(nn.Module):
    """A causal language model over (P, T) tokens; ``ids`` keep segments from seeing each other."""

    def __init__(self, *, convolved: bool = False, pooled: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(V, WIDTH), nn.Embedding(T, WIDTH)
        self.norm, self.scale = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, V)
        self.convolution = nn.Conv1d(T, T, 1) if convolved else None
        self.pool = nn.Sequential(nn.Linear(WIDTH, T), nn.LayerNorm(T)) if pooled else None

    def forward(self, tokens: Tensor, positions: Tensor, ids: Tensor | None) -> Tensor:
        x = self.words(tokens) + self.places(positions)
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        order = torch.arange(tokens.shape[1])
        seen = (order[:, None] >= order).expand(len(tokens), -1, -1)
        if ids is not None:
            seen = seen & (ids.unsqueeze(2) == ids.unsqueeze(1))
        x = x + F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        if self.convolution is not None:
            x = x + self.convolution(x)
        if self.pool is not None:
            x = x + self.pool(x.mean(1)).unsqueeze(2)
        logits: Tensor = self.head(self.scale(x))
        return logits


def pack(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and ids of rows of at most T tokens, first fit."""
    packs: list[list[tuple[int, int, int]]] = []
    for number, row in enumerate(rows):
        places = [(token, place, number) for place, token in enumerate(row)]
        fitting = [packed for packed in packs if len(packed) + len(row) <= T]
        if not fitting:
            packs.append([])
        (fitting or packs[-1:])[0].extend(places)
    filled = [packed + [(0, 0, -1)] * (T - len(packed)) for packed in packs]
    tokens, positions, ids = torch.tensor(filled).permute(2, 0, 1)
    return tokens, positions, ids


def losses_of(model: Attention, tokens: Tensor, positions: Tensor, ids: Tensor | None) -> Tensor:
    """(P, T) loss of predicting the token itself."""
    logits = model(tokens, positions, ids)
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


def some_rows() -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 5, 2, 7, 12, 4, 1, 6]
    return [torch.randint(V, (n,), generator=generator).tolist() for n in lengths]


def sums_of(
    model: Attention,
    estimator: str,
    rows: list[Row],
    *,
    packed: bool,
    blind: bool = True,
    unseen: dict[str, str] | None = None,
) -> GradientSums:
    """Statistics of one observed step on the mean losses of the rows."""
    probe = GradientProbe(model, 2, estimator=estimator, seed=1)
    probe.attach()
    probe.arm(True, step=0)
    domains, factors = torch.arange(len(rows)) % 2, torch.linspace(0.5, 2.0, len(rows)).double()
    if packed:
        tokens, positions, ids = pack(rows)
        segments = Segments(ids)
        each = segments.unpack(losses_of(model, tokens, positions, ids if blind else None))
        means = each.sum(1) / segments.mask.sum(1)
    else:
        segments = None
        tokens = torch.tensor([row + [0] * (T - len(row)) for row in rows])
        mask = torch.tensor([[1.0] * len(row) + [0.0] * (T - len(row)) for row in rows]).double()
        positions = torch.arange(T).expand(len(rows), -1)
        means = (losses_of(model, tokens, positions, None) * mask).sum(1) / mask.sum(1)
    loss = (factors * means).sum()
    probe.expect(domains, factors, loss, segments=segments, values=means)
    loss.backward()
    sums = probe.collect()
    probe.detach()
    assert sums is not None
    mixes = model.convolution is not None or model.pool is not None
    assert (probe.coverage.share == 1.0) != mixes
    if unseen is not None:
        unseen.update(probe.coverage.unseen)
    return sums


@pytest.mark.parametrize("estimator", ["exact", "sketch"])
def test_statistics_are_those_of_the_rows_by_themselves(estimator: str) -> None:
    torch.manual_seed(0)
    model, rows = Attention().double(), some_rows()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = sums_of(model, estimator, rows, packed=True)
    alone = sums_of(model, estimator, rows, packed=False)
    for one, other in zip(packed.tensors(), alone.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_rows_that_see_each_other_are_warned_of() -> None:
    with pytest.warns(PackingWarning, match="see each other"):
        sums_of(Attention().double(), "sketch", some_rows(), packed=True, blind=False)


def test_that_it_cannot_be_checked_is_warned_of() -> None:
    model, (tokens, positions, ids) = Attention(), pack(some_rows())
    segments = Segments(ids)
    probe = GradientProbe(model, 2)
    probe.attach()
    probe.arm(True, step=0)
    loss = losses_of(model, tokens, positions, ids).sum()
    with pytest.warns(PackingWarning, match="could not be checked"):
        probe.expect(torch.zeros(len(segments)).long(), torch.ones(8), loss, segments=segments)


@pytest.mark.parametrize(
    ("mixing", "kinds"), [("convolved", {"Conv1d"}), ("pooled", {"LayerNorm", "Linear"})]
)
def test_layers_that_mix_positions_are_not_seen(mixing: str, kinds: set[str]) -> None:
    """Pooled outputs are (P, T) too, though not of positions."""
    torch.manual_seed(0)
    model = Attention(**{mixing: True}).double()
    unseen: dict[str, str] = {}
    with pytest.warns(PackingWarning):
        sums_of(model, "sketch", some_rows(), packed=True, unseen=unseen)
    assert set(unseen.values()) == kinds


def batches(unit: str, net: Attention) -> Iterator[tuple[Controller, Tensor, Tensor]]:
    """Gradients of five packed steps, and those of the objective over the steps' rows."""
    generator = torch.Generator().manual_seed(1)
    parts = {
        name: [torch.randint(V, (n,), generator=generator).tolist() for n in lengths]
        for name, lengths in (("short", [2, 3, 4] * 8), ("long", [6, 9, 12] * 8))
    }
    mix = Mixture(parts, importance={"short": 1.0, "long": 2.0})
    tokens_per_row = {"short": 3.0, "long": 9.0}
    controller = Controller(
        mix,
        policy=policies.Static(loss={"short": 0.5, "long": 1.25}),
        unit=unit,
        lag=0,
        update_every=1,
        tokens_per_row=tokens_per_row if unit == "token" else None,
    )
    controller.watch(net)
    for rows, draw in controller.loader(12, steps=5, collate_fn=list).with_draws():
        tokens, positions, ids = pack(rows)
        segments = Segments(ids)
        each = losses_of(net, tokens, positions, ids)
        logits = segments.unpack(net(tokens, positions, ids).detach())
        terms = noise.softmax(logits, segments.unpack(tokens, fill=-100))
        controller.loss(each, draw=draw, segments=segments, noise=terms).backward()
        got = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        alone = [
            losses_of(net, torch.tensor([row]), torch.arange(len(row))[None], None).sum()
            for row in rows
        ]
        weights = controller.weights
        objective = torch.zeros((), dtype=torch.float64)
        for i, name in enumerate(mix.domains):
            mine = [j for j in range(len(rows)) if int(draw.domains[j]) == i]
            length = tokens_per_row[name]
            of_domain = sum(
                alone[j] / (length if unit == "token" else len(rows[j])) for j in mine
            ) / len(mine)
            objective = objective + weights.importance[i] * weights.loss[i] * of_domain
        want = torch.autograd.grad(objective, list(net.parameters()))
        net.zero_grad()
        controller.step()
        yield controller, got, torch.cat([part.flatten() for part in want])


@pytest.mark.parametrize("unit", ["sample", "token"])
def test_the_gradient_is_that_of_the_objective_over_the_rows(unit: str) -> None:
    torch.manual_seed(0)
    net = Attention().double()
    supplied: frozenset[str] = frozenset()
    for controller, got, want in batches(unit, net):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        supplied = controller.statistics.supplied()
    assert {"noise", "loss_mean"} <= supplied


@given(st.lists(st.integers(1, T), min_size=1, max_size=9))
def test_unpacking_gives_every_row_its_own_values(lengths: list[int]) -> None:
    rows = [[100 * number + place for place in range(n)] for number, n in enumerate(lengths)]
    tokens, _, ids = pack(rows)
    segments = Segments(ids)
    assert len(segments) == len(rows)
    unpacked = segments.unpack(tokens, fill=-1)
    assert [[v for v in row if v >= 0] for row in unpacked.tolist()] == rows
    assert segments.mask.sum(1).tolist() == lengths


def test_segments_are_told_by_positions_that_start_anew() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    assert Segments.from_positions(positions).ids.tolist() == [[0, 0, 0, 1, 1], [2, 3, 3, 3, 3]]
    with pytest.raises(ValueError, match="start at 0"):
        Segments.from_positions(positions + 1)


@pytest.mark.parametrize(
    ("ids", "kind", "message"),
    [
        ([[0, 1]], TypeError, "tensor of integers; got list"),
        (torch.zeros(1, 2), TypeError, "tensor of integers; got torch.float32"),
        (torch.zeros(2).long(), ValueError, r"shape \(P, T\)"),
        (torch.zeros(0, 2).long(), ValueError, "not empty"),
        (torch.tensor([[0, -2]]), ValueError, "at least −1"),
        (torch.tensor([[0, 2]]), ValueError, "row 1 has no position"),
        (torch.tensor([[-1, -1]]), ValueError, "row 0 has no position"),
    ],
)
def test_bad_ids(ids: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Segments(ids)  # type: ignore[arg-type]


def test_positions_are_checked_as_ids_are() -> None:
    with pytest.raises(TypeError, match="positions must be a tensor of integers; got list"):
        Segments.from_positions([[0, 1]])  # type: ignore[arg-type]


def test_losses_that_do_not_fit() -> None:
    controller = Controller(Mixture({"a": [1, 2], "b": [3, 4]}), policy="static")
    _, draw = next(iter(controller.loader(2, steps=1).with_draws()))
    segments = Segments(torch.tensor([[0, 1, 1]]))
    with pytest.raises(TypeError, match="losses must be a tensor; got list"):
        controller.loss([[1.0, 2.0, 3.0]], draw=draw, segments=segments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="losses must have the shape of the packed rows"):
        controller.loss(torch.ones(3), draw=draw, segments=segments)
    with pytest.raises(ValueError, match="mask must have the shape of the packed rows"):
        controller.loss(torch.ones(1, 3), draw=draw, segments=segments, mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match="of the draw's 2 rows; got 3"):
        controller.loss(torch.ones(1, 3), draw=draw, segments=Segments(torch.tensor([[0, 1, 2]])))
    with pytest.raises(ValueError, match="values must have the shape"):
        segments.unpack(torch.ones(3))
