"""Weights, biases and shifts of linear layers and convolutions in whole numbers.

Each output channel has a power of two of its own: the finest at which its weights fit their type
and its sum cannot leave the wide type, whatever the inputs are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from snncc.export.quantized.formats import Arithmetic, Format, fraction_for, limited
from snncc.export.quantized.nodes import Constant, Product

# Makes a constant of a library from its name, its values and the bits of one.
Keep = Callable[[str, numpy.ndarray, int], Constant]


def quantize_product(  # noqa: PLR0913 - a layer, its surroundings, and what is known of its inputs
    weights: Tensor,
    bias: Tensor | None,
    formats: tuple[Format, Format],
    arithmetic: Arithmetic,
    keep: tuple[str, Keep],
    *,
    is_dense: bool = False,
) -> Product:
    """Return a layer's parameters in whole numbers.

    Args:
        weights: In floats, in the order of memory, as [groups, inputs, outputs / groups].
        bias: In floats, one for each output, or None.
        formats: Of the inputs and of the outputs.
        arithmetic: The sizes of numbers.
        keep: The name of the layer, and where its constants go.
        is_dense: Whether most inputs were seen not to be zero.
    """
    x, y = formats
    name, constant = keep
    groups, _, each = weights.shape
    flat = weights.double().permute(0, 2, 1).reshape(groups * each, -1)
    offset = torch.zeros(groups * each).double() if bias is None else bias.double().reshape(-1)
    most = max(abs(x.low), abs(x.high), 1)
    fractions = [
        _fraction(row, float(b), x.fraction, y.fraction, most, arithmetic)
        for row, b in zip(flat, offset, strict=True)
    ]
    scale = torch.tensor(fractions)
    high = (1 << arithmetic.weight_bits - 1) - 1
    rows = limited(torch.floor(torch.ldexp(flat, scale[:, None]) + 0.5), -high - 1, high)
    starts = limited(
        torch.floor(torch.ldexp(offset, scale + x.fraction) + 0.5),
        -arithmetic.wide_high,
        arithmetic.wide_high,
    )
    shifts = scale + x.fraction - y.fraction
    reached = starts.abs() + rows.abs().sum(1) * most + (1 << shifts.clamp(min=0))
    sum_bits = 32 if int(reached.max()) < (1 << 31) else 64
    of_spikes = x.exact and x.low >= 0 and x.high <= 1
    by_output = is_dense and not of_spikes and sum_bits == 32
    ordered = rows if by_output else rows.reshape(groups, each, -1).permute(0, 2, 1)
    return Product(
        constant(f"{name}_weight", ordered.reshape(-1).numpy(), arithmetic.weight_bits),
        None if bias is None else constant(f"{name}_bias", starts.numpy(), arithmetic.wide_bits),
        constant(f"{name}_shift", shifts.numpy(), 8),
        sum_bits,
        of_spikes,
        by_output,
    )


def _fraction(  # noqa: PLR0913 - what a channel is made of
    row: Tensor, bias: float, x: int, y: int, most: int, arithmetic: Arithmetic
) -> int:
    """Return the finest fraction of one output's weights."""
    high = (1 << arithmetic.weight_bits - 1) - 1
    largest = float(row.abs().max()) if row.numel() else 0.0
    fraction = fraction_for(largest, high, arithmetic.state_bits)
    # All sums, and the bias alone, stay below a quarter of the wide type's range, or of 64 bits.
    limit = 1 << 61
    total = float(row.abs().sum()) * most
    while math.ldexp(total, fraction) > limit or (
        math.ldexp(abs(bias), fraction + x) > arithmetic.wide_high
    ):
        fraction -= 1
    return min(fraction, arithmetic.wide_bits - 2 + min(y, 0) - x)
