"""CUDA C++ kernels on a real GPU: values, gradients, streams and graphs.

Where there is no GPU these are skipped; ``benchmarks/gpu.py`` runs them with its measurements.
"""

import pytest
import torch

import snncc
from snncc.errors import TargetError
from snncc.nn import LIF, AdaptiveLIF, CubaLIF
from snncc.runtime.gpu.cuda_build import find_cuda_compiler
from snncc.runtime.operators import Neuron
from tests.neuron_programs import eager_lif, lif
from tests.runtime.test_neuron import LAYOUTS, STORAGES, make_neuron


def _has_compiler() -> bool:
    try:
        find_cuda_compiler()
    except TargetError:
        return False
    return True


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.skipif(torch.version.hip is not None, reason="the GPU is none of NVIDIA's"),
    pytest.mark.skipif(not _has_compiler(), reason="there is no CUDA compiler"),
    pytest.mark.filterwarnings("ignore"),
]

CHANNELS = {"learnable": True, "shape": (4, 1, 1)}
NEURONS = {
    "lif": lambda: LIF(0.9),
    "plif-channels": lambda: LIF(**CHANNELS),
    "current": lambda: CubaLIF(**CHANNELS),
    "adaptive": lambda: AdaptiveLIF(learnable=True),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("storage", ["auto", "save"])
@pytest.mark.parametrize("name", NEURONS)
def test_neurons(name, storage):
    """Every neuron gives the results of its serial code bit for bit, and its gradients."""
    neuron, x = NEURONS[name]().cuda(), torch.rand(37, 2, 4, 3, 3, device="cuda") * 1.5
    fast = snncc.compile(neuron, target="cuda", storage=storage)
    report = snncc.verify(neuron, fast, x)

    assert report.ok, report
    assert [layer.kernel for layer in fast.plans[0].neurons] == ["cuda"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("lanes", [1, 31, 1024, 4097, 2**20])
def test_sizes(lanes, storage):
    """One block and thousands, whole and with a rest, with every storage."""
    x, v0 = torch.rand(9, lanes), torch.rand(lanes)
    on_cpu = make_neuron(storage)([x], [v0])
    on_gpu = make_neuron(storage, target="cuda")([x.cuda()], [v0.cuda()])

    assert all(torch.equal(a[0].cpu(), b[0]) for a, b in zip(on_gpu, on_cpu, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    """Inputs may lie in memory in any way."""
    x, v0 = LAYOUTS[layout](6, 5, 40).cuda(), torch.rand(5, 40, device="cuda")
    (s,), (v,) = Neuron(lif(), target="cuda")([x], [v0])
    s_ref, v_ref = eager_lif(x, v0)

    assert torch.equal(s, s_ref)
    assert torch.equal(v, v_ref)


@pytest.mark.parametrize(
    ("dtype", "v0"),
    [
        (torch.float16, (640,)),
        (torch.bfloat16, (2048, 1)),
        (torch.float32, (2048, 640)),
        (torch.float32, (640,)),
        (torch.float32, ()),
        (torch.float64, (640,)),
    ],
    ids=str,
)
def test_the_two_languages_give_the_same_bits(dtype, v0):
    """Results and gradients of Triton and CUDA kernels are equal, sums over lanes included."""
    x = (torch.rand(20, 2048, 640, device="cuda") * 1.5).to(dtype)
    start = torch.full(v0, 0.3, device="cuda", dtype=dtype)
    results = []
    for target in ("triton", "cuda"):
        leaves = [x.clone().requires_grad_(), start.clone().requires_grad_()]
        (s,), (v,) = Neuron(lif(), target=target)([leaves[0]], [leaves[1]])
        gradients = torch.autograd.grad((s, v), leaves, (torch.ones_like(s), torch.ones_like(v)))
        results.append((s, v, *gradients))

    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gradients_are_deterministic():
    """Equal calls give equal bits, sums over two million lanes included."""
    neuron, x = LIF(learnable=True).cuda(), torch.rand(8, 2**21, device="cuda")
    fast = snncc.compile(neuron, target="cuda")
    first, second = (
        torch.autograd.grad(fast(x).mean(0).sum(), neuron.decay.weight)[0] for _ in range(2)
    )

    assert torch.equal(first, second)


def test_streams():
    """A kernel runs in the stream that is current, after what that stream has been given."""
    x, stream = torch.rand(64, 2**20, device="cuda"), torch.cuda.Stream()
    expected = snncc.compile(LIF(), target="cuda")(x * 2)
    fast = snncc.compile(LIF(), target="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = fast(x * 2)
    torch.cuda.current_stream().wait_stream(stream)

    assert torch.equal(y, expected)


def test_cuda_graphs():
    """A launch is recorded into a graph and replayed on new numbers."""
    fast, x = snncc.compile(LIF(), target="cuda"), torch.rand(16, 4096, device="cuda")
    with torch.no_grad():
        fast(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = fast(x)
        x.copy_(torch.rand_like(x) * 1.5)
        graph.replay()

        assert torch.equal(y, LIF()(x))
