"""Gradients of 3 x 3 convolutions by Winograd's method, which multiplies a quarter as often.

Numerics: equal over the reals; docs/numerics.md says what roundings do.  Where a result is not
finite there is none: the library, which multiplies term by term, may still have one.
"""

from __future__ import annotations

import functools
import math
import struct

import torch
from torch import Tensor

from snncc.codegen.base import FloatType
from snncc.codegen.c.winograd import ARRAYS, KEPT, SIZES, TILES, VECTORS, emit_winograd
from snncc.runtime import memory
from snncc.runtime.cache import CACHE, Function

_LINE = 64  # bytes of a vector, and of a line of a cache
# Tiles whose transforms all threads share in a last cache.
_MOST_TILES = 128
# Fewer channels do not fill the vectors of a row.
_FEWEST_CHANNELS = 16
# What transforms cost in products of the dense library, and how much of its time is to be saved.
_FILTER, _TILE, _SHARE = 200, 250, 0.6


def pays(
    images: int, channels: int, filters: int, size: tuple[int, int], out: tuple[int, int]
) -> bool:
    """Tell whether the gradient of the input is faster by this method than in the library.

    Args:
        images: How many.
        channels: Of the input.
        filters: How many, the channels of the output.
        size: Of the planes of the input.
        out: Of the planes of the output.
    """
    if min(channels, filters) < _FEWEST_CHANNELS or not _has_registers():
        return False
    down, across = (-(-n // 4) for n in size)
    tiles = images * down * across
    row = VECTORS * _LINE // 4
    columns = -(-channels // row) * row
    products = 36 * -(-tiles // TILES) * TILES * columns * filters
    transforms = _FILTER * columns * filters + _TILE * tiles * (channels + filters)
    return products + transforms < _SHARE * 9 * images * math.prod(out) * channels * filters


@functools.cache
def _has_registers() -> bool:
    """Tell whether the machine has registers for the sums of all tiles of a step."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def input_gradient(
    cotangent: Tensor, weight: Tensor, size: tuple[int, int], padding: tuple[int, int]
) -> Tensor | None:
    """Return the gradient of the input of a 3 x 3 convolution with stride 1, if it is finite.

    Args:
        cotangent: Of the output; contiguous.
        weight: The filters; contiguous.
        size: Of the planes of the input.
        padding: Of the convolution.
    """
    images, filters, *out = cotangent.shape
    channels = weight.shape[1]
    threads, itemsize = torch.get_num_threads(), cotangent.itemsize
    lanes = _LINE // itemsize
    down, across = (-(-n // 4) for n in size)
    bands = max(1, min(images * down, _MOST_TILES // across))
    blocks = -(-channels // (VECTORS * lanes))
    parts = min(bands, -(-threads // blocks))
    tiles, inner = bands * across, -(-filters // lanes) * lanes
    values = 36 * ((tiles + TILES) * inner + lanes)
    lines = 6 * (4 * across + 2) * lanes
    kept = 36 * (KEPT * VECTORS + 1) * lanes
    sums = 36 * ((-(-bands // parts) * across + TILES) * VECTORS + 1) * lanes
    own = (lines + kept + sums) * itemsize
    result = memory.empty((images, channels, *size), cotangent.dtype)
    room = memory.POOL.buffer(max(values * itemsize, memory.SMALLEST), cotangent.dtype)
    scratch = memory.POOL.buffer(max(threads * own, memory.SMALLEST), torch.uint8)
    unfit = torch.zeros(1, dtype=torch.int64)
    sizes = (images, channels, *size, filters, *out, *padding, threads, bands, parts, own)
    addresses = [t.data_ptr() for t in (cotangent, weight, result, room, scratch, unfit)]
    _kernel(cotangent.dtype)(_PACK(*sizes, *addresses))
    return None if unfit.item() else result


_PACK = struct.Struct(f"{len(SIZES) + len(ARRAYS)}q").pack


@functools.cache
def _kernel(dtype: torch.dtype) -> Function:
    kind = FloatType.FLOAT64 if dtype is torch.float64 else FloatType.FLOAT32
    return CACHE.load(emit_winograd(kind))
