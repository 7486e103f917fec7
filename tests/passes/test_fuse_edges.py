"""Elementwise operators in front of neurons, and sums of spikes behind them."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.ir import sequence_ops
from snncc.ir.neuron_call import NeuronCall
from snncc.nn import IF, LIF
from snncc.passes.fusion.fuse_edges import FuseEdges
from snncc.passes.fusion.fuse_readouts import FuseReadouts
from snncc.passes.neurons import neuron_nodes
from tests.models import Feedforward


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Edges(nn.Module):
    """A neuron behind what a test puts in front of it."""

    def __init__(self, before: object, after: object = lambda s: s, lanes: tuple = (8,)) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.neuron = LIF(0.75)
        self.bias, self.scale = nn.Parameter(torch.rand(lanes)), nn.Parameter(torch.rand(lanes))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.after(self.neuron(self.before(self, x, y)))


def compiled(
    model: nn.Module, *args: Tensor, **options: object
) -> tuple[snncc.Report, torch.fx.Graph]:
    """Return the certificate of a model and its sequence graph."""
    fast = snncc.compile(model, **options)
    return snncc.verify(model, fast, *args), fast.specialize(*args).graph


def operators(graph: torch.fx.Graph) -> list[str]:
    """Return the names of what is left to torch."""
    plumbing = (operator.getitem, sequence_ops.time_view)
    return [
        node.target.__name__
        for node in graph.nodes
        if node.op == "call_function"
        and not isinstance(node.target, NeuronCall | sequence_ops.TripLength)
        and node.target not in plumbing
    ]


def ranks(graph: torch.fx.Graph) -> tuple[int, int]:
    """Return how many inputs the neuron has: with and without time."""
    (node,) = neuron_nodes(graph)
    forward = node.target.program.forward
    return len(forward.step_inputs), len(forward.lane_inputs)


TAKEN = {
    "bias": (lambda m, x, y: x + m.bias, (1, 1)),
    "bias first": (lambda m, x, y: m.bias + x, (1, 1)),
    "scale and shift": (lambda m, x, y: x * m.scale + m.bias, (1, 2)),
    "number": (lambda m, x, y: 2.0 - x / 4.0, (1, 0)),
    "residual": (lambda m, x, y: x + y, (2, 0)),
    "residual with a bias": (lambda m, x, y: (x + m.bias) * m.scale - y, (2, 2)),
    "relu": (lambda m, x, y: torch.relu(x) + y, (2, 0)),
    "select": (lambda m, x, y: torch.maximum(x, y).clamp(min=0.25), (2, 0)),
    "broadcast": (lambda m, x, y: x + y[:, :1], (2, 0)),
    "doubled": (lambda m, x, y: (x + x) * 0.5, (1, 0)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_exact_operators_become_part_of_the_neuron(name: str) -> None:
    """Nothing is left in front of the neuron; results are bitwise, gradients those of autograd."""
    before, expected = TAKEN[name]
    report, graph = compiled(Edges(before), torch.rand(7, 3, 8) * 2, torch.rand(7, 3, 8))

    assert report.ok, report
    assert report.numerics is snncc.Numerics.BITWISE
    assert set(operators(graph)) <= {"select", "narrow", "slice", "getitem"}
    assert ranks(graph) == expected


LEFT = {
    "used twice": (lambda m, x, y: x + m.bias, lambda s: s, True),
    "exponential": (lambda m, x, y: torch.exp(x - 2.0), lambda s: s, False),
    "over lanes": (lambda m, x, y: torch.cumsum(x, -1), lambda s: s, False),
}


@pytest.mark.parametrize("name", ["exponential", "over lanes"])
def test_other_operators_stay(name: str) -> None:
    """What is not exact or not elementwise is left to torch."""
    before, after, _ = LEFT[name]
    report, graph = compiled(Edges(before, after), torch.rand(7, 3, 8), torch.rand(7, 3, 8))

    assert report.ok, report
    assert operators(graph)[-1] in ("exp", "cumsum")


class Residual(nn.Module):
    """The input of the neuron is also added to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron, self.bias = IF(), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.bias
        return self.neuron(y) + y


def test_a_value_that_is_used_again_stays() -> None:
    """It has to be in memory anyway."""
    report, graph = compiled(Residual(), torch.rand(7, 3, 8))

    assert report.ok, report
    assert operators(graph) == ["add", "add"]


class BatchFirst(nn.Module):
    """Time is the second axis."""

    def __init__(self, lanes: tuple[int, ...]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.rand(lanes))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.bias + y
        v, spikes = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            v = 0.5 * v + x[:, t]
            spikes.append((v > 1.0).float())
            v = v * (1.0 - spikes[-1])
        return torch.stack(spikes, 1)


@pytest.mark.parametrize(("lanes", "count"), [((8,), 1), ((7, 8), 0), ((3, 1, 8), 0)])
def test_time_as_the_second_axis(lanes: tuple[int, ...], count: int) -> None:
    """A parameter without the axes up to time is one for each lane; one with some of them stays."""
    report, graph = compiled(BatchFirst(lanes), torch.rand(3, 7, 8) * 2, torch.rand(3, 7, 8))

    assert report.ok, report
    assert ranks(graph)[1] == count


class Folded(nn.Module):
    """Convolution over T * B images, with a bias per channel, in front of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bias, self.neuron = nn.Parameter(torch.rand(4, 1, 1)), LIF(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x.flatten(0, 1)) * 4.0 + self.bias
        return self.neuron(y.unflatten(0, x.shape[:2])).sum(0)


@pytest.mark.parametrize("target", ["c", "triton"])
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
def test_time_folded_into_the_batch(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators stand before time is split off; sums over time are counted in the kernel."""
    if target == "triton":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    report, graph = compiled(Folded(), torch.rand(5, 2, 2, 4, 4), target=target)
    (node,) = neuron_nodes(graph)
    forward = node.target.program.forward

    assert report.ok, report
    assert operators(graph)[-1] == "unflatten"
    assert ranks(graph) == (1, 1)
    assert forward.outputs == ()
    assert len(forward.finals) == 1


def test_other_lengths_and_batches() -> None:
    """What was fused at one size serves others, an axis of size one included."""
    model = Edges(lambda m, x, y: x * m.scale + y, lambda s: s.mean(0))
    fast = snncc.compile(model)
    for T, B in ((6, 3), (9, 2), (11, 5), (1, 4), (4, 1), (1, 1)):
        x, y = torch.rand(T, B, 8) * 3, torch.rand(T, B, 8)

        assert torch.equal(fast(x, y), model(x, y))


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (lambda s: s.sum(0), []),
        (lambda s: s.mean(0), ["div"]),
        (lambda s: s.mean(dim=(0,)) + s.sum(0), ["div", "add"]),
        (lambda s: s.mean((0, 1)), ["mean"]),
        (lambda s: s.sum(0, keepdim=True), ["sum"]),
        (lambda s: s.sum(1), ["sum"]),
        (lambda s: s.sum(0) + s[1], ["sum", "select", "add"]),
    ],
    ids=["sum", "mean", "both", "over two axes", "kept axis", "over lanes", "used again"],
)
def test_sums_of_spikes_are_counted(after: object, left: list[str]) -> None:
    """Sums and means over time alone, of what nothing else reads."""
    report, graph = compiled(
        Edges(lambda m, x, y: x, after), torch.rand(7, 3, 8) * 2, torch.rand(7, 3, 8)
    )
    (node,) = neuron_nodes(graph)

    assert report.ok, report
    assert operators(graph) == left
    assert bool(node.target.program.forward.outputs) is any(n in left for n in ("sum", "mean"))


def test_potentials_are_not_summed_in_the_kernel() -> None:
    """Their sum depends on the order, and torch has another one."""

    class Potentials(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v, out = torch.zeros_like(x[0]), []
            for t in range(x.shape[0]):
                v = 0.3 * v + x[t]
                out.append(v)
            return torch.stack(out).sum(0)

    report, graph = compiled(Potentials(), torch.rand(40, 3, 8))

    assert report.ok, report
    assert operators(graph) == ["sum"]


def test_the_plan_counts_fewer_bytes() -> None:
    """A mean of spikes needs neither spikes nor their cotangents in memory."""
    x = torch.rand(7, 3, 8, requires_grad=True)
    fast = snncc.compile(Edges(lambda m, x, y: x, lambda s: s.mean(0)))
    fast(x, x)
    (layer,) = fast.plans[0].neurons

    assert (layer.forward_bytes, layer.training_bytes) == (4.0, 12.0)


@pytest.mark.parametrize("each", [FuseEdges(), FuseReadouts()], ids=["edges", "readouts"])
def test_nothing_to_do(each: FuseEdges | FuseReadouts) -> None:
    """A graph without such operators is the same afterwards."""
    fast = snncc.compile(Feedforward())
    graph = fast.specialize(torch.rand(6, 2, 5)).graph

    assert each.run(graph) is graph
