"""Spike functions: a heaviside step forward, a smooth or boxed derivative backward.

Forward, every function here is ``s = 1 if x >= 0 else 0`` with ``x = h - v_threshold``.
Backward, the derivative of the step, which is zero almost everywhere, is replaced by ``g(x)``.

Source: Neftci, Mostafa, Zenke 2019, "Surrogate gradient learning in spiking neural networks".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class ATanFunction(torch.autograd.Function):
    """Step with the derivative of a scaled arctangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        """Return 1 where ``x >= 0``, else 0."""
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the incoming gradient times ``g(x)``."""
        (x,) = ctx.saved_tensors
        slope = math.pi / 2 * ctx.alpha * x
        return grad_outputs[0] * (ctx.alpha / 2 / (1 + slope * slope)), None


class FastSigmoidFunction(torch.autograd.Function):
    """Step with the derivative of ``x / (1 + alpha |x|)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        """Return 1 where ``x >= 0``, else 0."""
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the incoming gradient times ``g(x)``."""
        (x,) = ctx.saved_tensors
        base = 1 + ctx.alpha * x.abs()
        return grad_outputs[0] / (base * base), None


class SigmoidFunction(torch.autograd.Function):
    """Step with the derivative of ``sigmoid(alpha x)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        """Return 1 where ``x >= 0``, else 0."""
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the incoming gradient times ``g(x)``."""
        (x,) = ctx.saved_tensors
        y = torch.sigmoid(ctx.alpha * x)
        return grad_outputs[0] * (ctx.alpha * y * (1 - y)), None


class TriangleFunction(torch.autograd.Function):
    """Step with a triangle around the threshold as derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, height: float, width: float) -> Tensor:
        """Return 1 where ``x >= 0``, else 0."""
        ctx.save_for_backward(x)
        ctx.height = height
        ctx.width = width
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the incoming gradient times ``g(x)``."""
        (x,) = ctx.saved_tensors
        ramp = (1 - x.abs() / ctx.width).clamp(min=0)
        return grad_outputs[0] * (ctx.height * ramp), None, None


class RectangleFunction(torch.autograd.Function):
    """Step with a box of height 1 around the threshold as derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: float) -> Tensor:
        """Return 1 where ``x >= 0``, else 0."""
        ctx.save_for_backward(x)
        ctx.width = width
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the incoming gradient times ``g(x)``."""
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * (x.abs() < ctx.width).to(x.dtype), None


class IntegerSpikeFunction(torch.autograd.Function):
    """Round and clip, with the gradient of the identity inside of the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        """Return ``x`` rounded, halves to even, and clipped to 0 .. levels."""
        ctx.save_for_backward(x)
        ctx.levels = levels
        return torch.clamp(torch.round(x), 0, levels)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the incoming gradient where ``0 <= x <= levels``."""
        (x,) = ctx.saved_tensors
        inside = (x >= 0) & (x <= ctx.levels)
        return grad_outputs[0] * inside.to(x.dtype), None


class IntegerSpike(nn.Module):
    """Integer spikes: ``clip(round(x), 0, levels)``; the gradient passes where x is in the range.

    Args:
        levels: Largest number of spikes.
    """

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Return the number of spikes for potentials ``x`` of any shape."""
        s: Tensor = IntegerSpikeFunction.apply(x, self.levels)  # type: ignore[no-untyped-call]
        return s

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"levels={self.levels}"


class ATan(nn.Module):
    """Arctangent surrogate: ``g(x) = alpha / 2 / (1 + (pi alpha x / 2)^2)``.

    Args:
        alpha: Steepness, in units of one over potential; ``g(0) = alpha / 2``.

    Source: Fang et al. 2021, "Incorporating learnable membrane time constant to enhance learning
        of spiking neural networks"; the scaling is that of SpikingJelly and snnTorch.
    """

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes of the shape and dtype of ``x = h - v_threshold``."""
        s: Tensor = ATanFunction.apply(x, self.alpha)  # type: ignore[no-untyped-call]
        return s

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"alpha={self.alpha}"


class FastSigmoid(nn.Module):
    """Fast-sigmoid surrogate: ``g(x) = 1 / (1 + alpha |x|)^2``.

    Args:
        alpha: Steepness, in units of one over potential; ``g(0) = 1`` for every ``alpha``.

    Source: Zenke and Ganguli 2018, "SuperSpike"; 25 is the default slope of snnTorch.
    """

    def __init__(self, alpha: float = 25.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes of the shape and dtype of ``x = h - v_threshold``."""
        s: Tensor = FastSigmoidFunction.apply(x, self.alpha)  # type: ignore[no-untyped-call]
        return s

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"alpha={self.alpha}"


class Sigmoid(nn.Module):
    """Sigmoid surrogate: ``g(x) = alpha y (1 - y)`` with ``y = sigmoid(alpha x)``.

    Args:
        alpha: Steepness, in units of one over potential; ``g(0) = alpha / 4``.
    """

    def __init__(self, alpha: float = 4.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes of the shape and dtype of ``x = h - v_threshold``."""
        s: Tensor = SigmoidFunction.apply(x, self.alpha)  # type: ignore[no-untyped-call]
        return s

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"alpha={self.alpha}"


class Triangle(nn.Module):
    """Triangle surrogate: ``g(x) = height max(0, 1 - |x| / width)``.

    Args:
        height: Value at the threshold.
        width: Half width of the base, in units of potential.

    Source: Bellec et al. 2018, "Long short-term memory and learning-to-learn in networks of spiking
        neurons" (there ``height = 0.3``).
    """

    def __init__(self, height: float = 1.0, width: float = 1.0) -> None:
        super().__init__()
        self.height = height
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes of the shape and dtype of ``x = h - v_threshold``."""
        s: Tensor = TriangleFunction.apply(x, self.height, self.width)  # type: ignore[no-untyped-call]
        return s

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"height={self.height}, width={self.width}"


class Rectangle(nn.Module):
    """Rectangle surrogate: ``g(x) = 1 where |x| < width, else 0``.

    Args:
        width: Half width, in units of potential.

    Source: Wu et al. 2018, "Spatio-temporal backpropagation for training high-performance spiking
        neural networks".
    """

    def __init__(self, width: float = 0.5) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes of the shape and dtype of ``x = h - v_threshold``."""
        s: Tensor = RectangleFunction.apply(x, self.width)  # type: ignore[no-untyped-call]
        return s

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"width={self.width}"
