"""The parts of batch norms: once they are folded, and for gradients of loops around them.

In evaluation mode a norm is, channel by channel and with ``r = sqrt(var + eps)``::

    scale x + shift          scale = gamma / r          shift = beta - scale mean

Each coefficient is computed in float64 and rounded once, so that it is as near to the norm as its
type allows, whatever eps, the sign of gamma or the size of the variance.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def folded_weight(
    weight: Tensor, var: Tensor, gamma: Tensor | None, eps: float, groups: int | None
) -> Tensor:
    """Return the weight of a product, scaled as the norm of its results scales.

    Args:
        weight: [C, ...], or [I, C / groups, ...] of a transposed convolution.
        var: Running variance, [C].
        gamma: Weight of the norm, [C], or None for ones.
        eps: What the norm adds to the variance.
        groups: Groups of a transposed convolution; None for any other product.
    """
    scale = _scale(var, gamma, eps)
    if groups is None:
        scaled = weight.double() * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    else:
        parts = weight.double().reshape(groups, -1, *weight.shape[1:])
        scaled = parts * scale.reshape(groups, 1, -1, *(1,) * (weight.dim() - 2))
        scaled = scaled.flatten(0, 1)
    return scaled.to(weight.dtype)


def folded_bias(  # noqa: PLR0913 - the parameters of a norm
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    """Return the bias of a product, [C], as the norm of its results makes it.

    Args:
        bias: The bias before, [C], or None for zeros.
        mean: Running mean.
        var: Running variance.
        gamma: Weight of the norm, or None for ones.
        beta: Bias of the norm, or None for zeros.
        eps: What the norm adds to the variance.
    """
    scale = _scale(var, gamma, eps)
    centre = -mean.double() if bias is None else bias.double() - mean.double()
    shifted = scale * centre if beta is None else beta.double() + scale * centre
    return shifted.to(mean.dtype)


def norm_scale(var: Tensor, gamma: Tensor | None, eps: float) -> Tensor:
    """Return the factor of a norm, channel by channel."""
    return _scale(var, gamma, eps).to(var.dtype)


def norm_shift(
    mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> Tensor:
    """Return what a norm adds, channel by channel."""
    return folded_bias(None, mean, var, gamma, beta, eps)


def normalized(  # noqa: PLR0913 - the parameters of a norm
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `torch.nn.functional.batch_norm` does in training, and its statistics.

    These are the mean of each channel and one over its deviation.
    """
    if x.numel() <= x.shape[1]:  # refused if it is one value, without statistics if it is none
        y = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        return y, *x.new_zeros((2, x.shape[1]))
    cudnn: Any = torch.backends.cudnn
    y, mean, deviation, *_ = torch._batch_norm_impl_index(
        x, weight, bias, mean, var, training, momentum, eps, cudnn.enabled
    )
    return y, mean, deviation


def norm_gradient(  # noqa: PLR0913 - the arguments of torch's own
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
    eps: float,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the input, the weight and the bias of a norm in training.

    Args:
        g: The cotangent of the result.
        x: The input.
        weight: The weight, or None for ones.
        mean: The mean of each channel.
        deviation: One over the deviation of each channel.
        eps: What the norm adds to a variance.
        wanted: Which of the gradients are needed.
    """
    if not x.numel():
        zero = mean.new_zeros(mean.shape)
        return tuple(z if w else None for z, w in zip((x, zero, zero), wanted, strict=True))
    found: tuple[Tensor | None, ...] = torch.ops.aten.native_batch_norm_backward(
        g.expand(x.shape), x, weight, None, None, mean, deviation, True, eps, wanted
    )
    return found


def _scale(var: Tensor, gamma: Tensor | None, eps: float) -> Tensor:
    deviation = torch.sqrt(var.double() + eps)
    return 1.0 / deviation if gamma is None else gamma.double() / deviation
