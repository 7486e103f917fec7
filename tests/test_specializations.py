"""Which calls are served by a program that exists, and which are recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import snncc
from snncc.compilation import specializations
from tests.compatibility.neurons import lif
from tests.models import Stateful


def last_step(x: Tensor) -> Tensor:
    """Does not reset after the last step."""
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        v, s = lif(v, x[t])
        out.append(s if t == x.shape[0] - 1 else v)
    return torch.stack(out)


def counting(x: Tensor) -> Tensor:
    """Counts with a `while`."""
    v, t = torch.zeros_like(x[0]), 0
    while t < x.shape[0]:
        v, _ = lif(v, x[t])
        t += 1
    return v


def late(x: Tensor) -> Tensor:
    """Adds up the last three steps."""
    v, total = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        v, s = lif(v, x[t])
        if t >= x.shape[0] - 3:
            total = total + s
    return total


def bounded(x: Tensor) -> Tensor:
    """Makes ten steps at most."""
    v = torch.zeros_like(x[0])
    for t in range(min(x.shape[0], 10)):
        v, _ = lif(v, x[t])
    return v


def ten_steps(x: Tensor) -> Tensor:
    """Makes ten steps, of which those behind the end of the input have none."""
    v = torch.zeros_like(x[0])
    for t in range(10):
        v = 0.5 * v + (x[t] if t < x.shape[0] else 1.0)
    return v


def lonely(x: Tensor) -> Tensor:
    """Treats a batch of one in its own way."""
    v = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        v, _ = lif(v, x[t])
    return v * 2 if x.shape[1] == 1 else v


def half(x: Tensor) -> Tensor:
    """Runs over a part of the input."""
    v = torch.zeros_like(x[0])
    for t in range(3 + x.shape[0] // 5):
        v, _ = lif(v, x[t])
    return v


def half_by_length(x: Tensor) -> Tensor:
    """Runs over the first half, whose length is a plain number."""
    v = torch.zeros_like(x[0])
    for t in range(len(x) // 2):
        v, _ = lif(v, x[t])
    return v


def middle(x: Tensor) -> Tensor:
    """Reads the input in the middle, and the potential there."""
    v, out = torch.zeros_like(x[0]), []
    for x_t in x:
        v, _ = lif(v, x_t)
        out.append(v)
    return out[len(out) // 2] + x[len(x) // 2]


def rounded_up(x: Tensor) -> Tensor:
    """Computes with a quotient of the length."""
    v = torch.zeros_like(x[0])
    for t in range(3 + math.ceil(x.shape[0] / 8) + (x.size(0) >> 4)):
        v, _ = lif(v, x[t])
    return v


def parity(x: Tensor) -> Tensor:
    """Treats even lengths in their own way."""
    v = torch.zeros_like(x[0])
    for x_t in x:
        v, _ = lif(v, x_t)
    return v * 2 if x.shape[0] % 2 == 0 else v


def chosen(x: Tensor) -> Tensor:
    """Looks a factor up by the batch size."""
    v = torch.zeros_like(x[0])
    for x_t in x:
        v, _ = lif(v, x_t)
    return v * {3: 2.0}.get(x.shape[1], 1.0)


def ratio(x: Tensor) -> Any:
    """Returns a number that Python computed from the length."""
    v = torch.zeros_like(x[0])
    for x_t in x:
        v, _ = lif(v, x_t)
    return v, x.shape[0] / 2, [len(x), str(x.shape[0])]


def call(fast: Any, *args: Any) -> tuple[Any, bool]:
    """Return the result of a call, and whether it was recorded."""
    with mock.patch(
        "snncc.compilation.specializations.record", wraps=specializations.record
    ) as record:
        result = fast(*args)
    return result, bool(record.called)


@pytest.mark.parametrize("model", [last_step, counting], ids=lambda m: m.__name__)
def test_counters_follow_the_length(model: Callable[[Tensor], Tensor]) -> None:
    """A counter that is compared with the length leaves the length free."""
    fast = snncc.compile(model)
    for T, B, is_new in (
        (8, 3, True),
        (12, 6, True),
        (10, 4, False),
        (11, 5, False),
        (15, 4, False),
    ):
        x = torch.randn(T, B, 5)
        result, was_recorded = call(fast, x)

        assert was_recorded == is_new
        assert torch.equal(model(x), result)


STEERED = [
    late, bounded, ten_steps, lonely, half, half_by_length, middle, rounded_up, parity, chosen,
    ratio,
]  # fmt: skip


@pytest.mark.parametrize("model", STEERED, ids=lambda m: m.__name__)
def test_sizes_that_steer_are_recorded(model: Callable[[Tensor], Tensor]) -> None:
    """What Python computes from sizes is right at each of them."""
    fast = snncc.compile(model)
    for T, B in ((10, 3), (10, 2), (8, 2), (12, 2), (11, 1), (10, 1), (9, 4), (22, 4), (23, 3),
                 (40, 2), (30, 3), (24, 2), (8, 6)):  # fmt: skip
        x = torch.randn(T, B, 5)
        expected, actual = (pytree.tree_leaves(net(x)) for net in (model, fast))

        for a, b in zip(expected, actual, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_sizes_of_state_are_free() -> None:
    """A carried state of another batch is served by the program that exists."""
    model, twin = Stateful(), Stateful()
    fast = snncc.compile(twin)
    for B, is_new in ((2, True), (5, True), (3, False)):
        model.reset()
        fast.reset()
        for _ in range(2):
            x = torch.randn(5, B, 3)
            result, was_recorded = call(fast, x)

            assert was_recorded == is_new
            assert torch.equal(model(x), result)
    assert len(fast.plans) == 2  # without a state, and with one


def test_sizes_that_were_equal_have_to_be() -> None:
    """A state whose batch is not that of the input is not what was recorded."""

    def model(x: Tensor, v: Tensor) -> Tensor:
        v = v if v.shape == x.shape[1:] else torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            v, _ = lif(v, x[t])
        return v

    fast = snncc.compile(model)
    for T, B, held in ((7, 3, 3), (9, 2, 2), (8, 4, 4), (8, 4, 1), (8, 4, 4), (7, 5, 1)):
        x, v = torch.randn(T, B, 5), torch.rand(held, 5)

        assert torch.equal(model(x, v), fast(x, v))


def test_sizes_that_differed_may_become_equal() -> None:
    """A state of another shape was forgotten, whatever the shapes; one of the same shape is not."""

    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = torch.zeros(0)

        def forward(self, x: Tensor) -> Tensor:
            if self.v.shape != x[0].shape:
                self.v = torch.zeros_like(x[0])
            for t in range(x.shape[0]):
                self.v, _ = lif(self.v, x[t])
            return self.v

    model, twin = Forgetful(), Forgetful()
    fast = snncc.compile(model)
    with torch.no_grad():
        for B in (3, 2, 4, 4, 2, 2):
            x = torch.rand(5, B, 4)

            assert torch.equal(fast(x), twin(x))
            assert torch.equal(model.v, twin.v)


def test_attributes_and_methods_are_those_of_the_model() -> None:
    """State is read, set and reset through the compiled model as through the model."""
    model = Stateful()
    fast = snncc.compile(model)
    x = torch.randn(5, 2, 3)
    fast(x)

    assert fast.v is model.v
    fast.v = torch.zeros(2, 3)
    assert model.v is fast.v
    fast(x)
    for module in fast.modules():  # what functional.reset_net does
        if hasattr(module, "reset"):
            module.reset()
    assert model.v is None
    del fast.v
    assert not hasattr(model, "v")
    with pytest.raises(AttributeError, match="nothing"):
        fast.nothing  # noqa: B018


def test_parameters_that_are_replaced_are_followed() -> None:
    """A submodule or parameter that is set on either is set on both."""
    model = nn.Sequential(Stateful(), Stateful())
    fast = snncc.compile(model)
    x = torch.randn(5, 2, 3)
    fast(x)
    fast.add_module("0", nn.Identity())
    fast.register_buffer("scale", torch.ones(3))

    assert isinstance(model[0], nn.Identity)
    assert "scale" in model.state_dict()
    fast.get_submodule("1").reset()
    expected = fast(x)
    model[1].reset()
    assert torch.equal(model(x), expected)
