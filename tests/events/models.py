"""Serial networks on dyadic weights, as users write them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snncc.nn import ATan


def dyadic(model: nn.Module, rng: random.Random) -> nn.Module:
    """Give a model float64 weights that are sums of few powers of two."""
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            numbers = [rng.randint(-6, 6) / 4 for _ in range(parameter.numel())]
            parameter.copy_(torch.tensor(numbers).reshape(parameter.shape))
    return model


def spikes(rng: random.Random, *shape: int, rate: float = 0.4) -> Tensor:
    """Return random spikes."""
    numbers = [float(rng.random() < rate) for _ in range(torch.Size(shape).numel())]
    return torch.tensor(numbers, dtype=torch.float64).reshape(shape)


class Chain(nn.Module):
    """Linear layers and LIF neurons one after another, spikes of the last at every step."""

    def __init__(self, sizes: Sequence[int], *, hard: bool = True, strict: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        self.spike, self.hard, self.strict = ATan(), hard, strict

    def fire(self, h: Tensor) -> tuple[Tensor, Tensor]:
        s = 1.0 - self.spike(1.0 - h) if self.strict else self.spike(h - 1.0)
        return s, h * (1.0 - s) if self.hard else h - s

    def forward(self, x: Tensor) -> Tensor:
        states = [x.new_zeros(x.shape[1], layer.out_features) for layer in self.layers]
        out = []
        for t in range(x.shape[0]):
            s = x[t]
            for i, layer in enumerate(self.layers):
                s, states[i] = self.fire(0.5 * states[i] + layer(s))
            out.append(s)
        return torch.stack(out)


class Convolutional(nn.Module):
    """Convolutions, norms, pooling and a readout whose membrane is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.pool = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.AvgPool2d(2)
        self.drop, self.fc, self.spike = nn.Dropout(0.5), nn.Linear(4 * 9, 3), ATan()

    def forward(self, x: Tensor) -> Tensor:
        v = w = u = 0.0
        for x_t in x:
            h = v + self.norm(self.conv1(x_t))
            s = self.spike(h - 1.0)
            v = h - s
            h = w + self.conv2(self.pool(s))
            s = self.spike(h - 1.0)
            w = h - s
            u = 0.5 * u + self.fc(self.drop(s).flatten(1))
        return u


class Recurrent(nn.Module):
    """A layer with weights on its own last spikes, in the middle of a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fc = nn.Linear(4, 5), nn.Linear(5, 4)
        self.back, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v, w, u = (x.new_zeros(x.shape[1], n) for n in (5, 4, 3))
        z = x.new_zeros(x.shape[1], 4)
        out = []
        for t in range(x.shape[0]):
            h = 0.5 * v + self.inner(x[t])
            s = self.spike(h - 1.0)
            v = h - s
            h = 0.5 * w + self.fc(s) + self.back(z)
            z = self.spike(h - 1.0)
            w = h * (1.0 - z)
            h = 0.5 * u + self.out(z)
            y = self.spike(h - 1.0)
            u = h - y
            out.append(y)
        return torch.stack(out)


class Wired(nn.Module):
    """Layers that hear the spikes of this step and of the step before, through weights.

    Args:
        kinds: For each layer what it hears, as ``current`` says.
        rng: Decides resets and biases, and what the spikes before the first step are.
    """

    def __init__(self, kinds: Sequence[str], rng: random.Random, size: int = 4) -> None:
        super().__init__()
        self.kinds, self.spike, self.start = kinds, ATan(), rng.choice([0.0, 1.0])
        self.hard = [rng.random() < 0.5 for _ in kinds]
        self.fc = nn.ModuleList(nn.Linear(size, size) for _ in kinds)
        self.back = nn.ModuleList(nn.Linear(size, size, bias=rng.random() < 0.5) for _ in kinds)
        self.both = nn.ModuleList(nn.Linear(2 * size, size) for _ in kinds)

    def current(self, i: int, x: Tensor, frame: Tensor, before: Sequence[Tensor]) -> Tensor:
        """Return what a layer gets from the layer below, the frame, and the step before."""
        match self.kinds[i]:
            case "recurrent":
                return self.fc[i](x) + self.back[i](before[i])
            case "feedback":
                return self.fc[i](x) + self.back[i](before[-1])
            case "summed":
                return self.fc[i](x + before[i])
            case "weighted":
                return self.fc[i](x) + self.back[i](0.5 * before[i] - before[-1])
            case "joined":
                return self.both[i](torch.cat([x, before[i]], 1))
            case "skip":
                return self.fc[i](x + frame)
            case _:
                return self.fc[i](x)

    def forward(self, x: Tensor) -> Tensor:
        v = [x.new_zeros(x.shape[1:]) for _ in self.kinds]
        spikes = [torch.full_like(x[0], self.start) for _ in self.kinds]
        out = []
        for t in range(x.shape[0]):
            s, now = x[t], []
            for i, hard in enumerate(self.hard):
                h = 0.5 * v[i] + self.current(i, s, x[t], spikes)
                s = self.spike(h - 1.0)
                v[i] = h * (1.0 - s) if hard else h - s
                now.append(s)
            spikes = now
            out.append(s)
        return torch.stack(out)
