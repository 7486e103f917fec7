"""Linear layers over whole sequences, with results in the pool of large buffers.

The product over all steps is as large as a neuron's input and lives as long; from the general
allocator it would be new memory, page by page, at every call.

Numerics: the result comes from the library call of ``torch.nn.functional.linear`` on the same rows,
or, where most of them is zero, from a kernel that skips zeros; that one adds in the order of the
library's product of a single step where that order is known (`snncc.runtime.products.order`).  The
gradient of a weight is that of `snncc.runtime.products.outer`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snncc.codegen.c.rows import MOST_INNER, rows_source
from snncc.runtime import memory
from snncc.runtime.binaries.cache import CACHE
from snncc.runtime.launch import DTYPES
from snncc.runtime.loops.row_plan import Factors, float_type, multiply_rows
from snncc.runtime.products import plain
from snncc.runtime.products.density import density
from snncc.runtime.products.order import Multiplication, find_chunk
from snncc.runtime.products.outer import outer_product
from snncc.runtime.products.saved_input import SavedInput
from snncc.runtime.products.skipping import Costs
from snncc.runtime.products.spikes import BitRows, Kept, Packed, Spikes
from snncc.runtime.tracing import is_recorded, is_traced, refuse_batches

# Measured on two cores with AVX-512, with 800 to 25,600 rows of 40 to 700 values.
_COSTS = Costs(kept=1.2, each=24, call=3e7)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, spikes: Spikes | None = None
) -> Tensor:
    """Apply a linear layer to [T, *, in], in the memory order that x has.

    ``spikes`` says that x is 0 or 1: bits of it are kept for the gradient of the weight.
    """
    swapped = x.dim() == 3 and not x.is_contiguous() and x.transpose(0, 1).is_contiguous()
    rows = x.transpose(0, 1) if swapped else x
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if (
        is_recorded()  # where sizes may be symbols
        or x.nbytes < memory.SMALLEST
        or not rows.is_cpu
        or not rows.is_contiguous()
        or is_traced(tensors)
        or torch.is_autocast_enabled("cpu")
    ):
        result = plain.linear(rows, weight, bias, spikes=spikes)
    elif torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        kept = None if spikes is None else spikes.keep(rows, weight)
        result = _Linear.apply(rows, weight, bias, kept)  # type: ignore[no-untyped-call]
    else:
        result = _product(rows, weight, bias)
    return result.transpose(0, 1) if swapped else result


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result = memory.empty((*rows.shape[:-1], weight.shape[0]), rows.dtype)
    flat, out = rows.flatten(0, -2), result.view(-1, weight.shape[0])
    if _skips_zeros(flat, weight, bias):
        chunk = _chunk_of_a_step(rows, weight, bias) or weight.shape[1]
        driver = CACHE.load(rows_source(float_type(rows.dtype)))
        factors = Factors(flat, weight.detach().t(), bias, out)
        multiply_rows(driver, factors, chunk, skip=True, threads=torch.get_num_threads())
    elif bias is None:
        torch.mm(flat, weight.t(), out=out)
    else:
        torch.addmm(bias, flat, weight.t(), out=out)
    return result


def _skips_zeros(flat: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell whether a product is faster without the zeros of its input, and the same."""
    plain = flat.dtype == weight.dtype in DTYPES and (bias is None or bias.dtype == flat.dtype)
    # Torch may be allowed to multiply in fewer bits, and faster.
    whole = torch.get_float32_matmul_precision() == "highest" or flat.dtype == torch.float64
    if not (plain and whole) or weight.shape[1] > MOST_INNER:
        return False
    if not _COSTS.pay(flat, weight.shape[0]):
        return False
    return bool(weight.isfinite().all())  # a zero times infinity is no zero


def _chunk_of_a_step(rows: Tensor, weight: Tensor, bias: Tensor | None) -> int | None:
    """Return how torch would cut the sums of the product of a single step, if that is known."""
    return find_chunk(
        Multiplication(
            rows=rows.shape[1:-1].numel(),
            weight=(weight.shape[0], weight.shape[1]),
            strides=(weight.stride(0), weight.stride(1)),
            transposed=True,
            biased=bias is not None,
            dtype=rows.dtype,
        )
    )


class _Linear(torch.autograd.Function):
    """The product and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed | None
    ) -> Tensor:
        ctx.input = SavedInput.of(ctx, rows, weight, packed)
        ctx.density = 0.0 if packed is None else density(rows)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batches((cotangent,))
        weight, saved = ctx.saved_tensors
        for_rows, for_weight, for_bias, _ = ctx.needs_input_grad
        flat = cotangent.reshape(-1, weight.shape[0])
        # In this order, bits that were unpacked for the one leave their memory to the other.
        of_weight = outer_product(flat, _factor(ctx, saved)) if for_weight else None
        return (
            _rows_gradient(flat, weight, ctx.input.shape) if for_rows else None,
            of_weight,
            flat.sum(0) if for_bias else None,
            None,
        )


def _factor(ctx: Any, saved: Tensor) -> Tensor | BitRows:
    """Return the rows that were multiplied, as they were kept."""
    kept: Kept | None = ctx.input.kept
    if kept is None:
        return saved.flatten(0, -2)
    if torch.is_grad_enabled():
        return kept.values(saved).flatten(0, -2)
    return BitRows(saved, kept, ctx.density)


def _rows_gradient(flat: Tensor, weight: Tensor, sizes: torch.Size) -> Tensor:
    if torch.is_grad_enabled():  # it may be differentiated again
        return (flat @ weight).view(sizes)
    result = memory.empty(sizes, flat.dtype)
    torch.mm(flat, weight, out=result.view(-1, weight.shape[1]))
    return result
