"""Put back the copies inside of loops that an operator needs to round as in the serial code.

    q = transpose(x[t], 0, 1).contiguous()          q = transpose(x_t, 0, 1)
    y = q.sum(0)                              →     y = sum(clone(q), 0)

A copy that only changes the order of elements is no part of a recording.  A sum takes its terms in
the order of memory, so an operand that lay in order in the run, and comes from a view that does
not, is copied.

Precondition: the operator rounds by layout (`snncc.ir.layouts`); no state that lies in order takes
part in its operand, which is a neuron's then.
Numerics: bitwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.fx

from snncc.ir.layouts import TURNING, VIEWS, rounds_by_layout
from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import TimeLoop
from snncc.passes.neurons import copy_graph


@dataclass(frozen=True, slots=True)
class RestoreCopies:
    """Copy operands that lie in another order than in the run."""

    name = "restore-copies"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph, the same where nothing is copied."""
        bodies = {n: _restored(n.target) for n in graph.nodes if isinstance(n.target, TimeLoop)}
        if all(body is call.target.body for call, body in bodies.items()):
            return graph
        result = copy_graph(graph)
        calls = [n for n in result.nodes if isinstance(n.target, TimeLoop)]
        for call, body in zip(calls, bodies.values(), strict=True):
            call.target = replace(call.target, body=body)
        return result


def _restored(loop: TimeLoop) -> torch.fx.Graph:
    """Return the body of a loop with copies, the same where there are none."""
    wanted = _wanted(loop)
    if not wanted:
        return loop.body
    body = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    body.graph_copy(loop.body, copies)
    for node, operands in wanted.items():
        for operand in operands:
            value = copies[operand]
            with body.inserting_before(copies[node]):
                copy = body.call_function(
                    torch.clone, (value,), {"memory_format": torch.contiguous_format}
                )
            copy.meta = {k: v for k, v in value.meta.items() if k != "orders"}
            copies[node].replace_input_with(value, copy)
    return body


def _wanted(loop: TimeLoop) -> dict[torch.fx.Node, list[torch.fx.Node]]:
    """Return for operators those operands that are to be copied."""
    changing = {carry.name for carry in loop.carries}
    turned = {step.name for step in loop.steps if step.dim != 0}
    wanted: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in loop.body.nodes:
        if rounds_by_layout(node.target):
            orders = node.meta.get("orders") or (None,) * len(node.args)
            pairs = zip(node.args, orders, strict=False)
            found = [x for x, order in pairs if _name(x) in turned and order is None]
            wanted.update({node: list(dict.fromkeys(found))} if found else {})
        names = {x.name for x in node.all_input_nodes}
        if not names.isdisjoint(changing):
            changing.add(node.name)
        follows = node.target in VIEWS or names & changing <= turned
        if node.target in TURNING or (follows and not names.isdisjoint(turned)):
            turned.add(node.name)
    return wanted


def _name(value: object) -> str:
    return value.name if isinstance(value, torch.fx.Node) else ""
