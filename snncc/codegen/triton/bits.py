"""The Triton code that packs values into bits, and makes zeros and ones of them again.

The words are those of `snncc.codegen.c.bits`, written as halves of 32 bits each.
"""

from __future__ import annotations

from snncc.codegen.base import FloatType, KernelSource, Signature
from snncc.codegen.c.bits import Way

HALF_BITS = 32
# Halves that a program packs, and values that it unpacks.
BLOCKS: dict[Way, int] = {"pack": 32, "unpack": 1024}


def bits_source(way: Way) -> KernelSource:
    """Return the kernel of one way, for any type of values."""
    text = _PACK if way == "pack" else _UNPACK
    return KernelSource(f"snncc_{way}", "triton", text, text, Signature(FloatType.FLOAT32, ()), ())


_PACK = '''\
"""Bit k of half w is set where value 32 w + k is not zero."""

import triton
import triton.language as tl


@triton.jit
def either(a, b):
    return a | b


@triton.jit
def snncc_pack(values, halves, count, BLOCK: tl.constexpr):
    half = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 32)
    place = half[:, None] * 32 + bit[None, :]
    found = tl.load(values + place, mask=place < count, other=0.0) != 0
    found = tl.reduce(found.to(tl.int32) << bit[None, :], 1, either)
    tl.store(halves + half, found, mask=half * 32 < count)
'''

_UNPACK = '''\
"""Value 32 w + k is 1 where bit k of half w is set, and 0 elsewhere."""

import triton
import triton.language as tl


@triton.jit
def snncc_unpack(values, halves, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    half = tl.load(halves + place // 32, mask=place < count, other=0)
    bit = (half >> (place % 32).to(tl.int32)) & 1
    tl.store(values + place, bit.to(values.dtype.element_ty), mask=place < count)
'''
