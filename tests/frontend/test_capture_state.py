"""State that outlives a call: read by name, restored after capture, written back by the tape."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snncc.errors import CaptureError
from snncc.frontend.capture import capture
from snncc.frontend.state.sources import holds
from snncc.ir.tape import SourceKind, Tape
from tests.frontend.recordings import Net, attribute_signature, check, names, randn

SMALL, LARGE = (randn(2, 5),), (randn(7, 5),)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)
        self.v: Tensor | None = None
        self.register_buffer("trace", torch.zeros(5))
        self.register_buffer("u", None)

    def forward(self, x: Tensor) -> Tensor:
        self.v = self.fc(x) if self.v is None else self.v * 0.5 + self.fc(x)
        self.trace.mul_(0.9).add_(self.v.detach().mean(0))
        self.u = self.v * 2
        return self.v


class Plain:
    """A stateful object that is no module."""

    def __init__(self) -> None:
        self.w = torch.ones(5).requires_grad_()
        self.v: Any = 0.0
        self.sub = SimpleNamespace(a=torch.zeros(5))
        self.history: list[Tensor] = []

    def step(self, x: Tensor) -> Tensor:
        self.v = self.v * 0.9 + x * self.w
        self.sub.a = self.sub.a + self.v.detach().sum(0)
        self.history.append(self.v)
        return self.v + self.sub.a


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = Plain()
        self.cells = [Cell(), Cell()]

    def forward(self, x: Tensor) -> Tensor:
        for cell in self.cells:
            x = cell(x)
        return self.plain.step(x)


def containers(self: Any, x: Tensor) -> Any:
    self.batch = x.shape[0]
    self.seen.add("x")
    self.calls += 1
    for name in ("a", "b"):
        self.memory[name] = self.memory.get(name, 0.0) * 0.5 + x
        x = self.memory[name]
    self.pair = (self.pair[0] + 1, x)
    return x, self.batch, x.shape[1] * 2, ["text", None, 1.5]


NET = Cell()
WEIGHT = torch.ones(5, 5).requires_grad_()
MEMORY = torch.zeros(5)


def helper(x: Tensor) -> Tensor:
    return x @ WEIGHT


def rebinds_a_global(x: Tensor) -> Tensor:
    global MEMORY
    MEMORY = MEMORY * 0.5 + helper(x).mean(0)
    return MEMORY


def closure() -> Any:
    cell, scale, calls = Cell(), nn.Parameter(torch.tensor(2.0)), 0

    def forward(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return cell(x) * scale

    return forward


def with_module(net: nn.Module, x: Tensor) -> Tensor:
    return net(x) * 2


@dataclass
class Box:
    v: Tensor


def with_object(x: Tensor, box: Box) -> Tensor:
    box.v = box.v * 0.5 + x
    return box.v


def written(tape: Tape) -> list[tuple[str, bool]]:
    return [(w.source.name, w.in_place) for w in tape.writes]


def test_attributes_and_buffers_of_a_module() -> None:
    """First values, rebinding and in-place changes are writes; the model is as it was."""
    tape = check(Cell(), *SMALL, again=LARGE)

    assert written(tape) == [("trace", True), ("u", False), ("v", False)]
    assert [w.source.kind for w in tape.writes] == [
        SourceKind.BUFFER,
        SourceKind.BUFFER,
        SourceKind.ATTRIBUTE,
    ]


def test_state_of_an_earlier_call_is_a_source() -> None:
    """A tensor that an earlier call left in an attribute is read by name."""
    cell = Cell()
    cell.v = torch.ones(2, 5)
    tape = check(cell, *SMALL)

    assert (SourceKind.ATTRIBUTE, "v") in [(s.kind, s.name) for s in tape.sources]


def test_plain_objects_and_lists_of_modules() -> None:
    """State is found in objects that are no modules, and in modules that are not registered."""
    tape = check(Nested(), *SMALL, again=LARGE)

    assert ("plain.history[0]", False) in written(tape)
    assert ("cells[1].trace", True) in written(tape)


def test_python_state_is_bound_again() -> None:
    """Counters, sets, dicts and tuples end up as after an eager call; integers are returned."""
    tape = check(
        Net(containers, memory={}, seen=set(), calls=0, batch=0, pair=(0, None)),
        *SMALL,
        again=LARGE,
    )

    assert {b.name: b.in_place for b in tape.bindings} == {
        "memory": True,
        "seen": True,
        "calls": False,
        "batch": False,
        "pair": False,
    }
    assert ("memory['a']", False) in written(tape)


def test_functions_that_read_modules_and_variables() -> None:
    """A function's closure, globals and bound object are looked through."""
    assert written(check(lambda x: NET(x) * 2, *SMALL, again=LARGE))[0][1]
    assert len(written(check(rebinds_a_global, *SMALL, again=LARGE))) == 1
    assert len(check(closure(), *SMALL, again=LARGE).bindings) == 3
    assert len(written(check(Plain().step, *SMALL))) == 3
    assert len(written(check(functools.partial(with_module, Cell()), *SMALL, again=LARGE))) == 3


def test_modules_and_objects_among_the_arguments() -> None:
    """What an argument holds is read from that call's argument."""
    cell = Cell()
    tape = check(with_module, cell, *SMALL, again=(cell, *LARGE))
    check(with_object, *SMALL, Box(torch.ones(2, 5)))

    assert any(s.name.endswith("fc.weight") for s in tape.sources)


def test_number_read_off_a_tensor_may_be_kept() -> None:
    """A rate that is kept for logging is computed anew by each replay."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.rate, self.count = x.mean().item(), (x > 0).sum().item()
        return x * 2

    tape = check(Net(forward, rate=0.0, count=0), *SMALL, again=LARGE)

    assert all(b.leaves[0].as_number for b in tape.bindings)


def test_state_that_is_reset_within_the_call_is_no_write() -> None:
    """An attribute that is as before afterwards is not part of the tape."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.v = 0.0
        for row in x:
            self.v = self.v * 0.5 + row
        result, self.v = self.v, 0.0
        return result

    tape = check(Net(forward, v=0.0), *SMALL)

    assert tape.writes == ()
    assert tape.bindings == ()


def test_shared_tensor_has_one_source() -> None:
    """A parameter with two names is one placeholder."""
    linear = nn.Linear(5, 5)
    model = Net(lambda self, x: self.a(x) + self.b(x) @ self.w)
    model.a, model.b, model.w = linear, linear, linear.weight
    tape = check(model, *SMALL)

    assert sorted(s.name for s in tape.sources) == ["a.bias", "w", "x"]


def test_constant_from_outside_is_held_by_reference() -> None:
    """A tensor without a name is a source that sees later changes of its value."""
    hidden = iter([torch.ones(5)])
    model = Net(lambda self, x: x * self.make())
    value = next(hidden)
    model.make = (lambda v: lambda: v)(value)
    tape = capture(model, SMALL, {})

    assert [s.tensor is value for s in tape.sources] == [False, True]


def test_python_data_become_constants_once() -> None:
    """Equal tensors of Python data are one source, uniform ones none."""

    def model(x: Tensor) -> Tensor:
        for _ in range(3):
            x = x * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) + torch.tensor(0.5)
        return x

    tape = check(model, *SMALL)

    assert sorted(s.name for s in tape.sources) == ["data0", "x"]
    assert names(tape).count("full") == 3


def test_number_in_a_buffer_may_steer() -> None:
    """A branch on a single number that the model holds is guarded."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return x * 2 if self.kind == 0 else x

    model = Net(forward)
    model.register_buffer("kind", torch.tensor(0))
    tape = check(model, *SMALL)

    assert [(g.source.name, g.value) for g in tape.guards] == [("kind", 0)]
    assert holds(tape, model, SMALL, {})
    model.kind.fill_(1)
    assert not holds(tape, model, SMALL, {})


def test_signature_tells_states_apart() -> None:
    """None, numbers, and tensors by shape are told apart; values of tensors are not."""
    cell = Cell()

    def signature(v: Any) -> Any:
        cell.v = v
        return attribute_signature(cell)

    assert signature(None) != signature(0.0) != signature(1.0)
    assert signature(torch.zeros(2)) == signature(torch.ones(2))
    assert signature(torch.zeros(2)) != signature(torch.zeros(3))
    assert hash(signature([torch.zeros(2), {"a": 1}])) is not None


def test_random_generators_are_restored() -> None:
    """Capture draws no random numbers that a later call would miss."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    capture(lambda x: x + torch.rand(5), SMALL, {})

    assert torch.equal(torch.rand(3), expected)


class Registered(nn.Module):
    """Forgets the state of every module of its class before each sequence, as libraries do."""

    instances: list[Registered] = []  # noqa: RUF012 - a registry

    def __init__(self) -> None:
        super().__init__()
        self.v = torch.zeros(5)
        self.instances.append(self)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.instances:
            module.v = torch.zeros_like(module.v)
        self.v = self.v + x
        return self.v


def test_tensors_of_another_model() -> None:
    """What an earlier run left in another model may be looked at, as long as no value is read."""
    other, model = Registered(), Registered()
    other(randn(3, 5).requires_grad_())
    tape = check(model, *SMALL, again=LARGE)

    assert names(tape)
    other(randn(3, 5).requires_grad_())
    reader = Net(lambda self, x: x + Registered.instances[-2].v[0])
    with pytest.raises(CaptureError) as refusal:
        capture(reader, SMALL, {})
    assert refusal.value.code == "capture.unrecorded-tensor"
