"""What a call returns and leaves behind: objects, memory and identity, as in the serial code."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.compilation import specializations
from tests.compatibility.neurons import lif, spike


class Keeps(nn.Module):
    """Keeps its potential and its last spikes, and returns all spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = None
        self.s: Any = None

    def forward(self, x: Tensor) -> Any:
        v = torch.zeros_like(x[0]) if self.v is None else self.v
        out = []
        for x_t in x:
            v, s = lif(v, x_t)
            out.append(s)
        self.v, self.s = v, s
        return torch.stack(out)


class Echo(nn.Module):
    """Returns its input among the results, once collected and once as it is."""

    def forward(self, x: Tensor) -> Any:
        v, seen = torch.zeros_like(x[0]), []
        for x_t in x:
            v, _ = lif(v, x_t)
            seen.append(x_t)
        return v, torch.stack(seen), x, x[-1]


class BatchFirst(nn.Module):
    """Stacks along the second axis."""

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            v, s = lif(v, x[:, t])
            out.append(s)
        return torch.stack(out, 1)


class Aliased(nn.Module):
    """Adds in place to one of two attributes, which may be one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = torch.zeros(3)

    def forward(self, x: Tensor) -> Any:
        for x_t in x:
            self.a = self.a + 0.5 * self.b + x_t
        return self.a


@dataclass
class State:
    v: Any
    steps: int = 0


class Swaps(nn.Module):
    """Swaps two objects that hold its states, and returns one."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.a, self.b = State(torch.zeros(3)), State(torch.ones(3))

    def forward(self, x: Tensor) -> Any:
        for x_t in x:
            self.a.v, _ = lif(self.a.v, x_t)
        self.a, self.b = self.b, self.a
        return self.b


def with_state(x: Tensor, state: State) -> Any:
    for x_t in x:
        state.v, _ = lif(state.v, x_t)
    return state


def pair(model: nn.Module) -> tuple[Any, Any]:
    return model, snncc.compile(copy.deepcopy(model))


def dyadic(*shape: int) -> Tensor:
    return torch.randint(-8, 17, shape) / 8


def test_results_and_state_share_no_memory() -> None:
    """Changing the results in place leaves the state alone; the state can be detached in place."""
    model, fast = pair(Keeps())
    for _ in range(3):
        x = dyadic(5, 2, 3).requires_grad_()
        for net in (model, fast):
            out = net(x)
            with torch.no_grad():
                out.fill_(7.0)
            net.v.detach_()
            net.s.detach_()

        assert torch.equal(model.v, fast.v)
        assert torch.equal(model.s, fast.s)


def test_state_keeps_no_sequence_alive() -> None:
    """What is kept of the last step is as large as one step."""
    _, fast = pair(Keeps())
    fast(torch.randn(100, 2, 3))

    assert fast.v.untyped_storage().nbytes() == 24
    assert fast.s.untyped_storage().nbytes() == 24


def test_what_is_collected_is_not_the_input() -> None:
    """A stack of the inputs is a tensor of its own; the input itself is the input."""
    model, fast = pair(Echo())
    x = dyadic(5, 2, 3)
    expected, actual = model(x.clone()), fast(x)
    x.zero_()

    assert torch.equal(expected[0], actual[0])
    assert torch.equal(expected[1], actual[1])
    assert actual[2] is x
    assert actual[3].abs().sum() == 0


def test_results_are_as_contiguous_as_those_of_the_model() -> None:
    """A result that the user's code can view as another shape can be viewed so here."""
    model, fast = pair(BatchFirst())
    x = dyadic(4, 6, 3)

    assert torch.equal(model(x).view(24, 3), fast(x).view(24, 3))


def test_attributes_that_were_one_tensor() -> None:
    """After a reset both attributes are one tensor; later they are two."""
    model, fast = pair(Aliased())
    for reset in (False, False, True, False):
        for net in (model, fast):
            if reset:
                net.a = net.b = torch.ones(3)
        x = dyadic(4, 3)

        assert torch.equal(model(x), fast(x))
    one = torch.zeros(3)
    model.a = model.b = one
    fast.a, fast.b = torch.zeros(3), torch.zeros(3)
    assert torch.equal(model(x), fast(x))


def test_weights_that_were_tied() -> None:
    """Weights that are one parameter at first and two later."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 3), nn.Linear(3, 3)
            self.fc2.weight = self.fc1.weight

        def forward(self, x: Tensor) -> Tensor:
            v = torch.zeros_like(x[0])
            for x_t in x:
                v, _ = lif(v, self.fc1(x_t) + self.fc2(x_t))
            return v

    model, fast = pair(Tied())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(fast(x), model(x))
    for net in (model, fast):
        net.fc2.weight = nn.Parameter(torch.ones(3, 3))

    torch.testing.assert_close(fast(x), model(x))


def test_objects_are_found_by_name() -> None:
    """Objects that are swapped, replaced from outside and returned are those of the model."""
    model, fast = pair(Swaps())
    for reset in (False, False, True, False):
        for net in (model, fast):
            if reset:
                net.reset()
        x = dyadic(4, 3)
        expected, actual = model(x), fast(x)

        assert actual is fast.b
        assert torch.equal(expected.v, actual.v)
        assert torch.equal(model.a.v, fast.a.v)


def test_objects_among_the_arguments() -> None:
    """The object that is passed is changed and returned; another one is no new program."""
    fast = snncc.compile(with_state)
    for T in (5, 7, 6):
        x, v = dyadic(T, 2, 3), torch.rand(2, 3)
        mine, theirs = State(v), State(v)

        assert fast(x, mine) is mine
        assert with_state(x, theirs) is theirs
        assert torch.equal(mine.v, theirs.v)
    with mock.patch.object(specializations, "record", side_effect=AssertionError("recorded")):
        fast(x, State(v))


def test_functions_that_are_replaced() -> None:
    """A function in an attribute is part of what was recorded, even where its memory is reused."""

    class Acts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act: Any = None

        def forward(self, x: Tensor) -> Tensor:
            v = torch.zeros_like(x[0])
            for x_t in x:
                v = 0.5 * v + self.act(x_t)
            return v

    model, fast = pair(Acts())
    x = dyadic(5, 3)
    for factor in (1.0, 2.0, 4.0, 8.0):
        model.act = fast.act = lambda y, k=factor: k * y

        assert torch.equal(model(x), fast(x))


@pytest.mark.parametrize("change", ["scale", "row", "smaller", "none", "number"])
def test_state_that_is_changed_between_calls(change: str) -> None:
    """State is read as it is at the call, whatever the user's script has done to it."""
    model, fast = pair(Keeps())
    for net in (model, fast):
        net(dyadic(4, 2, 3) * 0 + 0.5)
        with torch.no_grad():
            if change == "scale":
                net.v.mul_(0.5)
            elif change == "row":
                net.v[0] = 0.25
            elif change == "smaller":
                net.v = net.v[:1]
            else:
                net.v = None if change == "none" else 0.75
    x = dyadic(6, 2, 3)

    assert torch.equal(model(x), fast(x))
    assert torch.equal(model.v, fast.v)


def test_gradients_flow_into_the_call_before() -> None:
    """Without a detach, backpropagation goes through the carried state into earlier calls."""
    results = []
    model = nn.Sequential(nn.Linear(3, 3), Keeps()).double()
    for net in (model, snncc.compile(copy.deepcopy(model))):
        torch.manual_seed(0)
        x = [torch.randn(4, 2, 3, dtype=torch.float64).requires_grad_() for _ in range(3)]
        loss = sum((net(part) * (n + 1)).sum() for n, part in enumerate(x))
        loss.backward()
        results.append([*(part.grad for part in x), *(p.grad for p in net.parameters())])

    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)


def test_attributes_that_are_deleted() -> None:
    """An attribute that the model deletes is gone."""

    class Deletes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v = self.v if hasattr(self, "v") else torch.zeros_like(x[0])
            for x_t in x:
                v, _ = lif(v, x_t)
            if hasattr(self, "v"):
                del self.v
            else:
                self.v = v
            return v

    model, fast = pair(Deletes())
    for _ in range(4):
        x = dyadic(5, 2, 3)

        assert torch.equal(model(x), fast(x))
        assert hasattr(model, "v") == hasattr(fast, "v")


def test_buffer_that_is_written_in_place() -> None:
    """A buffer that the model overwrites and returns is that buffer, also in the backward pass."""

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))
            self.register_buffer("v", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Any:
            out = []
            v = self.v.clone()
            for x_t in x:
                v = 0.5 * v * self.w + x_t
                out.append(spike(v - 1.0))
            self.v.copy_(v.detach())
            return torch.stack(out), self.v

    model, fast = pair(Writes())
    for _ in range(2):
        x = dyadic(4, 2, 3)
        expected, actual = model(x), fast(x)
        assert torch.equal(expected[0], actual[0])
        assert actual[1] is fast.v
        grads = [torch.autograd.grad(y[0].sum(), net.w) for net, y in
                 ((model, expected), (fast, actual))]  # fmt: skip
        torch.testing.assert_close(grads[1], grads[0])
        assert torch.equal(model.v, fast.v)
