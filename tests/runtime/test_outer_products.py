"""Gradients of weights that skip zeros: values, layouts, infinities, and when they are taken."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snncc.runtime.products import outer as outer_products
from snncc.runtime.products.outer import outer_product
from snncc.runtime.products.skipping import Costs


def whole_numbers(*shape: int, rate: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return small whole numbers, some of them zero: sums of products are exact in any order."""
    generator = torch.Generator().manual_seed(shape[0] + shape[1])
    values = torch.randint(1, 5, shape, generator=generator)
    return (values * (torch.rand(shape, generator=generator) < rate)).to(dtype)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Skip zeros at any size, and note the factor whose zeros are skipped."""
    found: list[Tensor] = []
    skipping = outer_products._skipping

    def noted(x: Tensor, g: Tensor) -> Tensor | None:
        found.append(x)
        return skipping(x, g)

    monkeypatch.setattr(outer_products, "_skipping", noted)
    monkeypatch.setattr(outer_products, "_COSTS", Costs(1.0, 0, 0))
    return found


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 300),
    st.integers(1, 140),
    st.integers(1, 140),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(0.0, 1.0),
)
def test_sums_of_whole_numbers_are_exact(
    rows: int, inner: int, columns: int, dtype: torch.dtype, rate: float
) -> None:
    """Any number of rows and columns, and any share of zeros."""
    x = whole_numbers(rows, inner, rate=rate, dtype=dtype)
    g = whole_numbers(rows, columns, dtype=dtype)

    assert torch.equal(outer_products._skipping(x, g), x.t() @ g)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_sparse_factor_is_found(calls: list[Tensor], threads: int) -> None:
    """It may be either; a dense product has none."""
    spikes, dense = whole_numbers(50, 24, rate=0.1), whole_numbers(50, 30)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            for left, right in ((spikes, dense), (dense, spikes), (dense, dense)):
                result = outer_product(left, right)
                assert torch.equal(result, left.t() @ right)
                assert result.is_contiguous()
    finally:
        torch.set_num_threads(before)

    assert [x is spikes for x in calls] == [True, True]


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_infinite_cotangents_are_not_lost(calls: list[Tensor], value: float) -> None:
    """Zero times infinity is NaN for every neuron, also for those that did not fire."""
    spikes, g = whole_numbers(50, 24, rate=0.1), whole_numbers(50, 30)
    g[7, 3] = value
    with torch.no_grad():
        actual = outer_product(g, spikes)

    assert len(calls) == 1
    torch.testing.assert_close(actual, g.t() @ spikes, equal_nan=True)


def test_what_the_kernel_does_not_take_is_multiplied_by_torch(calls: list[Tensor]) -> None:
    """Gradients of gradients, other layouts, other types."""
    spikes, g = whole_numbers(50, 24, rate=0.1), whole_numbers(50, 30)
    leaf = g.clone().requires_grad_()
    outer_product(leaf, spikes).sum().backward()
    with torch.no_grad():
        for left, right in ((g.t().contiguous().t(), spikes), (g.half(), spikes.half())):
            assert torch.equal(outer_product(left, right), left.t() @ right)

    assert leaf.grad is not None
    assert not calls
