"""Cut the gradient between time steps: what a step takes over from the one before is a constant.

    v[t] = f(v[t-1], x[t])   becomes   v[t] = f(detach(v[t-1]), x[t])

so that ``dv[t]/dx[t]`` stays and ``dv[t]/dx[t-1]`` is zero: each step has a gradient of its own,
which no later step changes.  A sum, maximum or minimum over time that nothing else reads keeps its
gradient, because that of each step is known in that step; a leaky readout is a state like others.
What a loop starts from gets no gradient.

Precondition: there are loops, all of them over time, and no step after one that is another program.
Numerics: bitwise; gradients are those of the code with every state detached.
Source: online training by spatial gradients, as SLTT (Meng et al. 2023) and HD-LIF cut them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import full, full_like, numel, size
from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import Carry, TimeLoop
from snncc.passes.base import Rejection
from snncc.passes.neurons import copy_graph

# What depends on data through its shape alone.
_SHAPES = frozenset({size, numel, full, full_like})
# Joins of what was before with a value of this step: the gradient of either is local.
_JOINS = frozenset({torch.add, operator.add, torch.maximum, torch.minimum})


@dataclass(frozen=True, slots=True)
class CutTime:
    """Detach the states of all loops over time.

    ``inputs`` tells for each placeholder of the graph whether its tensor is an input of the model.
    """

    inputs: tuple[bool, ...]
    name = "cut-time"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the graph with loops whose steps have gradients of their own."""
        result = copy_graph(graph)
        loops = [node for node in result.nodes if isinstance(node.target, TimeLoop)]
        if not loops:
            return Rejection("no-steps", "so few steps show no loop; four or more do")
        data = _data(result, self.inputs)
        for node in loops:
            if not _is_over_time(node, data):
                where = next(iter(node.target.body.nodes)).meta.get("where")
                return Rejection("layers", "a loop may be one over layers as well as time", where)
            if (reader := _later_step(node)) is not None:
                where = reader.meta.get("where")
                return Rejection("last-step", "its last step is another program", where)
            node.target = cut(node.target)
        return result


def _data(graph: torch.fx.Graph, inputs: tuple[bool, ...]) -> set[torch.fx.Node]:
    """Return the nodes whose values, not only their shapes, depend on inputs."""
    flags = iter(inputs)
    found: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            is_data = next(flags)
        else:
            is_data = node.target not in _SHAPES and not found.isdisjoint(node.all_input_nodes)
        if is_data:
            found.add(node)
    return found


def _is_over_time(node: torch.fx.Node, data: set[torch.fx.Node]) -> bool:
    """Tell whether a loop is one over time: it takes data apart, or starts without any.

    A loop over layers takes other weights at each step, and starts from what the first layer gets.
    """
    loop: TimeLoop = node.target  # type: ignore[assignment]
    operands: Any = node.args
    if any(operands[step.operand] in data for step in loop.steps):
        return True
    starts = [c.initial for c in loop.carries if not is_total(loop, c)]
    return not any(isinstance(start, int) and operands[start] in data for start in starts)


def _later_step(node: torch.fx.Node) -> torch.fx.Node | None:
    """Return what reads the last state of a loop, where the sequence has more steps than it."""
    loop: TimeLoop = node.target  # type: ignore[assignment]
    ends = [-loop.trip.offset - s.start for s in loop.steps if s.operand == loop.trip.operand]
    if not any(end > 0 for end in ends):
        return None
    states = {c.update for c in loop.carries if not is_total(loop, c)}
    for use in node.users:
        result = loop.results[use.args[1]]  # type: ignore[index]
        if not result.stacked and result.node in states:
            readers = (reader for reader in use.users if reader.op == "call_function")
            return next(readers, None)
    return None


def cut(loop: TimeLoop) -> TimeLoop:
    """Return a loop whose steps see the states of the steps before as constants."""
    body = copy_graph(loop.body)
    nodes = {node.name: node for node in body.nodes}
    for carry in loop.carries:
        old = nodes[carry.name]
        if is_total(loop, carry) or not old.users:
            continue
        readers = list(old.users)
        first = next(node for node in body.nodes if node in old.users)
        with body.inserting_before(first):  # the size of a start may be known there, not before
            constant = body.call_function(torch.detach, (old,))
        constant.meta.update(old.meta)
        for reader in readers:
            reader.replace_input_with(old, constant)
    return replace(loop, body=body)


def is_total(loop: TimeLoop, carry: Carry) -> bool:
    """Tell whether a carry is a sum or an extreme over time that no other value depends on."""
    old, new = loop.node(carry.name), loop.node(carry.update)
    others = {each.update for each in loop.carries if each is not carry}
    return (
        new.target in _JOINS
        and list(old.users) == [new]
        and list(new.args).count(old) == 1
        and not new.users
        and new.name not in others
    )
