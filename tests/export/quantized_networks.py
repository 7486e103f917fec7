"""Networks for whole numbers: one for each operator that has a form in them."""

from __future__ import annotations

import torch
from torch import nn

from snncc.nn import HDLIF, ATan
from tests.export.networks import LIBRARIES, NETWORKS, Exported

SPIKE = ATan()


class Synaptic(nn.Module):
    """Synaptic currents, a decay for each neuron, a hard reset to a value, a leaky readout."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(11, 20), nn.Linear(20, 3)
        self.decay = nn.Parameter(torch.linspace(2.0, 7.0, 20))

    def forward(self, x):
        current, v = torch.zeros(x.shape[1], 20), torch.full((x.shape[1], 20), -0.25)
        y, out = torch.zeros(x.shape[1], 3), []
        for t in range(x.shape[0]):
            current = 0.7 * current + self.into(x[t])
            h = torch.sigmoid(self.decay) * v + current
            s = SPIKE(h - 0.5)
            v = torch.where(s > 0, torch.full_like(h, -0.25), h)
            y = 0.95 * y + self.out(s)
            out.append(y)
        return torch.stack(out)


class Residual(nn.Module):
    """Convolutions with norms, a sum of spikes, pools of all kinds, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.dense = nn.Linear(4, 5)

    def forward(self, x):
        v = torch.zeros(x.shape[1], 4, 6, 6)
        w = torch.zeros(x.shape[1], 4, 6, 6)
        total, last = torch.zeros(x.shape[1], 5), []
        for t in range(x.shape[0]):
            v = v + self.norm(self.first(x[t]))
            s = SPIKE(v - 1.0)
            v = v - s
            w = w + self.second(s)
            z = SPIKE(w - 1.0)
            w = w * (1 - z)
            y = nn.functional.max_pool2d(s + z, 2)
            y = nn.functional.avg_pool2d(y, 3, stride=2, padding=1)
            y = self.dense(y.mean((2, 3)))
            total = total + y
            last.append(z.sum((2, 3)))
        return total / x.shape[0], torch.stack(last)


class Grouped(nn.Module):
    """A strided, dilated convolution in groups, an adaptive pool, IF neurons and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            4, 6, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 1), groups=2
        )

    def forward(self, x):
        v = torch.zeros(x.shape[1], 6, 3, 5)
        count = torch.zeros(x.shape[1], 6)
        for t in range(x.shape[0]):
            v = v + self.conv(x[t])
            s = (v >= 1.0).float()
            v = v - s
            count = count + nn.functional.adaptive_avg_pool2d(s, (1, 1)).flatten(1)
        return count


class Arithmetic(nn.Module):
    """Elementwise operators of every kind that whole numbers have."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.3, -1.7, 0.0, 250.0]))
        self.bound = nn.Parameter(torch.tensor([1.0, 0.5, 2.0, 90.0]))

    def forward(self, x):
        v = torch.zeros(x.shape[1], 4)
        adapt, age = torch.zeros(x.shape[1], 4), torch.zeros(x.shape[1], 4)
        out = []
        for t in range(x.shape[0]):
            v = 0.9 * v + x[t] * self.slope - 0.001 * age
            s = SPIKE(v - (self.bound + adapt))
            adapt = 0.8 * adapt + 0.3 * s
            age = torch.where(s > 0, torch.zeros_like(age), age + 1)
            is_calm = (v.abs() <= self.bound) & ~(s > 0) | (age == 3)
            y = torch.minimum(torch.relu(v), self.bound) + torch.where(is_calm, 0.25, -v)
            y = y + torch.sign(v) * torch.floor(v) / 4 + v * adapt + v / (1 + age)
            y = y + torch.ceil(v) / 8 + torch.round(2 * v) * 0.3 + (v / 64) ** 2
            v = v - s * self.bound
            out.append(y)
        return torch.stack(out), age


class Joined(nn.Module):
    """Values of different scales joined, a transposed view, extremes, loose operators."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        v = torch.zeros(x.shape[1], 9)
        seen = []
        for t in range(x.shape[0]):
            y = self.layer(x[t].transpose(1, 2).reshape(x.shape[1], 6))
            y = torch.maximum(torch.floor(y), torch.abs(y))
            joined = torch.cat([y * 100, x[t][:, :, 0], (y > 0)[:, :1].float()], 1)
            v = 0.5 * v + joined
            seen.append(v)
        return torch.stack(seen).amax(0), torch.stack(seen).sum(0)


class Graded(nn.Module):
    """HD-LIF in all its forms: a decay, a threshold and a norm for each step, graded spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.neurons = nn.ModuleList(
            [
                HDLIF(9),
                HDLIF(9, 8, mem_bn=True),
                HDLIF(9, parallel=True),
                HDLIF(9, compress=True),
            ]
        )
        norm = self.neurons[1].norm
        norm.running_mean.uniform_(-1.0, 1.0)
        norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        for layer, neuron in zip(self.layers, self.neurons, strict=True):
            x = neuron(layer(x))
        return x


class Tabled(nn.Module):
    """Numbers of each step that meet counts, potentials, layers, and one another."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.linspace(-2.0, 3.0, 21).reshape(7, 3))
        self.most = nn.Parameter(torch.arange(7.0))
        self.layer, self.other = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, x):
        v, out = torch.zeros(x.shape[1], 4), []
        for t in range(7):
            place = self.places[t].expand(x.shape[1], 3)
            y = self.layer(torch.cat([x[t], place], 1)) + self.most[t] * self.other(place)
            v = v * (0.5 + self.most[t] / 16) + y
            s = SPIKE(v - self.most[t])
            v = v - s * self.most[t]
            out.append(v)
        return torch.stack(out), s


class Tokens(nn.Module):
    """Attention of spikes without softmax: products of counts, and of counts and potentials."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        v, out = torch.zeros(x.shape[1], 4, 6), []
        for t in range(x.shape[0]):
            q, k = self.queries(x[t]), self.keys(x[t])
            scores = SPIKE(q - 0.5) @ SPIKE(k - 0.5).transpose(-2, -1)
            v = 0.5 * v + scores @ self.values(x[t]) * 0.25
            s = SPIKE(v - 1.0)
            v = v - s
            out.append(scores @ s)
        return torch.stack(out)


QUANTIZED = {
    **{name: NETWORKS[name] for name in ("dense", "conv", "temporal", "recurrent", "static")},
    "padded": LIBRARIES["padded"],
    "started": NETWORKS["started"],
    "peeled": NETWORKS["peeled"],
    "synaptic": Exported(Synaptic, (20, 2, 11), {}),
    "residual": Exported(Residual, (8, 2, 2, 6, 6), {}),
    "grouped": Exported(Grouped, (8, 2, 4, 6, 6), {}),
    "arithmetic": Exported(Arithmetic, (20, 3, 4), {}),
    "joined": Exported(Joined, (6, 2, 2, 3), {}),
    "numbered": NETWORKS["numbered"],
    "graded": Exported(Graded, (9, 2, 8), {}),
    "tabled": Exported(Tabled, (7, 2, 3), {}),
    "tokens": Exported(Tokens, (6, 2, 4, 6), {}),
}
