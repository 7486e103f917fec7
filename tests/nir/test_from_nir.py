"""NIR graphs become serial code that means what they say, and compile."""

from __future__ import annotations

import itertools
import re
import warnings

import nir
import numpy as np
import pytest
import torch
from torch import Tensor

import snncc
from snncc.errors import LaunchError, OptionError
from snncc.nir import checks
from tests.nir.graphs import (
    DT,
    GRAPHS,
    currents,
    dense,
    lif,
    nested,
    recurrent,
    weights,
)


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


def refusal_of(make) -> str:
    """Return what is said of what cannot be."""
    with pytest.raises(OptionError) as caught:
        make()

    assert caught.value.code == "option.nir"
    return str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((9, 3, 5), (9, 3, 5)), "has 1 inputs, not 2"),
        (((9, 3, 6),), r"'input' takes \[T, B, 5\], not \[9, 3, 6\]"),
        (((9, 3, 1),), "takes"),
        (((9,),), "takes"),
        (((0, 3, 5),), "takes"),
    ],
)
def test_other_inputs_are_refused(shapes, message):
    """Neither serially nor compiled is anything broadcast."""
    model = snncc.from_nir(dense())
    x = [torch.rand(shape) for shape in shapes]
    for run_model in (model, snncc.compile(model)):
        with pytest.raises(LaunchError, match=message):
            run_model(*x)


def test_inputs_of_several_lengths_are_refused():
    """All sequences have one length and one batch."""
    nodes = {"a": nir.Input(np.array([3])), "b": nir.Input(np.array([3])), "lif": lif(3)}
    nodes["output"] = nir.Output(np.array([3]))
    model = snncc.from_nir(nir.NIRGraph(nodes, [("a", "lif"), ("b", "lif"), ("lif", "output")]))
    fast = snncc.compile(model)
    for T, B in ((9, 2), (7, 3)):
        x, y = inputs((3,), T, B), inputs((3,), T, B) * 0.5

        assert torch.equal(fast(x, y), model(x, y))
    with pytest.raises(LaunchError, match="'b' takes"):
        model(inputs((3,), 9), inputs((3,), 8))
    with pytest.raises(LaunchError, match="'b' takes"):
        fast(inputs((3,), B=2), inputs((3,), B=1))


def change(node: object, **values: object) -> object:
    """Return a node with other values, unchecked."""
    node.__dict__ |= values
    return node


def pool(**values: object) -> object:
    """Return a pooling with other values."""
    made = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    return change(made, **values)


def conv(**values: object) -> object:
    """Return a convolution with other values."""
    return change(nir.Conv2d((8, 8), weights(4, 2, 3, 3), 1, 1, 1, 1, weights(4)), **values)


HOSTILE = {
    "nan": (lambda: change(lif(8), v_threshold=np.full(8, np.nan)), "not finite"),
    "inf": (lambda: nir.Linear(np.full((8, 5), np.inf)), "not finite"),
    "huge": (lambda: change(lif(8), r=np.full(8, 1e300)), "not finite"),
    "complex": (lambda: nir.Linear(np.full((8, 5), 1j)), "not made of real numbers"),
    "words": (lambda: change(lif(8), tau=np.array(["a"] * 8)), "not made of real numbers"),
    "objects": (lambda: change(lif(8), tau=None), "not made of real numbers"),
    "nothing": (lambda: nir.Linear(np.zeros((0, 5))), "is empty"),
    "vector": (lambda: change(nir.Linear(weights(8, 5)), weight=weights(8)), "cannot be read"),
    "bias": (lambda: change(nir.Affine(weights(8, 5), weights(8)), bias=weights(1)), "shape"),
    "fields": (lambda: change(lif(8), r=np.ones(5), v_leak=np.zeros(8)), "do not fit together"),
    "current": (
        lambda: change(currents().nodes["cubalif"], tau_syn=np.ones(8), w_in=np.ones(8)),
        "another shape than its membrane",
    ),
    "narrow": (lambda: lif(3), r"does not take \[5\], which arrives: it has elements \[3\]"),
    "one": (lambda: change(nir.Scale(weights(1, 5)), scale=weights(1, 5)), "does not take"),
    "axes": (lambda: conv(), "takes 3 axes"),
    "groups": (lambda: conv(groups=0), "whole numbers from 1"),
    "stride": (lambda: conv(stride=0.5), "whole numbers from 1"),
    "padding": (lambda: conv(padding="around"), "cannot be read"),
    "many axes": (lambda: conv(dilation=(1, 1, 1)), "does not take"),
    "window": (lambda: pool(kernel_size=np.array([0, 2])), "whole numbers from 1"),
    "flatten": (lambda: nir.Flatten({"input": np.array([5])}, 0, 3), "merges axes"),
    "batch": (lambda: nir.Flatten({"input": np.array([5])}, -2, -1), "merges axes"),
    "wait": (lambda: nir.Delay(np.full(5, 1e3)), "waits for 10000000 steps"),
    "past": (lambda: nir.Delay(np.full(5, -1.0)), "not all the same number"),
    "unknown": (lambda: type("Oscillator", (), {})(), "Oscillator, for which"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_nodes_are_refused(case):
    """No node is read as something else than it says, and none is a crash."""
    make, message = HOSTILE[case]
    nodes = {"input": nir.Input(np.array([5])), "n": make(), "output": nir.Output(np.array([5]))}
    graph = nir.NIRGraph(nodes, [("input", "n"), ("n", "output")], type_check=False)

    assert re.search(message, refusal_of(lambda: snncc.from_nir(graph)))


def deep(count: int):
    """Return graphs in graphs."""
    made = dense()
    for _ in range(count):
        nodes = {"input": nir.Input(np.array([5])), "g": made, "output": nir.Output(np.array([3]))}
        made = nir.NIRGraph(nodes, [("input", "g"), ("g", "output")], type_check=False)
    return made


def edited(nodes: dict[str, object], *edges: tuple[str, ...], make=dense):
    """Return a graph with more nodes and arrows, unchecked."""
    graph = make()
    graph.nodes |= nodes
    graph.edges = [*graph.edges, *edges]
    return graph


STRUCTURES = {
    "into an input": (lambda: edited({}, ("lif", "input")), "leads into the input 'input'"),
    "out of an output": (lambda: edited({}, ("output", "lif")), "leaves the output 'output'"),
    "three ends": (lambda: edited({}, ("lif", "output", "lif")), "is no arrow"),
    "two shapes": (lambda: edited({}, ("input", "lif_1")), "has several shapes"),
    "twice": (lambda: edited({"block.lif": lif(3)}, make=nested), "Two nodes are called"),
    "no door": (
        lambda: edited({"block": nested().nodes["block"]}, make=dense),
        "Nothing arrives at node 'block.input'",
    ),
    "itself": (lambda: edited({"output": lif(3)}), "no input or no output"),
    "deep": (lambda: deep(200), "more than 100 times"),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_hostile_structures_are_refused(case):
    """Nothing is left out, and nothing is put in another place."""
    make, message = STRUCTURES[case]

    assert message in refusal_of(lambda: snncc.from_nir(make()))


def test_a_size_that_nobody_says_is_refused():
    """Weights say how many neurons there are; without them nothing may be sent later."""
    one = nir.LIF(*(np.array(n) for n in (2e-3, 20.0, 0.0, 1.0, 0.0)))
    known = edited({"lif": one}, make=recurrent)
    unknown = edited({"w_rec": nir.Scale(np.array(0.5)), "input": nir.Input({"input": None})})
    unknown.nodes |= {"linear": nir.Scale(np.array(2.0)), "lif": one}
    unknown.nodes = {n: unknown.nodes[n] for n in ("input", "lif", "w_rec", "output")}
    unknown.edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]

    assert snncc.from_nir(known).shapes["lif"] == (8,)
    assert "Nothing says the shape" in refusal_of(lambda: snncc.from_nir(unknown))


def test_names_may_be_those_of_methods():
    """Names that differ in a dot, or that a dictionary of modules has, are names like any other."""
    names = ("a.b", "a/b", "keys", "training", "")
    nodes = {"input": nir.Input(np.array([5]))} | {n: nir.Scale(np.full(5, 2.0)) for n in names}
    nodes["output"] = nir.Output(np.array([5]))
    chain = ["input", *names, "output"]
    model = snncc.from_nir(nir.NIRGraph(nodes, list(itertools.pairwise(chain))))
    x = inputs((5,))

    assert torch.equal(model(x), 32 * x)


def test_numbers_of_one_element_hold_for_all():
    """A neuron with one number for a whole layer, as some exporters write it."""
    graph = edited({"lif": nir.LIF(*(np.array(n) for n in (2e-3, 20.0, 0.0, 1.0, 0.0)))})
    x = inputs((5,))

    assert torch.equal(snncc.from_nir(graph)(x), snncc.from_nir(dense())(x))
    assert torch.equal(snncc.compile(snncc.from_nir(graph))(x), snncc.from_nir(dense())(x))


def test_a_batch_in_the_shape_of_an_input_is_no_axis():
    """Some exporters count the batch of the sample that they were given."""
    graph = edited({"input": nir.Input(np.array([1, 5]))})

    assert snncc.from_nir(graph).shapes["input"] == (5,)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    """Whatever is missing, the file is refused."""
    path = tmp_path / "net.nir"
    nir.write(path, currents())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    assert "cannot be read" in refusal_of(lambda: snncc.from_nir(path))


def with_file(path, edit) -> None:
    """Write a graph and edit its file."""
    h5py = pytest.importorskip("h5py")
    nir.write(path, dense())
    with h5py.File(path, "r+") as file:
        edit(h5py, file, file["node/nodes/linear"])


def enlarge(_, __, node) -> None:
    """Say that weights are very many, and write none."""
    del node["weight"]
    node.create_dataset("weight", shape=(10**6, 10**6), dtype="f8", chunks=(1, 1000))


def borrow(h5py, _, node) -> None:
    """Take weights from another file."""
    del node["weight"]
    node["weight"] = h5py.ExternalLink("elsewhere.h5", "/weight")


def share(_, file, node) -> None:
    """Let a node be in two places."""
    file["node/nodes/again"] = node


def rename(_, file, __) -> None:
    """Let the graph be a node."""
    del file["node"]
    file["node/type"] = "Linear"
    file["node/weight"] = weights(3, 5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (enlarge, "larger than the file can hold"),
        (borrow, "refers to another place"),
        (share, "refers to another place"),
        (rename, "cannot be read"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, edit, message):
    """Sizes are checked before memory is taken, and other files are not read."""
    with_file(tmp_path / "net.nir", edit)

    assert message in refusal_of(lambda: snncc.from_nir(tmp_path / "net.nir"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("while True: pass", "takes more than 0.2 seconds"),
        ("import os; os.abort()", "ends the process"),
    ],
)
def test_a_file_that_the_library_does_not_survive_is_refused(
    tmp_path, monkeypatch, script, message
):
    """It is read in another process first, which may go on for ever, or die."""
    nir.write(tmp_path / "net.nir", dense())
    (tmp_path / "reader.py").write_text(script)
    monkeypatch.setattr(checks, "_REHEARSAL", tmp_path / "reader.py")
    if "while" in script:
        monkeypatch.setattr(checks, "_SECONDS", 0.2)

    assert message in refusal_of(lambda: snncc.from_nir(tmp_path / "net.nir"))
