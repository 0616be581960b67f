"""Held-out rows in whole runs: what counts in the gradient, and what is known of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmix import Controller, Mixture, noise, policies
from adaptmix.errors import StateError
from tests import runs

STATIC = policies.Static(
    sampling={"a": 0.3, "b": 0.3, "c": 0.4}, loss={"a": 0.5, "b": 2.0, "c": 1.0}
)
TOKENS = 5

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")


def flat(parts: Any) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def sequences() -> Mixture:
    """Rows of five positions, as many supervised ones in each row of a domain."""
    parts = {}
    for i, (name, size) in enumerate(zip("abc", (40, 24, 16), strict=True)):
        generator = torch.Generator().manual_seed(i)
        inputs = torch.randn(size, TOKENS, runs.FEATURES, generator=generator, dtype=torch.float64)
        targets = torch.randint(runs.CLASSES, (size, TOKENS), generator=generator)
        kept = (torch.arange(TOKENS) < 2 + i).expand(size, -1)
        parts[name] = torch.utils.data.TensorDataset(inputs, targets, kept)
    return Mixture(parts, importance={"a": 3.0, "b": 2.0, "c": 1.0})


@pytest.mark.filterwarnings("ignore::adaptmix.errors.NonFiniteWarning")
@pytest.mark.parametrize("counts", ["stratified", "multinomial"])
@pytest.mark.parametrize("unit", ["sample", "token"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_step_is_the_objective_over_its_training_rows(
    accumulation: int, unit: str, counts: str
) -> None:
    """To rounding, in float64, also where held-out rows have losses that overflow."""
    lengths = {"a": 2.0, "b": 3.0, "c": 4.0}
    controller = Controller(
        sequences(),
        policy=STATIC,
        unit=unit,
        counts=counts,
        tokens_per_row=lengths if unit == "token" else None,
        lag=0,
        update_every=1,
        measure_every=2,
        holdout=0.25,
    )
    size = 24
    net = runs.model()
    parameters = list(net.parameters())
    apart = 0
    loader = controller.loader(size // accumulation, accumulation=accumulation, steps=6)
    objective = torch.zeros((), dtype=torch.float64)
    trained = 0
    for (inputs, targets, kept), draw in loader.with_draws():
        again, each = (
            F.cross_entropy(net(inputs).transpose(1, 2), targets, reduction="none")
            for _ in range(2)
        )
        held = torch.zeros(len(draw), dtype=torch.bool) if draw.held is None else draw.held
        poisoned = torch.where(held[:, None], torch.inf, again)
        controller.loss(poisoned, draw=draw, mask=kept).backward()
        weights, shares = controller.weights, controller._plan.shares_at(draw.step)
        assert shares is not None
        apart += int(held.sum())
        rows = (each * kept).sum(1) if unit == "token" else (each * kept).sum(1) / kept.sum(1)
        divisor = np.array(list(lengths.values())) if unit == "token" else np.ones(3)
        number = torch.as_tensor(draw.domain_shares * size)  # checked in data/test_holdout.py
        factor = torch.as_tensor(weights.importance * weights.loss / divisor) / number
        objective = objective + (factor[draw.domains] * rows)[~held].sum()
        trained += int((~held).sum())
        if (draw.ordinal + 1) % accumulation:
            continue
        assert trained == size - (0, 1, 0, 2, 0, 1)[draw.step]
        if counts == "multinomial":
            np.testing.assert_allclose(draw.domain_shares * size, shares * trained, rtol=1e-12)
        wanted = torch.autograd.grad(objective, parameters)
        got = [p.grad for p in parameters if p.grad is not None]
        torch.testing.assert_close(flat(got), flat(wanted), rtol=1e-12, atol=1e-14)
        net.zero_grad()
        controller.step()
        objective, trained = torch.zeros((), dtype=torch.float64), 0
    assert apart == 4  # a sixteenth of 24, in three steps


def test_losses_and_noise_of_held_out_rows_are_known_and_nothing_else_counts_them() -> None:
    """At frozen parameters, many times over."""
    net = runs.model()
    controller = Controller(runs.mixture(), policy="fgls", update_every=2, holdout=0.2)
    for (inputs, targets, _), draw in controller.loader(12, steps=600).with_draws():
        logits = net(inputs)
        losses = F.cross_entropy(logits, targets, reduction="none")
        controller.loss(losses, draw=draw, noise=noise.softmax(logits, targets)).backward()
        controller.step()
    stats = controller.statistics
    riding = controller._measurements._running._held_out
    held = np.split(controller._holdout._rows, (8, 13))
    for i, rows in enumerate(held):
        batch = [controller.mixture[int(row)] for row in rows]
        inputs, targets = torch.stack([b[0] for b in batch]), torch.stack([b[1] for b in batch])
        logits = net(inputs).detach()
        losses, terms = F.cross_entropy(logits, targets), noise.softmax(logits, targets)
        # Rows take turns; a discount of one part in fifty a turn leaves them nearly alike.
        assert stats.holdout_loss[i] == pytest.approx(float(losses), rel=0.05)
        dispersion = float(terms.residual.sum() / terms.expected.sum())
        assert riding["residual"][i] / riding["expected"][i] == pytest.approx(dispersion, rel=0.05)
    np.testing.assert_allclose(stats.holdout_count, [8, 5, 2])
    ridden = sum(step % 2 for step in range(598)) * 12 // 16
    assert stats.seen.sum() == 598 * 12 - ridden
    tags = controller.scalars()
    assert tags["holdout_loss/a"] == stats.holdout_loss[0]


def test_auto_holds_out_where_noise_is_needed_and_observing_trains_on_all() -> None:
    mix = runs.mixture()
    for options, held in (
        ({"policy": "joint"}, (10, 6, 2)),
        ({"policy": policies.FGLS()}, (10, 6, 2)),
        ({"policy": "variance_aware"}, (0, 0, 0)),
        ({"policy": "joint", "mode": "observe"}, (0, 0, 0)),
        ({"policy": "joint", "holdout": None}, (0, 0, 0)),
        ({"policy": "static", "holdout": 3}, (3, 3, 2)),
    ):
        controller = Controller(mix, **options)
        np.testing.assert_array_equal(controller.mixture.sizes, mix.sizes - held)
        np.testing.assert_allclose(controller.mixture.importance, mix.importance, rtol=1e-15)
    with pytest.raises(ValueError, match='holdout must be None or "auto" with mode="observe"'):
        Controller(mix, mode="observe", holdout=0.1)


def test_what_is_held_out_is_part_of_what_a_run_is() -> None:
    controller = Controller(runs.mixture(), policy="static", holdout=4)
    runs.Run(controller, runs.model(), steps=2).train()
    with pytest.raises(
        StateError, match=r"holdout\['a'\] must be what the saved run had: 4; got 5"
    ):
        Controller(runs.mixture(), policy="static", holdout=5).load_state_dict(
            controller.state_dict()
        )


def test_batch_normalisation_sees_held_out_rows_and_no_gradient_is_theirs() -> None:
    """As other rows of a batch do, they take part in its mean; their losses do not count."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).double()
    controller = Controller(runs.mixture(), policy="static", update_every=1, holdout=0.25)
    parameters = list(net.parameters())
    for (inputs, targets, _), draw in controller.loader(32, steps=3).with_draws():
        assert draw.held is not None
        losses = F.cross_entropy(net(inputs), targets, reduction="none")
        factors = torch.as_tensor(controller.weights.importance / (draw.domain_shares * 32))
        wanted = torch.autograd.grad(
            (factors[draw.domains] * losses)[~draw.held].sum(), parameters, retain_graph=True
        )
        got = torch.autograd.grad(controller.loss(losses, draw=draw), parameters)
        torch.testing.assert_close(flat(got), flat(wanted), rtol=1e-12, atol=1e-14)
        controller.step()
