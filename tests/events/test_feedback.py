"""Queues of spikes with feedback of the step before, and with sums of spikes before a weight."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import snncc
from snncc.errors import SnnccError
from snncc.nn import ATan
from tests.events.models import Recurrent, Wired, dyadic, spikes

WIDE = 1000
spike = ATan()
FEEDBACK = ["plain", "recurrent", "feedback", "summed", "weighted", "joined"]


def compiled(model: Any, **options: Any) -> Any:
    """Return a model that runs as a queue of spikes, by the reference."""
    return snncc.compile(model, mode="async", **{"target": "torch", **options})


def slopes(y: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        y.sum(), [*model.parameters()], allow_unused=True, materialize_grads=True
    )


def require_kernels(model: nn.Module, x: Tensor, **options: Any) -> None:
    """Compare kernels with the reference: results and counts bit by bit, gradients closely."""
    seen = []
    for target in ("torch", "c"):
        fast = compiled(model, target=target, **options)
        torch.manual_seed(0)
        y = fast(x)
        seen.append((y, slopes(y, model), fast.last_events))

    assert torch.equal(seen[0][0], seen[1][0])
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-9, atol=1e-9)
    assert all(torch.equal(seen[0][2][name], seen[1][2][name]) for name in seen[0][2])


def drawn(seed: int, kinds: list[str]) -> tuple[nn.Module, Tensor]:
    rng = random.Random(seed)
    model = Wired([rng.choice(kinds) for _ in range(rng.randint(1, 3))], rng)
    return dyadic(model, rng), spikes(rng, rng.randint(4, 6), 3, 4)


@pytest.mark.parametrize("seed", range(8))
def test_feedback_in_wide_groups_is_the_serial_code(seed: int) -> None:
    """A chain with weights on the spikes of the step before is the layered network.

    Outputs and gradients, those of recurrent weights included, with both resets, and spikes before
    the first step.
    """
    model, x = drawn(seed, FEEDBACK)

    expected, found = model(x), compiled(model, group_size=WIDE)(x)

    assert torch.equal(found, expected)
    torch.testing.assert_close(slopes(found, model), slopes(expected, model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (10, {"group_size": 1}),
        (11, {"group_size": 2, "stop": 1, "prioritize_input": False}),
        (12, {"group_size": 1, "order": "random", "refractory_dropout": 0.5}),
    ],
)
def test_kernels_are_the_reference(seed: int, options: dict[str, Any]) -> None:
    """Feedback, and sums of spikes and of the frame before a weight, in kernels."""
    model, x = drawn(seed, [*FEEDBACK, "skip"])

    require_kernels(model, x, **options)


def test_verify_proves_feedback() -> None:
    """Layers, matrices, kernels and wide groups of a recurrent layer are compared."""
    model = dyadic(Recurrent(), random.Random(0))
    x = spikes(random.Random(0), 6, 2, 4)

    report = snncc.verify(model, compiled(model, group_size=2), x)

    assert report.ok
    assert any(c.name.startswith("all spikes at once") for c in report.comparisons)


def leaky(v: Tensor, x: Tensor, *, hard: bool = False) -> tuple[Tensor, Tensor]:
    h = 0.5 * v + x
    s = spike(h - 1.0)
    return s, h * (1.0 - s) if hard else h - s


class Weighted(nn.Module):
    """Three linear layers, and a factor for each neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.both, self.factor = nn.Linear(8, 4), nn.Parameter(torch.ones(4))


class CarriedCurrent(Weighted):
    """What recurrent weights make of the spikes is kept, and starts as something else."""

    def forward(self, x: Tensor) -> Tensor:
        v, back, out = x.new_zeros(x.shape[1:]), torch.full_like(x[0], 0.25), []
        for x_t in x:
            s, v = leaky(v, self.a(x_t) + back)
            back = self.b(s)
            out.append(s)
        return torch.stack(out)


class OneToOne(Weighted):
    """Neurons on single neurons, of this step and of the step before."""

    def forward(self, x: Tensor) -> Tensor:
        v, w, z, out = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), torch.ones_like(x[0]), []
        for x_t in x:
            s, v = leaky(v, self.a(x_t))
            z, w = leaky(w, self.factor * s - 0.5 * z)
            out.append(z)
        return torch.stack(out)


class LateReset(Weighted):
    """A reset by an amount, a step late, beside recurrent weights."""

    def forward(self, x: Tensor) -> Tensor:
        v, s, out = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), []
        for x_t in x:
            v = 0.5 * v + self.a(x_t) - s * 1.0 + self.b(s)
            s = spike(v - 1.0)
            out.append(s)
        return torch.stack(out)


class Compared(Weighted):
    """Spikes are true or false, and become numbers where weights read them."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        v = w = s = x.new_zeros(x.shape[1:])
        out, left = [], []
        for x_t in x:
            h = 0.5 * v + self.a(x_t) + self.b(s)
            fires = h >= 1.0
            s, v = fires.to(h.dtype), torch.where(fires, 0.0, h)
            z, w = leaky(w, self.c(s))
            out.append(z)
            left.append(v)
        return torch.stack(out), torch.stack(left)


class Written(Weighted):
    """A potential whose reset has a gradient of its own is a state, and no spike."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        v, s, out = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), []
        for x_t in x:
            h = 0.5 * v + self.a(x_t) + self.b(s)
            s = spike(h - 1.0)
            with torch.no_grad():
                h[s > 0] = 0.0
            v = h
            out.append(s)
        return torch.stack(out), v


class Autonomous(Weighted):
    """The input is what the layer hears first; after that it hears itself."""

    def forward(self, x: Tensor) -> Tensor:
        v, s, out = x.new_zeros(x.shape[1:]), x[0], []
        for _ in range(6):
            s, v = leaky(v, self.a(s))
            out.append(s)
        return torch.stack(out)


class LateShown(Weighted):
    """Spikes of the step before are shown, and read by what is no part of the network."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        v = s = trace = x.new_zeros(x.shape[1:])
        out, late = [], []
        for x_t in x:
            trace = 0.5 * trace + s
            late.append(self.c(s) + trace)
            s, v = leaky(v, self.a(x_t) + self.b(s))
            out.append(s)
        return torch.stack(out), torch.stack(late), trace


class Branches(Weighted):
    """Two layers side by side, whose spikes are summed up and joined before weights."""

    def forward(self, x: Tensor) -> Tensor:
        u, v, w, out = *(x.new_zeros(x.shape[1:]) for _ in range(3)), []
        for x_t in x:
            (a, u), (b, v) = leaky(u, self.a(x_t)), leaky(v, self.b(x_t), hard=True)
            z, w = leaky(w, self.c(a - 0.5 * b) + self.both(torch.cat([b, a], 1)))
            out.append(z)
        return torch.stack(out)


class Contained(Weighted):
    """A container of SpikingJelly, which joins input and last spikes before one weight."""

    def __init__(self) -> None:
        super().__init__()
        inner = neuron.LIFNode(v_reset=None)
        self.layer = layer.LinearRecurrentContainer(inner, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return torch.stack([self.layer(x_t) for x_t in x])


@pytest.mark.parametrize(
    "kind",
    [
        *(CarriedCurrent, OneToOne, LateReset, Compared, Written, Autonomous),
        *(LateShown, Branches, Contained),
    ],
)
def test_ways_of_spikes_in_wide_groups_are_the_serial_code(kind: type[nn.Module]) -> None:
    """Whatever is linear between spikes and neurons, a step late or not, is part of the queue."""
    model = dyadic(kind(), random.Random(3))
    x = spikes(random.Random(4), 6, 3, 4)

    found, expected = (
        y if isinstance(y, tuple) else (y,) for y in (compiled(model, group_size=WIDE)(x), model(x))
    )

    assert all(map(torch.equal, found, expected))
    sums = [sum((y.sum() for y in each), torch.zeros(())) for each in (found, expected)]
    torch.testing.assert_close(*(slopes(y, model) for y in sums), rtol=1e-9, atol=1e-9)


def test_a_way_past_a_layer_is_noted() -> None:
    """No order of spikes is the layered one; matrices and kernels are compared all the same."""
    model = dyadic(Wired(["plain", "recurrent", "skip"], random.Random(0)), random.Random(0))
    x = spikes(random.Random(0), 5, 3, 4)

    report = snncc.verify(model, compiled(model, group_size=2), x)

    assert report.ok
    assert "There are ways past a layer, so that no order of spikes is the layered one." in (
        report.notes
    )


@pytest.mark.parametrize("target", ["torch", "c"])
def test_other_sizes_and_weights_are_served(target: str) -> None:
    """One step, no sample, views, frozen weights, and a recurrent weight of exactly zero."""
    model = dyadic(Wired(["recurrent", "joined"], random.Random(1)), random.Random(1))
    fast = compiled(model, target=target, group_size=WIDE)
    back = model.back[0].weight
    for length, samples in ((5, 3), (1, 3), (5, 1), (4, 0)):
        x = spikes(random.Random(length), samples, length, 4).transpose(0, 1)
        assert torch.equal(fast(x), model(x))
        assert (slopes(fast(x), model)[0] == 0.0).all() or samples
    with pytest.raises(SnnccError, match="has no step"):
        fast(x[:0])

    model.requires_grad_(False)
    x = spikes(random.Random(0), 6, 3, 4)
    assert not fast(x).requires_grad
    back.requires_grad_(True)
    with torch.no_grad():
        back.zero_()
    ours, theirs = (torch.autograd.grad(f(x).sum(), back)[0] for f in (fast, model))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def before_last(x: Tensor) -> Tensor:
    v = first = second = x.new_zeros(x.shape[1:])
    out = []
    for x_t in x:
        s, v = leaky(v, x_t + second @ torch.ones(4, 4).to(x))
        first, second = s, first
        out.append(s)
    return torch.stack(out)


def current_between(x: Tensor) -> Tensor:
    v = w = i = x.new_zeros(x.shape[1:])
    out = []
    for x_t in x:
        s, v = leaky(v, x_t)
        i = 0.5 * i + s.flip(1)
        z, w = leaky(w, i)
        out.append(z)
    return torch.stack(out)


def drawn_feedback(x: Tensor) -> Tensor:
    v = s = x.new_zeros(x.shape[1:])
    out = []
    for x_t in x:
        s, v = leaky(v, x_t + torch.dropout(s, 0.5, train=True) @ torch.ones(4, 4).to(x))
        out.append(s)
    return torch.stack(out)


def started_otherwise(x: Tensor) -> Tensor:
    v = s = x.new_zeros(x.shape[1:])
    again = torch.ones_like(s)
    out = []
    for x_t in x:
        s, v = leaky(v, x_t + s.flip(1) - again.roll(1, 1))
        again = s
        out.append(s)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (current_between, "from step to step is between spikes and a neuron"),
        (before_last, "a state stays outside of neurons"),
        (drawn_feedback, "spikes are multiplied by|depends on the input, or is drawn"),
        (started_otherwise, "one step is another program"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_feedback_is_refused(model: Any, says: str) -> None:
    """Currents, spikes of two steps before, masks that are drawn, another first step."""
    with pytest.raises(SnnccError, match=says) as refusal:
        compiled(model)(spikes(random.Random(1), 5, 3, 4))

    assert refusal.value.code == "form.async"
    assert refusal.value.location is not None


def test_nir_has_no_order_of_spikes() -> None:
    """A graph in NIR is the layered network, which is named in the refusal."""
    model = dyadic(Recurrent(), random.Random(0)).eval()
    x = spikes(random.Random(0), 6, 2, 4)

    with pytest.raises(SnnccError, match="no order of spikes") as refusal:
        snncc.to_nir(compiled(model), x)

    assert refusal.value.code == "unsupported.nir"
