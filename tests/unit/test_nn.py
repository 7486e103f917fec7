"""The reference neurons against values computed by hand.

The inputs and decays are dyadic, so float32 represents every potential exactly and spikes are
compared with ``==``.
"""

import math

import pytest
import torch
from torch import nn

from snncc.nn import (
    IF,
    LI,
    LIF,
    AdaptiveLIF,
    ATan,
    CubaLIF,
    FastSigmoid,
    Rectangle,
    Sigmoid,
    Triangle,
)


class Recorder(nn.Module):
    """A surrogate that also keeps the potentials it was given."""

    def __init__(self, surrogate, v_threshold):
        super().__init__()
        self.surrogate = surrogate
        self.v_threshold = v_threshold
        self.h = []

    def forward(self, x):
        self.h.append(x.item() + self.v_threshold)
        return self.surrogate(x)


def sequence(values):
    return torch.tensor(values).reshape(-1, 1)


def run(neuron, values):
    return neuron(sequence(values)).flatten().tolist()


def input_gradient(neuron, x, grad):
    x_seq = sequence(x).requires_grad_()
    neuron(x_seq).backward(sequence(grad))
    return x_seq.grad.flatten()


SOFT_INPUT = [1.5, 0.75, 0.75, 0.75]
HARD_INPUT = [0.375, 0.40625, 0.75, 0.25]
GRAD = [1.0, -0.5, 0.25, 2.0]


def soft_neuron(**options):
    return LIF(0.5, v_threshold=1.0, v_reset=None, **options)


def hard_neuron(**options):
    return LIF(0.25, v_threshold=0.5, v_reset=0.0, **options)


def test_soft_reset_potentials_and_spikes():
    """A soft reset leaves the excess over the threshold; an exact tie (second step) fires."""
    recorder = Recorder(Sigmoid(4.0), 1.0)

    assert run(soft_neuron(surrogate=recorder), SOFT_INPUT) == [1.0, 1.0, 0.0, 1.0]
    assert recorder.h == [1.5, 1.0, 0.75, 1.125]


def test_hard_reset_potentials_and_spikes():
    """A hard reset forgets the excess; an exact tie (second step) fires."""
    recorder = Recorder(Rectangle(0.5), 0.5)

    assert run(hard_neuron(surrogate=recorder), HARD_INPUT) == [0.0, 1.0, 1.0, 0.0]
    assert recorder.h == [0.375, 0.5, 0.75, 0.25]


# Expected gradients carry six decimals, so they are compared to half a unit of the last one.
@pytest.mark.parametrize(
    ("detach_reset", "expected"),
    [
        pytest.param(False, [0.274968, -0.5, 0.397354, 1.88003], id="whole"),
        pytest.param(True, [0.454131, 0.0683134, 1.13663, 1.88003], id="detached"),
    ],
)
def test_soft_reset_gradient(detach_reset, expected):
    """Backpropagation through time with the sigmoid surrogate, alpha 4."""
    neuron = soft_neuron(surrogate=Sigmoid(4.0), detach_reset=detach_reset)
    gradient = input_gradient(neuron, SOFT_INPUT, GRAD)

    torch.testing.assert_close(gradient, torch.tensor(expected), rtol=0, atol=6e-6)


@pytest.mark.parametrize(
    ("surrogate", "detach_reset", "expected"),
    [
        pytest.param(
            Rectangle(0.5), False, [0.924316, -0.484375, -0.125, 2.0], id="rectangle-whole"
        ),
        pytest.param(Rectangle(0.5), True, [0.875, -0.5, 0.25, 2.0], id="rectangle-detached"),
        pytest.param(
            Sigmoid(4.0), False, [0.859793, -0.495584, -0.0353256, 1.5729], id="sigmoid-whole"
        ),
        pytest.param(Sigmoid(4.0), True, [0.815015, -0.5, 0.196612, 1.5729], id="sigmoid-detached"),
    ],
)
def test_hard_reset_gradient(surrogate, detach_reset, expected):
    """Backpropagation through time with two surrogates, with and without the reset path."""
    neuron = hard_neuron(surrogate=surrogate, detach_reset=detach_reset)
    gradient = input_gradient(neuron, HARD_INPUT, GRAD)

    torch.testing.assert_close(gradient, torch.tensor(expected), rtol=0, atol=6e-6)


def test_reset_value_is_where_the_potential_restarts():
    """After a spike the potential is v_reset, and decays from there."""
    recorder = Recorder(ATan(), 1.0)

    assert run(LIF(0.5, v_reset=-0.5, surrogate=recorder), [1.0, 0.5, 1.0]) == [1.0, 0.0, 1.0]
    assert recorder.h == [1.0, 0.25, 1.125]


def test_no_reset_keeps_integrating():
    """With reset "none" the neuron goes on firing above the threshold."""
    assert run(LIF(0.5, reset="none"), [2.0, 0.0, 0.0]) == [1.0, 1.0, 0.0]


def test_integrate_and_fire_does_not_leak():
    """Three quarters, twice, reach the threshold."""
    assert run(IF(v_reset=None), [0.75, 0.0, 0.75, 0.5]) == [0.0, 0.0, 1.0, 1.0]


def test_current_neuron_spreads_an_input_over_steps():
    """The synaptic current survives the reset of the membrane."""
    recorder = Recorder(ATan(), 1.0)

    assert run(CubaLIF(0.5, 0.5, surrogate=recorder), [1.0, 0.0, 1.0]) == [1.0, 0.0, 1.0]
    assert recorder.h == [1.0, 0.5, 1.5]


def test_adaptive_threshold_rises_with_spikes_and_falls_back():
    """Each spike raises the threshold by the adaptation, which then decays."""
    neuron = AdaptiveLIF(0.5, 0.5, adaptation=1.0)

    assert run(neuron, [1.0, 1.5, 1.5, 1.5]) == [1.0, 0.0, 1.0, 0.0]


def test_adaptive_soft_reset_subtracts_the_raised_threshold():
    """The second spike, against threshold 1.5, takes 1.5 away."""
    recorder = Recorder(ATan(), 0.0)
    neuron = AdaptiveLIF(0.5, 0.5, adaptation=0.5, v_reset=None, surrogate=recorder)

    assert run(neuron, [1.0, 2.0, 0.0]) == [1.0, 1.0, 0.0]
    # h - threshold: 1 - 1, then 2 - 1.5, then 0.5 * 0.5 - (1 + 0.5 * 1.5)
    assert recorder.h == [0.0, 0.5, -1.5]


def test_integrator_returns_potentials():
    """A leaky integrator has no threshold."""
    assert run(LI(0.5), [1.0, 0.0, 1.0]) == [1.0, 0.5, 1.25]


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        pytest.param((), (2, 3), id="scalar"),
        pytest.param((3,), (2, 3), id="per-neuron"),
        pytest.param((3, 1, 1), (2, 3, 4, 4), id="per-channel"),
    ],
)
@pytest.mark.parametrize("neuron", [LIF, LI, CubaLIF, AdaptiveLIF])
def test_learnable_decay_starts_at_its_value_and_gets_a_gradient(neuron, shape, batch):
    """A learnable decay equals the constant one at first, and has one gradient per entry."""
    x_seq = torch.rand(5, *batch, generator=torch.Generator().manual_seed(0)) * 2
    constant = neuron(0.5)
    learnable = neuron(0.5, learnable=True, shape=shape)
    output = learnable(x_seq)
    output.sum().backward()

    # sigmoid(logit(0.5)) is exactly 0.5
    torch.testing.assert_close(output, constant(x_seq), rtol=0, atol=0)
    assert learnable.decay.weight.shape == shape
    assert bool((learnable.decay.weight.grad != 0).all())


def test_constant_decay_adds_no_parameter():
    """A constant decay is not in the state of the module."""
    assert list(LIF(0.5).state_dict()) == []
    assert list(LIF(0.5, learnable=True).state_dict()) == ["decay.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_spikes_have_shape_and_dtype_of_the_input(dtype):
    """A neuron keeps the shape [T, B, *] and the dtype."""
    spikes = LIF()(torch.ones(4, 2, 3, 5, dtype=dtype))

    assert spikes.shape == (4, 2, 3, 5)
    assert spikes.dtype == dtype


@pytest.mark.parametrize(
    ("surrogate", "x", "expected"),
    [
        pytest.param(ATan(2.0), 0.0, 1.0, id="atan-peak"),
        pytest.param(ATan(2.0), 1 / math.pi, 0.5, id="atan-half"),
        pytest.param(FastSigmoid(10.0), 0.0, 1.0, id="fast-sigmoid-peak"),
        pytest.param(FastSigmoid(10.0), -0.1, 0.25, id="fast-sigmoid-quarter"),
        pytest.param(Sigmoid(4.0), 0.0, 1.0, id="sigmoid-peak"),
        pytest.param(Sigmoid(1.0), math.log(2.0), 2 / 9, id="sigmoid-side"),
        pytest.param(Triangle(0.5, 2.0), 1.0, 0.25, id="triangle-side"),
        pytest.param(Triangle(), -1.5, 0.0, id="triangle-outside"),
        pytest.param(Rectangle(0.5), 0.25, 1.0, id="rectangle-inside"),
        pytest.param(Rectangle(0.5), 0.5, 0.0, id="rectangle-edge"),
    ],
)
def test_surrogate_derivative(surrogate, x, expected):
    """Each surrogate has the derivative its docstring states."""
    potential = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    surrogate(potential).backward()

    # float64 evaluation of a handful of operations
    assert potential.grad.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("surrogate", [ATan(), FastSigmoid(), Sigmoid(), Triangle(), Rectangle()])
def test_surrogate_fires_from_zero_on(surrogate):
    """All surrogates share the forward step, which includes zero."""
    assert surrogate(torch.tensor([-1e-30, 0.0, 1e-30])).tolist() == [0.0, 1.0, 1.0]


def test_impossible_parameters_are_refused():
    """A misspelt reset, a decay outside (0, 1) and a shape without a parameter are errors."""
    with pytest.raises(ValueError, match="'reset' is 'spike' or 'none', not 'soft'"):
        LIF(reset="soft")
    with pytest.raises(ValueError, match="starts inside"):
        LIF(1.0, learnable=True)
    with pytest.raises(ValueError, match="learnable=True"):
        LIF(0.5, shape=(3,))


def test_print_shows_the_neuron():
    """The parameters are visible in the printed module."""
    text = repr(LIF(0.25, v_reset=None, learnable=True, surrogate=Triangle(0.3)))

    assert "v_reset=None" in text
    assert "0.25, learnable=True, shape=()" in text
    assert "height=0.3, width=1.0" in text
