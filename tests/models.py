"""Serial networks that the tests compile, written as users write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snncc.nn import ATan


class Feedforward(nn.Module):
    """Three layers in one loop over time, with a summed readout."""

    def __init__(self, channels: int = 5, hidden: int = 7, classes: int = 3) -> None:
        super().__init__()
        self.layer1 = nn.Linear(channels, hidden)
        self.layer2 = nn.Linear(hidden, hidden)
        self.readout = nn.Linear(hidden, classes)
        self.decay = nn.Parameter(torch.zeros(hidden))
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v1 = v2 = torch.zeros(x.shape[1], self.layer1.out_features, dtype=x.dtype, device=x.device)
        total = torch.zeros(x.shape[1], self.readout.out_features, dtype=x.dtype, device=x.device)
        for t in range(x.shape[0]):
            h1 = 0.9 * v1 + self.layer1(x[t])
            s1 = self.spike(h1 - 1.0)
            v1 = h1 * (1.0 - s1)
            h2 = torch.sigmoid(self.decay) * v2 + self.layer2(s1)
            s2 = self.spike(h2 - 1.0)
            v2 = h2 - s2.detach()
            total = total + self.readout(s2)
        return total


class Convolutional(nn.Module):
    """Convolution, norm, neuron, pooling, dropout and a linear readout in one loop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(16, 3)
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        out = []
        for x_t in x:
            h = 0.5 * v + self.norm(self.conv(x_t))
            s = self.spike(h - 0.5)
            v = h * (1.0 - s)
            out.append(self.fc(self.drop(F.avg_pool2d(s, 2).flatten(1))))
        return torch.stack(out).mean(0)


class Stateful(nn.Module):
    """Keeps its potential between calls, until it is reset from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None
        self.spike = ATan()

    def reset(self) -> None:
        """Forget the potential."""
        self.v = None

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for t in range(x.shape[0]):
            if self.v is None:
                self.v = torch.zeros_like(x[t])
            self.v = 0.5 * self.v + x[t]
            s = self.spike(self.v - 1.0)
            self.v = self.v - s
            out.append(s)
        return torch.stack(out)


class Recurrent(nn.Module):
    """Feeds its spikes back through a matrix."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.back = nn.Linear(n, n)
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v = s = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t] + self.back(s)
            s = self.spike(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out)


class Branching(nn.Module):
    """Branches on the data."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
            if v.max() > 1.0:
                v = v * 0.0
        return v


def feedforward() -> tuple[nn.Module, Tensor]:
    """Return a model and an input, as the command line asks for them."""
    torch.manual_seed(0)
    return Feedforward(), torch.randn(6, 2, 5)


def branching() -> tuple[nn.Module, Tensor]:
    """Return a model that is refused, and an input."""
    return Branching(), torch.randn(6, 2, 5)
