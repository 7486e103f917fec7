"""Networks in the styles that people write, compiled at several lengths and batch sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import snncc
from snncc.nn import ATan

SIZES = ((5, 2, 4), (7, 3, 4), (9, 1, 4), (2, 2, 4))


class Residual(nn.Module):
    """Layers in a Python list inside the time loop, with skip connections; several results."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.spike = ATan()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = [torch.zeros(x.shape[1], 4) for _ in self.layers]
        out = []
        for t in range(x.shape[0]):
            h = x[t]
            for i, layer in enumerate(self.layers):
                v[i] = 0.8 * v[i] + layer(h)
                s = self.spike(v[i] - 1.0)
                v[i] = v[i] - s
                h = s + h
            out.append(h)
        return torch.stack(out, 1).mean(1), v[0], out[-1]


class Reversed(nn.Module):
    """Runs from the last step to the first."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in reversed(range(len(x))):
            v = 0.5 * v + x[t]
            out.append(v)
        return torch.stack(out[::-1])


class TwoLoops(nn.Module):
    """One loop after another, the second over the list of the first."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        first = []
        for x_t in x:
            v = 0.5 * v + x_t
            first.append(v)
        w = torch.zeros_like(x[0])
        second = []
        for y in first:
            w = 0.9 * w + torch.tanh(y)
            second.append(w)
        return torch.cat([torch.stack(first), torch.stack(second)], -1)


class Delayed(nn.Module):
    """Reads its own potential of two steps before."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        queue = [v, v]
        out = []
        for x_t in x:
            v = 0.5 * v + x_t - 0.25 * queue[0]
            queue = [queue[1], v]
            out.append(v)
        return torch.stack(out)


class Refractory(nn.Module):
    """Counts down after a spike; masked writes."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        wait = torch.zeros_like(v)
        out = []
        for x_t in x:
            v = torch.where(wait > 0, v, 0.5 * v + x_t)
            s = (v > 1.0).float()
            wait = torch.clamp(wait - 1, min=0) + 2 * s
            v = v.masked_fill(s.bool(), 0.0)
            out.append(s)
        return torch.stack(out)


class Buffers(nn.Module):
    """Writes potentials and spikes into preallocated tensors and reads them back."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        T, B, N = x.shape
        u = torch.zeros(T + 1, B, N)
        s = torch.zeros(T, B, N)
        for t in range(T):
            u[t + 1] = 0.5 * u[t] * (1 - (s[t - 1] if t > 0 else 0)) + x[t]
            s[t] = (u[t + 1] > 1.0).float()
        return s, u[1:]


class Tokens(nn.Module):
    """Norm, convolution and reshapes around the neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.conv = nn.Conv1d(4, 3, 2)
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v: Tensor | float = 0.0
        out = []
        for x_t in x.unbind(0):
            v = 0.5 * v + self.conv(self.norm(x_t).unsqueeze(-1).repeat(1, 1, 3))
            s = self.spike(v - 0.25)
            v = v * (1 - s)
            out.append(s.flatten(1).sum(1))
        return torch.stack(out)


class StaticInput(nn.Module):
    """The same image at each step: its layer runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], 4)
        current = self.fc(x[0])
        count: Tensor | int = 0
        for _ in range(8):
            v = 0.9 * v + current
            s = self.spike(v - 1.0)
            v = v - s
            count = count + s
        return torch.as_tensor(count) / 8


class BatchFirst(nn.Module):
    """Batch in front of time; results as a view, an element and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)
        self.spike = ATan()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        B, T, _ = x.shape
        v = torch.zeros(B, 5)
        out = []
        for t in range(T):
            v = 0.5 * v + self.fc(x[:, t])
            s = self.spike(v - 0.25)
            v = v * (1 - s.detach())
            out.append(s)
        return torch.stack(out, dim=1).view(B, -1).sum(1), {"last": v, "first": out[0]}


class Bounded(nn.Module):
    """Runs at most six steps, however long the input is."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(min(x.shape[0], 6)):
            v = 0.5 * v + x[t]
            out.append(v)
        return torch.stack(out)


class BeforeAndAfter(nn.Module):
    """A layer reads the potential before each step; the one after the last is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros_like(x[0])
        before = []
        for x_t in x:
            before.append(self.fc(v))
            v = 0.5 * v + x_t
        return torch.stack(before), v


NETWORKS: tuple[Callable[[], nn.Module], ...] = (
    Residual, Reversed, TwoLoops, Delayed, Refractory, Buffers, Tokens, StaticInput, BatchFirst,
    Bounded, BeforeAndAfter,
)  # fmt: skip


def results(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return the results and the gradients of their sum."""
    values = pytree.tree_leaves(model(x))
    live = [y.sum() for y in values if y.requires_grad]
    leaves = [x, *model.parameters()]
    if not live:  # spikes without a surrogate have no gradient; the compiled ones have gradient 0
        return values, [None] * len(leaves)
    return values, list(torch.autograd.grad(sum(live), leaves, allow_unused=True))


@pytest.mark.parametrize("target", ["c", "torch"])
@pytest.mark.parametrize("make", NETWORKS, ids=lambda n: n.__name__)
def test_network(make: Callable[[], nn.Module], target: str) -> None:
    """Results and gradients are those of the serial code at each size."""
    torch.manual_seed(0)
    model = make()
    fast = snncc.compile(copy.deepcopy(model), target=target)
    for size in SIZES:
        x = (torch.randn(size) * 1.5).requires_grad_()
        expected, wanted = results(model, x)
        actual, found = results(fast, x)

        for a, b in zip(expected, actual, strict=True):
            torch.testing.assert_close(b, a)
        for g, h in zip(wanted, found, strict=True):
            if g is not None or h is not None:
                like = h if g is None else g
                a = torch.zeros_like(like) if g is None else g
                b = torch.zeros_like(like) if h is None else h
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
