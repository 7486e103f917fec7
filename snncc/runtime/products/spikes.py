"""Spikes that a product keeps for the gradient of its weight: a bit for each value.

Bits lie in the order of the memory of the spikes.  What shares that memory - views of it, and other
products that read it - shares the bits.

Numerics: bitwise; what is unpacked is what was packed, provided that it was 0 or 1.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.codegen.c.bits import FIELDS, WORD_BITS, Way, bits_source
from snncc.runtime import memory
from snncc.runtime.binaries.cache import CACHE, Function
from snncc.runtime.gpu import bits
from snncc.runtime.launch import DTYPES
from snncc.runtime.loops.row_plan import float_type
from snncc.runtime.tracing import is_traced

# Bytes of values from which on they are packed: with fewer there is more to lose than to gain.
SMALLEST = 1 << 21
# Values that operators of torch pack or unpack at a time; a multiple of 8.
_PIECE = 1 << 22


class Spikes:
    """A value of a network that is 0 or 1, packed when a product first keeps it.

    Args:
        values: The value; it must not change while this object is in use.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._words: Tensor | None = None

    def keep(self, x: Tensor, weight: Tensor) -> Packed | None:
        """Return what a product keeps of its input; None where it keeps the values, or nothing.

        Args:
            x: The input: the value itself, a view of it, or a copy in another order.
            weight: What it is multiplied with.
        """
        if not (torch.is_grad_enabled() and weight.requires_grad and _is_packable(x)):
            return None
        values = self._values
        shares = x.data_ptr() == values.data_ptr() and x.numel() == values.numel()
        words = self._words if shares else None
        if words is None:
            words = pack(x)
            self._words = words if shares else self._words
        source: Tensor | None = None
        if x.requires_grad:
            source = _Source.apply(x)  # type: ignore[no-untyped-call]
        return Packed(words, Kept(x.shape, x.stride(), x.dtype, source))


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """An input as bits.

    Attributes:
        words: The bits: for autograd to keep, which may move them or compute them again.
        kept: What else is known.
    """

    words: Tensor
    kept: Kept


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What is known of an input whose bits are kept.

    Attributes:
        shape: Its sizes.
        strides: Its strides.
        dtype: Its type.
        source: Stands for it in the graph of autograd, without memory; None where it has no
            gradient.
    """

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    source: Tensor | None

    def values(self, words: Tensor) -> Tensor:
        """Return the input; where gradients are recorded, with its own."""
        if self.source is not None and torch.is_grad_enabled():
            return _Values.apply(self.source, words, self)  # type: ignore[no-any-return, no-untyped-call]
        return unpack(words, self)


@dataclass(frozen=True, slots=True, eq=False)
class BitRows:
    """Rows [rows, inner] of zeros and ones, as bits.

    Attributes:
        words: The bits, without a gap between rows.
        kept: What they were.
        density: The share of ones, as a sample told it of the values.
    """

    words: Tensor
    kept: Kept
    density: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and values of a row."""
        inner = self.kept.shape[-1]
        return self.kept.shape.numel() // inner, inner

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values."""
        return self.kept.dtype

    def values(self) -> Tensor:
        """Return the rows."""
        return unpack(self.words, self.kept).view(self.shape)


class _Source(torch.autograd.Function):
    """Stands for a tensor that is not kept: a gradient of a gradient may come to it."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def backward(_ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent


class _Values(torch.autograd.Function):
    """The values of a tensor whose bits were kept."""

    @staticmethod
    def forward(_ctx: Any, _source: Tensor, words: Tensor, kept: Kept) -> Tensor:
        return unpack(words, kept)

    @staticmethod
    def backward(_ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return cotangent, None, None


def _is_packable(x: Tensor) -> bool:
    """Tell whether there is enough to gain, in an order of memory that can be given back."""
    if x.nbytes < SMALLEST or is_traced((x,)) or x.is_neg():
        return False
    return (x.dtype in DTYPES if x.is_cpu else x.is_floating_point()) and _is_dense(x)


def _is_dense(x: Tensor) -> bool:
    """Tell whether each place of a piece of memory is one value."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def pack(x: Tensor) -> Tensor:
    """Return which values of a dense tensor are not zero, as bits of int64, in order of memory."""
    flat = x.detach().as_strided((x.numel(),), (1,))
    if not x.is_cpu:
        return bits.pack(flat) if bits.is_available() else _pack_by_torch(flat)
    words = memory.empty((-(-x.numel() // WORD_BITS),), torch.int64)
    _call("pack", flat, words)
    return words


def unpack(words: Tensor, kept: Kept) -> Tensor:
    """Return the zeros and ones that were packed, in a tensor of their own."""
    count = kept.shape.numel()
    if is_traced((words,)) or not (words.is_cpu or bits.is_available()):
        flat = _unpack_by_torch(words, count, kept.dtype)
    elif not words.is_cpu:
        flat = bits.unpack(words, count, kept.dtype)
    else:
        flat = memory.empty((count,), kept.dtype)
        _call("unpack", flat, words)
    return flat.as_strided(kept.shape, kept.strides)


def _call(way: Way, values: Tensor, words: Tensor) -> None:
    fields = (values.data_ptr(), words.data_ptr(), values.numel(), torch.get_num_threads())
    _kernel(values.dtype, way)(_PACK(*fields))


_PACK = struct.Struct(f"{len(FIELDS)}q").pack


@functools.cache
def _kernel(dtype: torch.dtype, way: Way) -> Function:
    return CACHE.load(bits_source(float_type(dtype), way))


def _pack_by_torch(flat: Tensor) -> Tensor:
    words = flat.new_zeros((-(-flat.numel() // WORD_BITS),), dtype=torch.int64)
    octets = words.view(torch.uint8)
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=flat.device)
    for first in range(0, flat.numel(), _PIECE):
        piece = flat[first : first + _PIECE] != 0
        missing = -piece.numel() % 8
        if missing:
            piece = torch.nn.functional.pad(piece, (0, missing))
        found = (piece.view(-1, 8) * powers).sum(-1, dtype=torch.uint8)
        octets[first // 8 : first // 8 + found.numel()] = found
    return words


def _unpack_by_torch(words: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    flat = words.new_empty((count,), dtype=dtype)
    octets = words.view(torch.uint8)
    places = torch.arange(8, dtype=torch.uint8, device=words.device)
    for first in range(0, count, _PIECE):
        piece = octets[first // 8 : (first + _PIECE) // 8].unsqueeze(1) >> places & 1
        some = flat[first : first + _PIECE]
        some.copy_(piece.view(-1)[: some.numel()])
    return flat
