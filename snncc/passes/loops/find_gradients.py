"""Find the values of a loop's body that carry gradients from its operands to its results."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F

from snncc.ir.nodes import COMPARISONS, LOGICAL, Binary, Detach, Expr, Let, Recurrence, Unary, Var
from snncc.ir.step_call import StepCall, output_name, step_inputs
from snncc.ir.time_loop import TimeLoop
from snncc.ir.walk import children

Node = torch.fx.Node


def find_gradients(loop: TimeLoop, wanted: Sequence[bool]) -> frozenset[Node]:
    """Return the body nodes whose value depends on an operand with a gradient.

    Args:
        loop: The loop.
        wanted: For each operand whether it requires a gradient.
    """
    by_name = {n.name: n for n in loop.body.nodes}
    found = {by_name[name] for name, operand in loop.inputs if wanted[operand]}
    found |= {
        by_name[c.name] for c in loop.carries if isinstance(c.initial, int) and wanted[c.initial]
    }
    updates = [(by_name[c.name], by_name[c.update]) for c in loop.carries]
    reach = {
        n: differentiable_inputs(n.target.recurrence)
        for n in loop.body.nodes
        if isinstance(n.target, StepCall)
    }
    # Running statistics are no function that is differentiated, whatever they were computed from.
    norms = [n for n in loop.body.nodes if n.target is F.batch_norm]
    statistics = {s for n in norms for s in n.args[1:3] if isinstance(s, Node)}
    found -= statistics
    while True:
        size = len(found)
        for node in loop.body.nodes:
            if node.op == "call_function" and _has_gradient(node, found, reach):
                found |= {node} - statistics
        found |= {carry for carry, update in updates if update in found} - statistics
        if len(found) == size:
            return frozenset(n for n in found if _is_float(n) or isinstance(n.target, StepCall))


def _is_float(node: Node) -> bool:
    dtype = node.meta.get("dtype")
    return dtype is None or dtype.is_floating_point or dtype.is_complex


def _has_gradient(node: Node, found: set[Node], reach: dict[Node, dict[str, set[str]]]) -> bool:
    if isinstance(node.target, StepCall):
        return any(n in found for n in node.all_input_nodes)
    source = node.args[0] if node.target is operator.getitem else None
    if isinstance(source, Node) and source in reach:
        inputs = step_inputs(source)
        return any(inputs[name] in found for name in reach[source][output_name(node)])
    exact = _is_float(node) and node.target is not torch.detach
    return exact and any(n in found for n in node.all_input_nodes)


def differentiable_inputs(step: Recurrence) -> dict[str, set[str]]:
    """Return for each output of a step the inputs that it has a derivative with respect to."""
    known = {i.name: {i.name} for i in step.inputs}
    for let in step.lets:
        known[let.name] = set().union(*(known[name] for name in _differentiable(let)))
    return {name: known[name] for name in step.outputs}


def _differentiable(let: Let) -> set[str]:
    return set(let.surrogate.args) if let.surrogate is not None else _reads(let.expr)


def _reads(expr: Expr) -> set[str]:
    match expr:
        case Var(name):
            return {name}
        case Detach():
            return set()
        case Unary(op, _) | Binary(op, _, _) if op in COMPARISONS or op in LOGICAL:
            return set()
        case _:
            return set().union(*(_reads(child) for child in children(expr)))
