"""The operators under everything that traces torch programs."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from snncc.errors import LaunchError
from snncc.ir.program import Place
from snncc.runtime.operators import Neuron
from tests.neuron_programs import lif

PROGRAMS = {"scratch": lif(), "memory": lif(Place.MEMORY, saved=("h", "fire"))}


@pytest.fixture(params=PROGRAMS)
def neuron(request):
    return Neuron(PROGRAMS[request.param])


def tensors():
    torch.manual_seed(0)
    return torch.rand(5, 3, 40, requires_grad=True), torch.rand(40, requires_grad=True)


def layer(neuron):
    def run(x, v0):
        (s,), (v,) = neuron([x * 2], [v0])
        return s.sum(0) + v

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
def test_forward_operator_is_sound(neuron, training):
    """Schema, autograd, shapes without data and dynamic shapes are consistent."""
    x, v0 = tensors()
    arguments = ([x], [v0], neuron.key, -1, training)

    torch.library.opcheck(torch.ops.snncc.neuron_forward.default, arguments)


@pytest.mark.filterwarnings("ignore")
def test_backward_operator_is_sound(neuron):
    """So is the backward operator."""
    x, v0 = (t.detach() for t in tensors())
    results = torch.ops.snncc.neuron_forward([x], [v0], neuron.key, -1, True)
    cotangents = [torch.rand(5, 3, 40), None]
    arguments = (cotangents, [x], [v0], results[2:], neuron.key, -1, [True, True])

    torch.library.opcheck(torch.ops.snncc.neuron_backward.default, arguments)


@pytest.mark.filterwarnings("ignore")
def test_torch_compile(neuron):
    """torch.compile takes a layer as one operator, with gradients."""
    run, inputs = layer(neuron), tensors()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(run(*inputs).sum(), inputs)
    actual = torch.autograd.grad(compiled(*inputs).sum(), inputs)

    assert torch.equal(run(*inputs), compiled(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_make_fx_records_one_operator(neuron):
    """A trace holds the layer as one call."""
    graph = make_fx(layer(neuron))(*(t.detach() for t in tensors())).graph
    calls = [str(node.target) for node in graph.nodes if "neuron" in str(node.target)]

    assert calls == ["snncc.neuron_forward.default"]


@pytest.mark.filterwarnings("ignore")
def test_export_with_any_length_and_batch():
    """An exported program serves other lengths and batches."""

    class Model(torch.nn.Module):
        def forward(self, x):
            return layer(Neuron(lif()))(x, torch.zeros(40))

    dims = {"x": {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}}
    program = torch.export.export(Model(), (torch.rand(5, 3, 40),), dynamic_shapes=dims)
    x = torch.rand(9, 2, 40)

    assert torch.equal(program.module()(x), Model()(x))


def test_operator_and_function_agree(neuron):
    """Gradients of the operator are those of the eager path."""
    inputs = tensors()
    results = torch.ops.snncc.neuron_forward([inputs[0]], [inputs[1]], neuron.key, -1, True)
    weight = torch.rand_like(results[0])
    (s,), _ = neuron([inputs[0]], [inputs[1]])
    expected = torch.autograd.grad((s * weight).sum(), inputs)
    actual = torch.autograd.grad((results[0] * weight).sum(), inputs)

    assert torch.equal(results[0], s)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_unknown_neuron():
    """An operator call that names no layer of this process says so."""
    with pytest.raises(LaunchError, match="There is no neuron 'nobody'"):
        torch.ops.snncc.neuron_forward([torch.rand(2, 2)], [], "nobody", -1, False)
