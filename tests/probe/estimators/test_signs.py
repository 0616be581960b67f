"""Count sketches are linear, keep inner products in expectation, and are drawn anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptmix.probe.estimators import _signs as signs
from adaptmix.probe.estimators._signs import CountSketch, Places, Signs

SIZES = [(3, 4), (4, 4), (5, 4), (8, 4), (11, 4), (64, 16)]


def drawn(size: int, width: int, *, seed: int = 0, step: int = 0) -> CountSketch:
    """A sketch whose signs are not the first ones drawn."""
    side = CountSketch(size, width, start=7)
    side.redraw(Signs(Places([7, size]), seed=seed, step=step))
    return side


def matrix(side: CountSketch, size: int) -> Tensor:
    """The (size, width) projection, by its action on the unit vectors."""
    return side.fold(torch.eye(size, dtype=torch.float64), -1)


@pytest.mark.parametrize(("size", "width"), SIZES)
def test_every_feature_goes_to_its_bucket_with_its_sign(size: int, width: int) -> None:
    side = drawn(size, width)
    signs = Signs(Places([7, size]), seed=0, step=0).on(torch.device("cpu"), torch.float64)[7:]
    want = torch.zeros(size, min(size, width), dtype=torch.float64)
    for feature in range(size):
        want[feature, feature % width] = signs[feature] if size > width else 1.0
    assert torch.equal(matrix(side, size), want)
    assert side.width == want.shape[1]


@pytest.mark.parametrize(("size", "width"), SIZES)
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_folding_is_a_product_with_the_matrix(size: int, width: int, dim: int) -> None:
    side = drawn(size, width)
    values = torch.randn(2, 3, 5, dtype=torch.float64)
    values = torch.cat([values] * size, dim=dim).narrow(dim, 0, size)
    want = (values.movedim(dim, -1) @ matrix(side, size)).movedim(-1, dim)
    torch.testing.assert_close(side.fold(values, dim), want)


@pytest.mark.parametrize(("size", "width"), SIZES[2:])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_product_that_gpus_take_is_the_sum_that_cpus_take(
    size: int, width: int, dtype: torch.dtype
) -> None:
    side = drawn(size, width)
    values = torch.randn(6, size).to(dtype)
    rtol = 0.02 if dtype == torch.bfloat16 else 1e-5
    product = side._by_product(values).to(side.fold(values, -1).dtype)
    torch.testing.assert_close(side.fold(values, -1), product, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("size", "width"), SIZES)
def test_a_lookup_is_the_image_of_a_one_hot_vector(size: int, width: int) -> None:
    side = drawn(size, width)
    indices = torch.randint(size, (3, 5))
    assert torch.equal(side.lookup(indices).double(), matrix(side, size)[indices])


def test_low_precision_is_summed_in_float32() -> None:
    folded = drawn(4096, 2).fold(torch.ones(1, 4096, dtype=torch.bfloat16), -1)
    assert folded.dtype == torch.float32
    assert torch.equal(folded, drawn(4096, 2).fold(torch.ones(1, 4096), -1))


def test_inner_products_are_kept_in_expectation() -> None:
    """2,000 draws; |z| < 4 fails by chance once in 16,000 seeds."""
    torch.manual_seed(0)
    one, other = torch.randn(2, 20, dtype=torch.float64) + 1.0
    products = []
    for step in range(2000):
        side = drawn(20, 4, step=step)
        products.append(float(side.fold(one, 0) @ side.fold(other, 0)))
    z = (np.mean(products) - float(one @ other)) / (np.std(products) / np.sqrt(len(products)))
    assert abs(z) < 4.0


def test_signs_depend_on_seed_and_step_only() -> None:
    def signs(seed: int, step: int) -> list[float]:
        return (
            Signs(Places([64]), seed=seed, step=step)
            .on(torch.device("cpu"), torch.float32)
            .tolist()
        )

    assert signs(1, 5) == signs(1, 5)
    assert len({tuple(signs(seed, step)) for seed in range(4) for step in range(4)}) == 16
    assert set(signs(0, 0)) == {-1.0, 1.0}


def test_signs_are_fair_and_independent_from_step_to_step() -> None:
    """20,000 signs; each |z| < 4 fails by chance once in 16,000 seeds."""
    first, second = (
        Signs(Places([20_000]), seed=0, step=step).on(torch.device("cpu"), torch.float64)
        for step in (0, 1)
    )
    for mean in (first.mean(), (first * second).mean(), (first[1:] * first[:-1]).mean()):
        assert abs(float(mean)) * np.sqrt(20_000) < 4.0


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_many_values_are_folded_without_a_copy_to_the_same(dim: int) -> None:
    side = drawn(96, 32)
    values = torch.randn(40, 40, 96, dtype=torch.float64).movedim(-1, dim)
    assert values.numel() > signs._MANY
    want = (values.movedim(dim, -1) @ matrix(side, 96)).movedim(-1, dim)
    torch.testing.assert_close(side.fold(values, dim), want)
