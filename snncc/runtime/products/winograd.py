"""Gradients of 3 x 3 convolutions by Winograd's method, which multiplies a quarter as often.

Numerics: equal over the reals; docs/numerics.md says what roundings do.  Where a result is not
finite there is none: the library, which multiplies term by term, may still have one.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snncc.codegen.base import FloatType
from snncc.codegen.c.winograd import ARRAYS, KEPT, SIZES, TILES, VECTORS, emit_winograd
from snncc.runtime import memory
from snncc.runtime.binaries.cache import CACHE, Function

Pair = tuple[int, int]

_LINE = 64  # bytes of a vector, and of a line of a cache
# Tiles whose transforms all threads share in a last cache.
_MOST_TILES = 128
# Fewer channels do not fill the vectors of a row.
_FEWEST_CHANNELS = 16
# What transforms cost in products of the dense library, and how much of its time is to be saved.
_FILTER, _TILE, _SHARE = 200, 250, 0.6


def pays(images: int, channels: int, filters: int, size: Pair, out: Pair) -> bool:
    """Tell whether gradients are faster by this method than in the library.

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


def input_gradient(cotangent: Tensor, weight: Tensor, size: Pair, padding: Pair) -> Tensor | None:
    """Return the gradient of the input of a 3 x 3 convolution with stride 1, if it is finite.

    Args:
        cotangent: Of the output; contiguous.
        weight: The filters; contiguous.
        size: Of the planes of the input.
        padding: Of the convolution.
    """
    images, filters, *_ = cotangent.shape
    channels = weight.shape[1]
    threads, lanes = torch.get_num_threads(), _LINE // cotangent.itemsize
    bands, across = _bands(images, size)
    parts = min(bands, -(-threads // -(-channels // (VECTORS * lanes))))
    kept = 36 * (KEPT * VECTORS + 1) * lanes
    sums = 36 * ((-(-bands // parts) * across + TILES) * VECTORS + 1) * lanes
    result = memory.empty((images, channels, *size), cotangent.dtype)
    launch = _Launch("input", padding, (bands, parts), _values(bands * across, filters, lanes))
    own = _lines(across, lanes) + kept + sums
    return result if launch.run(cotangent, weight, result, own) else None


def weight_gradient(cotangent: Tensor, x: Tensor, padding: Pair) -> Tensor | None:
    """Return the gradient of the filters of a 3 x 3 convolution with stride 1, if it is finite.

    Args:
        cotangent: Of the output; contiguous.
        x: The input; contiguous.
        padding: Of the convolution.
    """
    images, filters, *out = cotangent.shape
    channels, lanes = x.shape[1], _LINE // cotangent.itemsize
    if images == 0:
        return cotangent.new_zeros((filters, channels, 3, 3))
    bands, across = _bands(images, out)
    tiles, sums = bands * across, 36 * TILES * VECTORS * lanes
    values = _values(tiles, channels, lanes) + _values(tiles, filters, lanes)
    blocks = -(-channels // (VECTORS * lanes)) * -(-filters // TILES)
    is_whole = bands >= images * -(-out[0] // 4)
    result = memory.empty((filters, channels, 3, 3), cotangent.dtype)
    launch = _Launch("weight", padding, (bands, 1), values + (0 if is_whole else blocks * sums))
    own = _lines(across, lanes) + sums
    return result if launch.run(cotangent, result, x, own) else None


def _bands(images: int, size: Sequence[int]) -> Pair:
    """Return how many rows of tiles are transformed at a time, and the tiles of each."""
    down, across = (-(-n // 4) for n in size)
    return max(1, min(images * down, _MOST_TILES // max(across, 1))), across


def _values(tiles: int, channels: int, lanes: int) -> int:
    """Return the elements of the transforms of some tiles."""
    return 36 * ((tiles + TILES) * -(-channels // lanes) + 1) * lanes


def _lines(across: int, lanes: int) -> int:
    """Return the elements of a band of some channels."""
    return 6 * (4 * across + 2) * lanes


@dataclass(frozen=True, slots=True)
class _Launch:
    """A call of a kernel.

    Attributes:
        of: What it computes the gradient of.
        padding: Of the convolution.
        bands: Rows of tiles that are transformed at a time, and parts that they are shared out in.
        values: Elements that all threads share.
    """

    of: str
    padding: Pair
    bands: Pair
    values: int

    def run(self, cotangent: Tensor, weight: Tensor, x: Tensor, own: int) -> bool:
        """Call the kernel, and tell whether all results are finite.

        Args:
            cotangent: Of the output.
            weight: The filters, or where their gradient goes.
            x: The input, or where its gradient goes.
            own: Elements that each thread has of its own.
        """
        dtype, threads = cotangent.dtype, torch.get_num_threads()
        own *= dtype.itemsize
        values = max(self.values * dtype.itemsize, memory.SMALLEST)
        room = memory.POOL.buffer(values, dtype)
        scratch = memory.POOL.buffer(max(threads * own, memory.SMALLEST), torch.uint8)
        unfit = x.new_zeros(1, dtype=torch.int64)
        sizes = (*x.shape, *cotangent.shape[1:], *self.padding, threads, *self.bands, own)
        addresses = [t.data_ptr() for t in (cotangent, weight, x, room, scratch, unfit)]
        _kernel(dtype, self.of)(_PACK(*sizes, *addresses))
        return not unfit.item()


_PACK = struct.Struct(f"{len(SIZES) + len(ARRAYS)}q").pack


@functools.cache
def _kernel(dtype: torch.dtype, of: str) -> Function:
    kind = FloatType.FLOAT64 if dtype is torch.float64 else FloatType.FLOAT32
    return CACHE.load(emit_winograd(kind, of))
