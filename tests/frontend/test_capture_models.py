"""Whole models as people write them: the tape replays on other data, lengths of batch included."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snncc.frontend.capture import capture
from snncc.frontend.state.sources import gather
from snncc.ir.tape import SourceKind
from snncc.nn import IF, LI, LIF, AdaptiveLIF, CubaLIF
from tests.frontend.recordings import Net, check, names, node, randn
from tests.frontend.test_capture_surrogates import LearnableThreshold, NumberInContext, spike

SUMS = 1e-5  # sums of gradients in another order


class State(NamedTuple):
    v: Tensor
    i: Tensor


def time_outer(self: Any, x: Tensor) -> Tensor:
    v = torch.zeros(x.shape[1], 4)
    out = []
    for t in range(x.shape[0]):
        v = 0.9 * v + self.fc(x[t])
        s = spike(v - 1)
        v = v * (1 - s)
        out.append(s)
    return torch.stack(out)


def lazy_state(self: Any, x: Tensor) -> Any:
    v, total = None, 0.0
    for x_t in x:
        h = self.fc(x_t)
        v = h if v is None else v * torch.sigmoid(self.w) + h
        s = LearnableThreshold.apply(v, self.threshold)
        v = v - s.detach() * self.threshold
        total += s
    return total / len(x)


def layer_outer(self: Any, x: Tensor) -> Tensor:
    for fc in self.layers:
        v, out = torch.zeros_like(fc(x[0])), []
        for t in range(x.size(0)):
            v = v + (fc(x[t]) - v) / 2
            s = NumberInContext.apply(v - 1.0, 2.0)
            v = torch.where(s.bool(), torch.zeros_like(v), v)
            out.append(s)
        x = torch.stack(out)
    return x.mean(0)


def preallocated(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    steps, batch, _ = x.size()
    mem, spk = torch.zeros(steps, batch, 4), torch.zeros(steps, batch, 4)
    for t in range(steps):
        mem[t] = self.fc(x[t])
        if t > 0:
            mem[t] = 0.8 * mem[t - 1] * (1 - spk[t - 1]) + mem[t]
        spk[t] = spike(mem[t] - 0.5)
    return spk, mem


def named_tuple(self: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
    for x_t in x.unbind(0):
        i = 0.7 * state.i + x_t
        v = 0.9 * state.v + i
        s = spike(v - 1)
        state = State(v - s, i)
    return s, state


def in_place(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    v = torch.zeros(x.shape[1], 5)
    spikes = trace = torch.zeros(x.shape[1], 5)
    for t in range(x.shape[0]):
        v *= 0.5
        v += x[t]
        s = spike(v.clone() - 1)
        v.masked_fill_(s.bool(), 0.0)
        v[v < -2] = -2.0
        spikes += s.detach()
    return v, spikes, trace


def gated_without_grad(self: Any, x: Tensor) -> Tensor:
    v = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        with torch.no_grad():
            gate = (v * 0.1 + x[t]).sigmoid()
        v = v * gate + x[t]
    return v


def convolutional(self: Any, x: Tensor) -> Tensor:
    v, out = 0, []
    for t in range(x.shape[1]):
        c = self.bn(self.conv(x[:, t]))
        v = v * 0.5 + F.max_pool2d(F.avg_pool2d(c, 2), 2)
        s = spike(v - 0.2)
        v = v - s
        out.append(self.fc(self.drop(s.flatten(1))))
    return torch.stack(out, 1).mean(1)


def random_input(self: Any, x: Tensor) -> Any:
    total = 0
    for _ in range(3):
        s = (torch.rand_like(x) < x.abs()).float()
        total = total + F.dropout(x * s, 0.3) + torch.randn(x.shape[0], 5)
    return total


def peeled(self: Any, x: Tensor) -> Tensor:
    v = self.fc(x[0])
    for t in range(1, x.shape[0]):
        v = v + self.fc(x[t]) if t % 2 else v.tanh()
    return v


LINEAR = nn.Linear(5, 4)
PARTS = {
    "conv": nn.Conv2d(2, 3, 3, padding=1),
    "bn": nn.BatchNorm2d(3),
    "drop": nn.Dropout(0.5),
    "fc": nn.Linear(12, 2),
}
SEQUENCE, LARGER = (randn(3, 2, 5),), (randn(3, 7, 5),)
IMAGES, MORE_IMAGES = (randn(2, 3, 2, 8, 8),), (randn(5, 3, 2, 8, 8),)
LEARNED = {"w": nn.Parameter(torch.tensor(0.3)), "threshold": nn.Parameter(torch.tensor(0.5))}
LAYERS = nn.ModuleList([nn.Linear(5, 4), nn.Linear(4, 3)])
STATES = [(x, State(randn(n, 5), randn(n, 5))) for (x,), n in ((SEQUENCE, 2), (LARGER, 7))]

MODELS = {
    "time outer": (Net(time_outer, fc=LINEAR), SEQUENCE, LARGER),
    "lazy state": (Net(lazy_state, fc=LINEAR, **LEARNED), SEQUENCE, LARGER),
    "layer outer": (Net(layer_outer, layers=LAYERS), SEQUENCE, LARGER),
    "preallocated": (Net(preallocated, fc=LINEAR), SEQUENCE, LARGER),
    "named tuple": (Net(named_tuple), *STATES),
    "in place": (Net(in_place), SEQUENCE, LARGER),
    "no_grad": (Net(gated_without_grad), SEQUENCE, LARGER),
    "convolutional": (Net(convolutional, **PARTS).eval(), IMAGES, MORE_IMAGES),
    "training": (Net(convolutional, **PARTS), IMAGES, MORE_IMAGES),
    "random": (Net(random_input), (randn(2, 5),), (randn(7, 5),)),
    "peeled": (Net(peeled, fc=LINEAR), SEQUENCE, LARGER),
    "IF": (IF(), SEQUENCE, LARGER),
    "LI": (LI(0.5, learnable=True), SEQUENCE, LARGER),
    "LIF": (LIF(0.5, learnable=True, v_reset=None), SEQUENCE, LARGER),
    "CubaLIF": (CubaLIF(0.5, 0.8), SEQUENCE, LARGER),
    "AdaptiveLIF": (AdaptiveLIF(0.5, 0.8, adaptation=0.2), SEQUENCE, LARGER),
}


@pytest.mark.parametrize("name", MODELS)
def test_model_replays(name: str) -> None:
    """Outputs and state are the model's bit by bit, gradients up to the order of sums."""
    model, small, large = MODELS[name]

    check(model, *small, again=large, gradient_error=SUMS)


def test_running_statistics_are_updated_in_order_and_restored() -> None:
    """Training-mode batch norm is impure; its counter is a write; capture changes neither."""
    model = Net(convolutional, **PARTS)
    tape = check(model, *IMAGES, gradient_error=SUMS)

    impure = [n.target.__name__ for n in tape.graph.nodes if n.meta.get("impure")]
    assert impure == ["batch_norm", "draw"] * 3
    assert [w.source.name for w in tape.writes] == ["bn.num_batches_tracked"]
    assert int(model.bn.num_batches_tracked) == 0


def test_tensors_are_read_by_name_at_each_call() -> None:
    """A parameter that was replaced, or changed by an optimiser, is seen by the next replay."""
    model = Net(time_outer, fc=LINEAR)
    tape = capture(model, SEQUENCE, {})
    model.fc = nn.Linear(5, 4)

    found = gather(tape, model, SEQUENCE, {})

    assert [(s.kind, s.name) for s in tape.sources] == [
        (SourceKind.INPUT, "x"),
        (SourceKind.PARAMETER, "fc.weight"),
        (SourceKind.PARAMETER, "fc.bias"),
    ]
    assert found[1] is model.fc.weight


def test_what_is_only_logged_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """Logging runs once and leaves nothing in the tape."""

    def model(x: Tensor) -> Tensor:
        text = f"mean {x.mean().item():.3f} {x.sum().item() * 2} {x[0, 0]} {x[0, 0]:.2f} {x}"
        log = [x.max().item(), round(x.min().item(), 2), *x[0].tolist()]
        logging.getLogger().warning("%s %s %.2f", text, len(log), sum(log) / 2)
        return x * 2

    tape = capture(model, (randn(2, 5),), {})

    assert names(tape) == ["mul"]
    assert "mean " in caplog.text


def test_static_input_is_one_placeholder() -> None:
    """A value that is the same at each step is read once."""
    tape = check(Net(lambda self, x: sum(self.fc(x) for _ in range(3)), fc=LINEAR), randn(2, 5))

    assert [n.name for n in tape.graph.nodes if n.op == "placeholder"] == [
        "x",
        "fc_weight",
        "fc_bias",
    ]


def test_nodes_say_what_was_seen() -> None:
    """A node has the shape and dtype of its value, and the user's line."""
    n = node(check(lambda x: torch.softmax(x, -1), randn(2, 5)), "softmax")

    assert (n.meta["shape"], n.meta["dtype"], n.meta["grad"]) == ((2, 5), torch.float32, True)
    assert "torch.softmax(x, -1)" in n.meta["where"].source


def test_iterations_have_equal_paths() -> None:
    """The same statement has the same call path in each iteration, and in another recording."""

    def step(v: Tensor, x: Tensor) -> Tensor:
        return v * 0.5 + x

    def model(x: Tensor) -> Tensor:
        v = step(x[0], x[1])
        for t in range(2, x.shape[0]):
            v = step(v, x[t])
        return v

    def paths(length: int) -> list[tuple[int, ...]]:
        tape = capture(model, (randn(length, 3),), {})
        return [n.meta["path"] for n in tape.graph.nodes if n.target is torch.mul]

    short, long = paths(4), paths(6)

    assert [len(set(p)) for p in (short, long)] == [2, 2]
    assert len(short[0]) == 2
    assert short[-1] == long[-1]


def test_parameters_of_other_dtypes_and_devices() -> None:
    """Double precision is recorded as it is."""
    model = Net(time_outer, fc=LINEAR).double()
    model.run = lambda self, x: time_outer(self, x.double())

    check(model, *SEQUENCE, again=LARGER)
