"""Recurrent spiking networks as people write them, for the tests of recurrent loops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snncc.nn import ATan

N = 6


class Recurrent(nn.Module):
    """What the models share: a spike function and an input layer."""

    def __init__(self, n: int = N) -> None:
        super().__init__()
        self.fire = ATan()
        self.n = n

    def zeros(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[1], self.n, dtype=x.dtype, device=x.device)


class OwnSpikes(Recurrent):
    """A linear layer on the spikes of the step before; hard reset."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(N, N)
        self.back = nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        v, s = self.zeros(x), self.zeros(x)
        out = []
        for t in range(x.shape[0]):
            h = 0.9 * v + self.inputs(x[t]) + self.back(s)
            s = self.fire(h - 1.0)
            v = h * (1.0 - s)
            out.append(s)
        return torch.stack(out)


class Masked(Recurrent):
    """A raw weight without self-connections; learnable decay per neuron; potentials returned."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(N, N) * 0.4)
        self.register_buffer("mask", 1.0 - torch.eye(N))
        self.decay = nn.Parameter(torch.linspace(-1, 1, N))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = s = self.zeros(x)
        spikes, potentials = [], []
        for x_t in x:
            v = torch.sigmoid(self.decay) * v + x_t + s @ (self.w * self.mask)
            s = self.fire(v - 0.5)
            v = v - 0.5 * s.detach()
            spikes.append(s)
            potentials.append(v)
        return torch.stack(spikes), torch.stack(potentials)


class Columns(Recurrent):
    """Neurons in front of the batch: the weight is the left factor."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(N, N) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        v = s = torch.zeros(N, x.shape[1], dtype=x.dtype)
        out = []
        for t in range(x.shape[0]):
            v = 0.8 * v + x[t].t() + torch.mm(self.w, s)
            s = self.fire(v - 0.7)
            v = v - 0.7 * s
            out.append(s.t())
        return torch.stack(out)


class Coupled(Recurrent):
    """Two layers, the second feeding back to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(N, N, bias=False)
        self.down = nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        v1, v2, s2 = self.zeros(x), self.zeros(x), self.zeros(x)
        out = []
        for t in range(x.shape[0]):
            v1 = 0.9 * v1 + x[t] + self.down(s2)
            s1 = self.fire(v1 - 1.0)
            v1 = v1 - s1
            v2 = 0.8 * v2 + self.up(s1)
            s2 = self.fire(v2 - 0.3)
            v2 = v2 * (1 - s2)
            out.append(s2)
        return torch.stack(out)


class Inhibited(Recurrent):
    """Lateral inhibition by the mean of the layer, and by the sum over its neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        v = s = self.zeros(x)
        out = []
        for x_t in x:
            others = s.sum(dim=1, keepdim=True) - s
            v = 0.9 * v + x_t - 0.3 * s.mean(-1, keepdim=True) - 0.1 * others
            s = self.fire(v - 0.5)
            v = v - 0.5 * s
            out.append(s)
        return torch.stack(out)


class Normed(Recurrent):
    """A norm of the membrane inside of the recurrence; spikes fire on the normalized potential."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        out = []
        for x_t in x:
            h = self.norm(0.5 * v + x_t)
            s = self.fire(h - 0.5)
            v = h * (1.0 - s)
            out.append(s)
        return torch.stack(out)


class Adaptive(Recurrent):
    """Adaptive threshold, recurrent weights, and a synaptic current of its own (LSNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N, bias=False)
        self.beta = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        i = v = a = z = self.zeros(x)
        out = []
        for t in range(x.shape[0]):
            i = 0.7 * i + x[t] + self.back(z)
            v = 0.9 * v + i - z * 1.0
            a = 0.95 * a + z
            z = self.fire(v - (1.0 + self.beta * a))
            out.append(z)
        return torch.stack(out), v


class Convolved(nn.Module):
    """A convolution of the spikes of the step before."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=groups == 1)
        self.fire = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        s = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t] + self.conv(s)
            s = self.fire(v - 0.5)
            v = v * (1 - s)
            out.append(s)
        return torch.stack(out)


class Attentive(Recurrent):
    """Attention over the neurons of a layer, from its own potentials."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(2, 2)
        self.key = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], 3, 2, dtype=x.dtype)
        out = []
        for x_t in x:
            tokens = x_t.reshape(-1, 3, 2)
            weights = self.query(v) @ self.key(v).transpose(1, 2)
            mixed = torch.softmax(weights, dim=-1) @ v
            v = 0.5 * mixed + tokens
            s = self.fire(v - 0.5)
            v = v - 0.5 * s
            out.append(s.flatten(1))
        return torch.stack(out)


class Dropped(Recurrent):
    """A dropout mask of its own at each step, and noise, inside of the recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        v = s = self.zeros(x)
        out = []
        for x_t in x:
            current = F.dropout(self.back(s), 0.4, self.training)
            v = 0.9 * v + x_t + current + 0.1 * torch.rand_like(v)
            s = self.fire(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out)


class Delayed(Recurrent):
    """Recurrent spikes that arrive two steps later; reset one step late."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        v = self.zeros(x)
        queue = [self.zeros(x), self.zeros(x)]
        out = []
        for x_t in x:
            v = 0.9 * v + x_t + self.back(queue[0]) - queue[1]
            s = self.fire(v - 0.5)
            queue = [queue[1], s]
            out.append(s)
        return torch.stack(out)


class Winner(Recurrent):
    """The strongest neuron inhibits the others: a maximum with its index, a scatter."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = self.zeros(x)
        out, who = [], []
        for x_t in x:
            v = 0.5 * v + x_t
            best, index = v.max(dim=1, keepdim=True)
            mask = torch.zeros_like(v).scatter(1, index, 1.0)
            s = self.fire(v - 0.5) * mask
            v = v - 0.5 * s - 0.1 * best
            out.append(s)
            who.append(index)
        return torch.stack(out), torch.stack(who)


class Refractory(Recurrent):
    """A flag and an integer countdown decide who may fire."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = s = self.zeros(x)
        fired = torch.zeros_like(v, dtype=torch.bool)
        wait = torch.zeros_like(v, dtype=torch.int64)
        out = []
        for x_t in x:
            ready = wait == 0
            v = torch.where(ready, 0.9 * v + x_t + self.back(s), v)
            s = self.fire(v - 0.7) * ready
            wait = torch.clamp(wait - 1, min=0) + 2 * (s > 0).long()
            fired = fired | (s > 0)
            v = torch.where(fired, v - 0.7 * s, v)
            out.append(s)
        return torch.stack(out), fired, wait


class Cell(Recurrent):
    """Takes and returns its state."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        v, s = state
        out = []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t] + self.back(s)
            s = self.fire(v - 0.5)
            v = v - 0.5 * s
            out.append(s)
        return torch.stack(out), (v, s)


class Gated(Recurrent):
    """Gates from products of the state: maths functions inside of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(N, 2 * N)
        self.both = nn.Linear(2 * N, N)

    def forward(self, x: Tensor) -> Tensor:
        v = s = self.zeros(x)
        out = []
        for x_t in x:
            forget, update = self.gate(s).chunk(2, dim=1)
            current = self.both(torch.cat([x_t, s], dim=1))
            v = torch.sigmoid(forget) * v + torch.tanh(update) * current
            s = self.fire(v - 0.2)
            out.append(s)
        return torch.stack(out)


class Cells(Recurrent):
    """Recurrent cells of torch around neurons, in one circle."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(N, N), nn.GRUCell(N, N)
        self.rnn = nn.RNNCell(N, N, bias=False, nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = c = g = r = v = s = self.zeros(x)
        out = []
        for x_t in x:
            h, c = self.lstm(x_t + r, (h, c))
            v = 0.75 * v + h + x_t
            s = self.fire(v - 0.5)
            v = v - 0.5 * s
            g = self.gru(s, g)
            r = self.rnn(g, r)
            out.append(s)
        return torch.stack(out), c, r


class Stepped(Recurrent):
    """Numbers that differ from step to step, with the recurrent product at the end of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        v = current = self.zeros(x)
        out = []
        for t in range(x.shape[0]):
            v = 0.9 * v + 0.5**t * x[t] + current
            s = self.fire(v - 0.5)
            v = v - 0.5 * s
            current = self.back(s)
            out.append(s)
        return torch.stack(out)


class BatchFirst(Recurrent):
    """Batch in front of time, from the last step to the first; the result is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = s = torch.zeros(x.shape[0], N, dtype=x.dtype)
        count: Any = 0
        for t in reversed(range(x.shape[1])):
            v = 0.5 * v + x[:, t] + self.back(s)
            s = self.fire(v - 0.5)
            v = v - 0.5 * s
            count = count + s
        return count / 4, v
