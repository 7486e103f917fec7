"""What a batch norm in evaluation mode is made of, once it is folded into its neighbours.

With ``r = sqrt(var + eps)`` such a norm is, channel by channel, ``scale x + shift``::

    scale = gamma / r        shift = beta - scale mean

Each coefficient is computed in float64 and rounded once, so that it is as near to the norm as its
type allows, whatever eps, the sign of gamma or the size of the variance.
"""

from __future__ import annotations

import torch
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


def _scale(var: Tensor, gamma: Tensor | None, eps: float) -> Tensor:
    deviation = torch.sqrt(var.double() + eps)
    return 1.0 / deviation if gamma is None else gamma.double() / deviation
