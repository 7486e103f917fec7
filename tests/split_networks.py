"""What the processes of ``tests/test_distribution.py`` run: networks whose time is split.

Weights and inputs are sums of few powers of two, and spikes are what products take: so every
product is exact whatever the order in which it adds, and results are compared bit for bit.
"""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import snncc
from snncc.model.distribution import DistributedModule
from snncc.nn import ATan
from tests.models import Feedforward, Stateful
from tests.recurrent_models import OwnSpikes

SIZE = 3
PATIENT, HASTY = timedelta(seconds=20), timedelta(seconds=1)
# Gradients are sums over time and the batch, added up in another order: per segment, then block.
TOLERANCE = 1e-4


class Convolutional(nn.Module):
    """Convolution, norm in evaluation mode, neuron, pooling, and a mean of a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(16, 3)
        self.spike = ATan()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        out = []
        for x_t in x:
            h = 0.5 * v + self.norm(self.conv(x_t))
            s = self.spike(h - 0.5)
            v = h * (1.0 - s)
            out.append(self.fc(F.max_pool2d(s, 2).flatten(1)))
        return torch.stack(out).mean(0)


class TwoStates(nn.Module):
    """A synaptic current and a potential, batch first, which starts from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.beta = nn.Parameter(torch.tensor([0.25, 0.5, 0.75, 0.875]))
        self.start = nn.Parameter(torch.tensor([0.5, 0.0, -0.5, 1.0]))
        self.spike = ATan()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i = torch.zeros(x.shape[0], 4, dtype=x.dtype)
        v = self.start.expand(x.shape[0], 4)
        spikes = []
        for t in range(x.shape[1]):
            i = self.alpha * i + x[:, t]
            v = self.beta * v + i
            s = self.spike(v - 1.0)
            v = v - s.detach()
            spikes.append(s)
        return torch.stack(spikes, 1), i, v


class Readouts(nn.Module):
    """Every way to read a value for the sequence, and products behind a sum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.spike = ATan()

    def forward(self, x: Tensor, gain: Tensor) -> dict[str, Tensor]:
        v = s = torch.zeros(x.shape[1], 4, dtype=x.dtype)
        spikes, potentials, delayed = [], [], []
        for t in range(x.shape[0]):
            delayed.append(s * gain)
            v = 0.5 * v + x[t] * gain - 0.25 * x[0]
            s = self.spike(v - 1.0)
            v = v - s
            spikes.append(s)
            potentials.append(v)
        seen = torch.stack(spikes)
        return {
            "rate": self.fc(seen.sum(0)),
            "mean": torch.stack(potentials).mean(0),
            "last": potentials[-1],
            "spikes": seen,
            "delayed": torch.stack(delayed),
            "weights": self.fc.weight.sum(),
        }


class FirstStep(nn.Module):
    """Its first step is another program than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.spike = ATan()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v: Any = None
        total: Any = 0
        spikes = []
        for x_t in x:
            current = self.fc(x_t)
            v = 2 * current if v is None else 0.5 * v + current
            s = self.spike(v - 1.0)
            v = v - s
            spikes.append(s)
            total = total + s
        return torch.stack(spikes), total, v


class Carried(nn.Module):
    """Takes its state from the caller and gives it back."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.spike = ATan()

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(v)
        for t in range(x.shape[0]):
            v = 0.5 * v + self.fc(x[t])
            s = self.spike(v - 1.0)
            v = v - s
            total = total + s
        return total, v


def rounded(model: nn.Module) -> nn.Module:
    """Return a model with weights that are multiples of an eighth."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 8).round() / 8)
    return model


def numbers(*sizes: int) -> Tensor:
    """Return multiples of a quarter."""
    return torch.randint(-6, 10, sizes) / 4


@dataclass(frozen=True)
class Part:
    """This process in a case.

    Attributes:
        group: The group.
        rank: Its rank there.
        size: How many ranks there are.
    """

    group: Any
    rank: int
    size: int

    def own(self, x: Tensor, steps: Sequence[int] | None = None, axis: int = 0) -> Tensor:
        """Return the segment of this rank, as a leaf with a gradient."""
        parts = x.tensor_split(self.size, axis) if steps is None else x.split(list(steps), axis)
        return parts[self.rank].detach().clone().requires_grad_()

    def split(
        self, model: nn.Module, blocks: int | None = None, **options: Any
    ) -> DistributedModule:
        """Return a model whose time is split."""
        return snncc.distribute(snncc.compile(model, **options), self.group, blocks=blocks)


def loss_of(outputs: Any) -> Tensor:
    """Return a loss in which each element counts differently."""
    leaves = outputs.values() if isinstance(outputs, dict) else outputs
    leaves = [leaves] if isinstance(leaves, Tensor) else list(leaves)
    return sum((x * torch.linspace(-1, 1, x.numel()).view_as(x) + x**2).sum() for x in leaves)


def same(part: Part, actual: Any, expected: Any, steps: Sequence[int], axis: int = 0) -> None:
    """Check outputs: with a time axis those of the segment, without those of the sequence."""
    if isinstance(expected, dict):
        actual, expected = list(actual.values()), list(expected.values())
    pairs = (
        [(actual, expected)] if isinstance(expected, Tensor) else zip(actual, expected, strict=True)
    )
    for a, e in pairs:
        has_time = e.dim() > axis and e.shape[axis] == sum(steps)
        whole = e.split(list(steps), axis)[part.rank] if has_time else e
        assert torch.equal(a, whole), (a - whole).abs().max()


def agree(part: Part, model: nn.Module, axis: int = 0, **options: Any) -> None:
    """Compare results and gradients with the serial code."""
    shape = {Convolutional: (2, 2, 4, 4), Feedforward: (3, 5), OwnSpikes: (3, 6)}
    lanes = shape.get(type(model), (3, 4))
    steps = [1, 6, 4] if part.size == 3 else [3, 5]
    total = sum(steps)
    x = numbers(*lanes[:axis], total, *lanes[axis:])
    reference = rounded(model)
    fast = part.split(reference, **options)
    more = [torch.tensor(1.5, requires_grad=True)] if isinstance(model, Readouts) else []

    whole = x.clone().requires_grad_()
    expected = reference(whole, *more)
    # Of what has a time axis each rank sees its part: the losses of the parts add up.
    parts = expected.values() if isinstance(expected, dict) else expected
    parts = [parts] if isinstance(parts, Tensor) else list(parts)
    loss = sum(
        loss_of([piece])
        for e in parts
        for piece in (e.split(steps, axis) if e.dim() > axis and e.shape[axis] == total else [e])
    )
    loss.backward()
    wanted = [p.grad for p in reference.parameters()]
    reference.zero_grad()
    given = [m.grad for m in more]
    for m in more:
        m.grad = None

    segment = part.own(x, steps, axis)
    for _ in range(2):  # the second call finds everything compiled
        reference.zero_grad()
        segment.grad = None
        outputs = fast(segment, *more)
        same(part, outputs, expected, steps, axis)
        loss_of(outputs).backward()
        fast.sum_gradients()
    close(segment.grad, whole.grad.split(steps, axis)[part.rank])
    for name, gradient in zip(dict(reference.named_parameters()), wanted, strict=True):
        close(dict(reference.named_parameters())[name].grad, gradient)
    for m, gradient in zip(more, given, strict=True):
        close(m.grad / 2, gradient)  # of both calls; whole on every rank
    with torch.no_grad():
        same(part, fast(segment, *more), expected, steps, axis)


def close(actual: Tensor, expected: Tensor) -> None:
    """Compare gradients."""
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def keeps_state(part: Part) -> None:
    """A model that keeps its potential goes on from it, on every rank."""
    x = numbers(9, 2, 4)
    serial, model = Stateful(), Stateful()
    fast = part.split(model)
    with torch.no_grad():
        for _ in range(3):
            steps = [len(s) for s in x.tensor_split(part.size)]
            same(part, fast(part.own(x)), serial(x), steps)
            assert torch.equal(model.v, serial.v)


def carries_gradients(part: Part) -> None:
    """The gradient goes through a state that a caller carries from one call to the next."""
    x, y = numbers(9, 2, 4), numbers(6, 2, 4)
    model = rounded(Carried())
    start = torch.full((2, 4), 0.25, requires_grad=True)
    total, v = model(x, start)
    more, v = model(y, v)
    loss_of([total, more, v]).backward()
    wanted = [start.grad, model.fc.weight.grad]
    model.zero_grad()

    fast = part.split(model)
    begin = start.detach().clone().requires_grad_()
    total, v = fast(part.own(x), begin)
    more, v = fast(part.own(y), v)
    loss_of([total, more, v]).backward()
    fast.sum_gradients()

    close(begin.grad, wanted[0])
    close(model.fc.weight.grad, wanted[1])


def mixes_calls(part: Part) -> None:
    """Calls and models share a backward pass; a copy is another model of the same group."""
    model, other = rounded(Feedforward()), rounded(Feedforward())
    x, y = numbers(6, 2, 5), numbers(4, 3, 5)
    loss = model(x).sum() + model(y).square().sum() + other(x).square().sum()
    wanted = torch.autograd.grad(loss, [model.layer1.weight, other.layer1.weight])
    fast = part.split(model)
    copied = copy.deepcopy(fast)
    copied.load_state_dict(part.split(other).state_dict())

    for _ in range(2):  # accumulated, and added up once
        (fast(part.own(x)).sum() + fast(part.own(y)).square().sum()).backward()
        copied(part.own(x)).square().sum().backward(retain_graph=True)
    fast.sum_gradients()
    copied.sum_gradients()

    close(model.layer1.weight.grad / 2, wanted[0])
    close(copied.module.layer1.weight.grad / 2, wanted[1])


def cannot_be_mixed_up(part: Part) -> None:
    """What another rank or another compilation would take for something else is refused."""
    x = numbers(4, 2, 5)
    fast = part.split(rounded(Feedforward()))
    refused(lambda: pickle.dumps(fast), "option.distribute", "cannot be pickled")
    refused(lambda: snncc.compile(fast)(x), "option.distribute", "compiled again")
    outputs = fast(part.own(x)).sum()
    again = partial(torch.autograd.grad, outputs, [fast.module.layer1.weight], create_graph=True)
    refused(again, "unsupported.double-backward", "differentiated again")


def crosses_backward_passes(part: Part) -> None:
    """A rank that differentiates another call than its neighbour gets no gradient of that one."""
    fast = part.split(rounded(Feedforward()))
    x = numbers(4, 2, 5)
    calls = [fast(part.own(x)).sum() for _ in range(2)]
    refused(lambda: calls[part.rank].backward(), "launch.ranks", "waited in vain")


def asks_for_single_gradients(part: Part) -> None:
    """A pass for one parameter alone, from one output alone, passes by every hand-over."""
    model = rounded(Feedforward())
    x = numbers(7, 2, 5)
    (wanted,) = torch.autograd.grad(model(x).sum(), [model.readout.weight])
    fast = part.split(model)

    (own,) = torch.autograd.grad(fast(part.own(x)).sum(), [model.readout.weight])
    dist.all_reduce(own, group=part.group)

    close(own, wanted)


def refused(action: Callable[[], Any], code: str, text: str) -> None:
    """Check that a call is refused."""
    with pytest.raises(snncc.SnnccError, match=text) as caught:
        action()
    assert caught.value.code == code


def differs(part: Part) -> None:
    """Ranks that do not make the same call all say so, and are in step afterwards."""
    is_odd = part.rank == 1
    x = numbers(4, 2, 5)

    def network(width: int = 7, scale: float = 1.0) -> nn.Module:
        torch.manual_seed(0)
        model = rounded(Feedforward(hidden=width))
        model.spike = ATan(scale)
        return model

    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: part.split(network(scale=1.0 + is_odd))(part.own(x)), "program"),
        (lambda: part.split(network(7 + is_odd))(part.own(x)), "sizes"),
        (lambda: part.split(network())(part.own(x)[:, is_odd:]), "sizes"),
        (lambda: part.split(network())(part.own(x) if is_odd else x), "gradients"),
        (lambda: part.split(network(), blocks=1 + is_odd)(x), "blocks"),
        (lambda: part.split(network().train(is_odd))(x), "modes"),
    ]
    for action, text in cases:
        refused(action, "launch.ranks", text)
    for name in ("bias", "scale"):
        other = network()
        other.readout.register_buffer("scale", torch.zeros(3))
        getattr(other.readout, name).data += part.rank
        differing = part.split(other)
        refused(partial(differing, x), "launch.ranks", "Rank 1 has parameters or buffers of other")
    agree(part, TwoStates(), axis=1)


def fails_on_one_rank(part: Part) -> None:
    """A rank that cannot begin says why, and the others say which rank it is."""
    model = rounded(Feedforward())
    fast = part.split(model)
    x = numbers(4, 2, 5)
    own = ("unsupported.devices", "every rank has at least one step") if part.rank == 1 else None
    code, text = own or ("launch.ranks", "Rank 1 could not begin the call")
    for _ in range(2):
        same(part, fast(part.own(x)), model(x), [2, 2])
        refused(lambda: fast(part.own(x)[: 0 if own else None]), code, text)


def is_left_alone(part: Part) -> None:
    """A rank whose neighbour makes no call says so when the time of the group is over."""
    if part.rank == 0:
        text = "Rank 0 of 2 waited in vain"
        refused(lambda: part.split(rounded(Feedforward()))(numbers(4, 2, 5)), "launch.ranks", text)


def cannot_be_split(part: Part) -> None:
    """What needs more than states of the steps before is refused on every rank."""
    x = numbers(4, 2, 2, 4, 4)
    training = Convolutional().train()

    def numbered(x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            v = v + x[t] * 0.5**t
        return v

    def backwards(x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            v = 0.5 * v + x[x.shape[0] - 1 - t]
        return v

    refused(lambda: part.split(training)(x), "unsupported.devices", "statistics of a norm")
    refused(lambda: part.split(numbered)(x), "unsupported.devices", "for each step")
    refused(lambda: part.split(backwards)(x), "unsupported.stream", "backwards")
    online = snncc.compile(Feedforward(), mode="online")
    refused(lambda: snncc.distribute(online, part.group), "option.distribute", "online")


@dataclass(frozen=True)
class Case:
    """What the processes of a group do together.

    Attributes:
        run: What each of them does.
        size: How many there are.
        timeout: How long one waits for another.
    """

    run: Callable[[Part], None]
    size: int = 2
    timeout: timedelta = PATIENT


CASES = {
    "feedforward-2": Case(lambda part: agree(part, Feedforward())),
    "feedforward-3": Case(lambda part: agree(part, Feedforward()), 3),
    "convolutional": Case(lambda part: agree(part, Convolutional())),
    "two-states-blocks": Case(lambda part: agree(part, TwoStates(), axis=1, blocks=3), 3),
    "more-blocks-than-lanes": Case(lambda part: agree(part, TwoStates(), axis=1, blocks=64)),
    "interpreted": Case(lambda part: agree(part, TwoStates(), axis=1, blocks=2, target="torch")),
    "readouts": Case(lambda part: agree(part, Readouts(), blocks=1), 3),
    "first-step": Case(lambda part: agree(part, FirstStep())),
    "feedback": Case(lambda part: agree(part, OwnSpikes())),
    "keeps-state": Case(keeps_state),
    "carries-gradients": Case(carries_gradients),
    "single-gradients": Case(asks_for_single_gradients),
    "mixes-calls": Case(mixes_calls),
    "cannot-be-mixed-up": Case(cannot_be_mixed_up),
    "differs": Case(differs),
    "fails-on-one-rank": Case(fails_on_one_rank),
    "cannot-be-split": Case(cannot_be_split),
    "crossed": Case(crosses_backward_passes, timeout=6 * HASTY),
    "left-alone": Case(is_left_alone, timeout=HASTY),  # the last: its group is unusable after it
}


def main(rank: int, folder: str) -> None:
    """Run all cases in one process of several, and write down how they ended."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE, timeout=PATIENT)
    outcomes = {}
    for name, case in CASES.items():
        group = dist.new_group(range(case.size), timeout=case.timeout)
        if rank < case.size:
            torch.manual_seed(0)
            outcomes[name] = _outcome(case, Part(group, rank, case.size))
            Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))
        dist.barrier()
    dist.destroy_process_group()


def _outcome(case: Case, part: Part) -> str:
    """Run a case in one process and return its error, or nothing."""
    try:
        case.run(part)
    except Exception:
        return traceback.format_exc()
    return ""
