"""The operators of layers with Triton kernels, under everything that traces torch programs."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from snncc.ir.program import Place
from snncc.runtime.operators import Neuron
from tests.neuron_programs import lif

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore"),
]

PROGRAMS = {"scratch": lif(), "memory": lif(Place.MEMORY, saved=("h", "fire"))}


@pytest.fixture(params=PROGRAMS)
def neuron(request):
    return Neuron(PROGRAMS[request.param], target="triton")


def tensors(T=19):
    torch.manual_seed(0)
    return torch.rand(T, 3, 40, requires_grad=True), torch.rand(40, requires_grad=True)


def layer(neuron):
    def run(x, v0):
        (s,), (v,) = neuron([x * 2], [v0])
        return s.sum(0) + v

    return run


@pytest.mark.parametrize("training", [False, True])
def test_forward_operator_is_sound(neuron, training):
    """Schema, autograd, shapes without data and dynamic shapes are consistent."""
    x, v0 = tensors()

    torch.library.opcheck(
        torch.ops.snncc.neuron_forward.default, ([x], [v0], neuron.key, -1, training)
    )


def test_backward_operator_is_sound(neuron):
    """So is the backward operator."""
    x, v0 = (t.detach() for t in tensors())
    results = torch.ops.snncc.neuron_forward([x], [v0], neuron.key, -1, True)
    arguments = ([torch.rand(19, 3, 40), None], [x], [v0], results[2:], neuron.key, -1, [True] * 2)

    torch.library.opcheck(torch.ops.snncc.neuron_backward.default, arguments)


def test_torch_compile(neuron):
    """torch.compile takes a layer as one operator, with gradients, for several lengths."""
    run = layer(neuron)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for T in (19, 33):
        inputs = tensors(T)
        expected = torch.autograd.grad(run(*inputs).sum(), inputs)
        actual = torch.autograd.grad(compiled(*inputs).sum(), inputs)

        assert torch.equal(run(*inputs), compiled(*inputs))
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_make_fx_records_one_operator(neuron):
    """A trace holds the layer as one call."""
    graph = make_fx(layer(neuron))(*(t.detach() for t in tensors())).graph
    calls = [str(node.target) for node in graph.nodes if "neuron" in str(node.target)]

    assert calls == ["snncc.neuron_forward.default"]


def test_export_with_any_length_and_batch(neuron):
    """An exported program serves other lengths and batches."""

    class Model(torch.nn.Module):
        def forward(self, x):
            return layer(neuron)(x, torch.zeros(40))

    dims = {"x": {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}}
    program = torch.export.export(Model(), (torch.rand(5, 3, 40),), dynamic_shapes=dims)
    x = torch.rand(35, 2, 40)

    assert torch.equal(program.module()(x), Model()(x))


def test_activation_checkpointing(neuron):
    """A layer inside of a checkpoint is run again, with the same bits."""
    inputs = tensors()
    run = layer(neuron)
    expected = torch.autograd.grad(run(*inputs).sum(), inputs)
    again = torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=False)
    actual = torch.autograd.grad(again.sum(), inputs)

    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
