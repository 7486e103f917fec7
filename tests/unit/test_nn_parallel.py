"""Neurons without reset: dynamic decay and the PSN family, against published numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snncc
from snncc.nn import PSN, DynamicDecay, IntegerSpike, MaskedPSN, Rectangle, SlidingPSN

X = [1.0, 2.5, -0.5, 3.0]


def example():
    """The worked example: kernel 4, exponent 4, four levels."""
    neuron = DynamicDecay(1, kernel_size=4, tau=0.25, levels=4).double()
    with torch.no_grad():
        neuron.weight.copy_(torch.tensor([[0.0, 0.0, 0.5, -0.25]]))
        neuron.bias.fill_(1.0)
    return neuron, torch.tensor(X, dtype=torch.float64).reshape(4, 1, 1).requires_grad_()


@pytest.mark.parametrize("compiled", [False, True], ids=["serial", "compiled"])
def test_dynamic_decay_gives_the_published_numbers(compiled):
    """Spikes and all gradients of the worked example."""
    neuron, x = example()
    run = snncc.compile(neuron) if compiled else neuron
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


@pytest.mark.parametrize("compiled", [False, True], ids=["serial", "compiled"])
def test_sequence_can_be_cut(compiled):
    """The state at the end of one part is the start of the next, gradients included."""
    torch.manual_seed(0)
    neuron = DynamicDecay(4).double()
    x = torch.randn(12, 2, 4, dtype=torch.float64, requires_grad=True)
    whole = neuron(x)
    (expected,) = torch.autograd.grad(whole.cumsum(0).sum(), x)

    run = snncc.compile(neuron.run) if compiled else neuron.run
    first, state = run(x[:5], neuron.initial(x))
    second, _ = run(x[5:], state)
    parts = torch.cat([first, second])
    (actual,) = torch.autograd.grad(parts.cumsum(0).sum(), x)

    assert torch.equal(whole, parts)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_long_sequence_runs_step_by_step():
    """Steps of a stream are the sequence, without one flipped spike."""
    torch.manual_seed(0)
    neuron = DynamicDecay(2).eval()
    x = torch.rand(3000, 1, 2) * 4
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
