"""Steps of streams that train run as recorded calls, and autograd sees nothing of that."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import snncc
from snncc.errors import LaunchError, UnsupportedError
from snncc.nn import ATan
from snncc.runtime.streams import training_steps

STEPS, BATCH = 12, 4
KINDS = ("dropout", "delay", "norm", "convolution", "recurrent", "product")


class Net(nn.Module):
    """Two layers of neurons, the spikes in between treated in some way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.spike = kind, ATan()
        self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.decay = nn.Parameter(torch.rand(8))
        self.conv, self.dropout, self.norm = nn.Conv1d(2, 2, 3, padding=1), nn.Dropout(0.3), None
        self.back = nn.Linear(8, 8, bias=False)
        if kind == "norm":
            self.norm = nn.BatchNorm1d(8)
        self.steps_axis = 1 if kind == "batch first" else 0

    def between(self, s: Tensor, before: Tensor) -> Tensor:
        match self.kind:
            case "dropout":
                return self.dropout(s)
            case "delay":
                return before
            case "norm":
                return self.norm(s)
            case "twice":
                return s + self.second(s)
        return s

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.movedim(self.steps_axis, 0)
        v, w, s = (torch.zeros(x.shape[1], 8) for _ in range(3))
        total, out = torch.zeros(x.shape[1], 3), []
        for x_t in x:
            if self.kind == "convolution":
                x_t = torch.relu(self.conv(x_t.reshape(-1, 2, 3))).flatten(1)
            current = self.first(x_t)
            if self.kind == "recurrent":
                current = current + self.back(s)
            v = torch.sigmoid(self.decay) * v + current
            before, s = s, self.spike(v - 0.25)
            v = v * (1.0 - s)
            w = 0.75 * w + self.second(self.between(s, before))
            z = self.spike(w - 0.25)
            w = w - z
            y = self.out(z)
            if self.kind == "product":
                y = y * torch.sigmoid(w).prod(1, keepdim=True)
            total = total + y
            out.append(y)
        return torch.stack(out, self.steps_axis), total


def opened(kind: str = "plain") -> tuple[Net, snncc.Stream, Tensor]:
    torch.manual_seed(0)
    model, x = Net(kind), torch.rand(STEPS, BATCH, 6)
    return model, snncc.compile(model, mode="online").stream(x), x


def watched(is_watched: bool):
    """Return a context; where hooks look at what autograd keeps, the program itself runs."""
    return saved_tensors_hooks(lambda x: x, lambda x: x) if is_watched else nullcontext()


def trained(model: Net, step: snncc.Stream, x: Tensor, *, window: int = 1) -> list[Tensor | None]:
    """Train step by step and return everything that a user can see of it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    seen: list[Tensor | None] = []
    for t in range(0, len(x), window):
        results = [step(x_t) for x_t in x[t : t + window]]
        optimizer.zero_grad()
        sum(y.square().sum() for y, _ in results).backward()
        seen += [y.detach() for pair in results for y in pair]
        seen += [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return [*seen, *step.state.values(), *model.state_dict().values()]


@pytest.mark.parametrize(
    ("kind", "window"),
    [
        *[(kind, 1) for kind in KINDS],
        ("twice", 1),  # of several steps, the two gradients of a weight are added up in pairs
        *[("plain", window) for window in (1, 3, STEPS)],
        ("norm", STEPS),
    ],
)
def test_recorded_steps_are_the_program_bit_for_bit(kind, window):
    """Results, gradients, states, statistics and random numbers are those of the program."""
    found = []
    for is_watched in (True, False):
        model, step, x = opened(kind)
        with watched(is_watched):
            found.append(trained(model, step, x, window=window))

    for expected, actual in zip(*found, strict=True):
        assert (expected is None) == (actual is None)
        assert expected is None or torch.equal(expected, actual)


def test_what_was_returned_stays_as_it_is():
    """Results and gradients that are kept do not change when later steps are taken."""
    model, step, x = opened()
    kept, copies = [], []
    for x_t in x:
        y, total = step(x_t)
        gradients = torch.autograd.grad(y.sum(), [model.out.weight, model.out.bias])
        kept += [y, total, *gradients]
        copies += [value.detach().clone() for value in (y, total, *gradients)]

    assert all(map(torch.equal, kept, copies))


def test_a_backward_pass_may_be_repeated_where_the_graph_is_kept():
    """Steps taken in between do not disturb it; without the graph it is torch's own error."""
    model, step, x = opened()
    step(x[0])
    y, _ = step(x[1])
    (first,) = torch.autograd.grad(y.sum(), model.first.weight, retain_graph=True)
    for x_t in x[2:]:
        step(x_t)[0].sum().backward()
    (again,) = torch.autograd.grad(y.sum(), model.first.weight)
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), model.first.weight)


def test_parameters_that_changed_before_backward_are_refused():
    """As by torch: the gradient would be that of other weights."""
    model, step, x = opened()
    for x_t in x[:3]:
        y, _ = step(x_t)
    with torch.no_grad():
        model.first.bias.add_(1.0)  # no gradient reads it
    y.sum().backward(retain_graph=True)
    with torch.no_grad():
        model.out.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivatives_are_refused():
    """A gradient of a recorded step is a constant that says so."""
    model, step, x = opened()
    for x_t in x[:3]:
        y, _ = step(x_t)
    (gradient,) = torch.autograd.grad(y.sum(), model.first.weight, create_graph=True)
    with pytest.raises(UnsupportedError) as error:
        gradient.square().sum().backward()
    assert error.value.code == "unsupported.double-backward"


@pytest.mark.parametrize("change", ["frozen", "moved", "input", "batch", "chunk", "state"])
def test_what_changes_between_steps_is_seen(change):
    """A step never runs on what was recorded for another one."""
    found = []
    for is_watched in (True, False):
        model, step, x = opened()
        calls: list[Tensor] = []
        model.second.weight.register_hook(calls.append)
        twin = copy.deepcopy(model.state_dict())
        with watched(is_watched):
            for x_t in x[:4]:
                step(x_t)[0].sum().backward()
            if change == "frozen":
                model.first.weight.requires_grad_(False)
            elif change == "moved":
                model.first.weight.data = twin["first.weight"].flip(1)
            elif change == "input":
                x.requires_grad_()
            elif change == "batch":
                step.reset()
                x = x[:, :2]
            elif change == "chunk":
                y, _ = step.chunk(x[4:6])
                step(x[6])[0].sum().backward()
                step(x[7])[0].sum().backward()
                y.sum().backward()
            else:
                step.load_state({name: value.flip(0) for name, value in step.state.items()})
            for x_t in x[4:]:
                step(x_t)[0].sum().backward()
        gradients = [x, *model.parameters()]
        found.append([len(calls), *(p.grad for p in gradients), *step.state.values()])

    for expected, actual in zip(*found, strict=True):
        same = torch.equal(expected, actual) if torch.is_tensor(expected) else expected == actual
        assert same


def test_inputs_may_lie_in_any_way():
    """What a step computes does not depend on how the input of the first one lay in memory."""
    found = []
    for is_watched in (True, False):
        torch.manual_seed(0)
        model, x = Net("batch first"), torch.rand(64, STEPS, 6)
        step = snncc.compile(model, mode="online").stream(x)
        layouts = [
            x[:, 0].t().contiguous().t(),
            x[:, 1].t().contiguous().t(),
            x[:1, 2].expand(64, 6),
        ]
        layouts += [x[:, 3].contiguous(), *(x[:, t] for t in range(4, STEPS))]
        with watched(is_watched):
            for x_t in layouts:
                x_t = x_t.detach().requires_grad_()
                y, _ = step(x_t)
                y.square().sum().backward()
                found.append([y.detach(), x_t.grad, model.first.weight.grad.clone()])

    for expected, actual in zip(found[:STEPS], found[STEPS:], strict=True):
        assert all(map(torch.equal, expected, actual))


class Lookup(nn.Module):
    """A neuron whose spikes say what a second one reads from a table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table, self.spike = nn.Linear(6, 8), nn.Embedding(5, 8), ATan()

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        v = w = torch.zeros(x.shape[1], 8)
        out = []
        for x_t, i in zip(x, index, strict=True):
            v = 0.5 * v + self.first(x_t)
            s = self.spike(v - 0.1)
            v = v - s
            w = 0.75 * w + s * self.table(i + s.sum(1).long().clamp(max=1))
            out.append(w)
        return torch.stack(out)


@pytest.mark.parametrize("mode", ["serial", "online"])
def test_a_step_that_fails_is_not_taken(mode):
    """An index out of range is refused in the middle of a step; the state stays as it was."""
    torch.manual_seed(0)
    model, x, index = Lookup(), torch.rand(STEPS, BATCH, 6), torch.randint(0, 4, (STEPS, BATCH))
    step = snncc.compile(model, mode=mode).stream(x, index)
    expected = [step(x_t, i).detach() for x_t, i in zip(x, index, strict=True)]
    step.reset()
    for t, (x_t, i) in enumerate(zip(x, index, strict=True)):
        if t % 3 == 2:
            with pytest.raises(LaunchError) as error:
                step(x_t, i + 9)
            assert error.value.code == "launch.sizes"
        assert torch.equal(expected[t], step(x_t, i))
    assert step.steps == STEPS


def test_steps_that_wait_are_bounded_in_bytes(monkeypatch):
    """Two steps and a half may wait: of more, the others run as the program."""
    model, step, x = opened()
    step(x[0])
    step(x[1])
    size = step._static._free[0].size
    monkeypatch.setattr(training_steps, "_MOST_BYTES", size * 5 // 2)
    made = []
    record = training_steps.RecordedStep
    monkeypatch.setattr(
        training_steps, "RecordedStep", lambda *args: made.append(record(*args)) or made[-1]
    )
    step = snncc.compile(model, mode="online").stream(x)
    sum(step(x_t)[0].sum() for x_t in x).backward()
    assert len(made) == 2
    assert size > 4 * sum(x.numel() for x in step.state.values())

    monkeypatch.setattr(training_steps, "_MOST_BYTES", size - 1)
    step = snncc.compile(model, mode="online").stream(x)
    sum(step(x_t)[0].sum() for x_t in x).backward()
    assert len(made) == 3  # tried, and too large
