"""Soft sweeps whose last one draws its spikes from the sigmoid, in training mode."""

import copy
import pickle

import pytest
import torch
from torch import nn

import snncc
from snncc.errors import OptionError, UnsupportedError
from snncc.nn import LIF, ATan

DRAWN = {"mode": "fpt", "sweeps": 3, "spikes": "bernoulli"}
SCHEDULE = (2.0, 6.0, 12.0)


class Drawn(torch.autograd.Function):
    """A sigmoid, or a spike drawn from it; its derivative is that of a flatter sigmoid."""

    @staticmethod
    def forward(ctx, distance, steepness, uniform):
        ctx.save_for_backward(distance)
        ctx.slope = max(1.0, steepness / 3)
        p = torch.sigmoid(steepness * distance)
        return p if uniform is None else (uniform < p).to(p)

    @staticmethod
    def backward(ctx, g):
        p = torch.sigmoid(ctx.slope * ctx.saved_tensors[0])
        return g * ctx.slope * p * (1 - p), None, None


def written_out(x, decay, uniforms=None):
    """Three sweeps of a soft reset, one after another; probabilities where nothing is drawn."""
    spikes = torch.zeros_like(x)
    for sweep, steepness in enumerate(SCHEDULE):
        v, found = torch.zeros_like(x[0]), []
        for t in range(len(x)):
            h = decay * v + x[t]
            is_drawn = uniforms is not None and sweep == len(SCHEDULE) - 1
            uniform = uniforms[t] if is_drawn else None
            found.append(Drawn.apply(h - 1.0, steepness, uniform))
            v = h - spikes[t]
        spikes = torch.stack(found)
    return spikes


def network():
    """Two layers of neurons that differ in their decay."""
    torch.manual_seed(0)
    first, second = LIF(0.5, v_reset=None), LIF(0.9, v_reset=None)
    return nn.Sequential(nn.Linear(6, 8), first, nn.Dropout(0.2), nn.Linear(8, 4), second)


def seeded(run, *args):
    """Run from a seed."""
    torch.manual_seed(7)
    return run(*args)


def streamed(fast, x, *rest):
    """Run a stream over a sequence."""
    step = fast.stream(x, *rest)
    return torch.stack([step(x_t, *rest) for x_t in x])


def soft_reset(x, decay):
    """A neuron whose decay is an argument."""
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = decay * v + x[t]
        s = ATan()(h - 1.0)
        v = h - s
        out.append(s)
    return torch.stack(out)


@pytest.mark.parametrize("target", ["c", "torch"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_values_and_gradients_are_those_of_the_rule(target, batch_first):
    """Numbers are drawn by torch: one for each step and neuron, in order."""
    torch.manual_seed(0)
    memory = torch.randn(3, 17, 5, dtype=torch.float64) + 0.4
    x = memory.transpose(0, 1) if batch_first else memory.transpose(0, 1).contiguous()
    x.requires_grad_()
    decay = torch.linspace(0.2, 0.9, 5, dtype=torch.float64).requires_grad_()
    weight = torch.randn(x.shape, dtype=x.dtype)
    actual = seeded(snncc.compile(soft_reset, target=target, **DRAWN), x, decay)
    expected = written_out(x, decay, seeded(torch.rand_like, weight))
    gradients = torch.autograd.grad((actual * weight).sum(), (x, decay))
    references = torch.autograd.grad((expected * weight).sum(), (x, decay))

    assert torch.equal(actual, expected)
    assert 0.2 < float(actual.detach().mean()) < 0.8
    torch.testing.assert_close(gradients, references, rtol=1e-9, atol=1e-12)


def test_spikes_are_as_frequent_as_the_sigmoid_says():
    """The mean of many calls is the sigmoid, within five standard errors."""
    torch.manual_seed(0)
    x, calls = torch.randn(9, 40) * 0.3 + 0.9, 400
    fast = snncc.compile(LIF(0.5, v_reset=None), **DRAWN)
    mean = sum(fast(x) for _ in range(calls)) / calls
    p = written_out(x, 0.5)
    # An error of a mean; where p is almost 0 or 1, that of one spike in all calls.
    error = (p * (1 - p) / calls).sqrt().clamp(min=1 / calls)

    assert float(((mean - p).abs() / error).max()) < 5


def test_a_seed_gives_the_spikes_of_a_network():
    """The generator of torch decides, beside that of dropout; another call draws anew."""
    x, model = torch.randn(12, 3, 6) + 0.5, network()
    fast = snncc.compile(model, **DRAWN)
    again = pickle.loads(pickle.dumps(fast))
    oracle = snncc.compile(copy.deepcopy(model), target="torch", **DRAWN)
    spikes = seeded(fast, x)

    assert torch.equal(spikes, seeded(fast, x))
    assert torch.equal(spikes, seeded(again, x))
    assert torch.equal(spikes, seeded(oracle, x))
    assert not torch.equal(spikes, fast(x))
    assert "3 soft sweeps, spikes drawn" in str(fast)


@pytest.mark.parametrize("model", [network(), soft_reset])
def test_evaluation_draws_nothing(model):
    """In evaluation mode the option does nothing, whoever set the mode; a function has one too."""
    x = torch.randn(12, 3, 6) + 0.5
    args = (x,) if isinstance(model, nn.Module) else (x, torch.tensor(0.5))
    fast = snncc.compile(model, **DRAWN)
    plain = snncc.compile(model, **{**DRAWN, "spikes": "threshold"})
    fast.eval()
    plain.eval()
    before = torch.get_rng_state()
    spikes = fast(*args)

    assert torch.equal(spikes, plain(*args))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(spikes, streamed(fast, *args))


def test_a_stream_of_drawn_spikes_is_refused():
    """A step at a time would draw other numbers than the sequence."""
    x = torch.randn(12, 3, 6)
    fast = snncc.compile(LIF(0.5, v_reset=None), **DRAWN)
    with pytest.raises(UnsupportedError, match="one time step after another"):
        fast.stream(x)


@pytest.mark.parametrize(
    "options",
    [
        {"sweeps": "exact"},
        {"schedule": None},
        {"mode": "fused"},
        {"mode": "auto"},
    ],
    ids=str,
)
def test_spikes_are_drawn_by_soft_sweeps_alone(options):
    """A threshold has no probability, and the option is never ignored."""
    with pytest.raises(OptionError, match="Spikes are drawn in mode 'fpt'"):
        snncc.compile(LIF(0.5), **{**DRAWN, **options})
