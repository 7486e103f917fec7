"""The order in which torch adds up the terms of a matrix product of given sizes.

Libraries do not document it; it depends on sizes, layouts and settings of torch, and not on the
values.  So it can be seen: numbers with all their bits, multiplied by torch and by a kernel whose
order is known, agree in every bit of thousands of results only if the orders are the same.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from snncc.codegen.c.rows import rows_source
from snncc.runtime.binaries.cache import CACHE, Function, KernelCache
from snncc.runtime.loops.row_plan import Factors, float_type, multiply_rows

# How libraries were seen to cut long sums: blocks of 192 terms, or two halves of equal length.
_CHUNKS = (192, 256, 384, 128, 320, 512)
# So many results are compared, of this many products at least.
_RESULTS, _PRODUCTS = 1 << 12, 4

# The left factor, the weight, and the bias if there is one.
Operands: TypeAlias = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True, slots=True)
class Multiplication:
    """A product ``x W``, or ``x W^T + b``, as torch is asked for it.

    Attributes:
        rows: Rows of ``x``, which is contiguous.
        weight: Sizes of the weight.
        strides: Its strides.
        transposed: Whether the weight is transposed first.
        biased: Whether there is a bias.
        dtype: The type of all.
        threads: The threads of torch.
        precision: How precise torch is asked to be about products of float32.
    """

    rows: int
    weight: tuple[int, int]
    strides: tuple[int, int]
    transposed: bool
    biased: bool
    dtype: torch.dtype
    threads: int = field(default_factory=torch.get_num_threads)
    precision: str = field(default_factory=torch.get_float32_matmul_precision)

    def by_torch(self, operands: Operands) -> Tensor:
        """Return the product as torch computes it."""
        x, weight, bias = operands
        right = weight.t() if self.transposed else weight
        return torch.mm(x, right) if bias is None else torch.addmm(bias, x, right)

    def by_kernel(self, driver: Function, chunk: int, operands: Operands) -> Tensor:
        """Return the product as the driver computes it with sums of so many terms."""
        x, weight, bias = operands
        right = weight.t() if self.transposed else weight
        out = x.new_empty((x.shape[0], right.shape[1]))
        multiply_rows(driver, Factors(x, right, bias, out), chunk)
        return out


@functools.cache
def find_chunk(asked: Multiplication, cache: KernelCache = CACHE) -> int | None:
    """Return how many terms torch adds up in order before it adds them to the rest.

    None says that it adds in an order that the kernel does not have.
    """
    driver = cache.load(rows_source(float_type(asked.dtype)))
    generator = torch.Generator().manual_seed(0)
    columns, inner = asked.weight if asked.transposed else reversed(asked.weight)
    halves = -(-inner // 2)
    left = [inner, *(c for c in (*_CHUNKS, halves) if c < inner)]
    results, products = 0, 0
    while left and (results < _RESULTS or products < _PRODUCTS):
        x = torch.randn((asked.rows, inner), dtype=asked.dtype, generator=generator)
        weight = torch.empty_strided(asked.weight, asked.strides, dtype=asked.dtype)
        weight.normal_(generator=generator)
        bias = torch.randn(columns, dtype=asked.dtype, generator=generator)
        operands = (x, weight, bias if asked.biased else None)
        expected = asked.by_torch(operands)
        left = [c for c in left if torch.equal(asked.by_kernel(driver, c, operands), expected)]
        results, products = results + expected.numel(), products + 1
    return left[0] if left else None
