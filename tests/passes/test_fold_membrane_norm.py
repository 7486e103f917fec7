"""HD-LIF and the folding of membrane norms, against published numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snncc
from snncc.ir.numerics import Numerics
from snncc.nn import HDLIF, ATan

X = [0.25, 1.0, -0.5, 1.5]
# The worked example of a membrane norm: four steps, one channel.
WEIGHT, BIAS = [1.2, 0.8, -1.0, 1.5], [0.1, 0.0, 0.2, -0.1]
MEAN, VAR = [0.1, 0.3, 0.2, 0.5], [0.25, 0.16, 0.09, 0.36]
POTENTIALS = [0.354996, 1.46622, 0.724958, 2.38748]
SPIKES = [0.0, 0.96622, 0.224958, 1.88748]
A = [1.69998, 1.49997, -1.16657, 1.74998]
B = [0.0699976, 0.299991, -0.433315, 0.674991]


def column(values):
    return torch.tensor(values, dtype=torch.float64).reshape(len(values), 1, 1)


def near(actual, expected):
    torch.testing.assert_close(actual, column(expected), rtol=1e-5, atol=1e-9)


def normed():
    neuron = HDLIF(4, 1, mem_bn=True).double().eval()
    with torch.no_grad():
        neuron.norm.weight.copy_(column(WEIGHT)[:, 0])
        neuron.norm.bias.copy_(column(BIAS)[:, 0])
        neuron.norm.running_mean.copy_(column(MEAN)[:, 0])
        neuron.norm.running_var.copy_(column(VAR)[:, 0])
    return neuron


@pytest.mark.parametrize("compiled", [False, True], ids=["serial", "compiled"])
@pytest.mark.parametrize(
    ("options", "spikes", "gradient"),
    [
        ({}, [0.0, 0.625, 0.0, 0.875], [-0.25, -0.5, 1.0, 2.0]),
        ({"online": True}, [0.0, 0.625, 0.0, 0.875], [0.0, -0.5, 0.0, 2.0]),
        ({"compress": True}, [0.0, 0.5, 0.0, 1.0], None),
    ],
    ids=["trained through time", "online", "four bits"],
)
def test_hdlif_gives_the_published_numbers(compiled, options, spikes, gradient):
    """Spikes, and the gradient with and without the state's history."""
    neuron = HDLIF(4, **options).double()
    x = column(X).requires_grad_()
    s = (snncc.compile(neuron) if compiled else neuron)(x)
    s.backward(column([1.0, -0.5, 0.25, 2.0]))

    near(s, spikes)
    if gradient is not None:
        near(x.grad, gradient)


def test_parallel_hdlif_moves_on_in_time():
    """Without a state each step has its own threshold all the same."""
    neuron = HDLIF(4, parallel=True)
    with torch.no_grad():
        neuron.threshold.copy_(torch.logit(torch.tensor([0.25, 0.5, 0.75, 0.5])))
    x = torch.ones(4, 2, 3)
    s = neuron(x)
    s.sum().backward()

    torch.testing.assert_close(s[:, 0, 0], torch.tensor([0.75, 0.5, 0.25, 0.5]))
    assert (neuron.threshold.grad != 0).all()
    assert torch.equal(snncc.compile(neuron)(x), s)


@pytest.mark.parametrize("compiled", [False, True], ids=["serial", "folded"])
def test_membrane_norm_gives_the_published_numbers(compiled):
    """One step has a negative coefficient; folded, decay and input are both scaled."""
    neuron = normed()
    fast = snncc.compile(neuron) if compiled else neuron
    with torch.no_grad():
        near(fast(column(X)), SPIKES)


def test_folded_coefficients_are_the_published_ones():
    """Without a threshold, and with one input at a time, the potential shows the coefficients."""
    neuron = normed()
    with torch.no_grad():
        neuron.threshold.fill_(-torch.inf)  # a threshold of zero, never below a potential of zero
        fast = snncc.compile(neuron)
        for t in range(4):
            x = column([0.0] * 4)
            with_none, x[t] = fast(x)[t], 1.0
            slope = fast(x)[t] - with_none
            if B[t] <= 0 <= A[t]:
                torch.testing.assert_close(slope.item(), A[t], rtol=1e-4, atol=1e-4)
    deviation = (column(VAR) + 1e-5).sqrt()
    scale = 0.5 + 0.5 * column(WEIGHT) / deviation
    shift = 0.5 * (column(WEIGHT) * column(MEAN) / deviation - column(BIAS))
    near(scale, A)
    near(shift, B)


class Spiking(nn.Module):
    """A binary neuron whose potential is normalised by one norm at all steps."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.spike = ATan()

    def forward(self, x):
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = self.norm(0.75 * v + x[t])
            s = self.spike(h - 1.0)
            v = h * (1.0 - s)
            out.append(v)
        return torch.stack(out)


class Aside(nn.Module):
    """The norm decides on spikes, and the potential is carried without it (MPBN)."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.spike = ATan()

    def forward(self, x):
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = 0.75 * v + x[t]
            s = self.spike(self.norm(h) - 0.5)
            v = h * (1.0 - s)
            out.append(h)
        return torch.stack(out)


class Deciding(Aside):
    """As before, with the spikes as the result."""

    def forward(self, x):
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = 0.75 * v + x[t]
            out.append(self.spike(self.norm(h) - 0.5))
            v = h * (1.0 - out[-1])
        return torch.stack(out)


def test_a_negative_scale_turns_no_comparison_round():
    """The norm of 0 is 0.867, above 0.5; the threshold 0.11 that it would fold into is above 0."""
    model = Deciding(1).double().eval()
    model.norm.running_mean.fill_(0.2)
    model.norm.running_var.fill_(0.09 - 1e-5)
    model.norm.weight.data.fill_(-1.0)
    model.norm.bias.data.fill_(0.2)
    x = torch.zeros(3, 1, 1, dtype=torch.float64)
    threshold = (0.5 - 0.2) * 0.3 / -1.0 + 0.2
    with torch.no_grad():
        assert model.norm(x[0]).item() == pytest.approx(0.867, abs=1e-3)
        assert threshold == pytest.approx(0.11)
        assert snncc.compile(model)(x).flatten().tolist() == [1.0, 1.0, 1.0]
        assert torch.equal(model(x), snncc.compile(model, fold_norms=True)(x))


def randomize(norm, seed):
    torch.manual_seed(seed)
    norm.running_mean.normal_()
    norm.running_var.copy_(torch.rand(norm.running_var.shape) ** 8 + 1e-7)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)


@given(st.integers(0, 10_000), st.integers(1, 4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_folded_is_unfolded(seed, channels, images):
    """Random statistics, negative scales and tiny variances: equal up to rounding."""
    neuron = HDLIF(5, channels, mem_bn=True).double().eval()
    randomize(neuron.norm, seed)
    for p in (neuron.decay, neuron.threshold, neuron.mem_ratio, neuron.bn_ratio):
        nn.init.normal_(p, std=2.0)
    x = torch.randn(5, 2, channels, *((3, 2) if images else ()), dtype=torch.float64)
    with torch.no_grad():
        fast = snncc.compile(neuron)
        torch.testing.assert_close(fast(x), neuron(x), rtol=1e-6, atol=1e-9)

    (layer,) = fast.plans[0].neurons
    assert layer.numerics is Numerics.REASSOCIATED
    assert "folded" in layer.note


@pytest.mark.parametrize(("make", "shape"), [(Spiking, (6, 2, 3, 4, 4)), (Aside, (6, 5, 3))])
def test_norms_of_binary_neurons_are_folded(make, shape):
    """Also where one norm serves all steps, and where the potential is carried without it."""
    model = make(3).double().eval()
    randomize(model.norm, 0)
    model.norm.running_var.add_(0.5)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    fast = snncc.compile(model)
    report = snncc.verify(model, fast, x)

    assert report.ok, report
    assert len(fast.plans[0].neurons) == 1


def test_folded_model_streams_and_exports(tmp_path):
    """The coefficients of each step go with the network."""
    neuron = normed().float()
    x = column(X).float()
    fast = snncc.compile(neuron)
    with torch.no_grad():
        expected = neuron(x)
        stream = fast.stream(x)
        actual = torch.stack([stream(x[t]) for t in range(4)])
    bundle = snncc.export(fast, tmp_path / "bundle", example_inputs=(x,))

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert snncc.verify_bundle(bundle.folder).ok


def test_training_mode_is_not_folded():
    """The norm runs between the fused parts of a step, with exact statistics."""
    neuron, same = HDLIF(4, 3, mem_bn=True), HDLIF(4, 3, mem_bn=True)
    x = torch.randn(4, 5, 3)
    fast = snncc.compile(neuron)
    for _ in range(2):
        assert torch.equal(fast(x), same(x))
    (layer,) = [layer for layer in fast.plans[0].layers if layer.kind == "recurrent"]

    assert torch.equal(neuron.norm.running_mean, same.norm.running_mean)
    assert torch.equal(neuron.norm.running_var, same.norm.running_var)
    assert "batch_norm at each step" in layer.note
    assert "folded" not in layer.note


def test_both_decay_and_input_are_scaled():
    """Scaling the input alone gives other spikes, as published; what is folded does not."""
    neuron = normed()
    a, b = column(A), column(B)
    v, spikes = torch.zeros(1, 1, dtype=torch.float64), []
    for t, x in enumerate(column(X)):
        m = 0.5 * v + a[t] * x - b[t]  # the decay is left as it was
        spikes.append(torch.relu(m - 0.5))
        v = m - spikes[-1]
    with torch.no_grad():
        folded = snncc.compile(neuron)(column(X))

    torch.testing.assert_close(
        torch.stack(spikes), column([0.0, 0.877, 0.767, 1.70]), rtol=5e-3, atol=1e-9
    )
    near(folded, SPIKES)


@pytest.mark.parametrize("arguments", [{"mem_bn": True}, {"mem_bn": True, "parallel": True}])
def test_norm_needs_channels_and_a_state(arguments):
    """A norm needs channels and something to normalise."""
    with pytest.raises(ValueError, match="needs 'channels'"):
        HDLIF(4, **arguments)


def test_hdlif_has_one_length():
    """Its parameters are for T steps."""
    with pytest.raises(ValueError, match="4 steps got 3"):
        HDLIF(4)(torch.zeros(3, 1, 1))
