"""Draw random numbers apart from the values that they are used with.

Random numbers are drawn in the order of the serial code: step after step, and within a step one
draw after another.  What is drawn depends on sizes alone, so all draws of a loop become a loop of
their own once their sizes are known before the loop; neurons and operators between two draws of a
step are then free to run over all steps at once.

Numerics: bitwise.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch.fx
import torch.nn.functional as F

from snncc.frontend.operators.canonical import draw, size
from snncc.ir.numerics import Numerics
from snncc.ir.step_sizes import StepSizes
from snncc.ir.time_loop import Invariant, TimeLoop
from snncc.passes.neurons import copy_graph


@dataclass(frozen=True, slots=True)
class SeparateDraws:
    """Let draws inside of time loops depend on sizes that are computed before the loop."""

    name = "separate-draws"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with the draws of each loop made independent of its values."""
        result = copy_graph(graph)
        for node in list(result.nodes):
            if isinstance(node.target, TimeLoop):
                _separate(result, node, node.target)
        return result


def _separate(graph: torch.fx.Graph, call: torch.fx.Node, loop: TimeLoop) -> None:
    """Change one loop and its call in place."""
    body = torch.fx.Graph()
    body.graph_copy(loop.body, {})
    free = {step.name for step in loop.steps} | {i.name for i in loop.invariants}
    invariants, operands = list(loop.invariants), list(call.args)

    def known(value: torch.fx.Node) -> torch.fx.Node:
        """Return the sizes of a value of the body, in the graph."""
        with graph.inserting_before(call):
            return graph.call_function(StepSizes(loop, value.name), call.args)

    def pass_in(name: str, operand: torch.fx.Node) -> torch.fx.Node:
        with body.inserting_before(next(iter(body.nodes))):
            place = body.placeholder(name)
        invariants.append(Invariant(place.name, len(operands)))
        operands.append(operand)
        return place

    for node in _draws(body):
        for operand in node.all_input_nodes:
            value: Any = operand.args[0] if operand.target is size else None
            if value is not None and value.name not in free:
                with graph.inserting_before(call):
                    one = graph.call_function(operator.getitem, (known(value), operand.args[1]))
                node.replace_input_with(operand, pass_in(operand.name, one))
            elif node.target is draw and operand is node.args[1] and operand.name not in free:
                node.update_arg(1, pass_in(f"sizes_of_{operand.name}", known(operand)))
    if len(operands) > len(call.args):
        call.args = tuple(operands)
        call.target = replace(loop, body=body, operands=len(operands), invariants=tuple(invariants))


def _draws(body: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """Yield the nodes of a body that draw random numbers."""
    return (n for n in list(body.nodes) if n.meta.get("impure") and n.target is not F.batch_norm)
