"""Copy a sequence graph and give every state an entrance and an exit."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import full_like, numel, size
from snncc.ir import sequence_ops
from snncc.ir.chunk_program import ChunkProgram, StreamState
from snncc.ir.events.region import EventRegion
from snncc.ir.loop_call import LoopCall, loop_of
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Const, Var
from snncc.ir.program import NeuronProgram
from snncc.ir.time_loop import Fill, Result, TimeLoop
from snncc.passes.streams.event_steps import continue_events
from snncc.passes.streams.find_time import Kind, Time, TimeMap
from snncc.passes.streams.first_step import Split, is_start_only
from snncc.passes.streams.open_states import numbered, with_open_states
from snncc.passes.streams.running_values import (
    can_scan_on,
    continue_reduction,
    continue_scan,
    continued_value,
)

OF_SIZES = "of_sizes"  # key of a node's meta: what it is depends on sizes alone


@dataclass
class Streamer:
    """Copies a graph and gives every state an entrance and an exit."""

    source: TimeMap
    split: Split | None = None
    graph: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    start: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    copies: dict[torch.fx.Node, torch.fx.Node] = field(default_factory=dict)
    starts: dict[torch.fx.Node, torch.fx.Node] = field(default_factory=dict)
    states: list[StreamState] = field(default_factory=list)
    exits: list[torch.fx.Node] = field(default_factory=list)
    start_outputs: list[torch.fx.Node] = field(default_factory=list)
    last: torch.fx.Node | None = None
    counts: bool = False

    def program(self) -> ChunkProgram:
        """Return the program."""
        times = self.source.times
        self.elapsed = self.last = self.graph.placeholder("elapsed")
        length, *places = (n for n in self.source.graph.nodes if n.op == "placeholder")
        first: Sequence[Any] = ()
        if self.split is not None:
            first = self.first_step(self.split, places)
            places = places[: len(self.split.sequences)]
        for node in places:
            self.copies[node] = self.graph.node_copy(node)
            if self.split is None:
                self.starts[node] = self.start.node_copy(node)
        self.copies[length] = self.length(self.graph, self.copies, places)
        self.starts[length] = self.length(self.start, self.starts, places)
        for node in self.source.graph.nodes:
            if node.op == "call_function":
                self.add(node, times[node])
        outputs: Any = self.source.graph.output_node().args[0]
        results = [self.result(n) if isinstance(n, torch.fx.Node) else n for n in outputs]
        self.graph.output((*results, *self.exits))
        self.start.output((*first, *self.start_outputs))
        for each in (self.graph, self.start):
            each.eliminate_dead_code()
            each.lint()
        return ChunkProgram(
            graph=self.graph,
            start=self.start,
            states=tuple(self.states),
            input_axes=tuple(_axis(times[n]) for n in places),
            output_axes=tuple(
                _axis(times[n]) if isinstance(n, torch.fx.Node) else None for n in outputs
            ),
            output_leads=tuple(
                times[n].lead if isinstance(n, torch.fx.Node) else 0 for n in outputs
            ),
            length=self.source.length,
            counts=self.counts,
            has_first=self.split is not None,
            reads_first=self.reads_first(places),
        )

    def reads_first(self, places: Sequence[torch.fx.Node]) -> bool:
        """Tell whether a state starts from values of the first step, not only from its sizes."""
        inputs = {self.starts.get(n) for n in places if self.source.times[n].kind is Kind.ALONG}
        seen = list(self.start_outputs)
        for node in seen:
            if node.target not in (size, numel, full_like) and not node.meta.get(OF_SIZES):
                seen += [n for n in node.all_input_nodes if n not in seen]
        return not inputs.isdisjoint(seen)

    def first_step(self, split: Split, places: Sequence[torch.fx.Node]) -> Sequence[Any]:
        """Put the first step into the start graph, and return its outputs.

        What it hands on is the start of states; what later steps read of it is a state that never
        changes.
        """
        own = [n for n in split.first.nodes if n.op == "placeholder"]
        copies: dict[torch.fx.Node, torch.fx.Node] = {}
        results: Any = self.start.graph_copy(split.first, copies)
        given = [copies[n] for n in own] + list(results[split.outputs :])
        self.starts.update(zip(places, given, strict=True))
        for node in places[len(own) :]:
            if not all(is_start_only(user, node) for user in node.users):
                self.copies[node] = self.state(node.name, self.starts[node], None, node)
                self.exits.append(self.copies[node])
        return results[: split.outputs]  # type: ignore[no-any-return]

    def result(self, node: torch.fx.Node) -> torch.fx.Node:
        """Return what a chunk gives for an output; a length is that of the sequence so far."""
        return self.total(node) if self.follows_steps(node) else self.copies[node]

    def follows_steps(self, node: torch.fx.Node) -> bool:
        """Tell whether a value is computed from the number of steps alone."""
        if isinstance(node.target, sequence_ops.StepCount):
            return True
        kind = self.source.times[node].kind
        is_timeless = kind is Kind.TIMELESS and node.op == "call_function"
        return kind is Kind.LENGTH or (
            is_timeless and any(map(self.follows_steps, node.all_input_nodes))
        )

    def length(
        self,
        graph: torch.fx.Graph,
        copies: dict[torch.fx.Node, torch.fx.Node],
        places: Sequence[torch.fx.Node],
    ) -> torch.fx.Node:
        """Return the number of steps of a chunk: one, where no input has a time axis."""
        for node in places:
            time = self.source.times[node]
            if time.kind is Kind.ALONG:
                return graph.call_function(size, (copies[node], time.dim))
        return graph.call_function(int, (1,))

    def add(self, node: torch.fx.Node, time: Time) -> None:
        """Copy one node, with its states if it has any."""
        if time.kind is Kind.FIRST:
            self.first(node)
        elif isinstance(node.target, NeuronCall | EventRegion):
            self.copies[node] = self.neuron(node)
        elif (loop := loop_of(node)) is not None:
            self.copies[node] = self.loop(node, loop)
        elif node.target is sequence_ops.shift_time:
            self.shift(node)
        elif node.meta.get("impure") and time.kind is Kind.TIMELESS and node in self.source.dtypes:
            self.once(node)
        elif node.target in (sequence_ops.numbers_until, sequence_ops.steps_until):
            args = (*self.mapped(node.args[:-1]), self.elapsed)
            self.copies[node] = self.call(node.target, args, node)
            self.counts = True
        elif node in self.source.makers:
            self.lead(node, time)
        elif time.kind is Kind.PREFIX and self.reduces(node):
            self.copies[node] = continue_reduction(self, node)
        elif time.kind is Kind.ALONG and self.scans(node):
            self.copies[node] = continue_scan(self, node)
        else:
            self.plain(node, time)

    def plain(self, node: torch.fx.Node, time: Time) -> None:
        """Copy a node that needs no state; lengths in values of the sequence so far count it."""
        if time.kind is Kind.PREFIX and node.target is not operator.getitem:
            counted = {n: self.total(n) for n in node.all_input_nodes if self.follows_steps(n)}
            lookup = {**self.copies, **counted}
            copy = self.graph.node_copy(node, lookup.__getitem__)
        else:
            copy = self.graph.node_copy(node, self.here)
        self.copies[node] = copy

    def first(self, node: torch.fx.Node) -> None:
        """Keep what is computed from the first step, as a state that never changes.

        What only the start of other states is computed from need not be kept.
        """
        times = self.source.times
        others = [u for u in node.users if u not in times or times[u].kind is not Kind.FIRST]
        if all(is_start_only(user, node) for user in others):
            return
        self.copies[node] = self.state(
            f"{node.name}.first", self.begin(node), self.source.dtypes[node], node
        )
        self.exits.append(self.copies[node])

    def here(self, node: torch.fx.Node) -> torch.fx.Node:
        """Return a value as it is for these steps; of what is computed from the first, its like."""
        if node in self.copies:
            return self.copies[node]
        return self.graph.node_copy(node, self.here)

    def begin(self, node: torch.fx.Node) -> torch.fx.Node:
        """Copy a value into the start graph, where the first chunk stands for the sequence."""
        if node not in self.starts:
            self.starts[node] = self.start.node_copy(node, self.begin)
        return self.starts[node]

    def total(self, node: torch.fx.Node) -> torch.fx.Node:
        """Return a length as it is for all steps so far."""
        self.counts = True
        if node.op == "placeholder" or isinstance(node.target, sequence_ops.TripLength):
            return self.elapsed
        if isinstance(node.target, sequence_ops.StepCount):
            return self.call(node.target, (self.elapsed,), node)
        if node.target is size:
            here = self.copies[node]
            length = self.here_length
            source: Any = node.args[0]
            if self.source.times[source].lead:
                return self.call(operator.add, (self.elapsed, self.source.times[source].lead), node)
            each = self.call(operator.floordiv, (here, length), node)
            return self.call(operator.mul, (each, self.elapsed), node)
        lookup = {
            n: self.total(n) if self.follows_steps(n) else self.copies[n]
            for n in node.all_input_nodes
        }
        return self.graph.node_copy(node, lookup.__getitem__)

    def state(
        self,
        name: str,
        start: Fill | torch.fx.Node,
        dtype: torch.dtype | None,
        node: torch.fx.Node,
        along: int | None = None,
    ) -> torch.fx.Node:
        """Add a state of a node and return the placeholder that holds it before the chunk."""
        taken = {state.name for state in self.states}
        unique = next(n for n in numbered(name) if n not in taken)
        position: Fill | int
        if isinstance(start, Fill):
            position = start
        else:
            position = len(self.start_outputs)
            self.start_outputs.append(start)
        where = node.meta.get("where")
        self.states.append(StreamState(unique, position, dtype, where, along))
        with self.graph.inserting_after(self.last):
            self.last = self.graph.placeholder(f"state{len(self.states)}")
        return self.last

    def neuron(self, node: torch.fx.Node) -> torch.fx.Node:
        """Call neurons that start from their states and return them."""
        if isinstance(node.target, EventRegion):
            return continue_events(self, node)
        forward = node.target.program.forward  # type: ignore[union-attr]
        names = (*forward.step_inputs, *forward.lane_inputs)
        given = dict(zip(names, _args(node)[1:], strict=True))
        entrances = []
        for state in forward.states:
            start = (
                Fill(float(state.initial.value))
                if isinstance(state.initial, Const)
                else self.begin(given[state.initial.name])
            )
            name = f"{forward.name}.{state.name.removesuffix('_prev')}"
            entrances.append(self.state(name, start, self.source.dtypes[node], node))
            if isinstance(state.initial, Var):
                self.copies.setdefault(given[state.initial.name], entrances[-1])  # not read
        arguments = self.mapped(node.args)
        opened = with_open_states(forward)
        call = NeuronCall(NeuronProgram(opened))
        result = self.call(call, (*arguments, *entrances), node)
        count = len(forward.outputs)
        self.exits += [
            self.call(operator.getitem, (result, count + opened.finals.index(s.name)), node)
            for s in forward.states
        ]
        return result

    def loop(self, node: torch.fx.Node, loop: TimeLoop) -> torch.fx.Node:
        """Call a loop that starts from its carries and returns them."""
        entrances: list[torch.fx.Node] = []
        carries, results = [], list(loop.results)
        first = len(results)
        for carry in loop.carries:
            start = carry.initial
            value = start if isinstance(start, Fill) else self.begin(_args(node)[start])
            entrance = self.state(f"{loop.name}.{carry.name}", value, None, node)
            if not isinstance(start, Fill):
                self.copies.setdefault(_args(node)[start], entrance)  # not read
            carries.append(replace(carry, initial=len(node.args) + len(entrances)))
            entrances.append(entrance)
            results.append(Result(carry.update, stacked=False))
        arguments = [*self.mapped(node.args), *entrances]
        opened = replace(
            loop, operands=len(arguments), carries=tuple(carries), results=tuple(results)
        )
        target = LoopCall(opened) if isinstance(node.target, LoopCall) else opened
        result = self.call(target, arguments, node)
        self.exits += [
            self.call(operator.getitem, (result, first + i), node) for i in range(len(carries))
        ]
        return result

    def once(self, node: torch.fx.Node) -> None:
        """Keep what is drawn once for the whole sequence, as a state that never changes."""
        dtype = self.source.dtypes[node]
        self.copies[node] = self.state(f"{node.name}.drawn", self.begin(node), dtype, node)
        self.exits.append(self.copies[node])

    def shift(self, node: torch.fx.Node) -> None:
        """Delay by a step: the first value of a chunk is the last of the chunk before."""
        x, initial = _args(node)
        is_node = isinstance(initial, torch.fx.Node)
        start = self.begin(initial) if is_node else Fill(float(initial))
        entrance = self.state(f"{node.name}.delayed", start, self.source.dtypes[node], node)
        self.copies[node] = self.call(
            sequence_ops.shift_time,
            (self.copies[x], entrance),
            node,
        )
        self.exits.append(self.call(sequence_ops.last_step, (self.copies[x],), node))

    def lead(self, node: torch.fx.Node, time: Time) -> None:
        """Put in front of the steps at hand the rows before them, as many as lead the sequence."""
        start = self.leading(node, time)
        dtype = self.source.dtypes[node]
        entrance = self.state(f"{node.name}.before", start, dtype, node, time.dim)
        here = self.graph.node_copy(node, self.here)
        length = self.here_length
        new = self.call(torch.narrow, (here, time.dim, time.lead, length), node)
        self.copies[node] = self.call(torch.cat, ([entrance, new], time.dim), node)
        kept = (self.copies[node], time.dim, length, time.lead)
        self.exits.append(self.call(torch.narrow, kept, node))

    def leading(self, node: torch.fx.Node, time: Time) -> torch.fx.Node:
        """Return the rows before the first step, in the start graph."""
        if node.target is torch.cat:
            parts: Any = node.args[0]
            known = [n for n in parts if self.source.times[n].kind is not Kind.ALONG]
            return self.start.call_function(torch.cat, ([*map(self.begin, known)], time.dim))
        first = (self.begin(node), time.dim, 0, time.lead)
        rows = self.start.call_function(torch.narrow, first)
        rows.meta[OF_SIZES] = node.target is torch.nn.functional.pad and "constant" in node.args
        return rows

    def reduces(self, node: torch.fx.Node) -> bool:
        """Tell whether a node reduces the time axis in a way that needs a state."""
        reduced = continued_value(node)
        return reduced is not None and self.source.times[reduced].kind is Kind.ALONG

    def scans(self, node: torch.fx.Node) -> bool:
        """Tell whether a node gives running values over the time axis."""
        operand = continued_value(node)
        return operand is not None and can_scan_on(node, self.source.times[operand])

    @property
    def here_length(self) -> torch.fx.Node:
        """The number of steps of a chunk."""
        return self.copies[next(iter(self.source.graph.nodes))]

    def call(self, target: Any, args: Sequence[Any], like: torch.fx.Node) -> torch.fx.Node:
        """Add a call that stands for a node, or for a part of it."""
        node = self.graph.call_function(target, tuple(args))
        node.meta.update(where=like.meta.get("where"), dtype=like.meta.get("dtype"))
        return node

    def mapped(self, value: Any) -> Any:
        """Return arguments with the copies of nodes in their places."""
        return torch.fx.node.map_arg(value, self.copies.__getitem__)


def _args(node: torch.fx.Node) -> tuple[Any, ...]:
    return node.args


def _axis(time: Time) -> int | None:
    return time.dim if time.kind is Kind.ALONG else None
