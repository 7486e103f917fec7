"""Globals, attributes of classes and objects around a model: a recording holds while they do."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.compilation import specializations

decay = 0.5
thresholds = [1.0, 2.0]
settings = {"gain": 1.0, "layers": {"first": 2.0}}
options = argparse.Namespace(bias=0.25, unused=0)
calls = 0
log: list[int] = []


class Config:
    scale = 1.0


def helper(v: Tensor) -> Tensor:
    return v * 0.5


def threshold() -> float:
    return thresholds[0]


class Surrogate(torch.autograd.Function):
    slope = 2.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1.0 + Surrogate.slope * x.abs()) * decay


class Model(nn.Module):
    tau = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.options = argparse.Namespace(offset=0.0)

    @property
    def leak(self) -> float:
        return 1.0 / self.tau

    @staticmethod
    def factor() -> float:
        return settings["layers"]["first"]

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        total = torch.zeros_like(x[0])
        for x_t in x:
            v = v * decay * self.leak + self.w * x_t * Config.scale + options.bias
            s = Surrogate.apply(v - threshold() + self.options.offset)
            v = helper(v) - s * settings["gain"] * self.factor()
            total = total + s + v
        return total


def changes() -> dict[str, Any]:
    module = __import__(__name__, fromlist=["decay"])
    return {
        "global": (module, "decay", 0.75),
        "class of a Function": (Surrogate, "slope", 5.0),
        "class of the model": (Model, "tau", 4.0),
        "class": (Config, "scale", 2.0),
        "object": (options, "bias", -0.5),
        "list": (thresholds, 0, 0.5),
        "dict": (settings, "gain", 0.5),
        "dict in a dict": (settings["layers"], "first", 1.0),
        "function": (module, "helper", lambda v: v * 0.25),
        "function of a function": (module, "threshold", lambda: 0.25),
        "method": (Model, "factor", staticmethod(lambda: 3.0)),
    }


def results(model: Any, x: Tensor) -> list[Tensor]:
    y = model(x)
    return [y, *torch.autograd.grad(y.sum(), [model.w])]


@pytest.mark.parametrize("name", changes())
def test_changes_are_seen(name: str) -> None:
    """What is changed around the model changes the compiled model too, back and forth."""
    torch.manual_seed(0)
    owner, key, value = changes()[name]
    model = Model()
    fast = snncc.compile(model)
    x = torch.randn(6, 4, 3)
    is_item = isinstance(owner, list | dict)
    before = owner[key] if is_item else vars(owner)[key]
    seen = []
    try:
        for each in (before, value, before, value):
            owner.__setitem__(key, each) if is_item else setattr(owner, key, each)
            for a, b in zip(results(model, x), results(fast, x), strict=True):
                torch.testing.assert_close(b, a)
            seen.append(results(model, x))
    finally:
        owner.__setitem__(key, before) if is_item else setattr(owner, key, before)
    assert not all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    assert len(fast.plans) == 2


def test_options_of_the_model_are_seen() -> None:
    """Parsed arguments that the model holds are part of its state."""
    model = Model()
    fast = snncc.compile(model)
    x = torch.randn(6, 4, 3)
    for offset in (0.0, 0.5):
        model.options.offset = offset

        torch.testing.assert_close(fast(x), model(x))
    assert len(fast.plans) == 2


def test_what_does_not_matter() -> None:
    """Values that nobody reads are not looked at."""
    model = Model()
    fast = snncc.compile(model)
    x = torch.randn(6, 4, 3)
    fast(x)
    with mock.patch.object(specializations, "record", side_effect=AssertionError("recorded")):
        options.unused += 1
        log.append(1)
        Config.other = 1  # type: ignore[attr-defined]
        fast(x)


class CountsGlobally(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        global calls
        calls += 1
        v = torch.zeros_like(x[0])
        for x_t in x:
            v = 0.5 * v + x_t
        return v


class CountsOnClass(CountsGlobally):
    count = 0

    def forward(self, x: Tensor) -> Tensor:
        CountsOnClass.count += 1
        v = torch.zeros_like(x[0])
        for x_t in x:
            v = 0.5 * v + x_t
        return v


class Logs(CountsGlobally):
    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for x_t in x:
            v = 0.5 * v + x_t
        log.append(x.dim())
        return v


@pytest.mark.parametrize(
    ("model", "says"),
    [(CountsGlobally(), "test_reads.calls"), (CountsOnClass(), "CountsOnClass.count"),
     (Logs(), "test_reads.log")],
)  # fmt: skip
def test_what_the_model_must_not_change(model: nn.Module, says: str) -> None:
    """A model that changes what is no part of it is refused: the change would happen once."""
    with pytest.raises(snncc.CaptureError, match=says) as refusal:
        snncc.compile(model)(torch.randn(5, 2))

    assert refusal.value.code == "capture.global-write"


def test_globals_of_a_function_are_its_state() -> None:
    """A function may count in its own globals: they are written back."""

    def model(x: Tensor) -> Tensor:
        state.count += 1
        v = torch.zeros_like(x[0])
        for x_t in x:
            v = 0.5 * v + x_t
        return v

    state = SimpleNamespace(count=0)
    fast = snncc.compile(model)
    for expected in (1, 2, 3):
        fast(torch.randn(5, 2))

        assert state.count == expected
