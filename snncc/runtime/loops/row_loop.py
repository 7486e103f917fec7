"""Loops whose steps treat the rows of a batch apart: a thread takes some rows through all of time.

That is so where a step consists of fused steps and of products ``x W`` of values [B, K] with
weights that are the same at all steps.  One foreign call then runs the whole loop: no call of torch
and no meeting of the threads at each step.  The kernels of the fused steps are those of other
loops, bound to a block of rows; the product is that of `snncc.codegen.c.rows`.

Forward it is chosen only where torch was seen to add up in the same order (`products.order`);
gradients are promised up to the order of sums anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.nn.functional as F

from snncc.codegen.c import rows as c_rows
from snncc.ir.step_call import StepCall
from snncc.runtime.binaries.cache import KernelCache
from snncc.runtime.loops.row_plan import (
    ProductShape,
    RowCall,
    RowPlan,
    address_of,
    cut_rows,
    float_type,
    shifts_of,
)
from snncc.runtime.loops.sketch import LoopSketch
from snncc.runtime.loops.step_kernel import Operand, StepKernel
from snncc.runtime.products.order import Multiplication, find_chunk
from snncc.runtime.schedule import LEAST_WORK, this_machine

if TYPE_CHECKING:
    from snncc.runtime.loops.plan import LoopPlan

Node = torch.fx.Node

# Bytes of one value of a block: what the calls of a step pass on stays in the caches of a core.
_BLOCK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class RowProduct:
    """A product of a value [B, K] with fixed weights: ``x W^T + b``, or ``x W``."""

    x: Node
    weight: Node
    bias: Node | None
    transposed: bool


def row_product(sketch: LoopSketch, call: Node) -> RowProduct | None:
    """Return a call as a product of rows with fixed weights, or None where it is none."""
    operands: Any = call.args
    if call.kwargs or call.target not in (F.linear, torch.mm, torch.matmul):
        return None
    if not all(isinstance(operand, Node | None) for operand in operands):
        return None
    x, weight, bias = (*operands, None)[:3]
    fixed = weight in sketch.fixed and (bias is None or bias in sketch.fixed)
    is_product = fixed and x not in sketch.fixed
    return RowProduct(x, weight, bias, call.target is F.linear) if is_product else None


def row_products(sketch: LoopSketch) -> dict[Node, RowProduct] | None:
    """Return the products of a loop that is made of them and of fused steps, or None."""
    others = [n for n in sketch.calls if not isinstance(n.target, StepCall)]
    found = {n: product for n in others if (product := row_product(sketch, n)) is not None}
    return found if found and len(found) == len(others) else None


def find_rows(
    plan: LoopPlan, kernels: Mapping[StepCall, StepKernel], threads: int, cache: KernelCache
) -> RowPlan | None:
    """Return how a loop is run by rows, or None where it cannot be or would be slower."""
    products = row_products(plan.sketch)
    return None if products is None else _Rows(plan, products, threads, cache).plan_calls(kernels)


class _Rows:
    """Fits the calls of a loop to blocks of rows."""

    def __init__(
        self, plan: LoopPlan, products: dict[Node, RowProduct], threads: int, cache: KernelCache
    ) -> None:
        self.plan, self.products = plan, products
        first = next(iter(products))
        self.dtype = plan.dtype(first)
        self.sizes = plan.sizes(first)
        self.available, self.cache = threads, cache

    def plan_calls(self, kernels: Mapping[StepCall, StepKernel]) -> RowPlan | None:
        """Return the plan of the loop, or None where a call does not fit."""
        if self.dtype not in (torch.float32, torch.float64) or not all(
            map(self.fits, self.products)
        ):
            return None
        self.batch, widest = self.sizes[0], max(self.plan.sizes(n)[1] for n in self.products)
        threads = self.available if self.plan.length * self.batch * widest >= LEAST_WORK else 1
        most = max(_BLOCK_BYTES // (widest * self.dtype.itemsize), 1)
        self.blocks = cut_rows(self.batch, threads, most)
        if len(self.blocks) < threads and self.weight_bytes() > this_machine().second_level:
            return None  # a library shares out columns as well
        calls = [
            self.step_call(node, kernels[node.target])
            if isinstance(node.target, StepCall)
            else self.product_call(node)
            for node in self.plan.sketch.calls
        ]
        found = tuple(call for call in calls if call is not None)
        if len(found) < len(calls):
            return None
        driver = self.cache.load(c_rows.rows_source(float_type(self.dtype)))
        return RowPlan(driver, len(self.blocks), min(threads, len(self.blocks)), found)

    def fits(self, node: Node) -> bool:
        """Tell whether a product is one of values [B, K] and [K, N] of the one type."""
        plan, product = self.plan, self.products[node]
        read = [n for n in (product.x, product.weight, product.bias) if n is not None]
        if any(plan.dtype(n) != self.dtype for n in (*read, node)):
            return False
        x, weight, out = (plan.sizes(n) for n in (product.x, product.weight, node))
        if any(len(sizes) != 2 or 0 in sizes for sizes in (x, weight, out)):
            return False
        whole_bias = product.bias is None or plan.sizes(product.bias) == out[1:]
        return whole_bias and out[0] == self.sizes[0] and self.is_readable(product.x)

    def is_readable(self, x: Node) -> bool:
        """Tell whether the rows of a value have no gaps between their elements."""
        reading = self.plan.sketch.reading(x)
        if reading.base in self.plan.sketch.given:
            like = self.plan.like[x.name]
            return not reading.delay and like is not None and like.stride(1) == 1
        return self.plan.is_array(reading.base)

    def weight_bytes(self) -> int:
        """Return the bytes of all weights."""
        sizes = (self.plan.sizes(product.weight) for product in self.products.values())
        return sum(rows * columns for rows, columns in sizes) * self.dtype.itemsize

    def step_call(self, node: Node, kernel: StepKernel) -> RowCall | None:
        """Return the call of a fused step, or None where it does not treat rows apart."""
        whole, seen = self.plan.bound[node], self.plan.seen[node]
        same = len(whole.lanes) == 2 and whole.lanes[0] == self.batch and whole.lanes[1] > 0
        if not same or kernel.call.dtype != self.dtype or self.plan.copies_steps(node):
            return None
        of_size = {
            rows: kernel.bind({n: self.of_rows(operand, rows) for n, operand in seen.items()}, 1)
            for rows in dict(self.blocks).values()
        }
        bound = [of_size[rows] for _, rows in self.blocks]
        first = bound[0]
        alike = all(
            (b.function, b.slots, len(b.values)) == (first.function, first.slots, len(first.values))
            and b.copied == whole.copied
            for b in bound
        )
        if not alike or len(first.values) > c_rows.MOST_VALUES:
            return None
        row = {n: self.row_stride(operand) for n, operand in seen.items() if n not in whole.copied}
        size = self.dtype.itemsize
        strides = {s: row.get(n, whole.lanes[1]) * size for n, s in first.slots.items()}
        shifts = shifts_of(self.blocks, strides, [b.values for b in bound])
        return RowCall(address_of(first.function), first.values, first.slots, shifts)

    def of_rows(self, operand: Operand, rows: int) -> Operand:
        """Return some rows of an operand."""
        return (
            replace(operand, sizes=(rows, operand.sizes[1])) if self.has_rows(operand) else operand
        )

    def has_rows(self, operand: Operand) -> bool:
        return len(operand.sizes) == 2 and operand.sizes[0] == self.batch

    def row_stride(self, operand: Operand) -> int:
        return operand.strides[0] if self.has_rows(operand) else 0

    def product_call(self, node: Node) -> RowCall | None:
        """Return the call of a product, or None where torch adds up in another order."""
        plan, product = self.plan, self.products[node]
        inner = plan.sizes(product.x)[1]
        like = plan.like[product.x.name]
        is_given = product.x in plan.sketch.given and like is not None
        chunk = inner if plan.sketch.loop.reverse else self.chunk_of_torch(product)
        if chunk is None:
            return None
        shape = ProductShape(
            rows=self.batch,
            inner=inner,
            columns=plan.sizes(node)[1],
            chunk=chunk,
            x_row=like.stride(0) if is_given and like is not None else inner,
            itemsize=self.dtype.itemsize,
        )
        return shape.call(self.blocks, biased=product.bias is not None)

    def chunk_of_torch(self, product: RowProduct) -> int | None:
        """Return how torch cuts the sums of a product, or None where that is not known."""
        like = self.plan.like[product.weight.name]
        assert like is not None
        if product.weight.name not in self.plan.aligned:
            return None
        asked = Multiplication(
            rows=self.batch,
            weight=(like.shape[0], like.shape[1]),
            strides=(like.stride(0), like.stride(1)),
            transposed=product.transposed,
            biased=product.bias is not None,
            dtype=self.dtype,
        )
        return find_chunk(asked, self.cache)
