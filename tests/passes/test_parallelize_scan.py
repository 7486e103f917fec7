"""Time cut into chunks: equality with serial code over the reals, fallbacks, refusals."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snncc
from snncc.errors import LaunchError, OptionError, UnsupportedError
from snncc.ir import interpret
from snncc.ir.chunked_scan import ChunkedScan
from snncc.ir.nodes import Binary, Const, Input, Let, Op, Rank, Recurrence, Select, State, Var
from snncc.ir.numerics import Numerics
from snncc.ir.program import NeuronProgram
from snncc.ir.validate import validate
from snncc.nn import LI, LIF, AdaptiveLIF, ATan, CubaLIF, DynamicDecay
from snncc.passes.gradients.differentiate import differentiate
from snncc.passes.parallel.parallelize_scan import scan_programs
from snncc.passes.scans.chunked import chunked_scan
from snncc.runtime.scans.neuron import ScanNeuron
from tests.neuron_programs import add, mul
from tests.strategies import affine_recurrences, recurrences

PARTS = ("whole", "apply", "summary", "carry", "lookback")


def scanned(forward, target="torch", chunk=4, *, ahead=True):
    """Return a neuron with its gradients in scan form."""
    program = NeuronProgram(forward, differentiate(forward))
    programs = scan_programs(program, forward=ahead)
    return ScanNeuron(replace(program, scan=programs), target=target, chunk=chunk)


def run(call, inputs):
    """Return the results of a call on copies of tensors, and the gradients of the copies."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    results = list(call(leaves))
    roots = [y for y in results if y.requires_grad]
    zeros = [torch.zeros_like(x) for x in leaves]
    found = zeros
    if roots:
        cotangents = [torch.ones_like(y) * 0.5 + y.detach() for y in roots]
        found = torch.autograd.grad(roots, leaves, cotangents, allow_unused=True)
    pairs = zip(found, zeros, strict=True)
    return [y.detach() for y in results], [zero if g is None else g for g, zero in pairs]


def compare(forward, layer, inputs, *, bitwise=False):
    """Compare a neuron by chunks with the reference interpreter, results and gradients."""
    names = (*forward.step_inputs, *forward.lane_inputs)

    def reference(tensors):
        return interpret.run_in_order(forward, dict(zip(names, tensors, strict=True)))

    expected, wanted = run(reference, inputs)
    actual, found = run(lambda tensors: layer.run(tensors, None), inputs)
    exact = {"rtol": 0, "atol": 0} if bitwise else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(actual, expected, **exact, equal_nan=True)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(layer.run(inputs, None), expected, **exact, equal_nan=True)


def tensors_for(forward, steps, lanes, seed):
    """Return multiples of 1/8 in float64 for each input of a recurrence."""
    generator = torch.Generator().manual_seed(seed)

    def some(*sizes):
        return torch.randint(-8, 9, sizes, generator=generator).double() / 8

    return [some(steps, *lanes) for _ in forward.step_inputs] + [
        some(*lanes) for _ in forward.lane_inputs
    ]


@settings(max_examples=60)
@given(forward=affine_recurrences(), steps=st.integers(1, 23), seed=st.integers(0, 99))
def test_affine_recurrences_by_chunks(forward, steps, seed):
    """Coupled states, decays of any kind, windows and sums: forward and backward, any length."""
    scan = chunked_scan(forward)
    assert isinstance(scan, ChunkedScan)
    for part in PARTS:
        if getattr(scan, part) is not None:
            validate(getattr(scan, part))
    layer = scanned(forward)
    assert layer.scan.backward is not None

    compare(forward, layer, tensors_for(forward, steps, (2,), seed))


@settings(max_examples=40)
@given(forward=recurrences(max_lets=6), steps=st.integers(1, 17), seed=st.integers(0, 99))
def test_backward_by_chunks_of_any_neuron(forward, steps, seed):
    """Forward is bitwise; gradients are those of autograd up to the order of sums."""
    layer = scanned(forward, ahead=False)
    assert layer.scan.backward is not None

    compare(forward, layer, tensors_for(forward, steps, (2,), seed), bitwise=True)


@settings(max_examples=5, deadline=None)
@given(
    forward=st.one_of(affine_recurrences(), recurrences(max_lets=4)),
    steps=st.integers(9, 30),
    lanes=st.sampled_from([(), (1,), (3,), (2, 40)]),
)
def test_c_kernels_by_chunks(forward, steps, lanes):
    """The same with compiled kernels, lanes from one to more than a block."""
    compare(forward, scanned(forward, "c"), tensors_for(forward, steps, lanes, 0))


NEURONS = {
    "leaky integrator": (LI(0.9), "scan"),
    "learnable decay": (LI(0.9, learnable=True, shape=(3,)), "scan"),
    "dynamic decay": (DynamicDecay(3), "scan"),
    "LIF": (LIF(0.9), "fused time, backward scan"),
    "current-based LIF": (CubaLIF(), "fused time, backward scan"),
    "adaptive LIF": (AdaptiveLIF(), "fused time, backward scan"),
}


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_of_the_package(name):
    """Each runs in the form that the plan names, and is certified."""
    torch.manual_seed(0)
    model, form = NEURONS[name]
    x = (torch.randn(53, 2, 3) + 0.3).requires_grad_()
    fast = snncc.compile(model, mode="scan", chunk=8)

    assert snncc.verify(model, fast, x).ok
    (layer,) = fast.plans[0].neurons
    assert layer.form == form
    assert layer.numerics is (Numerics.REASSOCIATED if form == "scan" else Numerics.BITWISE)


def synapse_and_membrane(x, decay):
    """Two coupled states with a decay for each step and channel; spikes are only read."""
    i = v = torch.zeros_like(x[0])
    spikes, potentials = [], []
    for t in range(x.shape[0]):
        i = decay[t] * i + x[t]
        v = 0.9 * v + i
        spikes.append(ATan()(v - 1.0))
        potentials.append(v)
    return torch.stack(spikes), torch.stack(potentials), v


def test_two_states_with_decays_of_each_step():
    """Spikes, potentials and the last state, with the gradient of the decays."""
    torch.manual_seed(0)
    x, decay = torch.randn(61, 4, 5), torch.rand(61, 5)
    fast = snncc.compile(synapse_and_membrane, mode="scan", chunk=8)

    report = snncc.verify(synapse_and_membrane, fast, x, decay)
    assert report.ok
    assert "so a spike at the threshold may move" in str(fast.plans[0])
    assert {c.name for c in report.comparisons if c.part == "kernel"} >= {
        "neuron1 states 0", "neuron1 steps 0", "neuron1 0",
    }  # fmt: skip


def test_state_that_is_passed_on():
    """A sequence in two parts, the state handed over with its gradient."""
    torch.manual_seed(0)

    def leaky(x, v):
        seen = []
        for t in range(x.shape[0]):
            v = 0.8 * v + x[t]
            seen.append(v)
        return torch.stack(seen), v

    x, v0 = torch.randn(40, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    fast = snncc.compile(leaky, mode="scan", chunk=7)

    def in_parts(leaves):
        first, v = fast(leaves[0][:21], leaves[1])
        second, v = fast(leaves[0][21:], v)
        return torch.cat([first, second]), v

    expected, wanted = run(lambda leaves: leaky(*leaves), [x, v0])
    actual, found = run(in_parts, [x, v0])
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(found, wanted)


def decaying(factor):
    """Return ``v' = factor * v + x``."""
    return Recurrence(
        "decaying",
        (Input("x", Rank.STEP),),
        (State("v", Const(0.5), "h"),),
        (Let("h", add(mul(Const(factor), Var("v")), Var("x"))),),
        ("h",),
        ("v",),
    )


@pytest.mark.parametrize("factor", [0.0, 1.0, -1.0, 1.5, 3.0])
@pytest.mark.parametrize("target", ["c", "torch"])
def test_decays_of_zero_one_and_more(factor, target):
    """A decay that forgets, one that keeps and one that grows."""
    forward = decaying(factor)
    x = [torch.randn(70, 3, dtype=torch.float64) * 1e-3]

    names = ["x"]
    expected = interpret.run_in_order(forward, dict(zip(names, x, strict=True)))
    actual = scanned(forward, target, chunk=16).run(x, None)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 17, 39])
def test_infinite_inputs_run_from_the_first_step(bad, place):
    """What a summary cannot hold is not used: the bits are those of the serial code."""
    forward = decaying(0.9)
    x = torch.randn(40, 3)
    x[place, 1] = bad
    layer = scanned(forward, "c", chunk=8)

    expected = interpret.run_in_order(forward, {"x": x})
    found = layer.run([x], None)
    fell_back = place < 32  # nothing starts from what the last chunk ends with
    assert layer._forward.fell_back is fell_back
    exact = {"rtol": 0, "atol": 0} if fell_back else {}
    torch.testing.assert_close(found, expected, **exact, equal_nan=True)


def test_huge_values_are_scanned_within_rounding():
    """One input of 1e30 in a lane of ones, long forgotten at the end."""
    forward = decaying(0.5)
    x = torch.ones(1000, 2)
    x[40, 1] = 1e30

    layer = scanned(forward, "c", chunk=50)
    found = layer.run([x], None)
    assert not layer._forward.fell_back
    torch.testing.assert_close(found, interpret.run_in_order(forward, {"x": x}))


def test_products_that_underflow_and_grow_again_run_from_the_first_step():
    """Decays of 1e-25 and then of 1e25 in a chunk: their product is 1, in float32 it is 0."""
    forward = Recurrence(
        "swinging",
        (Input("a", Rank.STEP),),
        (State("v", Const(1e30), "h"),),
        (Let("h", mul(Var("a"), Var("v"))),),
        ("h",),
    )
    a = torch.tensor([1.0, 1e-25, 1e-25, 1e25, 1e25, 1.0, 1.0, 1.0]).repeat(5)[:, None]
    layer = scanned(forward, "c", chunk=8)

    found = layer.run([a], None)
    assert layer._forward.fell_back
    torch.testing.assert_close(found, interpret.run_in_order(forward, {"a": a}), rtol=0, atol=0)


def test_products_that_overflow_run_from_the_first_step():
    """A decay of 100: the product over a chunk is infinite, the states of silence are zero."""
    forward = replace(decaying(100.0), states=(State("v", Const(0.0), "h"),))
    x = torch.zeros(96, 2)
    x[90] = 1.0
    layer = scanned(forward, "c", chunk=24)

    found = layer.run([x], None)
    assert layer._forward.fell_back
    expected = interpret.run_in_order(forward, {"x": x})
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_reset_from_outside_drops_what_came_before():
    """A mask that sets the state to the input: a coefficient of zero for some steps and lanes."""
    keep = Binary(Op.GT, Var("m"), Const(0.0))
    forward = Recurrence(
        "masked",
        (Input("x", Rank.STEP), Input("m", Rank.STEP)),
        (State("v", Const(0.0), "h"),),
        (Let("h", add(Select(keep, mul(Const(0.9), Var("v")), Const(0.0)), Var("x"))),),
        ("h",),
    )

    compare(forward, scanned(forward, "c", chunk=5), tensors_for(forward, 33, (3,), 1))


def test_gradient_rules_that_are_not_linear_run_backward_as_before():
    """A clipped gradient is not affine in the cotangents: forward by chunks, backward not."""

    class Clipped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            return v.clone()

        @staticmethod
        def backward(ctx, g):
            return g.clamp(-0.1, 0.1)

    def model(x):
        v, seen = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = Clipped.apply(0.9 * v + x[t])
            seen.append(v)
        return torch.stack(seen)

    x = torch.randn(40, 3)
    fast = snncc.compile(model, mode="scan", chunk=8)

    assert snncc.verify(model, fast, x).ok


def test_second_derivatives_are_refused():
    """A gradient may be asked for with a graph; a gradient of it is an error with a remedy."""
    x = torch.randn(30, 2, requires_grad=True)
    fast = snncc.compile(LI(0.9), mode="scan", chunk=8)
    (first,) = torch.autograd.grad(fast(x).square().sum(), x, create_graph=True)

    with pytest.raises(UnsupportedError, match="cannot be differentiated again"):
        first.sum().backward()


def test_counts_that_floats_cannot_hold_are_refused():
    """The limit on the number of steps of an integer state is that of the neuron."""
    forward = decaying(0.5)
    made = scan_programs(NeuronProgram(forward))
    layer = ScanNeuron(NeuronProgram(forward, scan=made, most_steps=20), chunk=4)

    assert len(layer.run([torch.randn(20, 1)], None)) == 2
    with pytest.raises(LaunchError, match="exactly for 20 steps; the input has 21"):
        layer.run([torch.randn(21, 1)], None)


@pytest.mark.parametrize("steps", [1, 2, 8, 9, 16, 17])
def test_lengths(steps):
    """One step, less than two chunks, whole chunks, and a rest of one step."""
    x = torch.randn(steps, 1)
    model = LI(0.9)
    fast = snncc.compile(model, mode="scan", chunk=8)

    assert snncc.verify(model, fast, x).ok


def test_counts_of_spikes_are_added_up_by_chunk():
    """A rate that is read off a neuron without reset: the count starts from zero in each chunk."""
    x = torch.randn(41, 2, 3)

    def rate(x):
        v, spikes = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = 0.9 * v + x[t]
            spikes.append(ATan()(v - 1.0))
        return torch.stack(spikes).mean(0)

    fast = snncc.compile(rate, mode="scan", chunk=8)

    assert snncc.verify(rate, fast, x).ok
    assert fast.plans[0].neurons[0].recurrence.outputs == ()


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (mul(Var("v"), Var("v")), "the next 'v' is not affine in the states"),
        (Binary(Op.MAX, Var("v"), Var("x")), "the next 'v' is not affine in the states"),
        (Binary(Op.DIV, Var("x"), Var("v")), "the next 'v' is not affine in the states"),
    ],
)
def test_refusals(step, reason):
    """Products, maxima and quotients of states are no affine maps."""
    forward = replace(decaying(0.5), lets=(Let("h", add(step, Var("x"))),))

    assert chunked_scan(forward).reason == reason


def test_chunk_is_a_positive_number():
    """The option is checked."""
    with pytest.raises(OptionError, match="a whole number of at least 1"):
        snncc.compile(nn.Identity(), mode="scan", chunk=0)
