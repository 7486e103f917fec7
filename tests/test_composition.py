"""Compiled models inside of what torch offers: autocast, torch.compile, export, checkpoints."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snncc
from snncc.ir.program import NeuronProgram
from snncc.nn import LIF, ATan
from snncc.passes.neurons import neuron_nodes
from tests.models import Feedforward

BF16 = torch.bfloat16


class Mixed(nn.Module):
    """Linear layers and neurons whose state is float32, also under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.readout, self.spike = nn.Linear(8, 6), nn.Linear(6, 4), ATan()

    def forward(self, x: Tensor) -> Tensor:
        v, total = torch.zeros(x.shape[1], 6), torch.zeros(x.shape[1], 4)
        for t in range(x.shape[0]):
            h = 0.9 * v + self.layer(x[t])
            s = self.spike(h - 0.3)
            v = h * (1.0 - s)
            total = total + self.readout(s).float()
        return torch.softmax(total, -1)


class Inside(Mixed):
    """The same, with autocast in the model."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            return super().forward(x)


class Halves(nn.Module):
    """Neurons that take the type of their input, which autocast makes bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.neuron = nn.Linear(8, 6), LIF()

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(torch.stack([self.layer(x[t]) for t in range(x.shape[0])]))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(7, 3, 8)


@pytest.fixture
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def gradients(model: nn.Module, y: Tensor) -> list[Tensor]:
    return list(
        torch.autograd.grad((y.float() * torch.arange(y.shape[-1])).sum(), [*model.parameters()])
    )


def test_autocast(x: Tensor) -> None:
    """Products run in the half type that autocast chooses, neurons as they are written."""
    net = Mixed()
    fast = snncc.compile(net)
    with torch.autocast("cpu", BF16):
        y, expected = fast(x), net(x)
        report = snncc.verify(net, fast, x)
    (plan,) = fast.plans

    assert report.ok, report
    assert y.dtype is expected.dtype is torch.float32
    # Products of all steps at once round in bfloat16 as others do.
    torch.testing.assert_close(y, expected, rtol=0, atol=2 * torch.finfo(BF16).eps)
    for a, b in zip(gradients(net, y), gradients(net, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.05 * float(b.abs().max()))
    assert [layer.numerics for layer in plan.neurons] == [snncc.Numerics.BITWISE] * 2


def test_autocast_is_a_specialisation_of_its_own(x: Tensor) -> None:
    """A call with and one without autocast run what each of them was compiled for."""
    net = Mixed()
    fast = snncc.compile(net)
    before = fast(x)
    with torch.autocast("cpu", BF16):
        other = fast(x)

    assert not torch.equal(before, other)
    assert torch.equal(fast(x), before)
    assert len(fast.plans) == 2


def test_autocast_inside_of_a_model(x: Tensor) -> None:
    """A model with an autocast of its own gives what one with autocast around it gives."""
    inside, around = Inside(), Mixed()
    around.load_state_dict(inside.state_dict())
    fast = snncc.compile(inside)

    assert snncc.verify(inside, fast, x).ok
    with torch.autocast("cpu", BF16):
        expected = snncc.compile(around)(x)

    assert torch.equal(fast(x), expected)


@pytest.mark.usefixtures("_interpreted")
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
def test_autocast_of_neurons_in_a_half_type(x: Tensor) -> None:
    """Neurons behind a product under autocast are of a half type, with a state in float32."""
    net = Halves()
    fast = snncc.compile(net, target="triton")
    with torch.autocast("cpu", BF16):
        report = snncc.verify(net, fast, x)
        y = fast(x)

    assert report.ok, report
    assert y.dtype is BF16
    assert "its state is float32" in fast.plans[0].neurons[0].note


@pytest.mark.usefixtures("_interpreted")
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
def test_spikes_are_written_in_the_type_of_their_reader(x: Tensor) -> None:
    """A product under autocast reads bfloat16, and so that is what the kernel writes."""
    net = Mixed()
    fast = snncc.compile(net, target="triton")
    with torch.autocast("cpu", BF16):
        y = fast(x.requires_grad_())
        report = snncc.verify(net, fast, x)
        (compiled,) = fast._specializations
    first = fast.plans[0].neurons[0]
    program = first_program(compiled.graph)

    assert report.ok, report
    assert [dtype for _, dtype in program.narrow] == [BF16]
    assert first.forward_bytes == 6.0
    assert first.numerics is snncc.Numerics.BITWISE
    assert len(gradients(net, y)) == 4


def first_program(graph: torch.fx.Graph) -> NeuronProgram:
    return next(neuron_nodes(graph)).target.program


def test_stream_under_autocast_is_refused(x: Tensor) -> None:
    """A stream outlives the context in which it was opened."""
    fast = snncc.compile(Mixed())
    with torch.autocast("cpu", BF16), pytest.raises(snncc.UnsupportedError) as error:
        fast.stream(x)

    assert error.value.code == "unsupported.autocast"


@pytest.mark.parametrize("reentrant", [False, True])
def test_first_call_inside_of_a_checkpoint(x: Tensor, reentrant: bool) -> None:
    """Recording is no part of what a checkpoint runs again."""
    net = Feedforward()
    x = torch.randn(6, 2, 5, requires_grad=True)
    checkpoint(snncc.compile(net), x, use_reentrant=reentrant).sum().backward()
    (expected,) = torch.autograd.grad(snncc.compile(net)(x).sum(), x)

    assert torch.equal(x.grad, expected)


@pytest.mark.filterwarnings("ignore")  # of Dynamo itself
def test_torch_compile_around_a_compiled_model(x: Tensor) -> None:
    """Code around it is compiled; the model itself runs as always, and notices what changes."""
    net = Halves()
    fast = snncc.compile(net)
    compiled = torch.compile(lambda x: fast(2 * x).mean(0), backend="aot_eager")
    before = compiled(x)
    expected = fast(2 * x).mean(0)
    net.neuron.v_threshold = 0.2
    after = compiled(x)

    assert torch.equal(before, expected)
    assert torch.equal(after, fast(2 * x).mean(0))
    assert not torch.equal(before, after)


@pytest.mark.filterwarnings("ignore")  # of Dynamo itself
def test_torch_compile_gives_gradients(x: Tensor) -> None:
    """Gradients flow through both."""
    net = Halves()
    fast = snncc.compile(net)
    compiled = torch.compile(lambda x: fast(2 * x).mean(0), backend="aot_eager")

    for a, b in zip(gradients(net, compiled(x)), gradients(net, fast(2 * x).mean(0)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")  # of Dynamo itself
def test_export(x: Tensor) -> None:
    """An exported program holds each layer of neurons as one operator."""
    net = Halves()
    fast = snncc.compile(net, example_inputs=(x,))
    program = torch.export.export(fast, (x,))
    calls = [str(node.target) for node in program.graph.nodes if "snncc" in str(node.target)]

    assert calls == ["snncc.neuron_forward.default"]
    assert torch.equal(program.module()(x), fast(x))


def test_a_compiled_function_inside_of_a_model(x: Tensor) -> None:
    """What it remembers of calls holds namespaces of Python's: recording leaves these alone."""
    layer = nn.Linear(x.shape[-1], 4)

    def spikes(x: Tensor) -> Tensor:
        v, out = torch.zeros(x.shape[1], 4), []
        for x_t in x:
            v = 0.9 * v + layer(x_t)
            s = ATan()(v - 1.0)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)

    inner = snncc.compile(spikes)
    expected, names = inner(x), dict(vars(builtins))
    model = nn.Sequential(inner, LIF(0.9), nn.Linear(4, 2))
    fast = snncc.compile(model)

    assert snncc.verify(model, fast, x).ok
    assert torch.equal(inner(x), expected)
    assert vars(builtins) == names
