"""Gradients of weights: ``g^T x`` over all rows, without the work for neurons that did not fire.

Where most of one factor is zero, a kernel reads of the other only the rows that count.  Which way
is faster is decided at each call, by the sizes and by a sample of the values.

Numerics: the same terms as the dense product in another order; each thread has sums of its own.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from snncc.codegen.c.outer import FIELDS, MOST_COLUMNS, ROW_BYTES, outer_source
from snncc.runtime.binaries.cache import CACHE
from snncc.runtime.launch import DTYPES
from snncc.runtime.loops.row_plan import float_type
from snncc.runtime.products.skipping import Costs
from snncc.runtime.products.spikes import BitRows
from snncc.runtime.tracing import is_traced

# Measured on two cores with AVX-512, with 800 to 25,600 rows of 20 to 700 values.
_COSTS = Costs(kept=1.4, each=24, call=2e7)
# Bytes of the sums of a thread: they should stay in a second-level cache.
_MOST_SUMS = 1 << 20
# Partial sums of a dense product may add one part in this many to what it reads.
_PART_SIZE = 8


def outer_product(left: Tensor, right: Tensor | BitRows) -> Tensor:
    """Multiply [rows, m] and [rows, n] to [m, n], summed over rows.

    Args:
        left: Its columns are the rows of the result.
        right: Its columns are those of the result.
    """
    if not torch.is_grad_enabled() and _may_skip(left, right):
        if _pays(right, left):
            found = _skipping(right, left)
            if found is not None:
                return found.t().contiguous()
        if _pays(left, right):
            found = _skipping(left, right if isinstance(right, Tensor) else right.values())
            if found is not None:
                return found
    return _dense(left, right if isinstance(right, Tensor) else right.values())


def _may_skip(left: Tensor, right: Tensor | BitRows) -> bool:
    m, n = left.shape[1], right.shape[1]
    fits = max(m, n) <= MOST_COLUMNS and m * n * left.element_size() <= _MOST_SUMS
    plain = left.dtype == right.dtype in DTYPES and left.is_contiguous()
    plain = plain and left.device.type == "cpu" and not is_traced((left,))
    if not (fits and plain) or isinstance(right, BitRows):
        return fits and plain
    return right.is_contiguous() and not is_traced((right,))


def _pays(x: Tensor | BitRows, g: Tensor | BitRows) -> bool:
    if isinstance(x, Tensor):
        return _COSTS.pay(x, g.shape[1])
    return _COSTS.pay_at(x.shape, g.shape[1], lambda: x.density)


def _skipping(x: Tensor | BitRows, g: Tensor) -> Tensor | None:
    """Return ``x^T g`` without the zeros of x; None where ``g`` is not finite."""
    parts, (rows, inner), columns = torch.get_num_threads(), x.shape, g.shape[1]
    fill = ROW_BYTES // g.element_size()
    sums = g.new_empty((parts, inner + 1, -(-columns // fill) * fill))
    fields = {
        "x": x.data_ptr() if isinstance(x, Tensor) else 0,
        "bits": 0 if isinstance(x, Tensor) else x.words.data_ptr(),
        "g": g.data_ptr(),
        "sums": sums.data_ptr(),
        "rows": rows,
        "inner": inner,
        "columns": columns,
        "x_row": inner,
        "g_row": columns,
        "parts": parts,
    }
    kernel = CACHE.load(outer_source(float_type(g.dtype)))
    kernel(struct.pack(f"{len(FIELDS)}q", *(fields[name] for name in FIELDS)))
    total = sums.sum(0)
    if bool(total[inner].any()):
        return None
    return total[:inner, :columns].contiguous()


def _dense(left: Tensor, right: Tensor) -> Tensor:
    """Multiply a part of the rows for each thread.

    The result is small and the rows are many; the library's threads share out the result.
    Measured on two cores with 3,200 to 25,600 rows, sharing out these takes up to 43 % less time.
    """
    parts = torch.get_num_threads() if left.device.type == "cpu" else 1
    extra = parts * left.shape[1] * right.shape[1]
    if parts == 1 or extra * _PART_SIZE > left.numel() + right.numel():
        return left.t() @ right
    whole = left.shape[0] // parts * parts
    first, second = (x[:whole].reshape(parts, -1, x.shape[1]) for x in (left, right))
    total = torch.bmm(first.transpose(1, 2), second).sum(0)
    return total if whole == left.shape[0] else total + left[whole:].t() @ right[whole:]
