"""Translation validation: run the program before and after a pass on the same data and compare.

Products that a pass has batched over time are taken one step at a time here (`run_stepwise`), so
that both programs sum in the same order and a fault is not mistaken for a rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.errors import InternalError
from snncc.ir.custom_gradient import run_graph
from snncc.ir.interpret import HALVES
from snncc.ir.layouts import arranged
from snncc.ir.loop_call import LoopAdjoint, LoopCall
from snncc.ir.numerics import Numerics
from snncc.ir.sequence_ops import time_view
from snncc.passes.base import Pass

# Relative error allowed to a pass that reassociates, for operators that sum in another order even
# at one step; every other pass has to be exact.
TOLERANCE = 1e-4

Call = Callable[[torch.fx.Node, tuple[Any, ...], dict[str, Any]], Any]


def check_translation(
    each: Pass, before: torch.fx.Graph, after: torch.fx.Graph, leaves: Sequence[Tensor]
) -> None:
    """Compare the results of a graph before and after a pass, and the gradients of its loops.

    Raises:
        InternalError: They differ by more than the numerics of the pass allow.
    """
    expected, actual = _run_once(before, leaves), _run_once(after, leaves)
    exact = each.numerics is Numerics.BITWISE
    for position, (a, b) in enumerate(zip(expected, actual, strict=True)):
        if isinstance(a, Tensor) and not _agrees(a, b, exact):
            raise InternalError(
                f"pass '{each.name}' changed output {position} beyond '{each.numerics.value}'"
            )
    if any(isinstance(n.target, LoopCall) and n.target.adjoint for n in after.nodes):
        _check_adjoints(each, after, leaves)


def _check_adjoints(each: Pass, graph: torch.fx.Graph, leaves: Sequence[Tensor]) -> None:
    """Compare the adjoint of each loop, run by the reference, with autograd on the loop."""

    def call(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(node.target, LoopCall) and node.target.adjoint is not None:
            _check_adjoint(each, node.target, node.target.adjoint, args)
        return call_stepwise(node, args, kwargs)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        interpret_graph(graph, [leaf.detach().clone() for leaf in leaves], call)


def _check_adjoint(each: Pass, loop: LoopCall, adjoint: LoopAdjoint, args: tuple[Any, ...]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kept = adjoint.training(*_copies(args))
    wanted = loop.wanted
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        operands = _copies(args, wanted)
        results = loop(*operands)
        cotangents = [torch.randn_like(r) if r.is_floating_point() else None for r in results]
        pairs = [(r, g) for r, g in zip(results, cotangents, strict=True) if r.requires_grad]
        leaves = [x for x, w in zip(operands, wanted, strict=True) if w]
        ys, gs = zip(*pairs, strict=True)
        expected = torch.autograd.grad(ys, leaves, gs, allow_unused=True)
    found = run_graph(adjoint.backward, (*args, *kept, *cotangents))
    actual = (g for g, w in zip(found, wanted, strict=True) if w)
    for a, b in zip(expected, actual, strict=True):
        scale = max(1.0, 0.0 if a is None or not a.numel() else float(a.abs().max()))
        if not _agrees((torch.zeros_like(b) if a is None else a) / scale, b / scale, exact=False):
            raise InternalError(f"pass '{each.name}' gives '{loop.__name__}' a wrong gradient")


def _copies(args: tuple[Any, ...], wanted: Sequence[bool] = ()) -> list[Any]:
    flags = wanted or [False] * len(args)
    return [
        x.detach().clone().requires_grad_(w) if isinstance(x, Tensor) else x
        for x, w in zip(args, flags, strict=True)
    ]


def _run_once(graph: torch.fx.Graph, leaves: Sequence[Tensor]) -> tuple[Any, ...]:
    """Run a graph without leaving a trace in buffers or in the random generator."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return run_stepwise(graph, [leaf.detach().clone() for leaf in leaves])


def run_stepwise(graph: torch.fx.Graph, values: Sequence[Any]) -> tuple[Any, ...]:
    """Run a graph by the reference, each product over time one step at a time."""
    return interpret_graph(graph, values, call_stepwise)


def interpret_graph(graph: torch.fx.Graph, values: Sequence[Any], call: Call) -> tuple[Any, ...]:
    """Run a graph node by node, leaving each call to ``call``."""
    env: dict[torch.fx.Node, Any] = {}
    places = iter(values)
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = next(places)
        elif node.op == "call_function":
            args = torch.fx.node.map_arg(node.args, env.__getitem__)
            args = arranged(args, node.meta.get("layouts", {}))
            kwargs = torch.fx.node.map_arg(node.kwargs, env.__getitem__)
            env[node] = call(node, args, kwargs)
    outputs: Any = torch.fx.node.map_arg(graph.output_node().args[0], env.__getitem__)
    return tuple(outputs)


def call_stepwise(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one node; a product over time step by step.

    What the serial code computes itself begins where an allocation does, as a step of a sequence
    need not: products may add in an order that depends on it.
    """
    target: Any = node.target
    if not is_product(node):
        return target(*args, **kwargs)
    stacked = node.meta["stacked"]
    length = next(a.shape[0] for a, s in zip(args, stacked, strict=False) if s)
    pairs = zip(node.args, stacked, strict=False)
    moves = [s and getattr(n, "target", None) is not time_view for n, s in pairs]
    steps = []
    for t in range(length):
        at_t = [a[t : t + 1] if s else a for a, s in zip(args, stacked, strict=False)]
        at_t = [_moved(a) if move else a for a, move in zip(at_t, moves, strict=True)]
        steps.append(target(*at_t, *args[len(stacked) :], **kwargs))
    return torch.cat(steps)


def _moved(x: Tensor) -> Tensor:
    """Return a copy in an allocation of its own, its elements as far apart as before.

    A part of a larger value, as the gates of a cell are, has gaps for the serial code as well.
    """
    if 0 in x.stride():
        return x.clone()
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def is_product(node: torch.fx.Node) -> bool:
    """Tell whether a node was batched over time at the price of another order of summation."""
    return node.meta.get("numerics") is Numerics.REASSOCIATED and "stacked" in node.meta


def _agrees(a: Tensor, b: Tensor, exact: bool) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if exact or not a.is_floating_point():
        return torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5))
    # What autograd sums from step to step in a half type, an adjoint sums in float32.
    allowed = max(TOLERANCE, 8 * torch.finfo(a.dtype).eps if a.dtype in HALVES else 0.0)
    return torch.allclose(a, b, rtol=allowed, atol=allowed, equal_nan=True)
