"""Whole models with Triton kernels, in the interpreter."""

from types import SimpleNamespace

import pytest
import torch

import snncc
from snncc.errors import TargetError
from snncc.nn import IF, LI, LIF, AdaptiveLIF, CubaLIF, FastSigmoid, Rectangle, Sigmoid, Triangle
from snncc.options import Options
from snncc.pipeline import target_of
from tests.models import Convolutional, Feedforward, Stateful

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    # Triton 3.6 turns arrays of one element into numbers in a way that NumPy deprecates.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


NEURONS = {
    "if": IF(),
    "lif": LIF(0.9),
    "soft": LIF(v_reset=None, surrogate=Sigmoid()),
    "detached": LIF(detach_reset=True, surrogate=FastSigmoid()),
    "no-reset": LIF(reset="none", surrogate=Triangle()),
    "reset-to": LIF(v_reset=-0.25, surrogate=Rectangle()),
    "plif": LIF(learnable=True),
    "plif-channels": LIF(learnable=True, shape=(4, 1, 1)),
    "integrator": LI(learnable=True, shape=(3,)),
    "current": CubaLIF(learnable=True, shape=(4, 1, 1)),
    "adaptive": AdaptiveLIF(learnable=True),
}


@pytest.mark.parametrize("storage", ["auto", "save"])
@pytest.mark.parametrize("name", NEURONS)
def test_neurons(name, storage):
    """Every neuron gives the results of its serial code bit for bit, and its gradients."""
    neuron, x = NEURONS[name], torch.rand(18, 2, 4, 3, 3) * 1.5
    fast = snncc.compile(neuron, target="triton", storage=storage)
    report = snncc.verify(neuron, fast, x)

    assert report.ok, report
    assert [layer.kernel for layer in fast.plans[0].neurons] == ["triton"]
    assert {layer.numerics for layer in fast.plans[0].neurons} <= set(snncc.Numerics)


@pytest.mark.parametrize(
    ("model", "shape"), [(Feedforward, (6, 2, 5)), (Convolutional, (5, 3, 2, 4, 4))]
)
def test_networks(model, shape):
    """A network gives what its serial code gives, training included."""
    net, x = model().eval(), torch.randn(shape)
    fast = snncc.compile(net, target="triton")

    assert snncc.verify(net, fast, x).ok


def test_state_between_calls():
    """State that a module keeps is carried on."""
    model, other, x = Stateful(), Stateful(), torch.rand(9, 4, 5)
    fast = snncc.compile(model, target="triton")

    assert torch.equal(torch.cat([fast(x[:5]), fast(x[5:])]), other(x))


@pytest.mark.parametrize(
    ("target", "device", "chosen"),
    [
        ("auto", "cpu", "c"),
        ("auto", "cuda:1", "triton"),
        ("triton", "cuda", "triton"),
        ("triton", "cpu", "triton"),
        ("torch", "cuda", "torch"),
    ],
)
def test_target_follows_the_device(target, device, chosen):
    """Left alone, the target is C for tensors of the CPU and Triton for those of a GPU."""
    leaf = SimpleNamespace(device=torch.device(device))

    assert target_of(Options(target=target), [leaf]) == chosen


@pytest.mark.parametrize(("target", "device"), [("c", "cuda"), ("auto", "mps"), ("triton", "xpu")])
def test_device_without_kernels(target, device):
    """A device that the target has no kernels for is refused."""
    leaf = SimpleNamespace(device=torch.device(device))
    with pytest.raises(TargetError, match=f"A tensor is on '{device}'") as error:
        target_of(Options(target=target), [leaf])

    assert error.value.code == "target.device"
