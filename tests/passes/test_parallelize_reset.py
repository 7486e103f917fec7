"""Chunks of time at once: which neurons restart, what they give, and what is refused."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snncc
from snncc.errors import FormError, UnsupportedError
from snncc.ir import interpret
from snncc.ir.nodes import ParallelReset
from snncc.ir.program import NeuronProgram, Restart
from snncc.nn import IF, LI, LIF, AdaptiveLIF, ATan, CubaLIF
from snncc.passes.parallel.parallelize_reset import find_restart, restart_of
from snncc.runtime.forms.parallel_reset import Chunks, ParallelResetNeuron
from tests.strategies import recurrences

DECAYS = [0.25, 0.5, 0.9, 0.99, 1.0, -0.5]


def cut(model, *args, chunk, window=8, **options):
    """Return a model that is compiled for some arguments, and runs in chunks of a given length."""
    fast = snncc.compile(model, mode="parallel_reset", **options)
    for layer in fast.specialize(*args).parallel_resets:
        layer.chunk, layer.window = chunk, window
    return fast


def inputs(T, N=100):
    """Return random currents whose mean grows from lane to lane, from none to strong."""
    torch.manual_seed(0)
    return torch.randn(T, N) * 0.5 + torch.linspace(-0.2, 1.0, N)


class Neuron(nn.Module):
    """Serial code of a neuron, its potential an output too; numbers are buffers, kernels few."""

    def __init__(self, decay, threshold=1.0, v_reset=-0.25, *, is_strict=False):
        super().__init__()
        self.spike, self.is_strict = ATan(), is_strict
        for name, value in (("decay", decay), ("threshold", threshold), ("v_reset", v_reset)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        v, spikes, potentials = torch.zeros_like(x[0]), [], []
        for t in range(x.shape[0]):
            h = self.decay * v + x[t]
            u = h - self.threshold
            s = (u > 0.0).to(h.dtype) if self.is_strict else self.spike(u)
            v = (1.0 - s) * h + s * self.v_reset
            spikes.append(s)
            potentials.append(h)
        return torch.stack(spikes), torch.stack(potentials), v


def equal(actual, expected):
    """Tell whether tensors are equal bit for bit."""
    return all(
        torch.equal(a.view(torch.int32), b.reshape(a.shape).view(torch.int32))
        for a, b in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("is_strict", [False, True], ids=["non-strict", "strict"])
def test_serial_bit_by_bit(is_strict):
    """100 sequences, silent ones and busy ones among them, cut where chunks do not divide T."""
    x = inputs(501)
    model = Neuron(1.0, is_strict=is_strict)
    fast = cut(model, x, chunk=32, window=16)
    for decay, threshold in itertools.product(DECAYS, (0.1, 0.5, 1.0)):
        model.decay.fill_(decay)
        model.threshold.fill_(threshold)

        assert equal(fast(x), model(x))
        assert fast.chunks["neuron1"].count == 15
        assert fast.chunks["neuron1"].serial >= 501 - 15 * 32


def test_long_sequences():
    """2048 steps of busy neurons: few chunks run again, none in serial order."""
    x = inputs(2048)[:, 30:]
    model = Neuron(1.0, 0.5)
    fast = cut(model, x, chunk=128, window=64)
    for decay in DECAYS:
        model.decay.fill_(decay)

        assert equal(fast(x), model(x))
        assert fast.chunks["neuron1"].rounds <= 2
        assert fast.chunks["neuron1"].serial == 0


def test_sizes_decide_how_time_is_cut():
    """Lanes are cut by themselves, short sequences left whole; the plan names the form.

    The layer is run alone: a recording of so many steps takes longer.
    """
    torch.manual_seed(0)
    x, neuron = torch.randn(20000, 1) + 0.3, LIF(0.9)
    fast = snncc.compile(neuron, mode="parallel_reset")
    (layer,) = fast.specialize(x[:9]).parallel_resets

    assert equal(layer.run((x,), None), layer.serial.run((x,), None))
    assert layer.chunks.count == 20000 // 200
    assert layer.chunks.length == 200
    wide = torch.randn(2100, 64) + 0.3
    assert equal(layer.run((wide,), None), layer.serial.run((wide,), None))
    assert layer.chunks.count == 4
    layer.run((x[:500],), None)
    assert layer.chunks == Chunks(1, 500)
    assert fast.chunks == {"neuron1": layer.chunks}
    assert fast.plans[0].neurons[0].form == "parallel reset"
    assert fast.plans[0].numerics.value == "bitwise"
    assert str(Chunks(23, 128, 1, 2, 56)) == (
        "23 chunks of 128 steps; 2 ran again, in 1 rounds; 56 steps in serial order"
    )


@pytest.mark.parametrize("T", [1, 2, 7, 64])
@pytest.mark.parametrize("level", [0.0, 0.01, 2.0], ids=["no-input", "silent", "every-step"])
def test_extremes(T, level):
    """No spike at all and one at each step; a step, a lane, a chunk of one step."""
    x = torch.full((T, 1), level)
    for decay in (0.9, 1.0):
        model = Neuron(decay)

        assert equal(cut(model, x, chunk=1, window=1)(x), model(x))
        assert equal(cut(model, x, chunk=8)(x), model(x))


def test_regular_firing_is_bounded():
    """A constant input keeps every phase apart: rounds end, and the rest is in serial order."""
    x = torch.full((640, 3), 0.3)
    x[:7] = torch.rand(7, 3)
    model = Neuron(1.0)
    fast = cut(model, x, chunk=16, window=7)

    assert equal(fast(x), model(x))
    assert fast.chunks["neuron1"].again <= 2 * 40
    assert fast.chunks["neuron1"].serial > 0


def test_infinite_and_undefined_inputs():
    """What is not finite stays where serial code has it, until a reset forgets it."""
    x = inputs(96, 6)
    for t, value in ((5, float("inf")), (40, float("nan")), (60, -float("inf"))):
        x[t, t % 6] = value
    for v_reset in (0.0, -0.25):
        for model in (Neuron(0.5, v_reset=v_reset), Neuron(1.0, v_reset=v_reset)):
            actual, expected = cut(model, x, chunk=8)(x), model(x)
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, b.reshape(a.shape), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("lanes", [(), (3,), (2, 1, 5), (40,)], ids=str)
def test_lanes(lanes):
    """Any number of dimensions, parameters for each channel, a state to start from."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.decay = nn.Parameter(torch.rand(lanes[-1:]))
            self.rest = nn.Parameter(-torch.rand(lanes[-1:]))

        def forward(self, x, v):
            out = []
            for x_t in x:
                h = self.decay * v + x_t
                s = (h >= 0.5).to(h.dtype)
                v = torch.where(s > 0, self.rest, h)
                out.append(s)
            return torch.stack(out), v

    torch.manual_seed(0)
    x, v = torch.randn(90, *lanes), torch.randn(lanes)
    model = Model()
    fast = cut(model, x, v, chunk=8)
    with torch.no_grad():
        assert equal(fast(x, v), model(x, v))
    assert fast.chunks["neuron1"].count == 11


def delayed(x):
    """The reset follows from the potential of the step before."""
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        reset = (v - 1.0 > 0).to(x.dtype).detach()
        v = (0.75 * v + x[t]) * (1.0 - reset)
        out.append(ATan()(v - 1.0))
    return torch.stack(out)


def held(x):
    """The spike is a state, and resets one step late."""
    v, s, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        v = 0.75 * v * (1.0 - s) + x[t]
        s = ATan()(v - 1.0)
        out.append(s)
    return torch.stack(out)


def refractory(x):
    """A counter that the spike sets keeps the neuron silent for two steps."""
    v, rest, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = 0.75 * v + torch.where(rest > 0, torch.zeros_like(v), x[t])
        s = ATan()(h - 1.0)
        rest = torch.where(s > 0, torch.full_like(rest, 2.0), rest - 1.0)
        v = h * (1.0 - s)
        out.append(s)
    return torch.stack(out)


def resonator(x):
    """Two states that read each other; a spike sets both."""
    u, v, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        a = 0.9 * u - 0.3 * v + x[t]
        b = 0.3 * u + 0.9 * v
        s = ATan()(b - 1.0)
        u, v = torch.where(s > 0, torch.zeros_like(a), a), b * (1.0 - s) - 0.5 * s
        out.append(s)
    return torch.stack(out)


@pytest.mark.parametrize("model", [delayed, held, refractory, resonator])
def test_other_neurons(model):
    """Whatever forgets within a few steps; backward by chunks adds up in another order."""
    x = inputs(200, 20)
    fast = cut(model, x, chunk=16, window=16)
    fused = snncc.compile(model)

    assert equal([fast(x)], [model(x)])
    assert fast.chunks["neuron1"].count == 12
    x.requires_grad_()
    fast = cut(model, x, chunk=16)
    cotangent = torch.randn(200, 20)
    spikes = fast(x)
    (actual,) = torch.autograd.grad(spikes, x, cotangent)
    (expected,) = torch.autograd.grad(fused(x), x, cotangent)

    assert equal([spikes], [model(x)])
    assert fast.chunks["neuron1"].count == 12
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def late(x):
    """A reset by subtraction of the potential itself, which floats do not undo."""
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = 0.9 * v + x[t]
        s = ATan()(h - 1.0)
        v = h - s * (h + 0.25)
        out.append(s)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("model", "state"),
    [(LIF(v_reset=None), "v"), (CubaLIF(), "i"), (AdaptiveLIF(v_reset=0.0), "a"), (late, "v")],
    ids=["soft", "current", "adaptation", "subtraction"],
)
def test_what_survives_a_spike_is_refused(model, state):
    """Soft resets, synaptic currents and adaptations carry the past over every spike."""
    fast = snncc.compile(model, mode="parallel_reset")
    with pytest.raises(FormError) as refusal:
        fast(torch.rand(9, 3))

    assert refusal.value.code == "form.parallel-reset"
    assert f"'{state}' depends on its past also after a spike" in str(refusal.value)
    assert refusal.value.location is not None


def test_neurons_without_feedback_stay_as_they_are():
    """A leaky integrator compares nothing; it is one kernel."""
    fast = snncc.compile(nn.Sequential(LIF(0.5), LI(0.5)), mode="parallel_reset")
    fast(torch.rand(7, 2))

    assert [n.form for n in fast.plans[0].neurons] == ["parallel reset", "fused time"]
    assert fast.chunks == {"neuron1": Chunks(1, 7)}


def test_tracing_is_refused():
    """Which chunks run again depends on values."""
    fast = snncc.compile(IF(), mode="parallel_reset")
    x = torch.rand(7, 2)
    fast(x)
    with pytest.raises(UnsupportedError, match="cannot be traced") as refusal:
        torch.fx.experimental.proxy_tensor.make_fx(fast)(x)
    assert refusal.value.code == "unsupported.traced-reset"


def test_streams_and_certificates():
    """The form changes nothing about a step, and verify compares it with the serial code."""
    model = LIF(0.9)
    fast = snncc.compile(model, mode="parallel_reset")
    x = torch.rand(600, 1, requires_grad=True)
    report = snncc.verify(model, fast, x)
    stream = fast.stream()

    assert report.ok, report
    assert torch.equal(torch.stack([stream(x_t) for x_t in x.detach()]), model(x))


def test_programs_are_what_they_say():
    """A guess forgets where it starts; a chunk goes on where another one ended."""
    x = inputs(40, 5)
    (layer,) = cut(Neuron(0.9), x, chunk=8).specialize(x).parallel_resets
    forward = layer.program.forward
    made = restart_of(forward)
    assert isinstance(made, Restart)

    assert isinstance(forward.form, ParallelReset)
    assert {k: v.value for k, v in find_restart(forward).items()} in ({"s": 1.0}, {"s": True})
    assert made.guess.forward.outputs == ()
    assert made.chunk.forward.finals == tuple(s.name for s in forward.states)


@given(recurrences(), st.integers(0, 10_000), st.sampled_from([1, 3, 5]))
@settings(max_examples=40, deadline=None)
def test_generated_neurons(recurrence, seed, chunk):
    """Whatever restarts equals the interpreter bit for bit; the interpreter runs the chunks."""
    made = restart_of(recurrence)
    if not isinstance(made, Restart):
        return
    torch.manual_seed(seed)
    count = len(recurrence.step_inputs)
    arguments = [torch.randint(-8, 9, (23, 4)) / 4 for _ in range(count)]
    arguments += [torch.randint(-4, 5, (4,)) / 4 for _ in recurrence.lane_inputs]
    program = NeuronProgram(replace(recurrence, form=ParallelReset()), restart=made)
    layer = ParallelResetNeuron(program, target="torch")
    layer.chunk = layer.window = chunk
    names = (*recurrence.step_inputs, *recurrence.lane_inputs)
    expected = interpret.run_in_order(recurrence, dict(zip(names, arguments, strict=True)), None)

    assert equal(layer.run(tuple(arguments), None), expected)
