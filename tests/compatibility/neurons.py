"""What the cases share: a spike function, and a step of the commonest neuron."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.compatibility.case import WIDTH


class Spike(torch.autograd.Function):
    """The step function, with the derivative of a scaled arctangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1 + 4 * x * x)


spike = Spike.apply


def lif(v: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (v, s) after one step of a leaky integrate-and-fire neuron with a hard reset."""
    h = 0.75 * v + x
    s = spike(h - 1.0)
    return h * (1.0 - s), s


class Net(nn.Module):
    """Two layers, which most of the cases use."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
