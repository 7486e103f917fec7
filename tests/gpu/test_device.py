"""Triton kernels on a real GPU: values, gradients, and torch's ways to run a layer.

Where there is no GPU these are skipped; ``benchmarks/gpu.py`` runs them with its measurements.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import snncc
from snncc.nn import IF, LI, LIF, AdaptiveLIF, CubaLIF, FastSigmoid, Rectangle, Sigmoid
from snncc.runtime.operators import Neuron
from tests.models import Convolutional, Feedforward, Stateful
from tests.neuron_programs import eager_lif, lif
from tests.recurrent_models import Convolved, N, OwnSpikes
from tests.runtime.test_neuron import LAYOUTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore"),
]

CHANNELS = {"learnable": True, "shape": (4, 1, 1)}
NEURONS = {
    "if": IF,
    "lif": lambda: LIF(0.9),
    "soft": lambda: LIF(v_reset=None, surrogate=Sigmoid()),
    "detached": lambda: LIF(detach_reset=True, surrogate=FastSigmoid()),
    "reset-to": lambda: LIF(v_reset=-0.25, surrogate=Rectangle()),
    "plif": lambda: LIF(learnable=True),
    "plif-channels": lambda: LIF(**CHANNELS),
    "integrator": lambda: LI(learnable=True, shape=(3,)),
    "current": lambda: CubaLIF(**CHANNELS),
    "adaptive": lambda: AdaptiveLIF(learnable=True),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def differentiate(run, x, leaves):
    """Return the result of a run and its gradients, for cotangents that depend on nothing."""
    y = run(x)
    g = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
    return y, torch.autograd.grad(y, leaves, g)


@pytest.mark.parametrize("storage", ["auto", "save"])
@pytest.mark.parametrize("T", [1, 3, 18, 70])
@pytest.mark.parametrize("name", NEURONS)
def test_neurons(name, T, storage):
    """Every neuron gives the results of its serial code bit for bit, and its gradients."""
    neuron, x = NEURONS[name]().cuda(), torch.rand(T, 2, 4, 3, 3, device="cuda") * 1.5
    fast = snncc.compile(neuron, storage=storage)
    report = snncc.verify(neuron, fast, x)

    assert report.ok, report
    assert [layer.kernel for layer in fast.plans[0].neurons] == ["triton"]


@pytest.mark.parametrize("lanes", [1, 31, 1024, 4097, 2**20])
def test_sizes(lanes):
    """One program and thousands, whole and with a rest."""
    x = (torch.rand(9, lanes, device="cuda") * 1.5).requires_grad_()
    neuron = LIF()
    spikes, (gradient,) = differentiate(snncc.compile(neuron), x, [x])
    expected, (reference,) = differentiate(neuron, x, [x])

    assert torch.equal(spikes, expected)
    torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    """Inputs may lie in memory in any way."""
    x = LAYOUTS[layout](6, 5, 40).cuda()
    v0 = torch.rand(5, 40, device="cuda")
    (s,), (v,) = Neuron(lif(), target="triton")([x], [v0])
    s_ref, v_ref = eager_lif(x, v0)

    assert torch.equal(s, s_ref)
    assert torch.equal(v, v_ref)


def test_equal_to_the_cpu():
    """Spikes are those of the C kernel on the CPU."""
    x = torch.rand(40, 7, 333) * 1.5
    neuron = LIF(0.9)

    assert torch.equal(snncc.compile(neuron)(x.cuda()).cpu(), snncc.compile(neuron)(x))


@pytest.mark.parametrize("model", [Feedforward, Convolutional])
def test_networks(model):
    """A network gives what its serial code gives, training included."""
    shape = (6, 2, 5) if model is Feedforward else (5, 3, 2, 4, 4)
    net, x = model().eval().cuda(), torch.randn(shape, device="cuda")
    fast = snncc.compile(net)

    assert snncc.verify(net, fast, x).ok


def test_state_between_calls():
    """State that a module keeps stays on the device."""
    model, other, x = Stateful().cuda(), Stateful().cuda(), torch.rand(9, 4, 5, device="cuda")
    fast = snncc.compile(model)

    assert torch.equal(torch.cat([fast(x[:5]), fast(x[5:])]), other(x))


def test_gradients_are_deterministic():
    """Equal calls give equal bits, sums over two million lanes included."""
    neuron = LIF(learnable=True).cuda()
    x = torch.rand(8, 2**21, device="cuda")
    fast = snncc.compile(neuron)
    first, second = (differentiate(fast, x, [neuron.decay.weight])[1][0] for _ in range(2))

    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_have_a_state_in_float32(dtype):
    """Half types are read and written; between them the numbers are those of float32."""
    x = (torch.rand(19, 3, 40, device="cuda") * 1.5).to(dtype).requires_grad_()
    v0 = torch.rand(40, device="cuda").to(dtype)
    (s,), (v,) = Neuron(lif(), target="triton")([x], [v0])
    s_ref, v_ref = eager_lif(x.float(), v0.float())

    assert s.dtype == v.dtype == dtype
    assert torch.equal(s.float(), s_ref)
    assert torch.equal(v, v_ref.to(dtype))


def test_streams():
    """Kernels run in the current stream, after what is in it."""
    neuron, stream = LIF(), torch.cuda.Stream()
    fast, x = snncc.compile(neuron), torch.zeros(16, 2**20, device="cuda")
    fast(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.fill_(1.5)
        spikes = fast(x)
    stream.synchronize()

    assert torch.equal(spikes, torch.ones_like(x))


def test_cuda_graph_of_inference():
    """A captured call is replayed on new values."""
    neuron, x = LIF(0.9), torch.rand(12, 4096, device="cuda")
    fast = snncc.compile(neuron)
    with torch.no_grad():
        fast(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            spikes = fast(x)
        x.copy_(torch.rand_like(x) * 2)
        graph.replay()

        assert torch.equal(spikes, neuron(x))


def test_cuda_graph_of_training():
    """So is a training step."""
    neuron = LIF(0.9, learnable=True).cuda()
    x = torch.rand(12, 4096, device="cuda")
    fast = snncc.compile(neuron)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            fast(x).sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    neuron.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fast(x).sum().backward()
    x.copy_(torch.rand_like(x) * 2)
    graph.replay()
    expected = torch.autograd.grad(neuron(x).sum(), neuron.decay.weight)

    torch.testing.assert_close(neuron.decay.weight.grad, expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["triton", "cuda"])
@pytest.mark.parametrize(("T", "lanes"), [(7, 64), (17, 2**20 + 3), (3, 2**23 + 1)])
def test_means_over_time(T, lanes, target):
    """A mean that a neuron counts is the one that torch takes, whatever number it counts to."""

    class Rate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = LIF(0.9)

        def forward(self, x):
            return self.neuron(x).mean(0)

    x = torch.rand(T, lanes, device="cuda") * 1.5
    with torch.no_grad():
        assert torch.equal(snncc.compile(Rate(), target=target)(x), Rate()(x))


RECURRENT = {"own spikes": (OwnSpikes, (3, N)), "convolution": (Convolved, (3, 4, 3, 5))}


@pytest.mark.parametrize("target", ["triton", "cuda"])
@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_loops(name, T, target):
    """A step is a product of torch and one kernel: values and gradients are those of the code."""
    make, sizes = RECURRENT[name]
    model, x = make().cuda(), torch.randn(T, *sizes, device="cuda")
    fast = snncc.compile(model, target=target)
    report = snncc.verify(model, fast, x.requires_grad_())
    (line,) = (layer for layer in fast.plans[0].layers if layer.kind == "recurrent")

    assert report.ok, report
    assert line.kernel == target


def test_cuda_graph_of_a_recurrent_loop():
    """All steps of a loop, forward and backward, are captured and replayed on new values."""
    model, x = OwnSpikes().cuda(), torch.randn(9, 32, N, device="cuda")
    fast = snncc.compile(model)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            fast(x).sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spikes = fast(x)
        spikes.sum().backward()
    x.copy_(torch.randn_like(x) * 2)
    graph.replay()
    expected = model(x)
    (reference,) = torch.autograd.grad(expected.sum(), model.back.weight)

    assert (spikes != expected).float().mean() < 0.01
    torch.testing.assert_close(model.back.weight.grad, reference, rtol=1e-2, atol=1e-2)


def test_exported_library(tmp_path):
    """A library with binaries for this GPU runs its test vector on it."""
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    model, x = OwnSpikes().eval(), torch.randn(9, 1, N)
    fast = snncc.compile(model)
    bundle = snncc.export(
        fast, tmp_path / "net", format="cuda", arch=arch, example_inputs=(x,), name="net"
    )
    report = snncc.verify_bundle(bundle.folder)

    assert report.ran, report
    assert report.ok, report


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_other_devices():
    """Tensors of a device that is not the current one run on their own."""
    neuron, x = LIF(0.9), torch.rand(12, 4096, device="cuda:1")
    spikes = snncc.compile(neuron)(x)

    assert spikes.device == x.device
    assert torch.equal(spikes, neuron(x))


def test_torch_compile():
    """torch.compile with its own backend takes a layer as one operator."""
    neuron, x = LIF(), torch.rand(9, 5, 64, device="cuda", requires_grad=True)
    fast = snncc.compile(neuron, example_inputs=(x,))
    compiled = torch.compile(lambda x: fast(2 * x).mean(0))
    y, (gradient,) = differentiate(compiled, x, [x])
    expected, (reference,) = differentiate(lambda x: neuron(2 * x).mean(0), x, [x])

    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    """A layer inside of a checkpoint is run again, with the same bits."""
    neuron = LIF()
    x = torch.rand(9, 5, 64, device="cuda", requires_grad=True)
    fast = snncc.compile(neuron, example_inputs=(x,))
    run = lambda x: checkpoint(fast, x, use_reentrant=reentrant)  # noqa: E731
    x.grad = None
    run(x).sum().backward()
    (expected,) = torch.autograd.grad(fast(x).sum(), x)

    assert torch.equal(x.grad, expected)
