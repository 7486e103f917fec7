"""Split a sequence graph whose loops begin at the second step: the first step, and the rest.

Where a state is ``None`` at first, or the first step is written out, the first step is another
program than the others: its operators stand in front of the loops, which run from step 1 on, and
the outputs of both are concatenated.  Before, the graph takes a sequence.  After, there are two
graphs: the *first* takes a sequence of one step and gives the outputs and the values that loops
start from; the *rest* takes these and the steps that follow, and its loops visit all of them.

Precondition: all loops over the input begin at its second step, and the first step reads nothing
else of the sequence.
Numerics: bitwise; no operator is changed.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.frontend.operators.canonical import size
from snncc.ir import sequence_ops
from snncc.ir.custom_gradient import run_graph
from snncc.ir.events.region import EventRegion
from snncc.ir.loop_call import loop_of
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Recurrence, Var
from snncc.ir.walk import let_reads
from snncc.passes.base import Rejection
from snncc.passes.streams.event_steps import is_event_start_only
from snncc.passes.streams.find_time import Kind, Time, TimeMap, find_time
from snncc.passes.streams.first_roles import Roles, is_loop, reached, refused
from snncc.passes.streams.running_values import SO_FAR, continued_value, place_join_of

# Key of a node's meta in the rest.
JOINED = "joined"  # the axis along which the first step stands in front of this value


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A sequence graph in two.

    Attributes:
        first: From the placeholders of the sequence graph, for one step, to a tuple: its outputs,
            then the values that are handed to the rest.
        rest: From the same placeholders, for the steps after the first, and the values handed on,
            to the outputs of these steps.
        outputs: How many outputs there are.
        sequences: For each placeholder of the sequence graph whether its steps are visited.
    """

    first: torch.fx.Graph
    rest: torch.fx.Graph
    outputs: int
    sequences: tuple[bool, ...]


def split_first(graph: torch.fx.Graph, inputs: Sequence[bool]) -> Split | Rejection | None:
    """Split a graph whose loops begin at the second step; None where its loops begin at the first.

    Args:
        graph: The sequence graph.
        inputs: For each placeholder whether it may have a time axis.
    """
    places = [n for n in graph.nodes if n.op == "placeholder"]
    moving = reached(graph, [n for n, own in zip(places, inputs, strict=True) if own])
    lengths = [n for n in graph.nodes if isinstance(n.target, sequence_ops.TripLength)]
    trips = [n for n in lengths if n.target.offset and moving.intersection((n, *n.users))]
    if not trips:
        return None
    views = [n for n in graph.nodes if n.target is sequence_ops.time_view and n.args[4] in trips]
    roles = Roles(graph, moving, trips, views)
    refusal = roles.refusal()
    return _Splitter(roles).split(places) if refusal is None else refusal


def find_time_after_first(
    split: Split, values: Sequence[Tensor], inputs: Sequence[bool]
) -> TimeMap | Rejection:
    """Return where time is in the steps after the first; check that the first fits them."""
    results = _results_of_first(split, values)
    if results is None:
        return refused("its first step computes with the number of all steps")
    handed = results[split.outputs :]
    if not all(isinstance(value, Tensor) for value in handed):
        return refused("its first step hands on what is no tensor")
    found = find_time(split.rest, [*values, *handed], [*split.sequences, *(False for _ in handed)])
    if isinstance(found, Rejection):
        return found
    for node in found.graph.nodes:
        if any(found.times[node] != Time(Kind.ALONG, axis) for axis in node.meta.get(JOINED, ())):
            return refused("its first step is joined to the others in another axis")
    places = [n for n in found.graph.nodes if n.op == "placeholder"][1:]
    lengths = {
        (found.times[node].dim, value.shape[found.times[node].dim])
        for node, value in zip(places, values, strict=False)
        if found.times[node].kind is Kind.ALONG
    }
    for value, is_input, is_sequence in zip(values, inputs, split.sequences, strict=True):
        if is_input and not is_sequence and lengths.intersection(enumerate(value.shape)):
            return refused("an input of its first step may have steps as well")
    return found


def _results_of_first(split: Split, values: Sequence[Tensor]) -> tuple[Any, ...] | None:
    """Return what the first step gives; None where it cannot be run on one step.

    Where it computes with the number of steps, the axis of time is the first that leaves one step.
    """
    rank = max((x.dim() for x, own in zip(values, split.sequences, strict=True) if own), default=0)
    for axis in (None, *range(rank)):
        given = [
            x.narrow(axis, 0, 1) if own and axis is not None and axis < x.dim() else x
            for x, own in zip(values, split.sequences, strict=True)
        ]
        with torch.no_grad(), torch.random.fork_rng(devices=[]), suppress(RuntimeError):
            results: tuple[Any, ...] = run_graph(split.first, [x.clone() for x in given])
            return results
    return None


@dataclass(eq=False)
class _Splitter:
    """Copies a graph into its first step and the rest."""

    roles: Roles
    first: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    rest: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    firsts: dict[torch.fx.Node, torch.fx.Node] = field(default_factory=dict)
    rests: dict[torch.fx.Node, torch.fx.Node] = field(default_factory=dict)
    handed: list[torch.fx.Node] = field(default_factory=list)
    last: torch.fx.Node | None = None

    def split(self, places: Sequence[torch.fx.Node]) -> Split | Rejection:
        for node in places:
            self.firsts[node] = self.first.node_copy(node)
            self.rests[node] = self.last = self.rest.node_copy(node)
        nodes = [n for n in self.roles.graph.nodes if n.op == "call_function"]
        for node in nodes:
            self.add_first(node)
        for node in nodes:
            self.add_rest(node)
        outputs: Any = self.roles.graph.output_node().args[0]
        needed = [n for n in (*outputs, *self.handed) if isinstance(n, torch.fx.Node)]
        missing = next((n for n in needed if n not in self.firsts), None)
        if missing is not None:
            return refused("an output, or what it needs, has no value after one step", missing)
        results = torch.fx.node.map_arg(outputs, self.in_rest)
        self.first.output(torch.fx.node.map_arg((*outputs, *self.handed), self.firsts.__getitem__))
        self.rest.output(results)
        for graph in (self.first, self.rest):
            graph.eliminate_dead_code()
            graph.lint()
        sequences = tuple(node in self.roles.before for node in places)
        return Split(self.first, self.rest, len(outputs), sequences)

    def add_first(self, node: torch.fx.Node) -> None:
        """Copy what the first step computes, and what is computed from its outputs alone."""
        roles = self.roles
        if node in roles.joins:
            node_of = self.firsts.get(roles.joins[node][0])
        elif (start := _start_of(node)) is not None:
            node_of = self.firsts.get(start)
        elif node in roles.trips or node in roles.views or self.is_visiting(node):
            return
        elif all(n in self.firsts for n in node.all_input_nodes):
            node_of = self.first.node_copy(node, self.firsts.__getitem__)
            if isinstance(node.target, sequence_ops.StepCount):
                node_of.args = (1,)
        else:
            return
        if node_of is not None:
            self.firsts[node] = node_of

    def is_visiting(self, node: torch.fx.Node) -> bool:
        """Tell whether a node is a loop over the steps after the first."""
        return is_loop(node) and node in self.roles.moving

    def add_rest(self, node: torch.fx.Node) -> None:
        """Copy what the steps after the first compute."""
        roles = self.roles
        if node in roles.joins:
            tail = self.in_rest(roles.joins[node][1])
            self.rests[node] = tail
            tail.meta[JOINED] = (*tail.meta.get(JOINED, ()), _axis_of(node))
        elif node in roles.alone:
            return  # handed on where it is needed
        elif node in roles.later or node in roles.before or self.is_shared(node):
            copy = self.rests[node] = self.rest.node_copy(node, self.in_rest)
            if node in roles.trips:
                copy.target = replace(node.target, offset=0)  # type: ignore[type-var]
            elif node in roles.views:
                copy.update_arg(2, 0)
            elif (operand := continued_value(node)) in roles.joined:
                handed = (node, operand) if place_join_of(node) is not None else (node,)
                copy.meta[SO_FAR] = [self.hand(n).name for n in handed]

    def is_shared(self, node: torch.fx.Node) -> bool:
        """Tell whether a value is the same for the first step and for the others."""
        if node.target is size:
            return node.args[0] in self.roles.before or node.args[0] in self.rests
        return node not in self.roles.moving and not node.meta.get("impure")

    def in_rest(self, node: torch.fx.Node) -> torch.fx.Node:
        if node not in self.rests:
            self.rests[node] = self.hand(node)
        return self.rests[node]

    def hand(self, node: torch.fx.Node) -> torch.fx.Node:
        """Hand a value of the first step to the rest."""
        self.handed.append(node)
        with self.rest.inserting_after(self.last):
            self.last = self.rest.placeholder(f"{node.name}_first")
        self.last.meta["where"] = node.meta.get("where")
        return self.last


def _start_of(node: torch.fx.Node) -> torch.fx.Node | None:
    """Return what a state ends with after no step: what it starts from."""
    if node.target is not operator.getitem:
        return None
    call, index = node.args
    start: Any = None
    if not isinstance(call, torch.fx.Node) or not isinstance(index, int):
        return None
    if isinstance(call.target, NeuronCall):
        forward = call.target.program.forward
        names = (*forward.step_inputs, *forward.lane_inputs)
        finals = dict(enumerate(forward.finals, len(forward.outputs)))
        initials = {state.name: state.initial for state in forward.states}
        initial = initials.get(finals.get(index, ""))
        if isinstance(initial, Var):
            start = call.args[1 + names.index(initial.name)]
    elif (loop := loop_of(call)) is not None and not loop.results[index].stacked:
        carries = (c for c in loop.carries if c.update == loop.results[index].node)
        initial_of = next((carry.initial for carry in carries), None)
        start = call.args[initial_of] if isinstance(initial_of, int) else None
    return start if isinstance(start, torch.fx.Node) else None


def _axis_of(cat: torch.fx.Node) -> Any:
    return cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)


def is_start_only(user: torch.fx.Node, node: torch.fx.Node) -> bool:
    """Tell whether a node reads a value before its first step alone."""
    places = {i for i, arg in enumerate(user.args) if arg is node}
    loop = loop_of(user)
    if isinstance(user.target, NeuronCall):
        forward = user.target.program.forward
        names = (*forward.step_inputs, *forward.lane_inputs)
        return not {names[i - 1] for i in places if i} & _read_in_steps(forward)
    if isinstance(user.target, EventRegion):
        return is_event_start_only(user.target, (i - 1 for i in places))
    if loop is not None:
        read = {operand for _, operand in loop.inputs} | {step.operand for step in loop.steps}
        return not places & (read | {loop.trip.operand})
    return user.target is sequence_ops.shift_time and places == {1}


def _read_in_steps(forward: Recurrence) -> set[str]:
    """Return the names that a neuron reads in its steps, not only before them."""
    names = {*forward.outputs, *(state.update for state in forward.states)}
    return names.union(*map(let_reads, forward.lets))
