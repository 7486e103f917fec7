"""Where the loop over time is and what it runs over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Group
from tests.compatibility.check import over_time
from tests.compatibility.neurons import Net, lif, spike

loops = Group("loops")
CASES = loops.cases

STEPS = 8


def batch_first(T: int, B: int) -> tuple[Any, ...]:
    return ((torch.randn(B, T, WIDTH) * 1.5).requires_grad_(),)


def time_last(T: int, B: int) -> tuple[Any, ...]:
    return ((torch.randn(B, WIDTH, T) * 1.5).requires_grad_(),)


def image(T: int, B: int) -> tuple[Any, ...]:
    return ((torch.randn(B, WIDTH) * 1.5).requires_grad_(),)


def video(T: int, B: int) -> tuple[Any, ...]:
    return (torch.randn(B, 2, T, 6, 6).requires_grad_(),)


def frames(T: int, B: int) -> tuple[Any, ...]:
    return ([(torch.randn(B, WIDTH) * 1.5).requires_grad_() for _ in range(T)],)


def two_sequences(T: int, B: int) -> tuple[Any, ...]:
    x, y = torch.randn(T, B, WIDTH) * 1.5, torch.randn(2 * T + 1, B, WIDTH) * 1.5
    return x.requires_grad_(), y.requires_grad_()


def state_first(T: int, B: int) -> tuple[Any, ...]:
    return torch.randn(T, B, WIDTH).requires_grad_(), torch.rand(B, WIDTH).requires_grad_()


@loops(neurons=2)
class TimeOuter(Net):
    """One loop over time around all layers."""

    def forward(self, x: Tensor) -> Tensor:
        v1 = torch.zeros(x.shape[1], WIDTH)
        v2 = torch.zeros(x.shape[1], WIDTH)
        out = []
        for t in range(x.shape[0]):
            v1, s = lif(v1, self.fc1(x[t]))
            v2, s = lif(v2, self.fc2(s))
            out.append(s)
        return torch.stack(out)


@loops(neurons=2)
class LayerOuter(Net):
    """Each layer has its own loop over time."""

    def neuron(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.size(0)):
            v, s = lif(v, x[t])
            out.append(s)
        return torch.stack(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.fc2(self.neuron(self.fc1(x))))


def forward_pass(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    v = torch.zeros(x.shape[1], WIDTH)
    spikes, potentials = [], []
    for step in range(x.size(0)):
        v, s = lif(v, net.fc1(x[step]))
        spikes.append(s)
        potentials.append(v)
    return torch.stack(spikes, dim=0), torch.stack(potentials, dim=0)


@loops()
def free_function() -> Callable[..., Any]:
    """The loop is in a function of a network and its input."""
    return functools.partial(forward_pass, Net())


class Step(Net):
    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v, s = lif(v, self.fc1(x))
        return self.fc2(s), v


@loops(options={"step": True}, serial=over_time(), inputs=state_first)
def step_with_state() -> nn.Module:
    """The loop is in the script: `y, v = model(x[t], v)`."""
    return Step()


class Stateful(Net):
    def __init__(self) -> None:
        super().__init__()
        self.v1: Any = 0.0
        self.v2: Any = 0.0

    def reset(self) -> None:
        self.v1 = self.v2 = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.v1, s = lif(self.v1, self.fc1(x))
        self.v2, s = lif(self.v2, self.fc2(s))
        return s


@loops(
    options={"step": True, "time_dim": 1},
    serial=over_time(1),
    inputs=batch_first,
    reset=Stateful.reset,
    neurons=2,
    programs=2,
)
def stateful_step() -> nn.Module:
    """The loop is in the script: `y = model(x[:, t])`, with state in attributes."""
    return Stateful()


@loops(inputs=batch_first)
class Unbind(Net):
    """Runs over `x.unbind(1)`."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[0], WIDTH)
        out = []
        for x_t in x.unbind(1):
            v, s = lif(v, self.fc1(x_t))
            out.append(s)
        return torch.stack(out, 1)


@loops()
class Iterated(Net):
    """Runs over the input tensor itself."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in self.fc1(x):
            v, s = lif(v, x_t)
            out.append(s)
        return torch.stack(out)


@loops()
class Enumerated(Net):
    """Runs over `enumerate(x)` and writes to a buffer by index."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = torch.zeros_like(x)
        for t, x_t in enumerate(x):
            v, out[t] = lif(v, self.fc1(x_t))
        return out


@loops()
class Zipped(Net):
    """Runs over two sequences at once."""

    def forward(self, x: Tensor) -> Tensor:
        v, total = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        for a, b in zip(x, torch.sigmoid(self.fc1(x)), strict=True):
            v, s = lif(v, a * b)
            total = total + s
        return total


@loops()
class While(Net):
    """A `while` with a counter."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], WIDTH)
        out, t = [], 0
        while t < x.shape[0]:
            v, s = lif(v, self.fc1(x[t]))
            out.append(s)
            t += 1
        return torch.stack(out)


@loops(inputs=frames, sizes=((7, 3), (7, 2)))
class ListOfFrames(Net):
    """Runs over a Python list of tensors."""

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        v = torch.zeros(x[0].shape[0], WIDTH)
        out = []
        for frame in x:
            v, s = lif(v, self.fc1(frame))
            out.append(s)
        return out


@loops(inputs=two_sequences, neurons=2)
class EncoderDecoder(Net):
    """Two loops with different numbers of steps, the second from the state of the first."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros(x.shape[1], WIDTH)
        for t in range(x.shape[0]):
            v, _ = lif(v, self.fc1(x[t]))
        out = []
        for t in range(y.shape[0]):
            v, s = lif(v, self.fc2(y[t]))
            out.append(s)
        return torch.stack(out), v


@loops(neurons=2)
class Bidirectional(Net):
    """One loop forwards and one backwards in time."""

    def forward(self, x: Tensor) -> Tensor:
        v, w = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        ahead, back = [], []
        for t in range(len(x)):
            v, s = lif(v, self.fc1(x[t]))
            ahead.append(s)
        for t in range(len(x) - 1, -1, -1):
            w, s = lif(w, self.fc2(x[t]))
            back.insert(0, s)
        return torch.cat([torch.stack(ahead), torch.stack(back)], dim=-1)


@loops(neurons=3)
class EqualLayers(nn.Module):
    """Equal layers in a list: a loop over layers inside that over time, which looks like time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        v = [torch.zeros(x.shape[1], WIDTH)] * 3
        out = []
        for t in range(x.shape[0]):
            s = x[t]
            for i, layer in enumerate(self.layers):
                v[i], s = lif(v[i], layer(s))
            out.append(s)
        return torch.stack(out)


@loops(neurons=3)
class SharedLayer(Net):
    """One layer used three times in a row, each time with its own loop over time."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            v, out = torch.zeros_like(x[0]), []
            for t in range(x.shape[0]):
                v, s = lif(v, self.fc1(x[t]))
                out.append(s)
            x = torch.stack(out)
        return x


@loops(inputs=image, neurons=2)
class StaticInput(Net):
    """The same image at each of `self.T` steps: the first layer is the same at all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.T = STEPS

    def forward(self, x: Tensor) -> Tensor:
        v1 = v2 = torch.zeros(x.shape[0], WIDTH)
        total: Any = 0
        for _ in range(self.T):
            v1, s = lif(v1, self.fc1(x))
            v2, s = lif(v2, self.fc2(s))
            total = total + s
        return total / self.T


@loops(inputs=image)
class RepeatedInput(Net):
    """An image repeated along a new time axis."""

    def forward(self, x: Tensor, T: int = STEPS) -> Tensor:
        x = x.unsqueeze(0).repeat(T, 1, 1)
        v = torch.zeros_like(x[0])
        out = []
        for t in range(T):
            v, s = lif(v, self.fc1(x[t]))
            out.append(s)
        return torch.stack(out).mean(0)


@loops(sizes=((STEPS, 3), (STEPS, 2)), measured=(STEPS, 32))
class GlobalLength(Net):
    """The number of steps is a global."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], WIDTH)
        for t in range(STEPS):
            v, _ = lif(v, self.fc1(x[t]))
        return v


@loops(inputs=batch_first)
class TimeSecond(Net):
    """Time is the second axis: `x[:, t]`."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.size(0), WIDTH)
        out = []
        for t in range(x.size(1)):
            v, s = lif(v, self.fc1(x[:, t, :]))
            out.append(s)
        return torch.stack(out, dim=1)


@loops(inputs=time_last)
class TimeLast(nn.Module):
    """Time is the last axis: `x[..., t]`, and so it is in the buffer of the results."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[:-1])
        out = torch.zeros(x.shape)
        for t in range(x.shape[-1]):
            v, out[..., t] = lif(v, x[..., t])
        return out


@loops(inputs=video)
class Video(nn.Module):
    """Five axes, time in the middle: `x[:, :, t]` into a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        out = []
        for t in range(x.shape[2]):
            v, s = lif(v, self.conv(x[:, :, t]))
            out.append(s)
        return torch.stack(out, dim=2)


@loops()
class FirstStepPeeled(Net):
    """The first step is written out; the loop begins at 1."""

    def forward(self, x: Tensor) -> Tensor:
        v = self.fc1(x[0])
        s = spike(v - 1.0)
        out = [s]
        for t in range(1, x.shape[0]):
            v = 0.75 * v * (1.0 - s) + self.fc1(x[t])
            s = spike(v - 1.0)
            out.append(s)
        return torch.stack(out)


@loops()
class FirstStepBranch(Net):
    """A branch on `t == 0` makes the state."""

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for t in range(x.shape[0]):
            current = self.fc1(x[t])
            v = current if t == 0 else 0.75 * v + current  # noqa: F821
            s = spike(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out)


@loops(neurons=2, sizes=((11, 3), (9, 2)))
class CountsLate(Net):
    """Spikes are counted after a few steps only."""

    def forward(self, x: Tensor) -> Tensor:
        v, total = torch.zeros(x.shape[1], WIDTH), torch.zeros(x.shape[1], WIDTH)
        for t in range(x.shape[0]):
            v, s = lif(v, self.fc1(x[t]))
            if t > 2:
                total += s
        return total


@loops(sizes=((8, 3), (12, 2)), programs=2, free=False)
class EveryThirdStep(Net):
    """The potential is recorded at every third step."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], WIDTH)
        out = []
        for t in range(x.shape[0]):
            v, _ = lif(v, self.fc1(x[t]))
            if t % 3 == 0:
                out.append(v)
        return torch.stack(out)


@loops()
class LongRecords(Net):
    """Records are one step longer than the input and begin with the initial state."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        T, B, _ = x.shape
        v, s = torch.zeros(T + 1, B, WIDTH), torch.zeros(T + 1, B, WIDTH)
        for t in range(T):
            v[t + 1] = 0.75 * v[t] * (1.0 - s[t]) + self.fc1(x[t])
            s[t + 1] = spike(v[t + 1] - 1.0)
        return s[1:], v


@loops()
class ListsFromTheStart(Net):
    """Lists of records that begin with the initial state."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros(x.shape[1], WIDTH)
        mem_rec, spk_rec = [v], [v]
        for t in range(x.shape[0]):
            v = 0.75 * mem_rec[-1] + self.fc1(x[t]) - spk_rec[-1]
            mem_rec.append(v)
            spk_rec.append(spike(v - 1.0))
        return torch.stack(mem_rec), torch.stack(spk_rec)


def peeled(x: Tensor) -> Tensor:
    """Return spikes of a layer whose first step is another than the others, as in MS-ResNet."""
    v, s, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), torch.zeros_like(x)
    for t in range(x.shape[0]):
        v = 0.25 * v * (1 - s.detach()) + x[t] if t >= 1 else x[t]
        s = spike(v - 0.5)
        out[t] = s
    return out


@loops(neurons=2)
class PeeledInEachLayer(Net):
    """Each layer has a loop that treats its first step apart, steps merged between them."""

    def forward(self, x: Tensor) -> Tensor:
        s = peeled(self.fc1(x))
        y = self.fc2(s.flatten(0, 1)).view(*s.shape[:2], -1)
        return peeled(y + s).mean(0)


@loops(neurons=3)
class RatesOfLayers(nn.Module):
    """A loop over layers of several widths in each step, and one over their records behind."""

    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, 12, 12, 5)
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        states: list[Any] = [0.0] * len(self.layers)
        records: list[list[Tensor]] = [[] for _ in self.layers]
        for x_t in x:
            s = x_t
            for i, layer in enumerate(self.layers):
                states[i], s = lif(states[i], 3 * layer(s))
                records[i].append(s)
        return torch.stack(records[-1], 1).mean(1), [torch.stack(r, 1).mean() for r in records]


@loops(programs=2, free=False)
class StopsEarly(Net):
    """Leaves the loop after a number of steps, by a condition on Python numbers."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], WIDTH)
        out = []
        for t in range(x.shape[0]):
            if t >= 9:
                break
            v, s = lif(v, self.fc1(x[t]))
            out.append(s)
        return torch.stack(out)


@loops(sizes=((12, 3), (12, 2)))
class EverySecondInput(Net):
    """Each input frame is held for two steps: `x[t // 2]`."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], WIDTH)
        out = []
        for t in range(2 * x.shape[0]):
            v, s = lif(v, self.fc1(x[t // 2]))
            out.append(s)
        return torch.stack(out)


@loops(neurons=2)
class BranchOnFlag(Net):
    """Python flags and types steer the step."""

    def __init__(self) -> None:
        super().__init__()
        self.is_hard, self.kinds = True, ["lif", "li"]

    def forward(self, x: Tensor) -> Tensor:
        v, w = torch.zeros_like(x[0]), None
        out = []
        for x_t in x:
            for kind in self.kinds:
                if kind == "lif" and self.is_hard:
                    v, s = lif(v, self.fc1(x_t))
                elif isinstance(w, Tensor):
                    w = 0.5 * w + self.fc2(s)
                else:
                    w = self.fc2(s)
            out.append(w)
        return torch.stack(out)


@loops(expect="refused", code="capture.tensor-dependent-branch")
class StopsByValue(Net):
    """Leaves the loop when the network has fallen silent: the data decide."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], WIDTH)
        for t in range(x.shape[0]):
            v, s = lif(v, self.fc1(x[t]))
            if s.sum() == 0:
                break
        return v
