"""Turn lists with one tensor for each step into tensors with a time axis, in place of lists.

Serial code takes frames as a list, or returns the list of spikes that it appended to.  Recorded,
each item is an input or an output of its own, and their number is that of the steps.  Before, the
graph stacks the inputs, and picks the items from what its loops give; after, it takes and gives the
sequences themselves.

Numerics: bitwise; rows are put in front of others, or taken apart, and nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from snncc.ir import sequence_ops
from snncc.ir.loop_call import loop_of
from snncc.ir.neuron_call import NeuronCall
from snncc.passes.neurons import copy_graph
from snncc.passes.streams.time_runs import length_position


@dataclass(frozen=True, slots=True, eq=False)
class ListOfRows:
    """The items of a list, as rows of a sequence.

    Attributes:
        before: The items before those of the first step.
        sequence: What has a row for each step.
        dim: Its time axis.
    """

    before: tuple[torch.fx.Node, ...]
    sequence: torch.fx.Node
    dim: int


def is_stacked(places: Sequence[torch.fx.Node]) -> bool:
    """Tell whether the inputs of a list are stacked, all of them in their order.

    The first may be left out, where the first step is another program than the others.
    """
    return any(_stacks(user, each) for each in (places, places[1:]) for user in each[0].users)


def rows_of(items: Sequence[Any]) -> ListOfRows | None:
    """Return items as the rows of a sequence, all of them in their order; None if they are not."""
    picks = [n for n in items[:2] if _is_pick(n) and n.args[2] == 0]
    if not picks or not all(isinstance(n, torch.fx.Node) for n in items):
        return None
    start, pick = items.index(picks[0]), picks[0]
    sequence, dim, _ = pick.args
    *rows, last = items[start:]
    if any(not _is_pick(n) or n.args != (sequence, dim, i) for i, n in enumerate(rows)):
        return None
    if not _is_last(last, sequence, dim, len(rows)):
        return None
    return ListOfRows(tuple(items[:start]), sequence, dim)


def gather_lists(
    graph: torch.fx.Graph,
    inputs: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
) -> torch.fx.Graph:
    """Return a graph that takes and gives sequences in the place of lists.

    Args:
        graph: The sequence graph.
        inputs: For each list the positions of its items among the placeholders.  The sequence takes
            the place of the first, and the others are gone.
        outputs: For each list the positions of its items among the outputs.  The sequence takes the
            place of the first, and the others are None.
    """
    result = copy_graph(graph)
    places = [n for n in result.nodes if n.op == "placeholder"]
    for column in inputs:
        _stack_inputs(result, [places[i] for i in column])
    output = result.output_node()
    given: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    for column in outputs:
        rows = rows_of([given[i] for i in column])
        assert rows is not None
        given = [None if i in column else x for i, x in enumerate(given)]
        with result.inserting_before(output):
            given[column[0]] = _joined(result, rows)
    output.args = (tuple(given),)
    result.eliminate_dead_code()
    result.lint()
    return result


def _stack_inputs(graph: torch.fx.Graph, places: Sequence[torch.fx.Node]) -> None:
    """Let one placeholder stand for those of a list."""
    shape = places[0].meta.get("shape")
    with graph.inserting_before(places[0]):
        sequence = graph.placeholder(places[0].name)
    sequence.meta.update(places[0].meta)
    if shape is not None:
        sequence.meta["shape"] = (len(places), *shape)
    for user in list(places[0].users):
        if _stacks(user, places):
            dim = _dim(user)
            user.target, user.args, user.kwargs = torch.movedim, (sequence, 0, dim), {}
            if not dim:
                user.replace_all_uses_with(sequence)
                graph.erase_node(user)
    for stack in [user for user in places[1].users if _stacks(user, places[1:])]:
        _visit_after_first(stack, sequence)
    after = next(n for n in graph.nodes if n.op != "placeholder")
    for i, place in enumerate(places):
        if place.users:
            with graph.inserting_before(after):
                row = graph.call_function(torch.select, (sequence, 0, i))
            row.meta.update(place.meta)
            place.replace_all_uses_with(row)
        graph.erase_node(place)


def _visit_after_first(stack: torch.fx.Node, sequence: torch.fx.Node) -> None:
    """Let the loops over a stack of all steps but the first visit those of the sequence."""
    graph, steps, dim = stack.graph, len(stack.args[0]), _dim(stack)  # type: ignore[arg-type]
    with graph.inserting_before(stack):
        trip = graph.call_function(sequence_ops.TripLength(0, -1), (sequence,))
    reached = {stack}
    for node in list(graph.nodes):
        if reached.isdisjoint(node.all_input_nodes):
            continue
        reached.add(node)
        position = length_position(node)
        if position is not None and node.args[position] == steps:
            node.update_arg(position, trip)
        if node.target is sequence_ops.time_view and node.args[:4] == (stack, dim, 0, 1):
            node.args = (sequence, 0, 1, 1, trip)


def _joined(graph: torch.fx.Graph, rows: ListOfRows) -> torch.fx.Node:
    """Return the sequence of a list, with the rows before those of its steps."""
    if not rows.before:
        return rows.sequence
    before = [graph.call_function(torch.unsqueeze, (n, rows.dim)) for n in rows.before]
    joined = graph.call_function(torch.cat, ([*before, rows.sequence], rows.dim))
    joined.meta["where"] = rows.sequence.meta.get("where")
    return joined


def _stacks(node: torch.fx.Node, places: Sequence[torch.fx.Node]) -> bool:
    return node.target is torch.stack and list(node.args[0]) == list(places)  # type: ignore[arg-type]


def _dim(stack: torch.fx.Node) -> Any:
    return stack.args[1] if len(stack.args) > 1 else stack.kwargs.get("dim", 0)


def _is_pick(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and node.target is torch.select


def _is_last(node: torch.fx.Node, sequence: torch.fx.Node, dim: int, index: int) -> bool:
    """Tell whether a node is the last row of a sequence, which has ``index`` rows before it."""
    if _is_pick(node):
        shape = sequence.meta.get("shape")
        size = None if shape is None else shape[dim]
        return node.args == (sequence, dim, index) and size == index + 1
    if node.target is sequence_ops.last_step:
        return dim == 0 and node.args[0] is sequence
    return dim == 0 and _ends_with(node, sequence)


def _ends_with(final: torch.fx.Node, sequence: torch.fx.Node) -> bool:
    """Tell whether a neuron or loop ends with the last row of another of its results."""
    call = final.args[0] if final.target is operator.getitem else None
    if sequence.target is not operator.getitem or sequence.args[0] is not call:
        return False
    last, every = final.args[1], sequence.args[1]
    if not (isinstance(call, torch.fx.Node) and isinstance(last, int) and isinstance(every, int)):
        return False
    if isinstance(call.target, NeuronCall):
        forward = call.target.program.forward
        results = [*forward.outputs, *forward.finals]
        updates = {state.name: state.update for state in forward.states}
        return every < len(forward.outputs) <= last and forward.outputs[every] in (
            results[last],
            updates.get(results[last]),
        )
    loop = loop_of(call)
    if loop is None:
        return False
    a, b = loop.results[every], loop.results[last]
    return a.node == b.node and a.stacked and not b.stacked
