"""A network of two layers with a neuron between them, for passes that look at what lies there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snncc.nn import ATan

# Of a potential, a spike and the input: what the second layer reads.
Between = Callable[[Tensor, Tensor, Tensor], Tensor]


class Two(nn.Module):
    """Two layers; a neuron and a function of potential, spike and input are between them."""

    def __init__(self, between: Between, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.between = between
        self.spike = ATan(2.0)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(())
        total = torch.zeros(())
        for x_t in x:
            h = 0.5 * v + self.first(x_t)
            s = self.spike(h - 0.2)
            v = h - 0.2 * s
            total = total + self.second(self.between(h, s, x_t))
        return total
