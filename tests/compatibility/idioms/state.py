"""Where the state is kept, how it starts, and what outlives a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Group, Model, sequence
from tests.compatibility.neurons import Net, lif, spike

state = Group("state")
CASES = state.cases


def with_state(T: int, B: int) -> tuple[Any, ...]:
    v, i = torch.rand(B, WIDTH), torch.rand(B, WIDTH)
    return *sequence(T, B), v.requires_grad_(), i.requires_grad_()


def with_pair(T: int, B: int) -> tuple[Any, ...]:
    x, *pair = with_state(T, B)
    return x, tuple(pair)


@state()
class NewZeros(Net):
    """Begins with `x.new_zeros`."""

    def forward(self, x: Tensor) -> Tensor:
        v = x.new_zeros(x.shape[1], WIDTH)
        out = []
        for x_t in x:
            v, s = lif(v, self.fc1(x_t))
            out.append(s)
        return torch.stack(out)


@state()
class ZerosLike(Net):
    """Begins with `torch.zeros_like` of a whole step, or of a layer's bias made as large."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[:, :, 0:1]).repeat(1, 1, WIDTH)[0]
        out = torch.zeros_like(x)
        for t in range(x.shape[0]):
            v, out[t] = lif(v, self.fc1(x[t]))
        return out


@state()
class LazyNone(Net):
    """Begins with None and makes the state at the first step."""

    def forward(self, x: Tensor) -> Tensor:
        v = None
        out = []
        for x_t in x:
            current = self.fc1(x_t)
            if v is None:
                v = torch.zeros_like(current)
            v, s = lif(v, current)
            out.append(s)
        return torch.stack(out)


@state()
class FloatZero(Net):
    """Begins with the number 0., and asks for the type of the state."""

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        out = []
        for x_t in x:
            current = self.fc1(x_t)
            if type(v) is float:
                v = torch.full_like(current, v)
            v = v + (current - v) / 2.0
            s = spike(v - 0.5)
            v = (1.0 - s) * v
            out.append(s)
        return torch.stack(out)


@state()
class IntegerZero(Net):
    """Begins with the integer 0 and computes with it."""

    def forward(self, x: Tensor) -> Tensor:
        mem: Any = 0
        spk: Any = 0
        out = []
        for x_t in x:
            mem = mem * 0.75 * (1 - spk) + self.fc1(x_t)
            spk = spike(mem - 1.0)
            out.append(spk)
        return torch.stack(out)


@state()
class RestingPotential(Net):
    """Begins at a potential other than zero."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.full((x.shape[1], WIDTH), -0.25)
        out = []
        for x_t in x:
            v = v + 0.25 * (-0.25 - v) + self.fc1(x_t)
            s = spike(v - 0.5)
            v = torch.where(s > 0, torch.full_like(v, -0.5), v)
            out.append(s)
        return torch.stack(out)


@state()
class RandomStart(Net):
    """Begins at random potentials; random numbers are drawn in the order of the serial code."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.rand(x.shape[1], WIDTH)
        w = torch.randn_like(v) * 0.1
        out = []
        for x_t in x:
            v, s = lif(v, self.fc1(x_t) + w)
            out.append(s)
        return torch.stack(out), torch.rand(2)


@state()
class LearnedStart(Net):
    """Begins at a parameter [1, N], so that the state grows by broadcasting at the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.u0 = nn.Parameter(torch.rand(1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        u = self.u0
        out = []
        for x_t in x:
            u, s = lif(u, self.fc1(x_t))
            out.append(s)
        return torch.stack(out)


@state()
class LearnedStartExpanded(LearnedStart):
    """Begins at a parameter that is expanded to the batch."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.u0.expand(x.shape[1], -1)
        out = []
        for x_t in x:
            u, s = lif(u, self.fc1(x_t))
            out.append(s)
        return torch.stack(out)


@state()
class AliasedStart(Net):
    """`a = b = c = zeros`, of which one is then added to in place."""

    def forward(self, x: Tensor) -> Tensor:
        h_mem = h_spike = h_sum = torch.zeros(x.shape[1], WIDTH)
        for x_t in x:
            h_mem = h_mem * 0.75 * (1.0 - h_spike) + self.fc1(x_t)
            h_spike = spike(h_mem - 1.0)
            h_sum += h_spike
        return h_sum / x.shape[0]


@state()
class AliasedInPlace(Net):
    """`a = b = zeros`, where adding to one in place changes the other at the first step."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = total = torch.zeros(x.shape[1], WIDTH)
        for x_t in x:
            total += self.fc1(x_t)
            v = 0.75 * v + total
        return v, total


class Pair(NamedTuple):
    v: Tensor
    i: Tensor


@dataclass
class Record:
    v: Tensor
    i: Tensor
    steps: int = 0


@state(inputs=with_pair)
class TupleState(Net):
    """A tuple of states goes in and comes out."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        out = []
        for x_t in x:
            v, i = state
            i = 0.5 * i + self.fc1(x_t)
            v, s = lif(v, i)
            state = v, i
            out.append(s)
        return torch.stack(out), state


@state()
class NamedTupleState(Net):
    """A NamedTuple of states, rebound at every step, returned."""

    def forward(self, x: Tensor, state: Pair | None = None) -> Any:
        out = []
        for x_t in x:
            if state is None:
                state = Pair(*torch.zeros(2, *x_t.shape))
            i = 0.5 * state.i + self.fc1(x_t)
            v, s = lif(state.v, i)
            state = Pair(v=v, i=i)
            out.append(s)
        return torch.stack(out), state


@state()
class DictState(Net):
    """A dict of states, changed in place, returned."""

    def forward(self, x: Tensor) -> Any:
        state = {"v": torch.zeros_like(x[0]), "i": torch.zeros_like(x[0])}
        out = []
        for x_t in x:
            state["i"] = 0.5 * state["i"] + self.fc1(x_t)
            state["v"], s = lif(state["v"], state["i"])
            out.append(s)
        return {"out": torch.stack(out), "state": state}


@state(programs=2, free=False)
class DataclassState(Net):
    """A dataclass of states, changed in place; it counts the steps in a Python number."""

    def forward(self, x: Tensor) -> Any:
        state = Record(torch.zeros_like(x[0]), torch.zeros_like(x[0]))
        out = []
        for x_t in x:
            state.i = 0.5 * state.i + self.fc1(x_t)
            state.v, s = lif(state.v, state.i)
            state.steps += 1
            out.append(s)
        return torch.stack(out), state.v, state.steps


@state()
class DataclassReturned(Net):
    """A dataclass of states is returned."""

    def forward(self, x: Tensor) -> Any:
        state = Record(torch.zeros_like(x[0]), torch.zeros_like(x[0]))
        out = []
        for x_t in x:
            i = 0.5 * state.i + self.fc1(x_t)
            v, s = lif(state.v, i)
            state = Record(v, i)
            out.append(s)
        return torch.stack(out), state


@state(programs=2, reset=lambda m: m.reset())
class DataclassAttribute(Net):
    """A dataclass of states in an attribute, a new one at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.state: Record | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for x_t in x:
            current = self.fc1(x_t)
            if self.state is None:
                self.state = Record(torch.zeros_like(current), torch.zeros_like(current))
            i = 0.5 * self.state.i + current
            v, s = lif(self.state.v, i)
            self.state = Record(v, i)
            out.append(s)
        return torch.stack(out)


class Memory:
    def __init__(self) -> None:
        self.v: Any = 0.0
        self.trace: list[Any] = [0.0, 0.0]


@state(programs=2, reset=lambda m: m.reset())
class ObjectAttribute(Net):
    """An object of a plain class holds the states and is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.memory = Memory()

    def forward(self, x: Tensor) -> Tensor:
        memory = self.memory
        out = []
        for x_t in x:
            memory.v, s = lif(memory.v, self.fc1(x_t))
            memory.trace[0] = 0.5 * memory.trace[0] + s
            memory.trace[1] = memory.trace[0]
            out.append(memory.trace[1])
        return torch.stack(out)


def with_record(T: int, B: int) -> tuple[Any, ...]:
    return *sequence(T, B), Record(torch.rand(B, WIDTH), torch.zeros(B, WIDTH))


@state(inputs=with_record)
class DataclassArgument(Net):
    """A dataclass of states goes in, is changed in place and comes out."""

    def forward(self, x: Tensor, state: Record) -> Any:
        out = []
        for x_t in x:
            state.i = 0.5 * state.i + self.fc1(x_t)
            state.v, s = lif(state.v, state.i)
            out.append(s)
        return torch.stack(out), state


@state(neurons=3)
class ListOfLayers(nn.Module):
    """The states of all layers in a list, rebuilt at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        mems: list[Any] = [None] * len(self.layers)
        out = []
        for x_t in x:
            after = []
            for layer, mem in zip(self.layers, mems, strict=True):
                current = layer(x_t)
                mem = torch.zeros_like(current) if mem is None else mem
                mem, x_t = lif(mem, current)
                after.append(mem)
            mems = after
            out.append(x_t)
        return torch.stack(out), mems


class Neuron(nn.Module):
    """A stateful module, as libraries have them."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0

    def reset(self) -> None:
        self.v = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.v, s = lif(self.v, x)
        return s


def reset_net(model: Model) -> None:
    for module in model.modules():
        if hasattr(module, "reset"):
            module.reset()


@state(neurons=2, programs=2, reset=reset_net)
class Carried(nn.Module):
    """Modules keep their state between calls; it is reset from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), Neuron(), nn.Linear(WIDTH, WIDTH), Neuron()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(x_t) for x_t in x])


@state(neurons=2, programs=2)
class ResetInside(Carried):
    """The forward pass resets the modules before its loop; their state is left behind."""

    def forward(self, x: Tensor) -> Tensor:
        reset_net(self.net)
        for x_t in x:
            y = self.net(x_t)
        return y


@state(neurons=2, programs=2, reset=reset_net)
class ReadAfterwards(Carried):
    """The outputs are dropped; the potential of the last neuron is the result."""

    def forward(self, x: Tensor) -> Any:
        for x_t in x:
            self.net(x_t)
        return self.net[-1].v


@state(programs=2, reset=reset_net)
class UsedTwice(nn.Module):
    """One stateful module is called twice in every step: its state is chained over both calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.neuron = Neuron()

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for x_t in x:
            a = self.neuron(self.fc1(x_t))
            b = self.neuron(self.fc2(x_t))
            out.append(a + 2.0 * b)
        return torch.stack(out)


@state(neurons=2)
class ExplicitStatesOfOneModule(Net):
    """One module without state serves two layers, each of which passes its own state."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(WIDTH))

        def forward(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.sigmoid(self.w) * mem + x
            s = spike(h - 1.0)
            return s, h - s.detach()

    def __init__(self) -> None:
        super().__init__()
        self.cell = self.Cell()

    def forward(self, x: Tensor) -> Tensor:
        mem1 = mem2 = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            s, mem1 = self.cell(self.fc1(x_t), mem1)
            s, mem2 = self.cell(self.fc2(s), mem2)
            out.append(s)
        return torch.stack(out)


def zero_buffers(model: Any) -> None:
    model.mem = torch.zeros(1, WIDTH)


@state(programs=2, reset=zero_buffers)
class BufferState(Net):
    """The state is a registered buffer that is rebound, of batch 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mem", torch.zeros(1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for x_t in x:
            self.mem, s = lif(self.mem, self.fc1(x_t))
            out.append(s)
        self.mem = self.mem.detach()
        return torch.stack(out)


@state(sizes=((7, 3), (11, 3)))
class BufferInPlace(Net):
    """The state is a registered buffer of a fixed batch that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mem", torch.zeros(3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for x_t in x:
            mem, s = lif(self.mem, self.fc1(x_t))
            self.mem.copy_(mem.detach())
            out.append(s)
        return torch.stack(out)


@state()
class TypeOfState(Net):
    """Moves the state to the input with `.to(x)` at every step, and converts spikes."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], WIDTH)
        out = []
        for x_t in x:
            v = v.to(x_t).clone()
            v, s = lif(v, self.fc1(x_t))
            out.append(s.type_as(x).contiguous())
        return torch.stack(out)


def in_chunks(model: Callable[..., Any]) -> Model:
    """The script that streams a sequence through a model in three chunks."""

    def run(x: Tensor) -> Any:
        first, rest = x[:2], x[2:]
        return torch.cat([model(first), model(rest[:4]), model(rest[4:])])

    return run


def truncated(model: Any) -> Model:
    """The training script of truncated backpropagation: backward and detach after each chunk."""

    @torch.enable_grad()
    def run(x: Tensor) -> Any:
        parameters = list(model.parameters())
        outputs, gradients = [], [torch.zeros_like(p) for p in parameters]
        for chunk in x.detach().chunk(2):
            y = model(chunk)
            found = torch.autograd.grad((y**2).sum() + y.sum(), parameters, allow_unused=True)
            for total, g in zip(gradients, found, strict=True):
                total += 0.0 if g is None else g
            for module in model.modules():
                if isinstance(module, Neuron):
                    module.v.detach_()
            outputs.append(y.detach())
        return torch.cat(outputs), gradients

    return run


@state(neurons=2, programs=2, reset=reset_net, script=in_chunks, measured=None)
class Streamed(Carried):
    """Chunk after chunk of a sequence gives what the whole sequence gives."""


@state(
    neurons=2, programs=2, reset=reset_net, script=truncated, differentiable=False, measured=None
)
class TruncatedBackpropagation(Carried):
    """Backward after each chunk, then `v.detach_()` on the carried state."""
