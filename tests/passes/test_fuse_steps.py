"""Fused steps of recurrent loops: what shares a kernel, what does not, and the adjoint."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.ir.custom_gradient import run_graph
from snncc.ir.loop_call import LoopCall
from snncc.ir.step_call import StepCall
from snncc.ir.time_loop import TimeLoop
from snncc.passes.loops.minimum_cut import cheapest_basis
from tests import recurrent_models as models
from tests.recurrent_models import N


def loop_of(model: nn.Module, x: Tensor) -> LoopCall:
    """Return the recurrent loop of a compiled model."""
    graph = snncc.compile(model).specialize(x).graph
    (found,) = (n.target for n in graph.nodes if isinstance(n.target, LoopCall))
    assert isinstance(found, LoopCall)
    return found


def calls_of(loop: TimeLoop) -> list[str]:
    """Return the names of what runs at each step, in order; fused steps as ``step``."""
    nodes = (n for n in loop.body.nodes if n.op == "call_function")
    calls = (n.target for n in nodes if n.target is not operator.getitem)
    return ["step" if isinstance(c, StepCall) else str(c.__name__) for c in calls]


def leaf(*shape: int) -> Tensor:
    """Return a random leaf."""
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (models.OwnSpikes, ["linear", "step"]),
        (models.Coupled, ["linear", "step", "linear", "step"]),
        (models.Adaptive, ["linear", "step"]),
        (lambda: models.Normed(nn.LayerNorm(N)), ["step", "layer_norm", "step"]),
        (models.Inhibited, ["mean", "sum", "step"]),
    ],
    ids=["own spikes", "two layers", "adaptive", "norm", "inhibition"],
)
def test_one_step_between_two_products(make: Any, expected: list[str]) -> None:
    """Elementwise operators share a kernel where nothing else lies between them."""
    forward = loop_of(make(), leaf(5, 3, N)).forward

    assert sorted(calls_of(forward)) == sorted(expected)
    assert [c for c in calls_of(forward) if c in ("step", "linear")] == [
        c for c in expected if c in ("step", "linear")
    ]


def test_reverse_costs_one_kernel_and_one_product() -> None:
    """The reverse of a layer with recurrent weights is one step and the transposed product."""
    _, training, reverse = loop_of(models.OwnSpikes(), leaf(5, 3, N)).loops

    assert calls_of(training) == ["linear", "step"]
    assert calls_of(reverse) == ["step", "mm"]
    assert reverse.reverse


def test_forward_keeps_one_value_of_the_neuron() -> None:
    """Besides spikes, which the weight's gradient needs, one value of each step is kept."""
    call = loop_of(models.OwnSpikes(), leaf(5, 3, N))
    own, kept = len(call.forward.results), call.loops[1].results
    stacked = [r.node for r in kept[own:] if r.stacked]

    assert len(stacked) == 2


def test_what_has_no_gradient_is_not_differentiated() -> None:
    """Detached feedback takes no product in reverse; its weight still gets a gradient."""

    class Detached(models.Recurrent):
        def __init__(self) -> None:
            super().__init__()
            self.back = nn.Linear(N, N)

        def forward(self, x: Tensor) -> Tensor:
            v = s = self.zeros(x)
            out = []
            for x_t in x:
                v = 0.9 * v + x_t + self.back(s.detach())
                s = self.fire(v - 0.5)
                v = v - 0.5 * s.detach()
                out.append(s)
            return torch.stack(out)

    call = loop_of(Detached(), leaf(5, 3, N))

    assert calls_of(call.loops[2]) == ["step"]
    assert call.wanted[:3] == (True, True, True)  # the input, the weight and the bias


@pytest.mark.parametrize(
    "make",
    [models.OwnSpikes, models.Delayed, models.Adaptive, models.Winner, models.Attentive,
     lambda: models.Normed(nn.LayerNorm(N)), models.Columns, models.Inhibited],
    ids=["OwnSpikes", "Delayed", "Adaptive", "Winner", "Attentive", "Normed", "Columns",
         "Inhibited"],
)  # fmt: skip
def test_adjoint_is_the_gradient(make: Any) -> None:
    """The adjoint, run by the reference, gives what autograd gives on the loop."""
    torch.manual_seed(0)
    with torch.no_grad():
        model = make().double()
    x = leaf(6, 3, N).detach().double().requires_grad_()
    seen: list[tuple[Any, ...]] = []
    compiled = snncc.compile(model, target="torch").specialize(x)
    from snncc.equivalence.translation import interpret_graph
    from snncc.frontend.state.sources import gather

    def call(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(node.target, LoopCall):
            seen.append((node.target, args))
        return node.target(*args, **kwargs)  # type: ignore[operator]

    with torch.no_grad():
        values = gather(compiled.recording.tape, model, (x,), {})
        interpret_graph(compiled.graph, values, call)
    ((loop, args),) = seen
    operands = [
        a.detach().clone().requires_grad_(w) for a, w in zip(args, loop.wanted, strict=True)
    ]
    results = loop(*operands)
    cotangents = [torch.randn_like(r) if r.is_floating_point() else None for r in results]
    pairs = [(r, g) for r, g in zip(results, cotangents, strict=True) if r.requires_grad]
    ys, gs = zip(*pairs, strict=True)
    expected = torch.autograd.grad(ys, [o for o in operands if o.requires_grad], gs)

    kept = loop.adjoint.training(*args)
    found = run_graph(loop.adjoint.backward, (*args, *kept, *cotangents))

    for a, b in zip(expected, [g for g in found if g is not None], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def test_nothing_to_fuse_stays_a_loop_that_is_refused() -> None:
    """A loop of products alone has no elementwise part."""

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.back = nn.Parameter(torch.eye(N))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros(x.shape[1], N)
            out = []
            for x_t in x:
                h = torch.addmm(x_t, h, self.back)
                out.append(h)
            return torch.stack(out)

    with pytest.raises(snncc.UnsupportedError, match="cannot be part of a neuron kernel"):
        snncc.compile(Products())(leaf(5, 3, N))


def test_cheapest_basis_weighs_storing_against_computing_again() -> None:
    """One value from which others follow is kept instead of them; a costly one is kept itself."""
    operands = {"u": ["h"], "s": ["u"], "e": ["h"]}
    prices = dict.fromkeys(("h", "u", "s", "e"), 8.0)

    assert cheapest_basis(["u", "s"], operands, prices, {"u": 0.0, "s": 0.0}) == {"u"}
    assert cheapest_basis(["u", "e"], operands, prices, {"u": 0.0, "e": 1.0}) == {"h"}
    assert cheapest_basis(["h", "e"], operands, prices, {"e": 20.0}) == {"h", "e"}
    assert cheapest_basis([], operands, prices, {}) == frozenset()
