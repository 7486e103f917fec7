"""Kernels of norms with statistics of each step, where torch was seen to compute the same bits.

Torch documents no order of sums.  So norms of random numbers are taken by torch and by the kernel,
once in a process for each type: only where all bits agree, the kernel takes torch's place.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.codegen.base import FloatType
from snncc.codegen.c.norm import ARRAYS, SCALARS, SIZES, emit_norm
from snncc.runtime import memory
from snncc.runtime.binaries.cache import CACHE, Function

# Images, channels and pixels of the norms that are compared: a sum of one vector, and of parts.
_COMPARED = ((4, 48, 64), (3, 37, 45), (16, 20, 9))


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm in training.

    Attributes:
        weight: Of each channel, or None.
        bias: Of each channel, or None.
        running_mean: What is updated, or None.
        running_var: What is updated, or None.
        momentum: How much of a step goes into these.
        eps: What is added to a variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float
    eps: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return steps [T, images, channels, *] normalised, their means, and one over deviations.

        Running statistics are updated step by step.
        """
        y = memory.empty(x.shape, x.dtype)
        means, deviations, sums = x.new_empty((3, x.shape[0], x.shape[2]))
        tensors = (
            x, y, self.weight, self.bias, self.running_mean, self.running_var, means, deviations,
            sums, None,
        )  # fmt: skip
        _launch(x, (self.momentum, self.eps), tensors, backward=False)
        return y, means, deviations


def backward(
    cotangent: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    *,
    wanted: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of x if that is wanted, of the weight, and of the bias.

    Args:
        cotangent: Of the result; contiguous.
        x: The steps.
        weight: Of each channel, or None.
        statistics: The means, and one over the deviations, of each step.
        wanted: Whether the gradient of x is.
    """
    of_x = memory.empty(x.shape, x.dtype) if wanted else None
    means, deviations = statistics
    sums = x.new_empty((x.shape[0], x.shape[2], 2))
    tensors = (x, of_x, weight, None, None, None, means, deviations, sums, cotangent)
    _launch(x, (0.0, 0.0), tensors, backward=True)
    return of_x, (sums[..., 1] * deviations).sum(0), sums[..., 0].sum(0)


@functools.cache
def agrees(dtype: torch.dtype) -> bool:
    """Tell whether the kernel computes what torch computes, bit by bit."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    for images, channels, pixels in _COMPARED:
        x = numbers(2, images, channels, pixels) * 3 + 1
        weight, bias, mean, var = (numbers(channels) for _ in range(4))
        own = Norm(weight, bias, mean.clone(), var.clone(), 0.1, 1e-5)
        options: Any = (weight, bias, mean, var, True, 0.1, 1e-5)
        steps = [torch.native_batch_norm(x_t, *options) for x_t in x]
        expected = [*map(torch.stack, zip(*steps, strict=True)), mean, var]
        actual = [*own.forward(x), own.running_mean, own.running_var]
        pairs = zip(actual, expected, strict=True)
        if not all(a is not None and torch.equal(a, b) for a, b in pairs):
            return False
    return True


def _launch(
    x: Tensor,
    scalars: tuple[float, float],
    tensors: tuple[Tensor | None, ...],
    *,
    backward: bool,
) -> None:
    steps, images, channels = x.shape[:3]
    pixels = x.numel() // max(steps * images * channels, 1)
    sizes = (steps, images, channels, pixels, torch.get_num_threads())
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    _kernel(x.dtype, backward)(_PACK(*sizes, *scalars, *addresses))


_PACK = struct.Struct(f"{len(SIZES)}q{len(SCALARS)}d{len(ARRAYS)}q").pack


@functools.cache
def _kernel(dtype: torch.dtype, backward: bool) -> Function:
    kind = FloatType.FLOAT64 if dtype is torch.float64 else FloatType.FLOAT32
    return CACHE.load(emit_norm(kind, backward=backward))
