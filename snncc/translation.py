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
from snncc.ir.numerics import Numerics
from snncc.passes.base import Pass

# Relative error allowed to a pass that reassociates, for operators that sum in another order even
# at one step; every other pass has to be exact.
TOLERANCE = 1e-4

Call = Callable[[torch.fx.Node, tuple[Any, ...], dict[str, Any]], Any]


def check_translation(
    each: Pass, before: torch.fx.Graph, after: torch.fx.Graph, leaves: Sequence[Tensor]
) -> None:
    """Compare the results of a graph before and after a pass.

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
            kwargs = torch.fx.node.map_arg(node.kwargs, env.__getitem__)
            env[node] = call(node, args, kwargs)
    outputs: Any = torch.fx.node.map_arg(graph.output_node().args[0], env.__getitem__)
    return tuple(outputs)


def call_stepwise(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one node; a product over time step by step."""
    target: Any = node.target
    if not is_product(node):
        return target(*args, **kwargs)
    stacked = node.meta["stacked"]
    length = next(a.shape[0] for a, s in zip(args, stacked, strict=False) if s)
    steps = []
    for t in range(length):
        at_t = [a[t : t + 1] if s else a for a, s in zip(args, stacked, strict=False)]
        steps.append(target(*at_t, *args[len(stacked) :], **kwargs))
    return torch.cat(steps)


def is_product(node: torch.fx.Node) -> bool:
    """Tell whether a node was batched over time at the price of another order of summation."""
    return node.meta.get("numerics") is Numerics.REASSOCIATED and "stacked" in node.meta


def _agrees(a: Tensor, b: Tensor, exact: bool) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if exact or not a.is_floating_point():
        return torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5))
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
