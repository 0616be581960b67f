"""What is read at layers is proved to be of the samples that it is taken for.

Also tests ``probe/_pauses.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptmix.errors import CoverageWarning, RowOrderWarning
from adaptmix.probe import GradientProbe, _verification
from adaptmix.probe._verification import verify
from tests.probe.cases import DOMAINS, FACTORS, B, Stack, attached, losses, observe, reference

V, D = 11, 7  # as wide as there are samples
assert D == B


class TimeMajor(nn.Module):
    """A layer that has its positions first, of which there are as many as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x.transpose(0, 1)).transpose(0, 1)
        return output


class Pooled(nn.Module):
    """Adds the mean of the batch to each row."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 3.0 * x.mean(0, keepdim=True)


class Sorted(nn.Module):
    """A layer that has the rows in an order that depends on them, and puts them back."""

    def __init__(self, pick: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
        self.pick = pick

    def forward(self, x: Tensor) -> Tensor:
        order = x.detach().flatten(1).sum(1).argsort()
        return self.pick(self.inner(self.pick(x, order)), order.argsort())


class Turned(nn.Module):
    """A layer that has the rows in the order of ``turn``, and puts them back."""

    def __init__(self, turn: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
        self.turn, self.back = turn, back

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.inner(self.turn(x)))


class Places(nn.Module):
    """Positions without samples, of which there are as many as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(V, D), nn.Embedding(B, D)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.words(x) + self.places(torch.arange(x.shape[1]))
        return output


class Doubled(nn.Module):
    """A layer whose first copy of the rows counts twice, unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        if y.grad_fn is not None:
            y.grad_fn.register_prehook(lambda g: (g[0] * 2.0,))
        return y


ORDER = torch.tensor([3, 0, 6, 1, 5, 2, 4])


def stack(middle: nn.Module) -> Stack:
    return Stack(nn.Embedding(V, D), [middle], nn.Linear(D, V)).double()


def tokens() -> tuple[Tensor, Tensor]:
    """As many positions as samples."""
    return torch.randint(V, (B, B)), torch.randint(V, (B, B))


FOLLOWED: dict[str, Callable[[], Stack]] = {
    "as wide as the batch": lambda: stack(nn.Linear(D, D)),
    "positions of the batch's number": lambda: Stack(Places(), [], nn.Linear(D, V)).double(),
    "picked in another order": lambda: stack(Sorted(lambda x, order: x[order])),
    "selected in another order": lambda: stack(Sorted(lambda x, order: x.index_select(0, order))),
    "features picked": lambda: stack(
        Turned(lambda x: x.index_select(1, ORDER), lambda x: x[:, ORDER.argsort()])
    ),
}

DOUBTED: dict[str, tuple[Callable[[], Stack], dict[str, str]]] = {
    "positions first": (lambda: stack(TimeMajor()), {"blocks.0.inner": "Linear"}),
    "rows turned": (
        lambda: stack(Turned(lambda x: x.flip(0), lambda x: x.flip(0))),
        {"blocks.0.inner.0": "Linear", "blocks.0.inner.2": "Linear"},
    ),
    "rows that are counted twice": (lambda: stack(Doubled()), {"blocks.0.inner": "Linear"}),
}


def assert_equivalent(model: Stack, estimator: str) -> None:
    inputs, targets = tokens()
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets)
    assert got is not None
    want = reference(probe, model, inputs, targets)
    torch.testing.assert_close(got.square, want.square)
    torch.testing.assert_close(got.gram(), want.gram())


@pytest.mark.parametrize("name", FOLLOWED)
def test_sizes_that_happen_to_be_the_batch_s_are_not_taken_for_it(
    name: str, estimator: str
) -> None:
    model = FOLLOWED[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equivalent(model, estimator)


@pytest.mark.parametrize("name", DOUBTED)
def test_gradients_of_other_rows_count_as_not_seen(name: str, estimator: str) -> None:
    build, unseen = DOUBTED[name]
    model = build()
    inputs, targets = tokens()
    probe = attached(model, estimator)
    with pytest.warns(CoverageWarning, match="They count as not seen"):
        got = observe(probe, model, inputs, targets)
    coverage = probe.coverage
    assert coverage.unseen == unseen
    assert "is not the gradient of the samples' own losses" in coverage.describe()
    want = reference(probe, model, inputs, targets)
    assert got is not None
    torch.testing.assert_close(got.square, want.square)
    torch.testing.assert_close(got.gram(), want.gram())
    assert got.mass[1] > 0.0


def test_samples_that_meet_at_the_top_are_misread(estimator: str) -> None:
    """Then nothing below is of one sample."""
    model = Stack(nn.Embedding(V, D), [nn.Linear(D, D)], Pooled()).double()
    probe, (inputs, targets) = attached(model, estimator), tokens()
    with pytest.warns(RowOrderWarning, match="samples meet there"):
        observe(probe, model, inputs, targets % D)
    assert probe.misread


def test_losses_of_other_samples_are_misread(estimator: str) -> None:
    model, (inputs, _) = stack(nn.Linear(D, D)), tokens()
    probe = attached(model, estimator)
    probe.arm(True, step=0)
    hidden = model(inputs).mean(1)
    each = functional.cross_entropy(hidden @ hidden.T, torch.arange(B), reduction="none")
    with pytest.warns(RowOrderWarning, match="every row a loss of its own"):
        probe.expect(torch.zeros(B).long(), torch.ones(B), each.sum(), values=each)
    assert probe.misread


def test_calls_of_another_kind_are_proved_when_they_come(estimator: str) -> None:
    """Positions are not taken for samples when there are as many in a later micro-batch."""
    model = stack(TimeMajor())
    probe = attached(model, estimator)
    inputs, targets = torch.randint(V, (B, 4)), torch.randint(V, (B, 4))
    observe(probe, model, inputs, targets)
    assert probe.coverage.unseen == {"blocks.0.inner": "Linear"}
    inputs, targets = tokens()
    got = observe(probe, model, inputs, targets)
    want = reference(probe, model, inputs, targets)
    assert got is not None
    torch.testing.assert_close(got.square, want.square)


def test_flattened_rows_of_another_length_are_proved_already(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding differs from batch to batch, and a proof takes two backward passes."""
    proofs: list[object] = []

    def counted(*args: Any, **kwargs: Any) -> object:
        proofs.append(verify(*args, **kwargs))
        return proofs[-1]

    monkeypatch.setattr(_verification, "verify", counted)
    length = 4
    model = stack(Turned(lambda x: x.flatten(0, 1), lambda x: x.unflatten(0, (-1, length))))
    probe = attached(model, estimator)
    for length in (4, 6, 5):
        inputs, targets = torch.randint(V, (B, length)), torch.randint(V, (B, length))
        got = observe(probe, model, inputs, targets)
        want = reference(probe, model, inputs, targets)
        assert got is not None
        torch.testing.assert_close(got.square, want.square)
    assert len(proofs) == 1


def test_an_operation_that_begins_in_mid_run_is_proved(estimator: str) -> None:
    """Calls are of the same kinds, and rows in another order from the second step on."""
    turned: list[bool] = []

    def turn(x: Tensor) -> Tensor:
        return x.flip(0) if turned else x

    model, (inputs, targets) = stack(Turned(turn, turn)), tokens()
    probe = attached(model, estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            observe(probe, model, inputs, targets)
    turned.append(True)
    with pytest.warns(CoverageWarning, match="They count as not seen"):
        got = observe(probe, model, inputs, targets)
    assert got is not None
    assert not got.count.any()  # how much of the gradient is seen was not measured
    got = observe(probe, model, inputs, targets)
    want = reference(probe, model, inputs, targets)
    assert got is not None
    torch.testing.assert_close(got.square, want.square)


@pytest.mark.parametrize("outputs", [True, False])
def test_losses_without_a_graph_are_proved_at_what_they_are_computed_from(outputs: bool) -> None:
    model, (inputs, targets) = stack(TimeMajor()), tokens()
    probe = attached(model)
    probe.arm(True, step=0)
    logits = model(inputs)
    each = losses(logits, targets)
    roots = {"outputs": [logits], "values": each.detach()} if outputs else {"values": each}
    with pytest.warns(CoverageWarning, match=r"blocks\.0\.inner \(Linear\) are not those"):
        probe.expect(torch.zeros(B).long(), torch.ones(B), each.sum(), **roots)


def test_a_proof_changes_neither_gradients_nor_randomness() -> None:
    model = Stack(nn.Linear(5, 8), [nn.Dropout(0.5)], nn.Linear(8, 4)).double()
    inputs, targets = torch.randn(B, 5).double(), torch.randint(4, (B,))
    found = []
    for watched in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        if watched:
            observe(attached(model), model, inputs, targets, factors=torch.ones(B).double())
        else:
            losses(model(inputs), targets).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([*gradients, torch.rand(1)])
    for plain, proved in zip(*found, strict=True):
        assert torch.equal(plain, proved)


class Weighing(nn.Module):
    """Losses are weighted in the forward, as Lightning's are under DistributedDataParallel."""

    def __init__(self) -> None:
        super().__init__()
        self.model = stack(nn.Linear(D, D))
        self.probe: list[GradientProbe] = []

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        each = losses(self.model(x), y)
        loss = (FACTORS * each).sum()
        with self.probe[0].aside():
            torch.autograd.grad(loss, list(self.parameters()), retain_graph=True)
        self.probe[0].expect(DOMAINS, FACTORS, loss, values=each)
        return loss


def test_losses_may_be_weighted_inside_the_forward(estimator: str) -> None:
    inputs, targets = tokens()
    net = Weighing()
    probe = attached(net, estimator)
    net.probe = [probe]
    probe.arm(True, step=0)
    net(inputs, targets).backward()
    got = probe.collect()
    assert got is not None
    assert float(got.mass[1]) == 0.0
    assert float(got.mass[0]) > 0.0
    want = observe(probe, net.model, inputs, targets)
    assert want is not None
    torch.testing.assert_close(got.square, want.square)
