"""Whole models with kernels for GPUs, in an interpreter or on the CPU."""

import math
from types import SimpleNamespace

import pytest
import torch

import snncc
from snncc.compilation.pipeline import target_of
from snncc.errors import TargetError, UnsupportedError
from snncc.ir.sequence_ops import mean_factor
from snncc.nn import (
    IF,
    LI,
    LIF,
    AdaptiveLIF,
    CubaLIF,
    DynamicDecay,
    FastSigmoid,
    Rectangle,
    Sigmoid,
    Triangle,
)
from snncc.options import Options
from snncc.passes.neurons import neuron_nodes
from tests.models import Convolutional, Feedforward, Stateful
from tests.recurrent_models import N, OwnSpikes

pytestmark = [
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
    "dynamic decay": DynamicDecay(4),
}


@pytest.mark.parametrize("storage", ["auto", "save"])
@pytest.mark.parametrize("name", NEURONS)
def test_neurons(name, storage, target):
    """Every neuron gives the results of its serial code bit for bit, and its gradients."""
    neuron, x = NEURONS[name], torch.rand(18, 2, 4, 3, 3) * 1.5
    fast = snncc.compile(neuron, target=target, storage=storage)
    report = snncc.verify(neuron, fast, x)

    assert report.ok, report
    assert [layer.kernel for layer in fast.plans[0].neurons] == [target]
    assert {layer.numerics for layer in fast.plans[0].neurons} <= set(snncc.Numerics)


@pytest.mark.parametrize(
    ("model", "shape"), [(Feedforward, (6, 2, 5)), (Convolutional, (5, 3, 2, 4, 4))]
)
def test_networks(model, shape, target):
    """A network gives what its serial code gives, training included."""
    net, x = model().eval(), torch.randn(shape)
    fast = snncc.compile(net, target=target)

    assert snncc.verify(net, fast, x).ok


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["lif", "plif-channels", "current", "integrator"])
def test_half_types(name, dtype, target):
    """A model in a half type keeps its states in float32, and says that this is not its own code.

    Structure is compared with every operation rounded as the serial code rounds it.
    """
    make = {
        "lif": lambda: LIF(0.9),
        "plif-channels": lambda: LIF(learnable=True, shape=(4, 1, 1)),
        "current": lambda: CubaLIF(learnable=True, shape=(4, 1, 1)),
        "integrator": lambda: LI(learnable=True, shape=(3,)),
    }[name]
    neuron = make().to(dtype)
    x = (torch.rand(18, 2, 4, 3, 3) * 1.5).to(dtype)
    fast = snncc.compile(neuron, target=target)
    report = snncc.verify(neuron, fast, x)
    (layer,) = fast.plans[0].neurons

    assert report.ok, report
    assert fast(x).dtype is dtype
    assert layer.numerics is snncc.Numerics.REASSOCIATED
    assert "its state is float32" in layer.note
    assert layer.forward_bytes == 4.0


def test_half_state_is_closer_to_the_real_numbers(target):
    """A sum that a half type cannot hold is one that a kernel's state holds."""
    x = torch.full((600, 3), 1.0, dtype=torch.bfloat16)
    fast = snncc.compile(Sum(), target=target)

    assert torch.equal(fast(x), torch.full((3,), 600.0, dtype=torch.bfloat16))
    assert torch.equal(Sum()(x), torch.full((3,), 256.0, dtype=torch.bfloat16))


class Sum(torch.nn.Module):
    def forward(self, x):
        v = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            v = v + x[t]
        return v


class Wide(torch.nn.Module):
    """Neurons with a state in float32 that read half inputs."""

    def forward(self, x):
        v = torch.zeros(x.shape[1:])
        spikes = []
        for t in range(x.shape[0]):
            v = 0.9 * v + x[t]
            s = (v > 1.0).float()
            v = v * (1.0 - s)
            spikes.append(s)
        return torch.stack(spikes)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_inputs_of_a_float32_state_are_exact(dtype, target):
    """A half input is converted without rounding: the layer is bitwise, and nothing is copied."""
    x = (torch.rand(9, 2, 40) * 1.5).to(dtype)
    fast = snncc.compile(Wide(), target=target)

    assert torch.equal(fast(x), Wide()(x))
    assert fast.plans[0].numerics is snncc.Numerics.BITWISE
    assert snncc.verify(Wide(), fast, x).ok


class Counting(torch.nn.Module):
    def forward(self, x):
        count = torch.zeros(x.shape[1:], dtype=torch.int64)
        v = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            v = (v + x[t]) * (count < 300)
            count = count + (v > 1.0).long()
        return count


def test_counts_beside_half_types_run_step_by_step(target):
    """A count over 256 is no bfloat16, in which the kernel of a neuron would hand it out."""
    x = torch.rand(300, 2, 5).half()
    fast = snncc.compile(Counting(), target=target)

    assert torch.equal(fast(x), Counting()(x))
    assert [line.form for line in fast.plans[0].layers] == ["step by step, fused"]


def test_half_types_on_the_cpu_are_refused():
    """C kernels compute in float32 and float64."""
    with pytest.raises(UnsupportedError, match=r"computes in torch\.bfloat16"):
        snncc.compile(LIF())(torch.rand(9, 2, 40).bfloat16())


def test_state_between_calls(target):
    """State that a module keeps is carried on."""
    model, other, x = Stateful(), Stateful(), torch.rand(9, 4, 5)
    fast = snncc.compile(model, target=target)

    assert torch.equal(torch.cat([fast(x[:5]), fast(x[5:])]), other(x))


@pytest.mark.parametrize(
    ("wanted", "device", "chosen"),
    [
        ("auto", "cpu", "c"),
        ("auto", "cuda:1", "triton"),
        ("triton", "cuda", "triton"),
        ("triton", "cpu", "triton"),
        ("cuda", "cuda:0", "cuda"),
        ("torch", "cuda", "torch"),
    ],
)
def test_target_follows_the_device(wanted, device, chosen):
    """Left alone, the target is C for tensors of the CPU and Triton for those of a GPU."""
    leaf = SimpleNamespace(device=torch.device(device))

    assert target_of(Options(target=wanted), [leaf]) == chosen


@pytest.mark.parametrize(("wanted", "device"), [("c", "cuda"), ("auto", "mps"), ("triton", "xpu")])
def test_device_without_kernels(wanted, device):
    """A device that the target has no kernels for is refused."""
    leaf = SimpleNamespace(device=torch.device(device))
    with pytest.raises(TargetError, match=f"A tensor is on '{device}'") as error:
        target_of(Options(target=wanted), [leaf])

    assert error.value.code == "target.device"


def test_recurrent_loops_in_half_types_on_the_cpu_are_refused():
    """C kernels compute in float32 and float64, and the message says so."""
    net, x = OwnSpikes().bfloat16(), torch.rand(6, 2, N).bfloat16()
    with pytest.raises(UnsupportedError, match=r"it is torch\.bfloat16") as error:
        snncc.compile(net)(x)

    assert error.value.code == "unsupported.serial-recurrence"
    assert torch.equal(snncc.compile(net, fallback="serial")(x), net(x))


class Rate(torch.nn.Module):
    """Firing rates, which the neurons count."""

    def __init__(self):
        super().__init__()
        self.neuron = LIF(0.9)

    def forward(self, x):
        s = self.neuron(x)
        return s.mean(0), s.sum(0)


def test_rates_are_counted(target):
    """Sums and means of spikes come from the kernel, in both languages."""
    x = (torch.rand(7, 2, 40) * 1.5).requires_grad_()
    fast = snncc.compile(Rate(), target=target)
    rates, counts = fast(x)
    expected, reference = Rate()(x)
    (node,) = neuron_nodes(fast.specialize(x).graph)
    (gradient,) = torch.autograd.grad((rates + counts).sum(), x)
    (wanted,) = torch.autograd.grad((expected + reference).sum(), x)

    assert not node.target.program.forward.outputs
    assert torch.equal(rates, expected)
    assert torch.equal(counts, reference)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize(("T", "lanes"), [(7, 64), (17, 2**20 + 3), (3, 2**23 + 1), (11, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_factor_of_a_mean(dtype, T, lanes):
    """On a GPU a mean is a sum times a quotient of rounded numbers, as torch computes it there."""
    rounded = torch.tensor(float(lanes), dtype=dtype) / torch.tensor(float(lanes * T), dtype=dtype)

    assert mean_factor(lanes, T, dtype) == float(rounded)


def test_means_of_nothing():
    """A mean of no steps is no number; where there are no lanes there is none to multiply."""
    assert math.isnan(0.0 * mean_factor(5, 0, torch.float32))
    assert mean_factor(0, 5, torch.float32) == 1.0
