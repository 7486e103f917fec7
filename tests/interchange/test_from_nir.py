"""NIR graphs become serial code that means what they say, and compile."""

from __future__ import annotations

import warnings

import nir
import numpy as np
import pytest
import torch
from torch import Tensor

import snncc
from snncc.errors import LaunchError, OptionError
from tests.interchange.graphs import DT, GRAPHS, currents, dense, lif, recurrent, weights


def inputs(shape: tuple[int, ...], T: int = 40, B: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(T, B, *shape)


@pytest.mark.parametrize("name", GRAPHS)
def test_compiles_and_is_the_serial_code(name):
    """Every graph compiles, at two sizes, with equal outputs and gradients."""
    make, shape = GRAPHS[name]
    model = snncc.from_nir(make()).double()
    fast = snncc.compile(model)
    for T, B in ((40, 3), (23, 2)):
        x = inputs(shape, T, B).double().requires_grad_()
        expected = model(x)
        (gradient,) = torch.autograd.grad(expected.square().sum(), x)
        y = fast(x)
        (found,) = torch.autograd.grad(y.square().sum(), x)

        assert torch.equal(y, expected)
        assert expected.any()
        assert gradient.any()
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)


def test_a_file_is_its_graph(tmp_path):
    """A graph may be given as a file."""
    nir.write(tmp_path / "net.nir", dense())
    x = inputs((5,))

    assert torch.equal(snncc.from_nir(tmp_path / "net.nir")(x), snncc.from_nir(dense())(x))


def run(step, x: Tensor) -> Tensor:
    """Run a model of one step over a sequence."""
    state, outputs = None, []
    for x_t in x:
        y, state = step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs)


def test_agrees_with_snntorch():
    """The importer of snnTorch, whose step is 0.1 ms, makes a network with the same spikes."""
    importer = pytest.importorskip("snntorch.import_nir")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = importer.import_from_nir(dense())
    x = inputs((5,))
    expected = run(peer, x)

    assert torch.equal(snncc.compile(snncc.from_nir(dense(), dt=1e-4))(x), expected)
    assert 0.1 < expected.mean() < 0.9


def test_agrees_with_norse():
    """The importer of Norse, whose step is 1 ms, makes a network with the same spikes."""
    norse = pytest.importorskip("norse.torch")
    graph = nir.NIRGraph.from_list(
        nir.Input(np.array([5])),
        nir.Affine(weights(8, 5) * 4, weights(8)),
        lif(8, tau=2e-2, r=1.0),
        nir.Affine(weights(3, 8) * 4, weights(3)),
        lif(3, tau=1e-2, r=1.0),
        nir.Output(np.array([3])),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = norse.from_nir(graph)
    x = inputs((5,)) * 20
    expected = run(peer, x)

    assert torch.equal(snncc.compile(snncc.from_nir(graph, dt=1e-3))(x), expected)
    assert 0.02 < expected.mean() < 0.9


def test_one_neuron_by_hand():
    """tau 2 steps, r 2, leak 0.5: v = v / 2 + x + 0.25; above 1 it resets to -1."""
    one = np.ones(1)
    node = nir.LIF(tau=one * 2, r=one * 2, v_leak=one / 2, v_threshold=one, v_reset=-one)
    graph = nir.NIRGraph.from_list(nir.Input(np.array([1])), node, nir.Output(np.array([1])))
    x = torch.tensor([0.5, 0.375, 0.5, 2.0]).reshape(4, 1, 1)
    # 0.75; 0.375 + 0.625 = 1, which is not above; 0.5 + 0.75 = 1.25; -0.5 + 2.25 = 1.75
    expected = [0.0, 0.0, 1.0, 1.0]

    assert snncc.from_nir(graph, dt=1.0)(x).flatten().tolist() == expected


def test_feedback_arrives_one_step_later():
    """In the first step a recurrent layer sees its bias alone, then its spikes of before."""
    model = snncc.from_nir(recurrent())

    assert model.delayed == {("lif", "w_rec")}
    assert model.order.index("w_rec") < model.order.index("lif")


def test_constants_are_numbers_where_they_are_equal():
    """Weights are parameters; constants are numbers, or buffers where they differ."""
    model = snncc.from_nir(dense())
    other = snncc.from_nir(currents())

    assert len(list(model.parameters())) == 3
    assert not list(model.buffers())
    assert len(list(other.buffers())) > 4


def test_a_delay_waits():
    """A delay of three steps gives zeros for three steps."""
    graph = nir.NIRGraph.from_list(
        nir.Input(np.array([2])), nir.Delay(np.full(2, 3 * DT)), nir.Output(np.array([2]))
    )
    x = inputs((2,), T=5)
    y = snncc.from_nir(graph)(x)

    assert torch.equal(y, torch.cat([torch.zeros(3, 3, 2), x[:2]]))


def broken(change: str):
    """Return a graph with a fault."""
    graph = dense() if change != "cycle" else recurrent()
    match change:
        case "unknown":
            graph.edges.append(("lif", "nobody"))
        case "lonely":
            graph.nodes["alone"] = lif(3)
        case "cycle":
            graph.nodes["lif"] = nir.Linear(weights(8, 8))
        case "short":
            graph.nodes["lif"] = lif(8, tau=DT / 2)
        case "delay":
            graph.nodes["lif"] = nir.Delay(np.linspace(0, 2 * DT, 8))
        case "output":
            del graph.nodes["output"]
            graph.edges = [e for e in graph.edges if "output" not in e]
    return graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unknown", "'nobody', which is not there"),
        ("lonely", "Nothing arrives at node 'alone'"),
        ("cycle", "holds no neuron"),
        ("short", "is not longer than a step"),
        ("delay", "not all the same number of steps"),
        ("output", "no input or no output"),
    ],
)
def test_a_graph_without_meaning_is_refused(change, message):
    """What is in the way is said."""
    with pytest.raises(OptionError, match=message):
        snncc.from_nir(broken(change))


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x89HDF\r\n\x1a\n" + bytes(64)])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content):
    """A damaged file is an error, not a crash."""
    path = tmp_path / "net.nir"
    path.write_bytes(content)
    with pytest.raises(OptionError, match="cannot be read"):
        snncc.from_nir(path)
    with pytest.raises(OptionError, match="cannot be read"):
        snncc.from_nir(tmp_path / "nowhere.nir")
    with pytest.raises(OptionError, match="no NIR graph"):
        snncc.from_nir(42)
    with pytest.raises(OptionError, match="a finite number above 0"):
        snncc.from_nir(dense(), dt=0.0)


def test_the_number_of_inputs_is_checked():
    """A graph of one input takes one sequence."""
    with pytest.raises(LaunchError, match="has 1 inputs, not 2"):
        snncc.from_nir(dense())(inputs((5,)), inputs((5,)))
