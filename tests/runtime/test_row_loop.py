"""Products of rows in the driver of recurrent loops, blocks of rows, the order of torch's sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snncc.codegen.c.rows import rows_source
from snncc.runtime.binaries.cache import CACHE
from snncc.runtime.loops import row_plan
from snncc.runtime.loops.row_plan import Blocks, Factors, cut_rows, float_type, multiply_rows
from snncc.runtime.products import order as product_order
from snncc.runtime.products.order import Multiplication, find_chunk

DTYPES = [torch.float32, torch.float64]


def multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    chunk: int | None = None,
    skip: bool = False,
    blocks: Blocks | None = None,
    threads: int = 1,
) -> Tensor:
    """Return ``x weight + bias`` as the driver computes it."""
    rows, inner = x.shape
    out = torch.full((rows, weight.shape[1]), -77.0, dtype=x.dtype)
    driver = CACHE.load(rows_source(float_type(x.dtype)))
    factors = Factors(x, weight, bias, out)
    with pytest.MonkeyPatch.context() as patch:
        if blocks is not None:
            patch.setattr(row_plan, "cut_rows", lambda *_: blocks)
        multiply_rows(driver, factors, chunk or inner, skip=skip, threads=threads)
    return out


sizes = st.tuples(st.integers(1, 20), st.integers(1, 300), st.integers(1, 150))


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from(DTYPES), st.booleans(), st.floats(0, 1), st.integers(1, 300))
def test_products_of_whole_numbers_are_exact(
    size: tuple[int, int, int], dtype: torch.dtype, biased: bool, rate: float, chunk: int
) -> None:
    """Rows, columns and chunks of any number; with zeros skipped or not."""
    rows, inner, columns = size
    generator = torch.Generator().manual_seed(inner)
    mask = torch.rand(rows, inner, generator=generator) < rate
    # Every second column: rows of x need not be dense.
    wide = torch.randint(-4, 5, (rows, inner + 3), generator=generator).to(dtype)
    x = wide[:, :inner].mul_(mask)
    weight = torch.randint(-4, 5, (inner, columns), generator=generator).to(dtype)
    bias = torch.randint(-4, 5, (columns,), generator=generator).to(dtype) if biased else None

    expected = x @ weight if bias is None else x @ weight + bias
    for skip in (False, True):
        assert torch.equal(multiply(x, weight, bias, chunk=chunk, skip=skip), expected)


@settings(deadline=None, max_examples=30)
@given(sizes, st.sampled_from(DTYPES), st.integers(1, 300), st.integers(1, 4), st.integers(1, 9))
def test_a_row_has_the_same_bits_in_any_company(
    size: tuple[int, int, int], dtype: torch.dtype, chunk: int, threads: int, most: int
) -> None:
    """Blocks, threads and skipped zeros change no bit of a result."""
    rows, inner, columns = size
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inner, dtype=dtype, generator=generator)
    x *= torch.rand(rows, inner, generator=generator) < 0.4
    weight = torch.randn(inner, columns, dtype=dtype, generator=generator)

    expected = torch.cat([multiply(row[None], weight, chunk=chunk) for row in x])
    blocks = cut_rows(rows, threads, most)
    actual = multiply(x, weight, chunk=chunk, skip=True, blocks=blocks, threads=threads)

    assert torch.equal(actual, expected)


@given(st.integers(1, 1000), st.integers(1, 64), st.integers(1, 400))
def test_blocks_share_out_the_rows(rows: int, threads: int, most: int) -> None:
    """Each row is in one block; sizes differ by one; no block of one row but alone."""
    blocks = cut_rows(rows, threads, most)

    assert [first for first, _ in blocks] == [
        sum(n for _, n in blocks[:i]) for i in range(len(blocks))
    ]
    assert sum(n for _, n in blocks) == rows
    assert max(n for _, n in blocks) - min(n for _, n in blocks) <= 1
    assert len(blocks) == 1 or min(n for _, n in blocks) > 1
    if rows >= 2 * threads * -(-rows // most):
        assert len(blocks) % threads == 0


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [(64, 128, 128), (5, 33, 20), (32, 500, 100), (1, 16, 16)])
def test_an_order_that_was_found_is_the_order_of_torch(
    size: tuple[int, int, int], transposed: bool, biased: bool
) -> None:
    """What was seen on some numbers holds for others: spikes, potentials, tiny and large."""
    rows, inner, columns = size
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(columns, inner, generator=generator)
    weight = weight if transposed else weight.t().contiguous()
    asked = Multiplication(
        rows=rows,
        weight=(weight.shape[0], weight.shape[1]),
        strides=(weight.stride(0), weight.stride(1)),
        transposed=transposed,
        biased=biased,
        dtype=torch.float32,
    )
    chunk = find_chunk(asked)
    if chunk is None:
        pytest.skip("torch adds in another order here")
    bias = torch.randn(columns, generator=generator) if biased else None
    right = weight.t() if transposed else weight
    normal = torch.randn(rows, inner, generator=generator)
    for x in (normal, normal * 1e-20, normal.exp() * 1e6, (normal > 1).float(), normal.relu()):
        expected = asked.by_torch((x, weight, bias))
        assert torch.equal(multiply(x, right, bias, chunk=chunk, skip=True), expected)


def test_another_order_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that adds from the last term to the first is not taken for the kernel."""
    monkeypatch.setattr(
        Multiplication, "by_torch", lambda _, o: torch.mm(o[0].double(), o[1].double()).float()
    )
    asked = Multiplication(7, (64, 9), (9, 1), False, False, torch.float32, threads=-1)

    assert find_chunk(asked) is None


def test_a_library_that_cuts_long_sums_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of the pieces is found, also where the first guess is another."""

    def in_halves(_: Multiplication, operands: product_order.Operands) -> Tensor:
        x, weight, _bias = operands
        return multiply(x, weight, chunk=-(-x.shape[1] // 2))

    monkeypatch.setattr(Multiplication, "by_torch", in_halves)
    asked = Multiplication(7, (75, 9), (9, 1), False, False, torch.float32, threads=-2)

    assert find_chunk(asked) == 38
    assert find_chunk(replace(asked, weight=(76, 9))) == 38
