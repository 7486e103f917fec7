"""The ways in which published code loops over time, one small model each.

Every model says what re-rolling has to find: for each loop its number of steps, whether that number
follows the length of an input, and how many values are carried from step to step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Looping:
    """A model, its input and its loops; ``time`` is the input's time axis where T is free."""

    model: type[nn.Module]
    shape: tuple[int, ...]
    loops: list[tuple[int, bool, int]]
    time: int | None
    listed: bool = False

    @property
    def name(self) -> str:
        return self.model.__name__

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return self.model()

    def input(self, seed: int = 0, **sizes: int) -> Tensor | list[Tensor]:
        """Return an input; ``time`` and ``batch`` replace sizes of the shape."""
        shape = list(self.shape)
        if "time" in sizes and self.time is not None:
            shape[self.time] = sizes["time"]
        if "batch" in sizes:
            shape[1 if self.time == 0 else 0] = sizes["batch"]
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(shape, generator=generator) * 2
        return list(x) if self.listed else x


MODELS: list[Looping] = []


def looping(
    *loops: tuple[int, bool, int],
    shape: tuple[int, ...] = (6, 3, 4),
    time: int | None = 0,
    listed: bool = False,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Add a model to the list."""

    def decorate(model: type[nn.Module]) -> type[nn.Module]:
        MODELS.append(Looping(model, shape, list(loops), time, listed))
        return model

    return decorate


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + 4 * x * x)


spike = Spike.apply


class Net(nn.Module):
    """Parameters that most of the models use."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, 5)
        self.fc2 = nn.Linear(5, 5)
        self.beta = nn.Parameter(torch.tensor(0.75))
        self.decay = nn.Parameter(torch.linspace(0.25, 0.75, 5))
        self.steps = 6

    def zeros(self, x):
        return torch.zeros(x.shape[1], 5)


@looping((6, True, 2))
class TimeOuter(Net):
    def forward(self, x):
        v1 = torch.zeros(x.shape[1], 5)
        v2 = torch.zeros(x.shape[1], 5)
        out = []
        for t in range(x.shape[0]):
            v1 = self.beta * v1 + self.fc1(x[t])
            s1 = spike(v1 - 1)
            v1 = v1 - s1.detach()
            v2 = self.decay * v2 + self.fc2(s1)
            s2 = spike(v2 - 1)
            v2 = v2 * (1 - s2)
            out.append(s2)
        return torch.stack(out)


@looping((6, True, 1), (6, True, 1))
class LayerOuter(Net):
    def lif(self, x):
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)

    def forward(self, x):
        x = self.lif(self.fc1(x))
        x = self.lif(self.fc2(x))
        return x.mean(0)


@looping((6, True, 1), shape=(3, 6, 4), time=1)
class BatchFirst(Net):
    def forward(self, x):
        v, out = torch.zeros(x.size(0), 5), []
        for t in range(x.size(1)):
            v = v * self.decay + self.fc1(x[:, t])
            s = spike(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out, dim=1)


@looping((6, True, 1), shape=(3, 4, 6), time=2)
class TimeLast(Net):
    def forward(self, x):
        v, out = torch.zeros(x.size(0), 5), []
        for t in range(x.shape[-1]):
            v = v * 0.9 + self.fc1(x[..., t])
            s = spike(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out, dim=-1)


@looping((6, True, 2), shape=(3, 4, 6), time=2)
class PreallocatedOutput(Net):
    def forward(self, x):
        v = torch.zeros(x.shape[:-1])
        out = torch.zeros(x.shape)
        for t in range(x.shape[-1]):
            v = 0.5 * v * (1 - out[..., max(t - 1, 0)]) + x[..., t]
            out[..., t] = spike(v - 0.5)
        return out


@looping((6, True, 2), shape=(3, 4, 6), time=2)
class ReadsPreviousOutput(Net):
    def update(self, v, s, x):
        v = 0.25 * v * (1 - s) + x
        return v, spike(v - 0.5)

    def forward(self, x):
        v = torch.zeros(x.shape[:-1])
        out = torch.zeros(x.shape)
        for t in range(x.shape[-1]):
            v, out[..., t] = self.update(v, out[..., t - 1], x[..., t])
        return out


@looping((6, True, 2))
class RecordsFromBefore(Net):
    def forward(self, x):
        length, batch, _ = x.shape
        v = torch.zeros(length + 1, batch, 5)
        s = torch.zeros(length + 1, batch, 5)
        for t in range(length):
            v[t + 1] = v[t] * 0.9 * (1 - s[t]) + self.fc1(x[t])
            s[t + 1] = spike(v[t + 1] - 1)
        return s[1:], v


@looping((6, True, 2))
class SumAndMean(Net):
    def forward(self, x):
        v, total = self.zeros(x), 0.0
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            total += s
        return total / x.shape[0]


@looping((6, True, 3))
class SumInPlace(Net):
    def forward(self, x):
        v = s = self.zeros(x)
        total = torch.zeros_like(v)
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t]) - s
            s = spike(v - 1)
            total += s
        return total / len(x)


@looping((6, True, 1))
class LastOnly(Net):
    def forward(self, x):
        v = self.zeros(x)
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            v = v - spike(v - 1)
        return self.fc2(v)


@looping((6, True, 1), (6, True, 1))
class SumOfList(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return sum(out) / len(out)


@looping((6, True, 1))
class MaxOverTime(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            v = v - spike(v - 1)
            out.append(v)
        return torch.max(torch.stack(out), 0)[0]


@looping((6, True, 1))
class CreatedLazily(Net):
    def forward(self, x):
        v, out = None, []
        for t in range(x.shape[0]):
            current = self.fc1(x[t])
            if v is None:
                v = torch.zeros_like(current)
            v = v + (current - v) / 2.0
            s = spike(v - 1)
            v = (1 - s) * v
            out.append(s)
        return torch.stack(out)


@looping((5, True, 1))
class FirstValueIsState(Net):
    def forward(self, x):
        v, out = None, []
        for t in range(x.shape[0]):
            current = self.fc1(x[t])
            v = current if v is None else 0.9 * v + current
            s = spike(v - 1)
            v = (1 - s) * v
            out.append(s)
        return torch.stack(out)


@looping((6, True, 1))
class PythonNumberState(Net):
    def forward(self, x):
        v, out = 0.0, []
        for t in range(x.shape[0]):
            v = v * 0.9 + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((6, True, 1))
class PythonNumberTimesTensor(Net):
    def forward(self, x):
        v, out = 0, []
        for t in range(x.shape[0]):
            v = self.decay * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((6, True, 3))
class AliasedStates(Net):
    def forward(self, x):
        h = h_spike = h_sum = self.zeros(x)
        for t in range(x.shape[0]):
            h = h * 0.5 * (1 - h_spike) + self.fc1(x[t])
            h_spike = spike(h - 0.5)
            h_sum = h_sum + h_spike
        return h_sum / self.steps


@looping((6, True, 3))
class DelayOfTwo(Net):
    def forward(self, x):
        zeros = self.zeros(x)
        v, history, out = zeros, [zeros, zeros], []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t]) - history[-2]
            history.append(spike(v - 1))
            out.append(v)
        return torch.stack(out)


@looping((6, True, 4))
class DelayLine(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        line = deque([self.zeros(x) for _ in range(3)], maxlen=3)
        for t in range(x.shape[0]):
            v = 0.5 * v + self.fc1(x[t]) - line[0]
            line.append(spike(v - 1))
            out.append(line[-1])
        return torch.stack(out)


@looping((6, True, 1))
class Reversed(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in reversed(range(x.shape[0])):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out[::-1])


@looping((6, True, 1))
class ReversedIndex(Net):
    def forward(self, x):
        length = x.shape[0]
        v, out = self.zeros(x), []
        for t in range(length):
            v = 0.9 * v + self.fc1(x[length - 1 - t])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((5, True, 1))
class FirstStepDiffers(Net):
    def forward(self, x):
        out = []
        for t in range(x.shape[0]):
            if t == 0:
                v = self.fc1(x[0])
            if t > 0:
                v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((6, True, 1))
class LastStepDiffers(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            out.append(s)
            if t < x.shape[0] - 1:
                v = v - s
        return torch.stack(out), v


@looping((3, False, 1), (5, True, 2), shape=(8, 3, 4))
class CountsLate(Net):
    def forward(self, x):
        v, total = self.zeros(x), self.zeros(x)
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            if t > 2:
                total = total + s
        return total


@looping((6, False, 1), time=None)
class NumbersOfTheStep(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9**t * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out.append(s * t)
        return torch.stack(out)


@looping((6, True, 1), (9, False, 1))
class TwoLoops(Net):
    def forward(self, x):
        v = self.zeros(x)
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            v = v - spike(v - 1)
        u, out = torch.zeros_like(v), []
        for _ in range(9):
            u = 0.5 * u + self.fc2(v)
            s = spike(u - 1)
            u = u - s
            out.append(s)
        return torch.stack(out)


@looping((6, True, 1), (6, True, 1))
class EncoderDecoder(Net):
    def forward(self, x):
        v, spikes = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            spikes.append(s)
        u, out = v, []
        for s in spikes:
            u = 0.8 * u + self.fc2(s)
            u = u - spike(u - 1)
            out.append(u)
        return torch.stack(out), v


@looping((6, True, 1), shape=(3, 6, 4), time=1)
class Unbind(Net):
    def forward(self, x):
        v, out = torch.zeros(x.shape[0], 5), []
        for x_t in x.unbind(1):
            v = 0.9 * v + self.fc1(x_t)
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out, 1)


@looping((6, True, 1))
class Enumerate(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for _, x_t in enumerate(x):
            v = 0.9 * v + self.fc1(x_t)
            s = spike(v - 1)
            v = v - s
            out += [s]
        return torch.stack(out)


@looping((6, True, 1))
class Zip(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for a, b in zip(x, torch.sigmoid(x), strict=True):
            v = 0.9 * v + self.fc1(a * b)
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((6, False, 1), time=None, listed=True)
class ListOfTensors(Net):
    def forward(self, x):
        v, out = torch.zeros(x[0].shape[0], 5), []
        for x_t in x:
            v = 0.9 * v + self.fc1(x_t)
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return out


@looping((6, True, 3), shape=(6, 3, 5))
class LayersInsideTime(Net):
    def forward(self, x):
        states, out = [self.zeros(x) for _ in range(3)], []
        for t in range(x.shape[0]):
            h = x[t]
            for n in range(3):
                states[n] = 0.9 * states[n] + self.fc2(h)
                h = spike(states[n] - 1)
                states[n] = states[n] - h
            out.append(h)
        return torch.stack(out)


@looping((6, True, 1), (6, True, 1), (6, True, 1), shape=(6, 3, 5))
class TimeInsideLayers(Net):
    def forward(self, x):
        for _ in range(3):
            v, out = torch.zeros_like(x[0]), []
            for t in range(x.shape[0]):
                v = 0.9 * v + self.fc2(x[t])
                s = spike(v - 1)
                v = v - s
                out.append(s)
            x = torch.stack(out)
        return x


@looping((6, False, 3), shape=(3, 4), time=None)
class StaticInput(Net):
    def forward(self, x):
        v1, v2, total = torch.zeros(x.shape[0], 5), torch.zeros(x.shape[0], 5), 0
        for _ in range(self.steps):
            v1 = 0.9 * v1 + self.fc1(x)
            s = spike(v1 - 1)
            v1 = v1 - s
            v2 = 0.9 * v2 + self.fc2(s)
            total = total + v2
        return total / self.steps


@looping((6, False, 4), shape=(3, 5), time=None)
class LayersInsideTimeOfStaticInput(Net):
    def forward(self, x):
        states, total = [torch.zeros_like(x) for _ in range(3)], torch.zeros_like(x)
        for _ in range(self.steps):
            h = x
            for n in range(3):
                states[n] = 0.9 * states[n] + h * self.decay
                h = spike(states[n] - 1)
                states[n] = states[n] - h
            total = total + h
        return total


@looping((2, True, 1), shape=(2, 3, 4))
class TwoSteps(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out), v


@looping((2, False, 1), shape=(3, 4), time=None)
class TwoStepsOfStaticInput(Net):
    def forward(self, x):
        v, out = torch.zeros(x.shape[0], 5), []
        for _ in range(2):
            v = 0.9 * v + self.fc1(x)
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out), v


@looping((6, True, 2))
class RecurrentWeights(Net):
    def forward(self, x):
        v = s = self.zeros(x)
        out = []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t]) + self.fc2(s) - s
            s = spike(v - 1)
            out.append(s)
        return torch.stack(out)


class State(NamedTuple):
    v: Tensor
    i: Tensor


@looping((6, True, 2))
class StateInTuple(Net):
    def cell(self, x, state):
        i = 0.5 * state.i + self.fc1(x)
        v = 0.9 * state.v + i
        s = spike(v - 1)
        return s, State(v - s, i)

    def forward(self, x):
        state, out = State(self.zeros(x), self.zeros(x)), []
        for t in range(x.shape[0]):
            s, state = self.cell(x[t], state)
            out.append(s)
        return torch.stack(out), state


@looping((6, True, 2))
class StateInDict(Net):
    def forward(self, x):
        state, out = {"v": self.zeros(x), "i": self.zeros(x)}, []
        for t in range(x.shape[0]):
            state["i"] = 0.5 * state["i"] + self.fc1(x[t])
            state["v"] = 0.9 * state["v"] + state["i"]
            s = spike(state["v"] - 1)
            state["v"] = state["v"] - s
            out.append(s)
        return torch.stack(out), state


@looping((6, True, 1))
class StateInAttribute(Net):
    def __init__(self):
        super().__init__()
        self.v = 0.0

    def step(self, x):
        if isinstance(self.v, float):
            self.v = torch.full_like(x, self.v)
        self.v = self.v + (x - self.v) / 2.0
        s = spike(self.v - 1)
        self.v = (1 - s) * self.v
        return s

    def forward(self, x):
        self.v = 0.0
        return torch.cat([self.step(self.fc1(x[t])).unsqueeze(0) for t in range(x.shape[0])], 0)


@looping((6, True, 1))
class GrowingConcatenation(Net):
    def forward(self, x):
        v, out = self.zeros(x), torch.tensor([])
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out = torch.cat((out, s.unsqueeze(0)), 0)
        return out


@looping((6, True, 1))
class ConcatenatedBatches(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.cat(out, 0), torch.cat(out, 1)


@looping((6, True, 2))
class NormAndDropout(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.dropout = nn.Dropout(0.25)

    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.dropout(self.norm(self.fc1(x[t])))
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((6, True, 1))
class RateCoding(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            pulses = (torch.rand_like(x[t]) < x[t]).float()
            v = 0.9 * v + self.fc1(pulses)
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((6, True, 1))
class DelayedReset(Net):
    def forward(self, x):
        v, spikes, potentials = self.zeros(x), [], []
        for t in range(x.shape[0]):
            reset = spike(v - 1.0).detach()
            v = self.beta.clamp(0, 1) * v + self.fc1(x[t]) - reset * 1.0
            spikes.append(spike(v - 1.0))
            potentials.append(v)
        return torch.stack(spikes), torch.stack(potentials)


@looping((6, True, 0), (6, True, 1))
class ListThenLoop(Net):
    def forward(self, x):
        currents = [F.relu(self.fc1(x[t])) for t in range(x.shape[0])]
        v, out = self.zeros(x), []
        for current in currents:
            v = 0.9 * v + current
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out).sum(0)


@looping((6, True, 1))
class SubSteps(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            current = self.fc1(x[t])
            for _ in range(4):
                v = v + 0.25 * (current - v)
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((12, False, 1), time=None)
class FramesAreHeld(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(12):
            v = 0.9 * v + self.fc1(x[t // 2])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((5, True, 1))
class InputDifference(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(1, x.shape[0]):
            v = 0.9 * v + self.fc1(x[t] - x[t - 1])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((5, True, 1))
class NextInput(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0] - 1):
            v = 0.9 * v + self.fc1(x[t + 1])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((6, True, 2))
class RecordsStartValue(Net):
    def forward(self, x):
        v = self.zeros(x)
        potentials, spikes = [v], [v]
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t]) - spikes[-1]
            spikes.append(spike(v - 1))
            potentials.append(v)
        return torch.stack(potentials), torch.stack(spikes)


@looping((5, True, 1))
class LearnedStart(Net):
    def forward(self, x):
        v, out = self.decay, []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out)


@looping((6, True, 1))
class MaskedReset(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            s = spike(v - 1)
            reset = torch.zeros_like(v)
            fired = v > 1
            reset[fired] = torch.ones_like(v)[fired]
            v = v - reset
            out.append(s)
        return torch.stack(out)


@looping((6, True, 3))
class SkipsOverLayers(Net):
    def forward(self, x):
        v1, v2, s2 = self.zeros(x), self.zeros(x), self.zeros(x)
        out = []
        for t in range(x.shape[0]):
            v1 = 0.9 * v1 + self.fc1(x[t]) + s2
            s1 = spike(v1 - 1)
            v1 = v1 - s1
            v2 = 0.9 * v2 + self.fc2(s1) + s1
            s2 = spike(v2 - 1)
            v2 = v2 - s2
            out.append(s2)
        return torch.stack(out)


@looping((3, False, 1))
class EverySecondStep(Net):
    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.fc1(x[t])
            if t % 2 == 1:
                s = spike(v - 1)
                v = v - s
                out.append(s)
        return torch.stack(out)
