"""Threshold feedback solved by sweeps: published numbers, equality with serial code, refusals."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snncc
from snncc.errors import FormError, OptionError
from snncc.ir.numerics import Numerics
from snncc.nn import IF, LI, LIF, AdaptiveLIF, ATan, CubaLIF, Sigmoid

C = [1.5, 0.75, 0.75, 0.75]
GS = [1.0, -0.5, 0.25, 2.0]
UNROLLED = {
    1: ([1, 1, 1, 1], [0.446223, 0.0524968, 0.524968, 0.839949]),
    2: ([1, 1, 0, 0], [0.244068, -0.395238, 0.542647, 1.19317]),
    3: ([1, 1, 0, 1], [0.245388, -0.714399, 0.397354, 1.88003]),
    4: ([1, 1, 0, 1], [0.274968, -0.5, 0.397354, 1.88003]),
}


def column(values):
    return torch.tensor(values, dtype=torch.float64).reshape(4, 1)


def run(model, **options):
    """Return spikes and input gradient of the worked example."""
    c = column(C).requires_grad_()
    s = snncc.compile(model, mode="fpt", **options)(c)
    (gradient,) = torch.autograd.grad(s, c, column(GS))
    return s.flatten().tolist(), gradient


def near(actual, expected):
    torch.testing.assert_close(actual, column(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("target", ["c", "torch"])
@pytest.mark.parametrize(
    ("detach", "expected"),
    [(False, UNROLLED[4][1]), (True, [0.454131, 0.0683134, 1.13663, 1.88003])],
)
def test_until_stable_is_backpropagation_through_time(target, detach, expected):
    """Three sweeps find the serial spikes, a tie included; the gradient is that of serial code."""
    neuron = LIF(0.5, v_reset=None, surrogate=Sigmoid(4.0), detach_reset=detach)
    s, gradient = run(neuron, target=target)

    assert s == [1.0, 1.0, 0.0, 1.0]
    near(gradient, expected)


@pytest.mark.parametrize("sweeps", UNROLLED)
def test_unrolled_sweeps_have_the_published_gradients(sweeps):
    """K sweeps with thresholds: spikes and gradients after each number of them."""
    neuron = LIF(0.5, v_reset=None, surrogate=Sigmoid(4.0))
    s, gradient = run(neuron, sweeps=sweeps, schedule=None)

    assert s == UNROLLED[sweeps][0]
    near(gradient, UNROLLED[sweeps][1])


@pytest.mark.parametrize(
    ("sweeps", "potentials"),
    [(1, [1.5, 1.5, 1.5, 1.5]), (2, [1.5, 1.0, 0.75, 0.625]), (3, [1.5, 1.0, 0.75, 1.125])],
)
def test_sweeps_have_the_published_potentials(sweeps, potentials):
    """Potentials after each sweep of the worked example; the third has the serial ones."""
    fast = snncc.compile(seen, mode="fpt", sweeps=sweeps, schedule=None)
    u, _ = fast(column(C))

    assert u.flatten().tolist() == potentials


def seen(c):
    """The neuron of the worked example, with its potentials."""
    u, s, potentials, spikes = torch.zeros_like(c[0]), torch.zeros_like(c[0]), [], []
    for t in range(c.shape[0]):
        u = 0.5 * (u - s) + c[t]
        s = ATan()(u - 1.0)
        potentials.append(u)
        spikes.append(s)
    return torch.stack(potentials), torch.stack(spikes)


def test_the_bound_on_sweeps_is_tight():
    """Four steps that need four sweeps, and one more to see that nothing changes."""
    c, neuron = column([1.0, 0.5625, 1.1875, 0.375]), LIF(0.5, v_reset=None)
    fast = snncc.compile(neuron, mode="fpt")

    assert torch.equal(fast(c), neuron(c))
    assert fast.sweeps == {"neuron1": 5}


@pytest.mark.parametrize(
    ("schedule", "potentials"),
    [
        ((2.0, 6.0, 12.0), [1.5, 1.02371, 0.91614, 0.994039]),
        ((1.0, 3.0, 12.0), [1.5, 1.09121, 0.976651, 0.975902]),
    ],
)
def test_soft_schedule_gives_the_published_potentials(schedule, potentials):
    """Sigmoids of growing steepness; the spike at the last step is missed, as published."""
    last = snncc.compile(seen, mode="fpt", sweeps=3, schedule=schedule)
    u, s = last(column(C))

    near(u, potentials)
    assert s.flatten().tolist() == [1.0, 1.0, 0.0, 0.0]
    assert last.plans[0].numerics is Numerics.SUBSTITUTED


def test_published_derivative_is_flatter_than_the_sigmoid():
    """The derivative has a third of the steepness, and at least one."""

    def neuron(c):
        v, spikes = torch.zeros_like(c[0]), []
        for t in range(c.shape[0]):
            h = 0.5 * v + c[t]
            s = ATan()(h - 1.0)
            v = h - s
            spikes.append(s)
        return torch.stack(spikes)

    c = column(C).requires_grad_()
    fast = snncc.compile(neuron, mode="fpt", sweeps=2, schedule=(2.0, 12.0))
    (actual,) = torch.autograd.grad(fast(c), c, column(GS))

    def sigmoid(x, slope):
        soft = torch.sigmoid(slope * x)
        back = max(1.0, slope / 3.0)
        flat = torch.sigmoid(back * x)
        return flat + (soft - flat).detach()

    x = column(C).requires_grad_()
    decays = torch.tensor([[0.5 ** (i - j) if j <= i else 0.0 for j in range(4)] for i in range(4)])
    mix = decays.double()
    u1 = mix @ x
    p = sigmoid(u1 - 1.0, 2.0)
    u2 = mix @ x - (mix - torch.eye(4)) @ p
    (expected,) = torch.autograd.grad(sigmoid(u2 - 1.0, 12.0), x, column(GS))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("v_reset", [0.0, -0.25], ids=["zero", "negative"])
@pytest.mark.parametrize("decay", [0.25, 0.5, 0.9, 0.99, 1.0])
def test_hard_resets_are_serial_bit_by_bit(decay, v_reset):
    """Any decay, an integrate-and-fire neuron included, three thresholds, 100 sequences."""
    torch.manual_seed(0)
    c = torch.randn(96, 100) * 0.5 + torch.linspace(-0.2, 1.0, 100)
    for threshold in (0.1, 0.5, 1.0):
        neuron = LIF(decay, v_threshold=threshold, v_reset=v_reset)
        fast = snncc.compile(neuron, mode="fpt")

        assert torch.equal(fast(c), neuron(c))
        (sweeps,) = fast.sweeps.values()
        assert 1 <= sweeps <= 97


@pytest.mark.parametrize("threshold", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("decay", "v_reset"),
    [*((decay, None) for decay in (0.25, 0.5, 0.9, 0.99, 1.0)), (0.5, 0.0)],
)
def test_long_sequences_are_serial_too(decay, v_reset, threshold):
    """100 sequences of 2048 steps, chunk by chunk: few sweeps at any decay."""
    torch.manual_seed(0)
    c = torch.randn(2048, 100) * 0.5 + torch.linspace(-0.2, 1.0, 100)
    neuron = LIF(decay, v_threshold=threshold, v_reset=v_reset)
    fast = snncc.compile(neuron, mode="fpt")
    fast(c[:40]), fast(c[:50])  # after two lengths any other needs no recording

    assert torch.equal(fast(c), neuron(c))
    assert 2 < fast.sweeps["neuron1"] <= 33


def test_all_steps_at_once_take_many_sweeps():
    """The published iteration, on a long sequence at a large decay, and its warning."""
    torch.manual_seed(0)
    with pytest.warns(snncc.NumericsWarning):
        report = snncc.convergence(LIF(0.9, v_reset=None), torch.randn(1024, 4) * 0.5 + 0.3)

    assert report.neurons[0].sweeps > 50


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_first_steps_are_final(seed, T, sweeps):
    """After k sweeps the first k steps are those of the serial code, whatever comes later."""
    torch.manual_seed(seed)
    c = torch.randint(-4, 9, (12, 3)) / 4
    neuron = LIF(0.75, v_reset=None)
    fast = snncc.compile(neuron, mode="fpt", sweeps=sweeps, schedule=None)

    assert torch.equal(fast(c)[:sweeps], neuron(c)[:sweeps])


def delayed(c):
    """The reset follows from the potential of the step before, as in snnTorch."""
    v, out = torch.zeros_like(c[0]), []
    for t in range(c.shape[0]):
        reset = (v - 1.0 > 0).to(c.dtype).detach()
        v = 0.75 * v + c[t] - reset
        out.append(ATan()(v - 1.0))
    return torch.stack(out)


def early(c):
    """The reset acts at the next charge: the spike before is a state, and multiplies another."""
    v, s, out = torch.zeros_like(c[0]), torch.zeros_like(c[0]), []
    for t in range(c.shape[0]):
        v = 0.75 * v * (1.0 - s) + c[t]
        s = ATan()(v - 1.0)
        out.append(s)
    return torch.stack(out)


def masked(c):
    """The reset is a selection."""
    v, out = torch.zeros_like(c[0]), []
    for t in range(c.shape[0]):
        h = 0.75 * v + c[t]
        v = torch.where(h >= 1.0, torch.full_like(h, -0.5), h)
        out.append(h)
    return torch.stack(out)


def refractory(c):
    """A counter keeps the neuron silent for two steps."""
    v, rest, out = torch.zeros_like(c[0]), torch.zeros_like(c[0]), []
    for t in range(c.shape[0]):
        h = 0.75 * v + torch.where(rest > 0, torch.zeros_like(h0(c)), c[t])
        s = ATan()(h - 1.0)
        rest = torch.where(s > 0, torch.full_like(rest, 2.0), rest - 1.0)
        v = h * (1.0 - s)
        out.append(s)
    return torch.stack(out)


def h0(c):
    return c[0]


class Round(torch.autograd.Function):
    """An integer spike, with a gradient of its own."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h.clamp(0.0, 4.0).round()

    @staticmethod
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return g * ((h >= 0.0) & (h <= 4.0))


def graded(c):
    """What a spike takes away is no bit."""
    v, out = torch.zeros_like(c[0]), []
    for t in range(c.shape[0]):
        h = 0.75 * v + c[t]
        s = Round.apply(h)
        v = h - s
        out.append(s)
    return torch.stack(out)


class Sign(torch.autograd.Function):
    """A spike of either sign."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return (h >= 1.0).to(h) - (h <= -1.0).to(h)

    @staticmethod
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return g * torch.exp(-h.abs())


def ternary(c):
    """Two bits: one for each sign."""
    v, out = torch.zeros_like(c[0]), []
    for t in range(c.shape[0]):
        h = 0.75 * v + c[t]
        s = Sign.apply(h)
        v = h - s
        out.append(s)
    return torch.stack(out)


class Network(nn.Module):
    """Two layers and a readout."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.one, self.two, self.out = CubaLIF(), AdaptiveLIF(), LI()

    def forward(self, c):
        return self.out(self.b(self.two(self.one(self.a(c)))))


@pytest.mark.parametrize(
    "model", [delayed, early, masked, refractory, graded, ternary, Network(), IF()]
)
def test_other_neurons_are_solved_too(model):
    """Whatever is affine once its comparisons are given; gradients are those of serial code."""
    torch.manual_seed(0)
    c = (torch.randint(-4, 9, (12, 5, 3)) / 4).requires_grad_()
    fast = snncc.compile(model, mode="fpt")
    actual, expected = fast(c), model(c)
    (g,) = torch.autograd.grad(actual.cumsum(0).sum(), c)
    (g_ref,) = torch.autograd.grad(expected.cumsum(0).sum(), c)

    assert fast.sweeps
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(g, g_ref, rtol=1e-4, atol=1e-5)


def test_verify_accepts_what_is_stable():
    """The certificate compares the sweeps with the serial neuron."""
    model = Network()
    fast = snncc.compile(model, mode="fpt")
    report = snncc.verify(model, fast, torch.rand(10, 4, 3, requires_grad=True))

    assert report.ok, report
    assert "sweeps until stable" in str(fast)


def test_neurons_without_feedback_stay_as_they_are():
    """A leaky integrator compares nothing; it is one kernel."""
    fast = snncc.compile(LI(0.5), mode="fpt")
    fast(torch.rand(7, 2))

    assert fast.sweeps == {}
    assert fast.plans[0].neurons[0].form == "fused time"


def test_empty_batch_and_single_step():
    """Nothing to do is done at once."""
    fast = snncc.compile(LIF(0.5), mode="fpt")
    c = torch.rand(9, 3) * 2

    assert fast(c).shape == (9, 3)
    assert fast(c[:, :0]).shape == (9, 0)
    assert torch.equal(fast(c[:1]), LIF(0.5)(c[:1]))


def test_infinite_and_undefined_inputs_end():
    """Sweeps end after T + 1 of them, whatever the values are."""
    c = torch.tensor([1.0, float("inf"), float("nan"), 1.0, -float("inf"), 2.0]).reshape(6, 1)
    neuron = LIF(0.5, v_reset=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = snncc.compile(neuron, mode="fpt")

    torch.testing.assert_close(fast(c), neuron(c), equal_nan=True)


def clipped(c):
    """P2: what is above the threshold is cut off."""
    v, out = torch.zeros_like(c[0]), []
    for t in range(c.shape[0]):
        v = torch.minimum(0.5 * v + c[t], torch.ones_like(c[0]))
        out.append(v)
    return torch.stack(out)


def quadratic(c):
    v, out = torch.zeros_like(c[0]), []
    for t in range(c.shape[0]):
        h = v * v + c[t]
        s = ATan()(h - 1.0)
        v = h - s
        out.append(s)
    return torch.stack(out)


def test_nonlinear_charge_is_refused():
    """A square of the state is not affine, spikes given or not."""
    with pytest.raises(FormError) as caught:
        snncc.compile(quadratic, mode="fpt")(torch.rand(6, 2))
    assert caught.value.code == "form.fixed-point"
    assert caught.value.location is not None


def test_soft_schedule_needs_a_spike_of_height_one():
    """A selection has no sigmoid that could stand for it."""
    with pytest.raises(FormError, match="cannot be solved by sweeps"):
        snncc.compile(masked, mode="fpt", sweeps=3)(torch.rand(6, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"sweeps": 0},
        {"sweeps": "many"},
        {"sweeps": 2},
        {"sweeps": 65, "schedule": None},
        {"sweeps": 3, "schedule": (1.0, -3.0, 12.0)},
        {"backward_scale": 0.0},
    ],
)
def test_impossible_options_are_refused(options):
    """Sweeps, schedule and scale are checked against one another."""
    with pytest.raises(OptionError) as caught:
        snncc.compile(LIF(0.5), mode="fpt", **options)
    assert caught.value.code == "option.sweeps"


@pytest.mark.parametrize("target", ["c", "torch"])
def test_stable_sweeps_are_one_operator_when_traced(target):
    """How many sweeps there are depends on values; a kernel finds that out by itself."""
    fast, c = snncc.compile(LIF(0.5), mode="fpt", target=target), torch.rand(6, 2) * 2
    fast(c)
    traced = torch.fx.experimental.proxy_tensor.make_fx(fast)(c)

    assert torch.equal(traced(c + 0.5), LIF(0.5)(c + 0.5))


def test_convergence_is_reported():
    """Sweeps and mismatch by decay: a large one is slow, and there is a warning."""
    torch.manual_seed(0)
    c = torch.randn(128, 64) * 0.5 + 0.4
    quick = snncc.convergence(LIF(0.25, v_reset=None), c)
    with pytest.warns(snncc.NumericsWarning, match="converge slowly"):
        slow = snncc.convergence(LIF(0.99, v_reset=None), c)

    assert quick.neurons[0].decay == 0.25
    assert quick.neurons[0].sweeps < 10 < slow.neurons[0].sweeps
    assert quick.neurons[0].mismatch[-1] == 0.0
    assert slow.neurons[0].mismatch[2] > 0.05
    assert list(quick.neurons[0].mismatch) == sorted(quick.neurons[0].mismatch, reverse=True)
    assert "slow to converge" in str(slow)


def potential(c):
    """Gives its last potential alone."""
    v = torch.zeros_like(c[0])
    for t in range(c.shape[0]):
        h = 0.9 * v + c[t]
        v = h - ATan()(h - 1.0)
    return v


def by_channel(decays):
    """Return a neuron whose decays were learned."""
    neuron = LIF(0.5, learnable=True, shape=(2,), v_reset=None)
    with torch.no_grad():
        next(neuron.parameters()).copy_(torch.logit(torch.tensor(decays)))
    return neuron


@pytest.mark.parametrize(
    ("model", "decay", "bound"),
    [
        (potential, 0.9, 27.0),
        (by_channel([0.25, 0.9]), 0.9, 27.0),
        (LIF(-0.9, v_threshold=0.5, v_reset=None), -0.9, 13.5),
        (LIF(0.9), 0.9, None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*converge slowly")
def test_convergence_is_that_of_the_spikes(model, decay, bound):
    """Whatever the neuron gives, whoever made its decay; the bound is one about soft resets."""
    torch.manual_seed(0)
    (found,) = snncc.convergence(model, torch.randn(100, 2) * 0.5 + 0.4).neurons

    assert found.decay == pytest.approx(decay)
    assert found.bound == (None if bound is None else pytest.approx(bound, rel=1e-3))
    assert found.sweeps > 8
    assert found.mismatch[0] > 0.01


@pytest.mark.parametrize("schedule", [None, (1.0, 3.0, 12.0)], ids=["thresholds", "soft"])
def test_a_number_of_sweeps_is_one_recurrence(schedule):
    """All sweeps advance together: streams, the interpreter and kernels agree.

    A stream of the serial neuron would be another one.
    """
    torch.manual_seed(0)
    model, x = Network(), torch.rand(12, 2, 3) * 4
    fast = snncc.compile(model, mode="fpt", sweeps=3, schedule=schedule)
    oracle = snncc.compile(model, mode="fpt", sweeps=3, schedule=schedule, target="torch")
    step = fast.stream(x)
    streamed = torch.stack([step(x[t]) for t in range(12)])

    torch.testing.assert_close(streamed, fast(x))
    torch.testing.assert_close(fast(x), oracle(x))
    assert not torch.allclose(fast(x), model(x))
    assert [layer.lines for layer in fast.plans[0].neurons] == [
        layer.lines for layer in snncc.compile(model, example_inputs=(x,)).plans[0].neurons
    ]


def test_verify_holds_sweeps_to_their_promise():
    """With k sweeps the first k steps are compared; with sigmoids there is nothing to compare."""
    torch.manual_seed(0)
    c, neuron = torch.rand(20, 3) * 2, LIF(0.9, v_reset=None)
    report = snncc.verify(neuron, snncc.compile(neuron, mode="fpt", sweeps=3, schedule=None), c)

    assert report.ok
    assert "first 3 steps" in str(report)
    with pytest.raises(snncc.EquivalenceError, match="other neurons"):
        snncc.verify(neuron, snncc.compile(neuron, mode="fpt", sweeps=3), c)
