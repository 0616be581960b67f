"""Windows carry sums to the running estimates, whole, later, and through a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adaptmix._types import DomainStats
from adaptmix.probe.estimators._gradients import GradientSums
from adaptmix.state import _checkpoint as checkpoint
from adaptmix.statistics._lengths import RowLengths
from adaptmix.statistics._running import RunningStatistics
from adaptmix.statistics._sums import FIELDS
from adaptmix.statistics._window import Window

K, STEP = 3, 7


def sums() -> torch.Tensor:
    """Sums of some samples of every domain, with three tokens per row."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(len(FIELDS), K, generator=generator, dtype=torch.float64)
    rows = torch.tensor([4.0, 6.0, 9.0], dtype=torch.float64)
    table[FIELDS.index("rows")] = table[FIELDS.index("count")] = rows
    table[FIELDS.index("tokens")] = 3.0 * rows
    table[FIELDS.index("loss_sq")] += 10.0
    table[FIELDS.index("skipped")] = 0.0
    return table


def gradients(skipped: float = 0.0) -> GradientSums:
    """Gradients of four samples in domain 0 and three in domain 2."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    vectors = torch.stack([rows[:4].sum(0), torch.zeros(5, dtype=torch.float64), rows[4:].sum(0)])
    squares = torch.stack([rows[:4].square().sum(), rows[:0].sum(), rows[4:].square().sum()])
    return GradientSums(
        count=torch.tensor([4.0, 0.0, 3.0], dtype=torch.float64),
        square=squares,
        vectors=[vectors[:, :2], vectors[:, 2:].float()],
        skipped=torch.tensor(skipped, dtype=torch.float64),
        mass=torch.tensor([3.0, 1.0], dtype=torch.float64),
    )


def read(window: Window) -> tuple[RunningStatistics, RowLengths]:
    running, lengths = RunningStatistics(K, half_life=10.0, gram=True), RowLengths(K, [3.0] * K)
    window.add_to(running, lengths)
    return running, lengths


def check_same(left: DomainStats, right: DomainStats) -> None:
    for name in ("count", "seen", "age", "loss_mean", "loss_var", "noise", "grad_var", "grad_sq"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    assert (left.grad_gram is None) == (right.grad_gram is None)
    if left.grad_gram is not None:
        np.testing.assert_array_equal(left.grad_gram, right.grad_gram)


def by_hand(*, due: bool, observed: bool) -> DomainStats:
    """What the running estimates say when they are told directly."""
    running = RunningStatistics(K, half_life=10.0, gram=True)
    if due:
        running.add_losses(STEP, sums().numpy())
    if observed:
        g = gradients()
        count, square, gram = (t.numpy() for t in (g.count, g.square, g.gram()))
        running.add_gradients(STEP, count=count, square=square, products=gram)
    return running.snapshot(STEP + 1, lengths=np.ones(K))


@pytest.mark.parametrize(("due", "observed"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("saved", [False, True])
def test_what_is_sent_arrives(due: bool, observed: bool, saved: bool) -> None:
    window = Window(
        STEP, sums=sums() if due else None, gradients=gradients() if observed else None, gram=True
    )
    if saved:
        state = checkpoint.decode(checkpoint.encode(window.state_dict()))
        window = Window.from_state(state, num_domains=K, gram=True)
    assert (window.step, window.due, window.observed) == (STEP, due, observed)
    stats = read(window)[0].snapshot(STEP + 1, lengths=np.ones(K))
    check_same(stats, by_hand(due=due, observed=observed))


def test_later_changes_do_not_reach_a_window() -> None:
    table, observed = sums(), gradients()
    window = Window(STEP, sums=table, gradients=observed, gram=True)
    for tensor in (table, *observed.tensors()):
        tensor.fill_(1e9)
    stats = read(window)[0].snapshot(STEP + 1, lengths=np.ones(K))
    check_same(stats, by_hand(due=True, observed=True))


def test_row_lengths_learn_from_windows() -> None:
    lengths = RowLengths(K)
    lengths.start(np.full(K, 3.0), np.ones(K), np.full(K, 9.0), adapting=False)
    window = Window(STEP, sums=sums())
    window.add_to(RunningStatistics(K, half_life=10.0), lengths)
    assert lengths.values.tolist() == [3.0] * K
    assert lengths.state_dict()["rows"].tolist() == [4.0, 6.0, 9.0]


def test_skipped_samples_are_counted_once() -> None:
    table = sums()
    table[FIELDS.index("skipped")] = torch.tensor([1.0, 0.0, 2.0])
    running, _ = read(Window(STEP, sums=table, gradients=gradients(skipped=5.0), gram=True))
    assert running.skipped == 8.0


def test_the_gram_matrix_is_that_of_all_parameters() -> None:
    g = gradients()
    vectors = torch.cat([vector.double() for vector in g.vectors], dim=1)
    stats: Any = read(Window(STEP, gradients=g, gram=True))[0].snapshot(STEP, lengths=np.ones(K))
    # Domains 0 and 2: the mean product of four times three pairs of samples.
    expected = float(vectors[0] @ vectors[2]) / 12.0
    assert stats.grad_gram[0, 2] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(stats.grad_gram[1]).all()


def test_squared_norms_travel_without_the_gram_matrix() -> None:
    g = gradients()
    running = RunningStatistics(K, half_life=10.0)
    Window(STEP, sums=sums(), gradients=g).add_to(running, RowLengths(K, [3.0] * K))
    stats = running.snapshot(STEP, lengths=np.ones(K))
    vectors = torch.cat([vector.double() for vector in g.vectors], dim=1)
    products = vectors.square().sum(1) - g.square
    expected = (products[[0, 2]] / torch.tensor([12.0, 6.0])).numpy()
    np.testing.assert_allclose(stats.grad_mean_sq[[0, 2]], expected, rtol=1e-12)
    assert np.isnan(stats.grad_mean_sq[1])
    assert stats.grad_gram is None
