"""Neurons without reset: dynamic decay and the PSN family, against published numbers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snncc
from snncc.nn import PSN, DynamicDecay, IntegerSpike, MaskedPSN, Rectangle, SlidingPSN

X = [1.0, 2.5, -0.5, 3.0]
# Serial code, one kernel for all steps, and chunks of time side by side with a rest of steps.
HOW = {"serial": None, "compiled": {}, "scan": {"mode": "scan", "chunk": 4}}


def made(how, run):
    """Return a function compiled in one of the ways, or as it is."""
    return run if HOW[how] is None else snncc.compile(run, **HOW[how])


def example():
    """The worked example: kernel 4, exponent 4, four levels."""
    neuron = DynamicDecay(1, kernel_size=4, tau=0.25, levels=4).double()
    with torch.no_grad():
        neuron.weight.copy_(torch.tensor([[0.0, 0.0, 0.5, -0.25]]))
        neuron.bias.fill_(1.0)
    return neuron, torch.tensor(X, dtype=torch.float64).reshape(4, 1, 1).requires_grad_()


@pytest.mark.parametrize("how", HOW)
def test_dynamic_decay_gives_the_published_numbers(how):
    """Spikes and all gradients of the worked example."""
    neuron, x = example()
    run = made(how, neuron)
    s = run(x)
    s.backward(torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64).reshape(4, 1, 1))

    def near(actual, expected):
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(actual.flatten(), expected, rtol=1e-5, atol=0)

    assert s.flatten().tolist() == [1.0, 2.0, 1.0, 3.0]
    near(x.grad, [0.864453, -0.0929054, -0.157296, 1.98099])
    near(neuron.weight.grad, [-0.423962, -0.829608, 0.906394, -1.34735])
    near(neuron.bias.grad, [-0.33198])


def test_dynamic_decay_potentials_are_the_published_ones():
    """Without rounding the output is the potential."""
    neuron, x = example()
    neuron.surrogate = nn.Identity()

    expected = torch.tensor([0.787217, 2.075, 1.30415, 2.89401], dtype=torch.float64)
    torch.testing.assert_close(neuron(x).flatten(), expected, rtol=1e-5, atol=0)


def test_dynamic_decay_has_the_gradient_of_finite_differences():
    """With the identity in place of spikes the gradient is exact."""
    torch.manual_seed(0)
    neuron = DynamicDecay(3, kernel_size=2, surrogate=nn.Identity()).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(neuron, (x,))


@given(st.integers(0, 10_000), st.floats(0.05, 4.0), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_bounded_input_gives_bounded_potential(seed, tau, kernel_size):
    """The potential is a convex combination of zero and the inputs so far."""
    torch.manual_seed(seed)
    neuron = DynamicDecay(3, kernel_size, tau, surrogate=nn.Identity())
    with torch.no_grad():
        neuron.weight.mul_(20.0)
    x = torch.randn(40, 2, 3) * 5

    h = neuron(x).detach()

    slack = 1e-5
    assert (h >= x.cummin(0).values.clamp(max=0) - slack).all()
    assert (h <= x.cummax(0).values.clamp(min=0) + slack).all()


@pytest.mark.parametrize("how", HOW)
def test_sequence_can_be_cut(how):
    """The state at the end of one part is the start of the next, gradients included."""
    torch.manual_seed(0)
    neuron = DynamicDecay(4).double()
    x = torch.randn(12, 2, 4, dtype=torch.float64, requires_grad=True)
    whole = neuron(x)
    (expected,) = torch.autograd.grad(whole.cumsum(0).sum(), x)

    run = made(how, neuron.run)
    first, state = run(x[:5], neuron.initial(x))
    second, _ = run(x[5:], state)
    parts = torch.cat([first, second])
    (actual,) = torch.autograd.grad(parts.cumsum(0).sum(), x)

    assert torch.equal(whole, parts)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def ended(neuron, x, lengths):
    """Return spikes and states of a padded batch, sample after sample without the padding."""
    spikes, states = [], []
    for b, length in enumerate(lengths.tolist()):
        alone = x[:, b : b + 1]
        s, state = alone[:0], neuron.initial(alone)
        if length:
            s, state = neuron.run(alone[:length], state)
        spikes.append(torch.cat([s, torch.zeros_like(alone[length:])]))
        states.append(state)
    return torch.cat(spikes, 1), [torch.cat(each) for each in zip(*states, strict=True)]


@pytest.mark.parametrize("planes", [(), (2, 3)], ids=["rows", "planes"])
@pytest.mark.parametrize("how", HOW)
def test_samples_of_a_padded_batch_end_where_they_end(how, planes):
    """Spikes, states and gradients are those of each sample alone; one program for all lengths."""
    torch.manual_seed(0)
    neuron = DynamicDecay(4).double()
    run = made(how, neuron.run)
    for lengths in ([9, 4, 1], [2, 9, 0], [9, 9, 9]):
        lengths = torch.tensor(lengths)
        x = (torch.randn(9, 3, 4, *planes, dtype=torch.float64) * 3).requires_grad_()
        s, state = run(x, neuron.initial(x), lengths)
        expected, states = ended(neuron, x, lengths)
        pairs = [(s, expected), *zip(state, states, strict=True)]
        seeds = [torch.randn_like(a) for a, _ in pairs]
        wrt = [x, neuron.weight, neuron.bias]
        actual, reference = (
            torch.autograd.grad(each, wrt, seeds) for each in zip(*pairs, strict=True)
        )

        assert torch.equal(s, expected)
        for a, b in [*pairs, *zip(actual, reference, strict=True)]:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    if HOW[how] is not None:
        assert len(run.plans) == 1


MASKS = {
    "by step": lambda lengths, T: [t < lengths for t in range(T)],
    "by number": lambda lengths, T: [(lengths > t).float() for t in range(T)],
    "at once": lambda lengths, T: torch.arange(T)[:, None] < lengths,
    "to the longest": lambda lengths, T: F.pad(
        torch.arange(lengths.max())[:, None] < lengths, (0, 0, 0, 9)
    ),
}


@pytest.mark.parametrize("how", MASKS)
def test_masks_may_be_written_in_any_way(how):
    """Serial code with a mask of its own is compiled for all lengths, its last step included."""
    torch.manual_seed(0)
    neuron = DynamicDecay(3)

    def model(x, lengths):
        goes_on = MASKS[how](lengths, x.shape[0])
        s = neuron(x)
        h, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            m = goes_on[t].to(x.dtype).unsqueeze(1)
            h = m * (0.5 * h + s[t]) + (1 - m) * h
            out.append(h * m)
        last = torch.stack(out)[(lengths - 1).clamp(min=0), torch.arange(x.shape[1])]
        return h, last

    fast = snncc.compile(model)
    for lengths in ([7, 3, 1], [1, 2, 4], [7, 7, 7]):
        arguments = torch.randn(7, 3, 3) * 3, torch.tensor(lengths)

        for actual, expected in zip(fast(*arguments), model(*arguments), strict=True):
            assert torch.equal(actual, expected)
    assert len(fast.plans) == 1


def gated(bias, dtype, T):
    """Return a neuron that gives its potentials, with one gate, and an input of T steps."""
    neuron = DynamicDecay(1, kernel_size=2, surrogate=nn.Identity()).to(dtype)
    with torch.no_grad():
        neuron.bias.fill_(bias)
    return neuron, torch.randn(T, 2, 1, dtype=torch.float64).to(dtype)


# Of the sigmoid, with an exponent of 4: from a decay that is 0 in float32, and ones that are
# subnormal, to ones that differ from 1 by less than float32 can say.
BIASES = [-math.inf, -1e4, -100.0, -25.0, -22.0, -10.0, -5.0, 0.0, 5.0, 15.0, 18.0, 40.0, 1e4]


@pytest.mark.parametrize("how", HOW)
def test_extreme_gates_keep_their_digits(how):
    """Potentials and gradients in float32 are those in float64, whatever the decay is."""
    torch.manual_seed(0)
    neuron, x = gated(0.0, torch.float32, 50)
    run = made(how, neuron)
    g = torch.randn(50, 2, 1)
    for bias in [*BIASES, math.inf]:
        with torch.no_grad():
            neuron.bias.fill_(bias)
        found = {}
        for dtype, each in ((torch.float32, run), (torch.float64, copy.deepcopy(neuron).double())):
            leaf = x.to(dtype).requires_grad_()
            h = each(leaf)
            own = neuron if dtype is torch.float32 else each
            grads = torch.autograd.grad(h, [leaf, own.weight, own.bias], g.to(dtype))
            found[dtype] = h.detach(), *grads

        # What float32 cannot say at all is less than its smallest number.
        for actual, expected in zip(*found.values(), strict=True):
            scale = float(expected.abs().max())
            torch.testing.assert_close(
                actual.double(), expected, rtol=1e-5, atol=4e-6 * scale + 1e-36
            )


def test_long_sequences_do_not_drift():
    """After 65,536 steps a potential is off by the roundings of what the decay still holds.

    In chunks a product of decays may underflow: then nothing is left of what came before.
    """
    torch.manual_seed(0)
    neuron, x = gated(0.0, torch.float32, 1 << 16)
    exact = copy.deepcopy(neuron).double()
    runs = [snncc.compile(exact), snncc.compile(neuron), snncc.compile(neuron, mode="scan")]
    with torch.no_grad():
        for run in runs:
            for length in (4, 7):  # after two lengths it is free
                run(x[:length].to(run.original.bias.dtype))
        for bias in (0.0, 8.0, 15.0, 40.0):
            neuron.bias.fill_(bias)
            exact.bias.fill_(bias)
            expected, *found = (run(x.to(run.original.bias.dtype)) for run in runs)
            kept = min(1.0 / -math.expm1(-4.0 * math.log1p(math.exp(-bias))), len(x))
            bound = 2.0 * torch.finfo(x.dtype).eps * kept**0.5 * float(x.abs().max())

            assert all(float((h - expected).abs().max()) <= bound for h in found)


def test_long_sequence_runs_step_by_step():
    """Steps of a stream are the sequence, without one flipped spike."""
    torch.manual_seed(0)
    neuron = DynamicDecay(2).eval()
    x = torch.rand(1000, 1, 2) * 4
    with torch.no_grad():
        fast = snncc.compile(neuron)
        whole = fast(x)
        stream = fast.stream()
        steps = torch.stack([stream(x[t]) for t in range(len(x))])

    assert torch.equal(whole, steps)
    assert len(whole.unique()) == 5


@pytest.mark.parametrize(
    "arguments", [{"channels": 0}, {"channels": 1, "tau": 0.0}, {"channels": 1, "levels": 0}]
)
def test_impossible_sizes_are_refused(arguments):
    """Sizes and the time constant are positive."""
    with pytest.raises(ValueError, match="positive"):
        DynamicDecay(**arguments)


def test_integer_spike_rounds_halves_to_even():
    """0.5 is no spike, 1.5 and 2.5 are two; the gradient passes inside of the range only."""
    x = torch.tensor([-0.5, 0.0, 0.5, 1.5, 2.5, 4.0, 4.5], requires_grad=True)
    s = IntegerSpike(4)(x)
    s.sum().backward()

    assert s.tolist() == [0.0, 0.0, 0.0, 2.0, 2.0, 4.0, 4.0]
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_psn_is_a_matrix_over_time():
    """Each potential is a weighted sum over all inputs, the future included, minus one."""
    torch.manual_seed(0)
    neuron, x = PSN(6, Rectangle()), torch.randn(6, 2, 3)

    h = torch.einsum("ts,sbn->tbn", neuron.weight, x) - 1.0
    assert torch.equal(neuron(x), (h >= 0).float())
    with pytest.raises(ValueError, match="6 steps got 5"):
        neuron(x[:5])


def test_masked_psn_becomes_causal():
    """At full strength a step sees the last k inputs; before, it sees all of them."""
    torch.manual_seed(0)
    neuron = MaskedPSN(6, 2)
    free = neuron.mixing()
    neuron.strength = 1.0
    band = neuron.mixing()

    assert torch.equal(free, neuron.weight)
    assert torch.equal(band, torch.tril(torch.triu(neuron.weight, -1)))
    assert "band" in neuron.state_dict()


def test_sliding_psn_is_a_masked_psn_with_equal_rows():
    """The weights of a sliding neuron along the diagonals of a masked one give the same spikes."""
    torch.manual_seed(0)
    sliding, masked = SlidingPSN(3), MaskedPSN(8, 3)
    masked.strength = 1.0
    with torch.no_grad():
        sliding.weight.copy_(torch.tensor([0.25, -0.5, 1.5]))
        for d, value in enumerate(sliding.weight.flip(0)):
            masked.weight.diagonal(-d).fill_(float(value))
    x = torch.randint(-4, 5, (8, 2, 5)) / 4

    assert torch.equal(sliding(x), masked(x))


def test_sliding_psn_compiles_to_one_kernel():
    """It has a state, its last inputs, so it fuses and runs at any length."""
    fast = snncc.compile(SlidingPSN(3))
    x = torch.randn(9, 2, 4, requires_grad=True)
    report = snncc.verify(fast.original, fast, x)

    assert report.ok, report
    assert len(fast.plans[0].neurons) == 1
    assert torch.equal(fast(x[:5]), fast.original(x[:5]))
