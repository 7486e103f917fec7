"""A chunk program that is one step long: what its states start from, and its loops in line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.ir import norm_ops, sequence_ops
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.graph_function import function_of
from snncc.ir.loop_call import loop_of
from snncc.ir.time_loop import Fill, TimeLoop
from snncc.passes.neurons import copy_graph


def begun(
    program: ChunkProgram, leaves: Sequence[Tensor], own: Sequence[bool]
) -> tuple[Tensor, ...] | None:
    """Return the values of the states that start from no number; None if they follow the input.

    Those that a first step of its own leaves may follow it.

    Args:
        program: The program.
        leaves: An example of its tensors.
        own: For each leaf whether it is an input.
    """
    found = starts_of(program, leaves)
    if program.has_first:
        return found
    again = starts_of(program, [
        torch.rand_like(x) if is_own and x.is_floating_point() else x
        for x, is_own in zip(leaves, own, strict=True)
    ])  # fmt: skip
    same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    return found if same else None


def starts_of(program: ChunkProgram, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the values of the states that start from no number, for an example of one step."""
    with torch.no_grad():
        results = run_graph(program.start, leaves)
    return results[len(program.output_axes) if program.has_first else 0 :]


def after_a_step(
    program: ChunkProgram, leaves: Sequence[Tensor], begins: Sequence[Tensor]
) -> list[Tensor]:
    """Return the states after the first step, in their full shapes.

    Args:
        program: The program.
        leaves: An example of its tensors, one step long.
        begins: The values of the states that start from no number.
    """
    given: list[Any] = [
        begins[s.start]
        if not isinstance(s.start, Fill)
        else s.start
        if s.dtype is None
        else torch.tensor(s.start.value, dtype=s.dtype)
        for s in program.states
    ]
    with torch.no_grad():
        results = run_graph(program.graph, [1, *given, *leaves])
    return list(results[len(program.output_axes) :])


def run_graph(graph: torch.fx.Graph, values: Sequence[Any]) -> tuple[Any, ...]:
    """Run a graph and return its outputs."""
    return tuple(function_of(graph)(*values))


def looked_up_last(graph: torch.fx.Graph) -> torch.fx.Graph:
    """Return a graph in which what norms make of parameters of all steps is made before a step.

    It is then known: a step looks up a row of it, in place of rows of mean, variance and weight.
    """
    result = copy_graph(graph)
    for node in result.nodes:
        given = [arg for arg in node.args if isinstance(arg, torch.fx.Node)]
        if node.target not in (norm_ops.norm_scale, norm_ops.norm_shift) or not given:
            continue
        ways = {tuple(arg.args[1:]) for arg in given if arg.target is sequence_ops.steps_until}
        if len(ways) != 1 or any(arg.target is not sequence_ops.steps_until for arg in given):
            continue
        (dim, *when), args = ways.pop(), torch.fx.node.map_arg(node.args, lambda n: n.args[0])
        if dim == 0:
            with result.inserting_before(node):
                whole = result.call_function(node.target, args)
                row = result.call_function(sequence_ops.steps_until, (whole, 0, *when))
            row.meta, whole.meta = dict(node.meta), dict(node.meta)
            node.replace_all_uses_with(row)
    result.eliminate_dead_code()
    return result


def in_line(graph: torch.fx.Graph) -> torch.fx.Graph:
    """Return a graph whose loops, of one step each, are replaced by their bodies."""
    result = copy_graph(graph)
    for node in list(result.nodes):
        loop = loop_of(node)
        if loop is not None:
            _lay_out(result, node, loop)
    result.eliminate_dead_code()
    return result


def _lay_out(graph: torch.fx.Graph, call: torch.fx.Node, loop: TimeLoop) -> None:
    places: dict[str, Any] = {c.name: call.args[c.initial] for c in loop.carries}  # type: ignore[index]
    places |= {i.name: call.args[i.operand] for i in loop.invariants}
    copies: dict[torch.fx.Node, Any] = {}
    with graph.inserting_before(call):
        for step in loop.steps:
            places[step.name] = graph.call_function(
                torch.select, (call.args[step.operand], step.dim, step.start)
            )
        for node in loop.body.nodes:
            if node.op == "placeholder":
                copies[node] = places[node.name]
            elif node.op == "call_function":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        named = {node.name: copy for node, copy in copies.items()}
        for user in list(call.users):
            result = loop.results[user.args[1]]  # type: ignore[index]
            value = named[result.node]
            if result.stacked:
                value = graph.call_function(torch.unsqueeze, (value, 0))
            user.replace_all_uses_with(value)
            graph.erase_node(user)
    graph.erase_node(call)
