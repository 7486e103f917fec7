"""The calls of a loop that is run by blocks of batch rows, ready for its driver in C."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from snncc.codegen.base import FloatType
from snncc.codegen.c.rows import FIELDS, PANEL_BYTES
from snncc.runtime.binaries.cache import Function
from snncc.runtime.loops.step_kernel import Addresses, argument_table

# Rows of a block of a single product: few enough to share out, enough to make up for its start.
_BLOCK_ROWS = 512

# The first row of each block, and how many rows it has.
Blocks = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RowCall:
    """One call of a step, for each block of rows.

    Attributes:
        kernel: The address of the kernel of a fused step; 0 for a product.
        values: The argument structure for the first block, without addresses.
        slots: Where the addresses belong, and the flag of a product that zeros may be skipped.
        shifts: For each block in turn what is added to the structure.
    """

    kernel: int
    values: tuple[int, ...]
    slots: dict[str, int]
    shifts: array[int]


@dataclass(frozen=True, slots=True)
class RowPlan:
    """How a loop of given sizes is run by rows.

    Attributes:
        driver: The function that runs it.
        blocks: How many blocks of rows there are.
        threads: How many threads share them.
        calls: The calls of each step, in order.
    """

    driver: Function
    blocks: int
    threads: int
    calls: tuple[RowCall, ...]

    def run(self, length: int, addresses: Sequence[Mapping[str, Addresses]]) -> None:
        """Run all steps.

        Args:
            length: How many there are.
            addresses: For each call what belongs into its slots, of the first row.
        """
        tables = [
            argument_table(call.values, call.slots, given, length)
            for call, given in zip(self.calls, addresses, strict=True)
        ]
        calls = array("q")
        for call, table in zip(self.calls, tables, strict=True):
            places = (table.buffer_info()[0], call.shifts.buffer_info()[0])
            calls.extend((call.kernel, *places, len(call.values)))
        head = (length, self.blocks, self.threads, len(self.calls), calls.buffer_info()[0])
        self.driver(array("q", head).tobytes())


def cut_rows(rows: int, threads: int, most: int) -> Blocks:
    """Cut rows into blocks of nearly equal size, a multiple of the threads where there are enough.

    Args:
        rows: How many there are.
        threads: How many threads share the blocks.
        most: How many rows a block should have at most.
    """
    count = -(-max(-(-rows // most), threads) // threads) * threads
    # A block of a single row among others would be seen with other strides than they are.
    count = max(min(count, rows // 2), 1)
    size, longer = divmod(rows, count)
    sizes = [size + 1] * longer + [size] * (count - longer)
    return tuple((sum(sizes[:i]), n) for i, n in enumerate(sizes))


def shifts_of(
    blocks: Blocks, strides: Mapping[int, int], structures: Sequence[Sequence[int]]
) -> array[int]:
    """Return what to add to the structure of the first block to get those of all blocks.

    Args:
        blocks: The blocks.
        strides: For each slot of an address how many bytes lie between two rows.
        structures: For each block its argument structure without addresses.
    """
    shifts = array("q")
    for (first, _), own in zip(blocks, structures, strict=True):
        moved = [value - base for value, base in zip(own, structures[0], strict=True)]
        for slot, stride in strides.items():
            moved[slot] += first * stride
        shifts.extend(moved)
    return shifts


@dataclass(frozen=True, slots=True)
class ProductShape:
    """A product [rows, inner] x [inner, columns] in the driver.

    Attributes:
        rows: Rows of ``x``.
        inner: Terms of a sum.
        columns: Columns of the weight.
        chunk: Terms that are added up before they are added to the rest.
        x_row: Elements between two rows of ``x``.
        itemsize: Bytes of an element.
    """

    rows: int
    inner: int
    columns: int
    chunk: int
    x_row: int
    itemsize: int

    def call(self, blocks: Blocks, *, biased: bool) -> RowCall:
        """Return the call of the product."""
        structures = [self._structure(rows) for _, rows in blocks]
        names = ("x", "weight", *(["bias"] if biased else []), "out", "skip")
        slots = {name: FIELDS.index(name) for name in names}
        strides = {
            slots["x"]: self.x_row * self.itemsize,
            slots["out"]: self.columns * self.itemsize,
        }
        shifts = shifts_of(blocks, strides, structures)
        return RowCall(0, tuple(structures[0]), slots, shifts)

    def _structure(self, rows: int) -> list[int]:
        sizes = {
            "x_row": self.x_row,
            "out_row": self.columns,
            "rows": rows,
            "inner": self.inner,
            "columns": self.columns,
            "chunk": self.chunk,
        }
        return [sizes.get(field, 0) for field in FIELDS]


def packed(values: Tensor) -> Tensor:
    """Return columns [*, N] in panels [panels, *, columns of a panel], filled up with zeros."""
    columns = PANEL_BYTES // values.element_size()
    panels = -(-values.shape[-1] // columns)
    filled = F.pad(values, (0, panels * columns - values.shape[-1]))
    apart = filled.reshape(*values.shape[:-1], panels, columns)
    return apart.movedim(-2, 0).contiguous()


@dataclass(frozen=True, slots=True)
class Factors:
    """``out = x weight + bias`` of [rows, inner] and [inner, columns]; rows of x have no gaps."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    out: Tensor


def multiply_rows(
    driver: Function, factors: Factors, chunk: int, *, skip: bool = False, threads: int = 1
) -> None:
    """Multiply once, outside of a loop.

    Args:
        driver: The driver for the type of the factors.
        factors: What is multiplied.
        chunk: Terms that are added up before they are added to the rest.
        skip: Whether all weights are finite, so that zeros may be skipped.
        threads: Threads.
    """
    x, out, weight = factors.x, factors.out, packed(factors.weight)
    (rows, inner), columns = x.shape, out.shape[1]
    shape = ProductShape(rows, inner, columns, chunk, x.stride(0), x.element_size())
    addresses = {"x": x.data_ptr(), "weight": weight.data_ptr(), "out": out.data_ptr()}
    addresses["skip"] = int(skip)
    bias = None if factors.bias is None else packed(factors.bias)
    if bias is not None:
        addresses["bias"] = bias.data_ptr()
    blocks = cut_rows(rows, threads, _BLOCK_ROWS)
    call = shape.call(blocks, biased=bias is not None)
    RowPlan(driver, len(blocks), min(threads, len(blocks)), (call,)).run(1, [addresses])


def float_type(dtype: torch.dtype) -> FloatType:
    """Return a working type of torch as one of kernels."""
    return FloatType.FLOAT64 if dtype is torch.float64 else FloatType.FLOAT32


def address_of(kernel: Function) -> int:
    """Return the address of a kernel."""
    return ctypes.cast(kernel, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
