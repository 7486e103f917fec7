"""Between calls every change of a model that matters is noticed, and nothing else costs a walk."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import snncc
from snncc.frontend.state import watch
from snncc.frontend.state.watch import StateWatcher
from tests.models import Feedforward, Stateful


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Inner(nn.Module):
    """A layer with all kinds of attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.scale = 1.0
        self.norm: nn.Module | None = None
        self.activation: Callable[[Tensor], Tensor] = torch.relu
        self.settings = SimpleNamespace(gain=1.0)
        self.table = {"gain": [1.0, 2.0]}
        self.seen: Any = []
        self.extras = [nn.Linear(3, 3)]
        self.biases = [self.linear.bias]
        self.register_buffer("offset", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.linear(x)) * self.scale * self.settings.gain
        y = y * self.table["gain"][0] + self.offset + self.extras[0](x)
        return y if self.norm is None else self.norm(y)


class Net(nn.Module):
    """A leaky integrator behind such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = 0.5 * v + self.inner(x[t])
            out.append(v)
        return torch.stack(out)


def buffer_to_module(inner: Inner) -> None:
    """Make a module of the last buffer, before the others: no name is new, and none moves."""
    del inner.offset
    inner.offset = nn.Linear(3, 3)
    inner._modules["linear"] = inner._modules.pop("linear")


CHANGES: dict[str, Callable[[Inner], object]] = {
    "a module for a buffer": buffer_to_module,
    "number": lambda m: setattr(m, "scale", 3.0),
    "sign of zero": lambda m: setattr(m, "scale", -0.0),
    "number in an object": lambda m: setattr(m.settings, "gain", 3.0),
    "object": lambda m: setattr(m, "settings", SimpleNamespace(gain=3.0)),
    "number in a container": lambda m: m.table["gain"].__setitem__(0, 3.0),
    "container": lambda m: setattr(m, "table", {"gain": (3.0,)}),
    "what was empty": lambda m: m.seen.append(1.0),
    "another empty container": lambda m: setattr(m, "seen", {}),
    "a tensor for a container": lambda m: setattr(m, "seen", torch.zeros(2)),
    "another parameter in a list": lambda m: m.biases.__setitem__(0, m.extras[0].bias),
    "tied parameters": lambda m: setattr(m.extras[0], "bias", m.linear.bias),
    "function": lambda m: setattr(m, "activation", torch.tanh),
    "evaluation": lambda m: m.eval(),
    "flag of a part": lambda m: m.linear.eval(),
    "frozen parameter": lambda m: m.linear.weight.requires_grad_(False),
    "parameter of other type": lambda m: m.double(),
    "no bias": lambda m: setattr(m.linear, "bias", None),
    "module": lambda m: setattr(m, "linear", nn.Linear(3, 3, bias=False)),
    "new module": lambda m: setattr(m, "norm", nn.LayerNorm(3)),
    "module in a list": lambda m: m.extras.__setitem__(0, nn.Linear(3, 3, bias=False)),
    "buffer of other shape": lambda m: setattr(m, "offset", torch.zeros(1)),
    "class": lambda m: parametrize.register_parametrization(m.linear, "weight", Doubled()),
    "hook": lambda m: m.linear.register_forward_hook(lambda module, args, y: 2 * y),
    "hook before": lambda m: m.linear.register_forward_pre_hook(lambda module, args: (-args[0],)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_noticed(change: Callable[[Inner], object]) -> None:
    """After a change of the model the state is another, and back again it is the first."""
    inner = Inner()
    watcher = StateWatcher(inner)
    before, shapes = watcher.state()
    assert watcher.state()[0] is before
    change(inner)

    assert watcher.state() != (before, shapes)


@pytest.mark.parametrize("name", ["number", "function", "module", "no bias", "hook", "class"])
def test_changed_models_compute_the_change(name: str) -> None:
    """The compiled model follows the change."""
    model = Net()
    fast = snncc.compile(model)
    x = torch.randn(6, 2, 3)
    torch.testing.assert_close(fast(x), model(x))
    CHANGES[name](model.inner)

    torch.testing.assert_close(fast(x), model(x))
    assert len(fast.plans) == 2


REPLACED: dict[str, Callable[[Inner], object]] = {
    "nothing": lambda m: None,
    "value": lambda m: m.linear.weight.data.fill_(3.0),
    "data": lambda m: setattr(m.linear.weight, "data", torch.ones(3, 3)),
    "parameter": lambda m: setattr(m.linear, "weight", nn.Parameter(torch.ones(3, 3))),
    "equal module": lambda m: m.extras.__setitem__(0, nn.Linear(3, 3)),
    "equal object": lambda m: setattr(m, "settings", SimpleNamespace(gain=1.0)),
    "equal number": lambda m: setattr(m, "scale", float("1.0")),
    "equal list": lambda m: m.table.__setitem__("gain", [1.0, 2.0]),
    "equal empty list": lambda m: setattr(m, "seen", []),
    "gradient": lambda m: m(torch.ones(3)).sum().backward(),
}


@pytest.mark.parametrize("change", REPLACED.values(), ids=REPLACED)
def test_what_does_not_matter(change: Callable[[Inner], object]) -> None:
    """New values of tensors, and equal ones of all else, are no other state; they are read."""
    model = Net()
    fast = snncc.compile(model)
    x = torch.randn(6, 2, 3)
    fast(x)
    change(model.inner)

    torch.testing.assert_close(fast(x), model(x))
    assert len(fast.plans) == 1


def test_functions_at_one_address() -> None:
    """A function that got the address of one that is gone is not taken for it."""
    model = Net()
    fast = snncc.compile(model)
    x = torch.randn(6, 2, 3)
    for factor in range(5):
        model.inner.activation = None  # type: ignore[assignment]  # the last function goes first
        model.inner.activation = lambda y, f=factor: y * f  # type: ignore[misc]

        torch.testing.assert_close(fast(x), model(x))


def test_states_that_come_back_are_known() -> None:
    """Going back and forth between two states compiles each once."""
    model = Feedforward()
    fast = snncc.compile(model)
    x = torch.randn(4, 2, 5)
    for _ in range(3):
        model.layer1.weight.requires_grad_(False)
        fast(x)
        model.layer1.weight.requires_grad_(True)
        fast(x)

    assert len(fast.plans) == 2


def test_unchanged_models_are_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second call on a model is compared, not walked, while it is trained."""
    model = Feedforward()
    fast = snncc.compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 2, 5)
    fast(x)
    monkeypatch.setattr(watch, "walk", lambda *args: pytest.fail("walked"))
    for _ in range(2):
        optimizer.zero_grad()
        fast(x).sum().backward()
        optimizer.step()


def decayed(v: Tensor) -> Tensor:
    """Return a potential after its leak."""
    return v * DECAY


def halved(v: Tensor) -> Tensor:
    """Return a potential after another leak."""
    return v / 2


DECAY = 0.75


def closed_over(gain: float) -> tuple[Callable[[Tensor], Tensor], Callable[[float], None]]:
    """Return an integrator, and what changes its gain."""

    def integrate(x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = decayed(v) + gain * x[t]
            out.append(v)
        return torch.stack(out)

    def change(value: float) -> None:
        nonlocal gain
        gain = value

    return integrate, change


@pytest.mark.parametrize("name", ["nothing", "closure", "global", "code", "helper", "no global"])
def test_functions_are_watched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a function reads from outside is compared, and not looked for at each call."""
    integrate, change = closed_over(1.0)
    fast = snncc.compile(integrate)
    x = torch.randn(6, 2, 3)
    fast(x)
    walks: list[object] = []
    walk = watch.walk
    monkeypatch.setattr(watch, "walk", lambda *args: (walks.append(args), walk(*args))[1])
    changes: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "closure": lambda: change(2.0),
        "global": lambda: monkeypatch.setitem(globals(), "DECAY", 0.25),
        "code": lambda: monkeypatch.setattr(decayed, "__code__", halved.__code__),
        "helper": lambda: monkeypatch.setitem(globals(), "decayed", halved),
        "no global": lambda: monkeypatch.delitem(globals(), "DECAY"),
    }
    changes[name]()

    if name == "no global":
        with pytest.raises(NameError, match="DECAY"):
            fast(x)
        return
    assert torch.equal(fast(x), integrate(x))
    assert len(walks) == (name != "nothing")


def test_kept_state_is_released() -> None:
    """What watches a model keeps no tensor of a state that the model has left."""
    model = Stateful()
    fast = snncc.compile(model)
    fast(torch.randn(4, 2, 3))
    fast(torch.randn(4, 2, 3))
    assert model.v is not None
    watched = torch.zeros(2, 3)
    model.v = watched
    reference = weakref.ref(watched)
    fast(torch.randn(4, 2, 3))
    del watched

    assert reference() is None


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies_compile_anew(copied: Callable[[Any], Any]) -> None:
    """A copy of a compiled model is a compiled copy of the model, whose changes it follows."""
    fast = snncc.compile(Feedforward())
    x = torch.randn(4, 2, 5)
    fast(x)
    twin = copied(fast)

    assert torch.equal(twin(x), fast(x))
    with torch.no_grad():
        twin.original.readout.weight.mul_(2)
        twin.original.readout.bias.mul_(2)
    torch.testing.assert_close(twin(x), 2 * fast(x))
