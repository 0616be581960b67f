"""Per-domain sums against a loop over samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptmix._checks import FloatArray
from adaptmix.noise import NoiseTerms
from adaptmix.statistics._sums import FIELDS, NOISE, RECORDED, DomainSums

K = 3
CPU = torch.device("cpu")


def batch(seed: int, size: int = 12) -> dict[str, Tensor]:
    """A micro-batch; domain 2 does not occur."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "domains": torch.randint(K - 1, (size,), generator=generator),
        "losses": torch.randn(size, generator=generator),
        "tokens": torch.randint(1, 9, (size,), generator=generator),
        "fresh": torch.rand(size, generator=generator) < 0.5,
        "residual": torch.rand(size, generator=generator),
        "expected": torch.rand(size, generator=generator),
        "held": torch.rand(size, generator=generator) < 0.2 * (seed % 2),
    }


def add(sums: DomainSums, values: dict[str, Tensor], *, noise: bool = True) -> None:
    sums.add(
        values["domains"],
        values["losses"],
        values["tokens"],
        noise=NoiseTerms(values["residual"], values["expected"]) if noise else None,
        fresh=values["fresh"],
        held=values["held"] if values["held"].any() else None,
    )


def loop(*batches: dict[str, Tensor], noise: bool = True) -> FloatArray:
    """The same sums, sample by sample."""
    table = {name: [0.0] * K for name in FIELDS}
    for values in batches:
        columns = {name: column.tolist() for name, column in values.items()}
        for j, d in enumerate(columns["domains"]):
            loss, residual, expected = (columns[k][j] for k in ("losses", "residual", "expected"))
            held = columns["held"][j]
            own = "held_out_" if held else ""
            table["rows"][d] += not held
            table["tokens"][d] += columns["tokens"][j] * (not held)
            if not math.isfinite(loss):
                table["skipped"][d] += 1
                continue
            table[f"{own}count"][d] += 1
            table[f"{own}loss"][d] += loss
            table["loss_sq"][d] += loss**2 * (not held)
            if noise and (columns["fresh"][j] or held) and math.isfinite(residual + expected):
                products = (residual**2, residual * expected, expected**2)
                for name, value in zip(NOISE, (residual, expected, 1, *products), strict=True):
                    table[f"{own}{name}"][d] += value
    return np.array([table[name] for name in FIELDS])


@pytest.mark.parametrize("noise", [True, False])
def test_sums_are_those_of_a_loop(noise: bool) -> None:
    sums, batches = DomainSums(K, CPU), [batch(0), batch(1)]
    for values in batches:
        add(sums, values, noise=noise)
    assert sums.tensor.dtype == torch.float64
    np.testing.assert_allclose(sums.take(), loop(*batches, noise=noise), rtol=1e-13)


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    values = batch(2)
    values["domains"][:] = torch.tensor([0, 1] * 6)
    values["fresh"][:] = True
    values["losses"][0], values["losses"][3] = math.nan, -math.inf
    values["residual"][4], values["expected"][5] = math.inf, math.nan
    sums = DomainSums(K, CPU)
    add(sums, values)
    taken = dict(zip(FIELDS, sums.take().tolist(), strict=True))
    assert taken["rows"] == [6.0, 6.0, 0.0]
    assert taken["count"] == [5.0, 5.0, 0.0]
    assert taken["skipped"] == [1.0, 1.0, 0.0]
    np.testing.assert_allclose(np.array(list(taken.values())), loop(values), rtol=1e-13)


def test_taking_starts_again() -> None:
    sums = DomainSums(K, CPU)
    add(sums, batch(0))
    first = sums.take()
    before = first.clone()
    assert not sums.take().any()
    add(sums, batch(1))
    assert torch.equal(first, before)
    np.testing.assert_allclose(sums.take(), loop(batch(1)), rtol=1e-13)


def test_sums_are_additive_over_processes() -> None:
    """Each sample on one of two processes: their sums add up to those of one."""
    whole, parts = batch(3), [DomainSums(K, CPU), DomainSums(K, CPU)]
    for rank, sums in enumerate(parts):
        add(sums, {name: column[rank::2] for name, column in whole.items()})
    np.testing.assert_allclose(parts[0].take() + parts[1].take(), loop(whole), rtol=1e-13)


def test_large_sums_keep_their_small_terms() -> None:
    losses = torch.full((4096,), 1.0 + 2.0**-20)
    sums = DomainSums(1, CPU)
    ones = torch.ones(4096, dtype=torch.int64)
    sums.add(0 * ones, losses, ones, noise=None, fresh=ones.bool())
    taken = dict(zip(FIELDS, sums.take()[:, 0].tolist(), strict=True))
    assert taken["loss"] == 4096 + 2.0**-8


def test_losses_may_carry_gradients() -> None:
    sums, values = DomainSums(K, CPU), batch(4)
    values["losses"].requires_grad_()
    values["residual"].requires_grad_()
    add(sums, values)
    assert not sums.tensor.requires_grad


def test_recorded_noise_is_added_by_itself() -> None:
    sums = DomainSums(K, CPU)
    sums.add_recorded(
        1, NoiseTerms(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, math.nan]))
    )
    sums.add_recorded(1, NoiseTerms(torch.tensor([math.inf]), torch.ones(1)))
    taken = dict(zip(FIELDS, sums.take().tolist(), strict=True))
    for name, value in zip(RECORDED, (3.0, 2.0, 2.0, 5.0, 3.0, 2.0), strict=True):
        assert taken.pop(name) == [0.0, value, 0.0]
    assert not np.array(list(taken.values())).any()


def test_any_number_of_micro_batches_may_wait_whatever_they_tell() -> None:
    """Asking in between changes nothing, to the last bit: a run that was saved goes on alike."""
    asked, waiting = DomainSums(K, CPU), DomainSums(K, CPU)
    batches = [batch(seed) for seed in range(100)]
    for i, values in enumerate(batches):
        for sums in (asked, waiting):
            add(sums, values, noise=i % 3 > 0)
        assert asked.tensor is not None
    loops = [loop(values, noise=i % 3 > 0) for i, values in enumerate(batches)]
    np.testing.assert_allclose(waiting.tensor, sum(loops), rtol=1e-12)
    assert torch.equal(waiting.tensor, asked.tensor)


def test_losses_may_be_unknown_and_noise_known() -> None:
    sums, values = DomainSums(K, CPU), batch(4)
    noise = NoiseTerms(values["residual"], values["expected"])
    sums.add(values["domains"], None, values["tokens"], noise=noise, fresh=values["fresh"])
    sums.add(values["domains"], None, values["tokens"], noise=None, fresh=values["fresh"])
    taken, expected = sums.take(), loop(values)
    for i, name in enumerate(FIELDS):
        times = {"rows": 2, "tokens": 2, "count": 0, "loss": 0, "loss_sq": 0}.get(name, 1)
        np.testing.assert_allclose(taken[i], times * expected[i], rtol=1e-13)


def test_what_is_changed_afterwards_was_added_as_it_was() -> None:
    sums, values = DomainSums(K, CPU), batch(6)
    expected = loop(values)
    add(sums, values)
    for name in ("losses", "residual", "expected"):
        values[name].zero_()
    np.testing.assert_allclose(sums.take(), expected, rtol=1e-13)
