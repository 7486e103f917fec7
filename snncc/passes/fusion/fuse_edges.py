"""Take elementwise operators in front of a neuron into its kernel: biases, scales, residuals.

Before, with sequences ``a``, ``b`` [T, B, *] and a parameter ``p`` that broadcasts::

    x = a * p + b          n = neuron(x)

After, the neuron reads ``a``, ``p`` and ``b`` and computes ``x`` at each step, where it is a value
in a register instead of an array that is written and read again.  What lies between the operator
and the neuron (a view along time, time split off the batch) is taken on its operands instead.

Preconditions: the operator is exact and elementwise, of the type in which the neuron computes, and
nothing else reads its result.  An operand either has all axes of the result, or none of those up to
time.

Numerics: bitwise; the same operations in the same order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx

from snncc.ir import sequence_ops
from snncc.ir.names import fresh_name, names_in
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import TRANSCENDENTAL, Binary, Expr, Input, Let, Rank, Recurrence, Unary, Var
from snncc.ir.numerics import Numerics
from snncc.ir.walk import is_bool, subexpressions
from snncc.passes.base import Rejection
from snncc.passes.neurons import copy_graph, neuron_nodes
from snncc.passes.scalars.expressions import expression_of, literal, operands
from snncc.passes.scalars.scalar_ops import SCALAR_OPS, Scope

# With more sequences to read, backward reads and writes more than forward saves.
MOST_INPUTS = 4


@dataclass(frozen=True, slots=True)
class FuseEdges:
    """Take every exact elementwise operator that feeds a neuron alone into the neuron."""

    name = "fuse-edges"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with larger neurons; the same where there is nothing."""
        result = copy_graph(graph)
        changed = False
        for node in list(neuron_nodes(result)):
            while any(_fuse(result, node, position) for position in _steps(node)):
                changed = True
        if not changed:
            return graph
        result.lint()
        return result


def _steps(node: torch.fx.Node) -> range:
    """Return the positions of the arguments of a neuron that are sequences."""
    return range(1, 1 + len(_forward(node).step_inputs))


def _forward(node: torch.fx.Node) -> Recurrence:
    forward: Recurrence = node.target.program.forward  # type: ignore[union-attr]
    return forward


@dataclass(frozen=True)
class Edge:
    """The way from an operator to a neuron.

    Attributes:
        operator: The node of the operator.
        views: What lies between it and the neuron, from the operator on.
        lead: How many of its leading axes an operand without time must not have.
    """

    operator: torch.fx.Node
    views: tuple[torch.fx.Node, ...]
    lead: int


def _edge(node: torch.fx.Node, position: int) -> Edge | None:
    """Return the way to the operator that makes an argument, where only views are between."""
    views: list[torch.fx.Node] = []
    value: Any = node.args[position]
    reader, lead = node, 0
    while isinstance(value, torch.fx.Node) and _feeds(value, reader):
        if value.target is sequence_ops.time_view and not views:
            dim: Any = value.args[1]
            lead = dim + 1
        elif value.target is torch.unflatten and value.args[1] == 0 and len(views) == 1:
            if lead != 1:
                return None
        else:
            return Edge(value, tuple(reversed(views)), lead) if views else None
        views.append(value)
        value, reader = value.args[0], value
    return None


def _feeds(value: torch.fx.Node, reader: torch.fx.Node) -> bool:
    """Tell whether nothing but a reader needs a value; to count its steps needs no value."""
    others = [user for user in value.users if user is not reader]
    counts = all(isinstance(user.target, sequence_ops.TripLength) for user in others)
    return counts and list(reader.args).count(value) == 1


def _fuse(graph: torch.fx.Graph, node: torch.fx.Node, position: int) -> bool:
    """Take the operator behind an argument into a neuron; return whether that was possible."""
    edge = _edge(node, position)
    if edge is None or not _has_type(edge.operator, node):
        return False
    ranks = {o: _rank(edge, o) for o in edge.operator.all_input_nodes}
    steps = [o for o, rank in ranks.items() if rank is Rank.STEP]
    if None in ranks.values() or not steps or len(_steps(node)) + len(steps) - 1 > MOST_INPUTS:
        return False
    forward, taken = _forward(node), names_in(_forward(node))
    names = {o: fresh_name(re.sub(r"\W", "_", o.name), taken) for o in ranks}
    expr = _expression(edge.operator, names)
    if expr is None:
        return False
    replaced = forward.step_inputs[position - 1]
    let = Let(replaced, expr, where=edge.operator.meta.get("where"))
    given = dict(zip((*forward.step_inputs, *forward.lane_inputs), node.args[1:], strict=True))
    views = {operand: _viewed(graph, edge, operand) for operand in steps}
    given |= {names[operand]: values[-1] for operand, values in views.items()}
    given |= {names[o]: o for o, rank in ranks.items() if rank is Rank.LANE}
    inputs = [i for i in forward.inputs if i.name != replaced]
    inputs += [Input(names[operand], rank) for operand, rank in ranks.items() if rank is not None]
    grown = replace(forward, inputs=tuple(inputs), lets=(let, *forward.lets))
    program = node.target.program  # type: ignore[union-attr]
    node.target = NeuronCall(replace(program, forward=grown))
    node.meta["folded"] = node.meta.get("folded") or edge.operator.meta.get("folded", "")
    order = (*grown.step_inputs, *grown.lane_inputs)
    node.args = (node.args[0], *(given[name] for name in order))
    _forget(graph, edge, views[steps[0]])
    return True


def _has_type(operator: torch.fx.Node, node: torch.fx.Node) -> bool:
    """Tell whether an operator is elementwise and computes in the type of a neuron."""
    dtype = node.meta.get("dtype")
    tensors = [operator, *operator.all_input_nodes]
    return (
        operator.op == "call_function"
        and operator.target in SCALAR_OPS
        and not operator.meta.get("impure")
        and all(n.meta.get("dtype") is dtype and "shape" in n.meta for n in tensors)
    )


def _rank(edge: Edge, operand: torch.fx.Node) -> Rank | None:
    """Return how often an operand has a new value; None where it cannot be told apart."""
    own, result = operand.meta["shape"], edge.operator.meta["shape"]
    if 1 in result[: edge.lead]:  # at other lengths an axis of size 1 is something else
        return None
    if len(own) == len(result) and own[: edge.lead] == result[: edge.lead]:
        return Rank.STEP
    return Rank.LANE if len(own) <= len(result) - edge.lead else None


def _expression(operator: torch.fx.Node, names: dict[torch.fx.Node, str]) -> Expr | None:
    """Return an operator as an expression; None where it is not exact."""

    def operand(value: Any) -> Any:
        return Var(names[value]) if isinstance(value, torch.fx.Node) else literal(value)

    scope = Scope(lambda e: is_bool(e, frozenset()))
    given = operands(operator.args, operator.kwargs, operand)
    expr = expression_of(operator.target, scope, *given)
    if isinstance(expr, Rejection) or is_bool(expr, frozenset()):
        return None
    operations = {e.op for e in subexpressions(expr) if isinstance(e, Unary | Binary)}
    return None if operations & TRANSCENDENTAL else expr


def _viewed(graph: torch.fx.Graph, edge: Edge, operand: torch.fx.Node) -> list[torch.fx.Node]:
    """Return an operand, and what each view makes of it; the last is what the neuron reads."""
    values = [operand]
    for view in edge.views:
        target: Any = view.target
        with graph.inserting_before(view):
            value = graph.call_function(target, (values[-1], *view.args[1:]), view.kwargs)
        value.meta.update({k: v for k, v in view.meta.items() if k != "shape"})
        values.append(value)
    return values


def _forget(graph: torch.fx.Graph, edge: Edge, instead: list[torch.fx.Node]) -> None:
    """Remove an operator and its views; their steps are counted on those of an operand."""
    for value, other in zip((edge.operator, *edge.views), instead, strict=True):
        for user in list(value.users):
            if isinstance(user.target, sequence_ops.TripLength):
                user.replace_input_with(value, other)
    for value in reversed((edge.operator, *edge.views)):
        graph.erase_node(value)
