"""Networks that are exported: one for each kind of operator, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from snncc.nn import ATan, DynamicDecay

SPIKE = ATan()


@dataclass(frozen=True)
class Exported:
    """A network and the shape of its input.

    Attributes:
        make: Returns the network.
        shape: The shape of its input.
        options: Options of ``snncc.compile``.
        exact: Whether its outputs are those of PyTorch bit by bit, its products being exact.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    options: dict[str, Any]
    exact: bool = True


class Dense(nn.Module):
    """Three layers; every step is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(150, 70), nn.Linear(70, 33), nn.Linear(33, 5)])
        self.tau = nn.Parameter(torch.tensor([0.5, 1.0, 0.25, 0.75, 0.5]))

    def forward(self, x):
        v = [torch.zeros(x.shape[1], n, dtype=x.dtype) for n in (70, 33, 5)]
        out = []
        for t in range(x.shape[0]):
            y = x[t]
            for i, layer in enumerate(self.layers[:2]):
                h = 0.75 * v[i] + layer(y)
                y = SPIKE(h - 1.0)
                v[i] = h - y
            v[2] = self.tau * v[2] + self.layers[2](y)
            out.append(v[2])
        return torch.stack(out)


class Conv(nn.Module):
    """Convolutions with stride, padding, dilation and groups, pools, norms, time folded in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, (3, 2), padding=(2, 0), dilation=(2, 1), groups=3, bias=False)
        self.dense = nn.Linear(12, 4)

    def lif(self, x):
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            h = v * 0.5 + x[t]
            s = SPIKE(h - 0.5)
            v = torch.where(s > 0, torch.zeros_like(h), h)
            out.append(s)
        return torch.stack(out)

    def over(self, layer, x):
        return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def forward(self, x):
        x = self.lif(self.over(lambda y: self.norm(self.first(y)), x))
        x = self.over(lambda y: nn.functional.max_pool2d(y, 3, stride=2, padding=1), x)
        x = self.lif(self.over(self.second, x))
        x = self.over(lambda y: nn.functional.avg_pool2d(y, 2, ceil_mode=True), x)
        x = self.over(lambda y: nn.functional.adaptive_avg_pool2d(y, (2, 1)), x)
        return self.lif(self.dense(x.flatten(2))).mean(0)


class Temporal(nn.Module):
    """One-dimensional convolution and pooling over features, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x):
        v = torch.zeros(x.shape[1], 4, 5)
        count = torch.zeros(x.shape[1], 4, 5)
        seen = []
        for t in range(x.shape[0]):
            y = nn.functional.max_pool1d(self.conv(x[t]), 2)
            v = 0.5 * v + y
            s = SPIKE(v - 0.25)
            v = v * (1.0 - s)
            count = count + s
            seen.append(v)
        return {"count": count, "last": v, "most": torch.stack(seen).amax(0)}


class Recurrent(nn.Module):
    """Weights on the neurons' own spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(6, 9), nn.Linear(9, 9, bias=False)

    def forward(self, x):
        v, s = torch.zeros(x.shape[1], 9), torch.zeros(x.shape[1], 9)
        out = []
        for t in range(x.shape[0]):
            v = 0.5 * v + self.into(x[t]) + self.back(s)
            s = SPIKE(v - 0.5)
            v = v - 0.5 * s
            out.append(s)
        return torch.stack(out)


class Attending(nn.Module):
    """Attention over tokens within a step, layer norm, softmax, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        v = torch.zeros(x.shape[1], 5, 16)
        out = []
        for t in range(x.shape[0]):
            q, k = self.q(x[t]), self.k(x[t])
            weights = torch.softmax(q @ k.transpose(-2, -1), -1)
            y = torch.cat([self.norm(weights @ x[t]), q], -1)
            v = 0.5 * v + y
            s = SPIKE(v - 0.5)
            v = v - 0.5 * s
            out.append(s.sum(1))
        return torch.stack(out)


class Numbered(nn.Module):
    """Numbers of their own for each step, and a delay line."""

    def forward(self, x):
        v = torch.zeros(x.shape[1:])
        one, two = torch.zeros(x.shape[1:]), torch.zeros(x.shape[1:])
        for t in range(x.shape[0]):
            v = v * 0.5 + two * 0.25**t
            two, one = one, x[t]
        return v


class Started(nn.Module):
    """A state that starts from a parameter, and one that is kept as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        self.v = torch.full((2, 3), 0.25)

    def forward(self, x):
        w = self.start.expand(2, 3)
        out = []
        for t in range(x.shape[0]):
            w = 0.5 * w + x[t]
            self.v = 0.5 * self.v + w
            out.append(self.v)
        return torch.stack(out)


class Static(nn.Module):
    """The same input at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x):
        v, count = torch.zeros(x.shape[0], 8), torch.zeros(x.shape[0], 8)
        for _ in range(8):
            v = 0.5 * v + self.layer(x)
            s = SPIKE(v - 1.0)
            v = v - s
            count = count + s
        return count / 8


class Gated(nn.Module):
    """Decays that depend on the last inputs, with integer spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(7, 6), nn.Linear(6, 5)])
        self.neurons = nn.ModuleList([DynamicDecay(6), DynamicDecay(5, kernel_size=2, tau=1.0)])

    def forward(self, x):
        for layer, neuron in zip(self.layers, self.neurons, strict=True):
            x = neuron(4 * layer(x))
        return x


class Peeled(nn.Module):
    """States that are None or zero at first; later steps go on reading the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.back = nn.Linear(6, 7), nn.Linear(7, 7, bias=False)
        self.start = nn.Parameter(torch.rand(7))

    def forward(self, x):
        first, v, s, out = None, None, None, []
        for t in range(x.shape[0]):
            if first is None:
                first = self.layer(x[t])
                v, level = self.start + 0.5 * first, torch.zeros_like(first)
                s = SPIKE(v - 0.5)
            else:
                level = 0.5 * level + s
                v = 0.5 * v + self.layer(x[t]) + 0.125 * first + self.back(s)
                s = SPIKE(v - 1.0 - 0.25 * level)
            v = v - s
            out.append(s)
        spikes = torch.stack(out)
        return spikes, spikes.sum(0), spikes.mean(0), v


class Cells(nn.Module):
    """Recurrent cells of torch, one after another; the last one reads spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(6, 5), nn.GRUCell(5, 7, bias=False)
        self.rnn = nn.RNNCell(7, 4)

    def forward(self, x):
        batch = x.shape[1]
        h, c, g, v, r = (torch.zeros(batch, n) for n in (5, 5, 7, 7, 4))
        out = []
        for x_t in x:
            h, c = self.lstm(x_t, (h, c))
            g = self.gru(h, g)
            v = 0.5 * v + g
            s = SPIKE(v - 0.25)
            v = v - 0.25 * s
            r = self.rnn(s, r)
            out.append(r)
        return torch.stack(out), c


class Layers(nn.Module):
    """Recurrent layers of torch over the whole sequence; a neuron behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, num_layers=2)
        self.gru = nn.GRU(4, 5, bias=False)
        self.rnn = nn.RNN(5, 4, nonlinearity="relu", batch_first=True)

    def forward(self, x):
        y, (_, c) = self.lstm(x)
        y = self.rnn(self.gru(y)[0].transpose(0, 1))[0]
        v, out = torch.zeros(x.shape[1], 4), []
        for t in range(y.shape[1]):
            v = 0.5 * v + y[:, t]
            s = SPIKE(v - 0.25)
            v = v - 0.25 * s
            out.append(v)
        return torch.stack(out), c


class Padded(nn.Module):
    """A delay, a causal filter of each channel over time, and margins within a step."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv1d(6, 6, 3, groups=6)

    def forward(self, x):
        late = nn.functional.pad(x, (0, 0, 0, 0, 2, 0))[: x.shape[0]]
        causal = self.filter(nn.functional.pad(x.permute(1, 2, 0), (2, 0))).permute(2, 0, 1)
        v, out = torch.zeros(x.shape[1], 8), []
        for t in range(x.shape[0]):
            y = nn.functional.pad(late[t] + causal[t], (-1, 2, 0, 0), value=0.25)
            y = nn.functional.pad(y, (1, 0), value=-1.0)
            v = 0.5 * v + y
            s = SPIKE(v - 0.5)
            v = v - s
            out.append(v)
        return torch.stack(out)


NETWORKS = {
    "dense": Exported(Dense, (9, 2, 150), {}),
    "conv": Exported(Conv, (9, 1, 2, 9, 8), {}, exact=False),
    "temporal": Exported(Temporal, (9, 2, 3, 10), {}),
    "recurrent": Exported(Recurrent, (9, 2, 6), {"fallback": "serial"}),
    "attending": Exported(Attending, (9, 1, 5, 8), {"fallback": "serial"}, exact=False),
    "numbered": Exported(Numbered, (9, 2, 4), {}),
    "started": Exported(Started, (9, 2, 3), {}),
    "static": Exported(Static, (2, 6), {}),
    "gated": Exported(Gated, (60, 2, 7), {}),
    "peeled": Exported(Peeled, (9, 2, 6), {}),
    "cells": Exported(Cells, (9, 2, 6), {}, exact=False),
    "layers": Exported(Layers, (9, 2, 6), {}, exact=False),
}
# With those that ONNX has no form of.
LIBRARIES = {**NETWORKS, "padded": Exported(Padded, (9, 2, 6), {})}


def prepared(case: Exported) -> tuple[nn.Module, torch.Tensor]:
    """Return a network in evaluation mode whose weights are eighths, and an input of eighths."""
    torch.manual_seed(0)
    model = case.make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
    for parameter in model.parameters():
        parameter.data.mul_(16).round_().div_(8)
    return model, torch.rand(case.shape).mul(8).round().div(8)
