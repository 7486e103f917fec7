"""Pack tensors of a GPU into bits, and unpack them."""

from __future__ import annotations

import contextlib
import functools
import importlib.util

import torch
from torch import Tensor

from snncc.codegen.c.bits import WORD_BITS, Way
from snncc.codegen.triton.bits import BLOCKS, HALF_BITS, bits_source
from snncc.runtime.gpu.triton_kernels import load


@functools.cache
def is_available() -> bool:
    """Tell whether there is a compiler for the kernels."""
    return importlib.util.find_spec("triton") is not None


def pack(flat: Tensor) -> Tensor:
    """Return which values of a flat tensor are not zero, as bits of int64."""
    count = flat.numel()
    words = flat.new_zeros((-(-count // WORD_BITS),), dtype=torch.int64)
    _launch("pack", flat, words, -(-count // HALF_BITS))
    return words


def unpack(words: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return the zeros and ones that were packed, as a flat tensor."""
    flat = words.new_empty((count,), dtype=dtype)
    _launch("unpack", flat, words, count)
    return flat


def _launch(way: Way, flat: Tensor, words: Tensor, items: int) -> None:
    function, block = load(bits_source(way)).function, BLOCKS[way]
    on_device = torch.cuda.device(flat.device) if flat.is_cuda else contextlib.nullcontext()
    with on_device:
        function[(-(-items // block),)](flat, words.view(torch.int32), flat.numel(), BLOCK=block)
