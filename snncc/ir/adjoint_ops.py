"""Operators of the gradient of a recurrent loop: on one step, and on all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def collected(values: Tensor | Sequence[Tensor]) -> Tensor:
    """Return what a loop kept of each step as one tensor [T, *]."""
    return values if isinstance(values, Tensor) else torch.stack(tuple(values))


def fit_gradient(g: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient over the dimensions in which what it belongs to was broadcast."""
    return (g if g.shape == like.shape else g.sum_to_size(like.shape)).to(like.dtype)


def fit_sequence(g: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient [T, *lanes] over the lane dimensions in which a sequence was broadcast."""
    if g.shape != like.shape:
        ones = (1,) * (g.dim() - like.dim())
        g = g.sum_to_size((like.shape[0], *ones, *like.shape[1:])).reshape(like.shape)
    return g.to(like.dtype)


def in_last_step(g: Tensor, steps: Tensor) -> Tensor:
    """Return the sequence that is ``g`` at the last step and zero before."""
    result = g.new_zeros((steps.shape[0], *g.shape))
    result[-1] = g
    return result


def fit_lanes(g: Tensor, dims: tuple[int, ...], rank: int) -> Tensor:
    """Sum a gradient over lane dimensions, then drop those in front until ``rank`` are left."""
    summed = g.sum(dims, keepdim=True) if dims else g
    return summed.reshape(summed.shape[summed.dim() - rank :])


def rows_product(g: Tensor, x: Tensor) -> Tensor:
    """Return ``g^T x`` of [T, *, n] and [T, *, m], summed over steps and rows."""
    return torch.mm(g.reshape(-1, g.shape[-1]).t(), x.reshape(-1, x.shape[-1]))


def columns_product(g: Tensor, x: Tensor) -> Tensor:
    """Return ``g x^T`` of [T, n, B] and [T, m, B], summed over steps and columns."""
    return torch.mm(g.transpose(0, 1).flatten(1), x.transpose(0, 1).flatten(1).t())


def rows_sum(g: Tensor) -> Tensor:
    """Return the sum of [T, *, n] over steps and rows."""
    return g.reshape(-1, g.shape[-1]).sum(0)


def channels_sum(g: Tensor) -> Tensor:
    """Return the sum of [T, B, C, *] over all but channels."""
    return g.transpose(0, 2).flatten(1).sum(1)


def convolution_input_gradient(  # noqa: PLR0913 - the arguments of a convolution
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Return the gradient of the input of a convolution at one step."""
    result: Tensor = _convolution_backward(
        g, x, weight, stride, padding, dilation, groups, (True, False, False)
    )[0]
    return result


def convolution_weight_gradient(  # noqa: PLR0913 - the arguments of a convolution
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Return the gradient of the weight of a convolution over all steps [T, B, C, *]."""
    flat = g.flatten(0, 1), x.flatten(0, 1)
    result: Tensor = _convolution_backward(
        *flat, weight, stride, padding, dilation, groups, (False, True, False)
    )[1]
    return result


def _convolution_backward(  # noqa: PLR0913 - the arguments of a convolution
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    mask: tuple[bool, bool, bool],
) -> Any:
    none = (0,) * len(stride)
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, none, groups, mask
    )
