"""The network of events in a sequence graph: its layers, what drives each, what is seen of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.fx

from snncc.ir import sequence_ops
from snncc.ir.events.currents import Currents, Given
from snncc.ir.events.network import (
    EventEdge,
    EventGroup,
    EventNetwork,
    EventOrder,
    EventResult,
    Shown,
)
from snncc.ir.events.region import EventRegion
from snncc.ir.nodes import Var
from snncc.ir.symbolic import degree
from snncc.ir.walk import names_read
from snncc.passes.base import Rejection
from snncc.passes.events.between import Between, closure, compares, find_varying
from snncc.passes.events.find_neurons import EventNeuron
from snncc.passes.events.linear_rules import without_offset
from snncc.passes.gradients.differentiate import differentiate

Node: TypeAlias = torch.fx.Node


@dataclass(eq=False)
class Source:
    """A node whose value is the spikes of a group."""

    group: int
    is_delayed: bool = False
    initial: Any = None


@dataclass(eq=False)
class Found:
    """A network in a graph.

    Attributes:
        region: The network.
        neurons: The nodes that it replaces.
        arguments: What it is called with, behind the number of steps.
        shown: The nodes that are results of it, and which; a neuron stands for what is needed of it
            by what else it gives.
        after: The nodes that it replaces, and all that depend on them.
        recalled: The nodes that are spikes of the step before, and whose.
    """

    region: EventRegion
    neurons: dict[Node, EventNeuron]
    arguments: list[Any]
    shown: list[tuple[Node, EventResult]]
    after: set[Node]
    recalled: dict[Node, Node]


def find_spikes(neurons: Mapping[Node, EventNeuron]) -> dict[Node, Node]:
    """Return the nodes that are spikes, and of which neuron each."""
    found: dict[Node, Node] = {}
    for node, neuron in neurons.items():
        for user in node.users:
            position: Any = user.args[1]
            if neuron.forward.outputs[position:][:1] == (neuron.spike,):
                found[user] = node
    return found


@dataclass
class NetworkFinder:
    """Finds the network of some neurons.

    ``after`` are the nodes that need the network to have run, ``joined`` those that depend on
    inputs whose events are queued; ``varying`` those that depend on inputs of the model or are
    drawn; ``fixed`` are parameters and buffers; ``recalled`` are the spikes of a step before.
    """

    graph: torch.fx.Graph
    neurons: dict[Node, EventNeuron]
    recalled: dict[Node, Node]
    inputs: tuple[bool, ...]
    order: EventOrder
    prioritize_input: bool
    sources: dict[Node, Source] = field(default_factory=dict)
    arguments: list[Any] = field(default_factory=list)
    edges: list[EventEdge] = field(default_factory=list)

    def find(self) -> Found | Rejection:
        """Return the network, or what is in its way."""
        self.varying = find_varying(self.graph, self.inputs)
        placeholders = zip(self.graph.find_nodes(op="placeholder"), self.inputs, strict=True)
        self.fixed = {node for node, is_input in placeholders if not is_input}
        self.after = closure(self.graph, (*self.neurons, *self.recalled))
        self.given = [] if self.prioritize_input else self.find_inputs()
        views = (n for n in self.graph.nodes if n.target is sequence_ops.time_view)
        self.stepped = closure(self.graph, views)
        static = set(self.given) - self.stepped
        if static:
            reason = "an input that is the same at all steps has no events to queue"
            return Rejection("static", reason, static.pop().meta.get("where"))
        self.members: list[Node] = [*self.given, *self.neurons]
        self.find_sources()
        self.joined = closure(self.graph, self.given)
        groups: list[Currents | Given] = [Given(self.argument(node)) for node in self.given]
        for node, neuron in self.neurons.items():
            currents = self.currents(node, neuron)
            if isinstance(currents, Rejection):
                return currents
            groups.append(currents)
        emitted = self.emitted()
        if isinstance(emitted, Rejection):
            return emitted
        shown = [*self.shown()]
        results = tuple(dict.fromkeys(result for _, result in shown))
        network = EventNetwork(
            tuple(self.event_groups(groups)), tuple(self.edges), results, self.order
        )
        if self.order.stop is not None and not any(g.is_output for g in network.groups):
            return Rejection("no-output", "no spiking neuron is last: all of them drive others")
        dtype = next(iter(self.neurons)).meta["dtype"]
        region = EventRegion(network, dtype, tuple(groups), emitted)
        outside = self.arguments, shown, self.after, self.recalled
        return Found(region, self.neurons, *outside)

    def find_sources(self) -> None:
        """Find the nodes that are spikes, of this time step or of the one before."""
        places = {node: index for index, node in enumerate(self.members)}
        self.sources = {node: Source(places[node]) for node in self.given}
        for node, neuron in find_spikes(self.neurons).items():
            self.sources[node] = Source(places[neuron])
        for node, spikes in self.recalled.items():
            self.sources[node] = Source(self.sources[spikes].group, True, node.args[0])

    def find_inputs(self) -> list[Node]:
        """Return what of the input goes through linear operators into neurons, as it is before."""
        found: dict[Node, None] = {}
        wanted = [n for node in self.neurons for n in self.step_inputs(node)]
        seen: set[Node] = set()
        while wanted:
            node = wanted.pop()
            if node in seen or node in self.after or node not in self.varying:
                continue
            seen.add(node)
            inputs = {n for n in node.all_input_nodes if n in self.varying}
            call = without_offset(node, inputs, set()) if inputs else None
            if node.target is sequence_ops.time_view or not isinstance(call, tuple):
                found[node] = None
            else:
                wanted += inputs
        return [node for node in self.graph.nodes if node in found]

    def step_inputs(self, node: Node) -> list[Node]:
        """Return what a neuron reads at each step."""
        count = len(self.neurons[node].forward.step_inputs)
        return [a for a in node.args[1 : 1 + count] if isinstance(a, torch.fx.Node)]

    def argument(self, value: Any) -> int:
        """Return the position of a value among the arguments of the region."""
        for position, known in enumerate(self.arguments):
            if known is value:
                return position
        self.arguments.append(value)
        return len(self.arguments) - 1

    def currents(self, node: Node, neuron: EventNeuron) -> Currents | Rejection:
        """Return what drives a neuron."""
        forward, index = neuron.forward, self.members.index(node)
        steps, lanes = forward.step_inputs, forward.lane_inputs
        values = node.args[1 : 1 + len(steps)]
        targets = [value for value in values if isinstance(value, torch.fx.Node)]
        after, varying = self.after | self.joined, self.varying - self.after - self.joined
        between = Between(self.graph, targets, self.sources, after, varying)
        if between.refused is not None:
            return between.refused
        own = self.own_lanes(node, neuron)
        if isinstance(own, Rejection):
            return own
        spikes = [self.sources[source] for source in between.sources]
        first = len(self.edges)
        self.edges += [EventEdge(s.group, index, s.is_delayed) for s in spikes]
        return Currents(
            neuron=forward,
            standing=between.whole(values),
            linear=between.linear(values),
            sources=tuple(range(first, len(self.edges))),
            externals=tuple(self.argument(n) for n in between.externals),
            is_varying=bool(own) or any(n in self.varying for n in between.externals),
            is_sized=between.is_started or any(n not in self.fixed for n in between.externals),
            batched=tuple(
                (place, int(n in self.stepped))
                for place, n in enumerate(between.externals)
                if n in self.varying
            ),
            own=own,
            drive=neuron.drive,
            decay=neuron.decay,
            membrane=neuron.membrane,
            initial=neuron.initial,
            lanes=tuple(
                (name, self.argument(value))
                for name, value in zip(lanes, node.args[1 + len(steps) :], strict=True)
            ),
            shape=tuple(node.meta["lanes"][1:]),
        )

    def own_lanes(self, node: Node, neuron: EventNeuron) -> frozenset[str] | Rejection:
        """Return the lane inputs of a neuron that differ by sample, or what they may not be."""
        forward, start = neuron.forward, neuron.initial
        read = {*names_read(neuron.decay), *neuron.fire.lane_inputs}
        own: set[str] = set()
        for name, value in zip(
            forward.lane_inputs, node.args[1 + len(forward.step_inputs) :], strict=True
        ):
            if value in self.after:
                reason = f"'{forward.name}' starts from, or has a parameter of, other spikes"
                return Rejection("parameter", reason, forward.where)
            if start == Var(name) and compares(value):
                reason = f"'{forward.name}' starts from a step that is another program"
                return Rejection("first-step", reason, forward.where)
            if value in self.varying and name in read:
                reason = f"a parameter of '{forward.name}' depends on the input"
                return Rejection("parameter", reason, forward.where)
            if value in self.varying and name in names_read(neuron.drive):
                own.add(name)
        if degree(neuron.drive, frozenset(forward.step_inputs) | own) not in (0, 1):
            reason = f"what '{forward.name}' multiplies spikes with depends on the input"
            return Rejection("parameter", reason, forward.where)
        return frozenset(own)

    def emitted(self) -> tuple[int | float | None, ...] | Rejection:
        """Return for each group where its spikes before the first step are."""
        starts: list[int | float | None] = [None] * len(self.members)
        seen: dict[int, Any] = {}
        for node, source in self.sources.items():
            if not source.is_delayed:
                continue
            where = node.meta.get("where")
            if seen.setdefault(source.group, source.initial) != source.initial:
                return Rejection("starts", "a layer's last spikes start in two ways", where)
            if source.initial in self.after:
                return Rejection("starts", "a layer's last spikes start from other spikes", where)
            is_node = isinstance(source.initial, torch.fx.Node)
            start = self.argument(source.initial) if is_node else float(source.initial)
            recalled = any(e.source == source.group and e.is_delayed for e in self.edges)
            starts[source.group] = start if recalled else None
        return tuple(starts)

    def event_groups(self, groups: Sequence[Currents | Given]) -> Iterator[EventGroup]:
        """Yield the groups of the network, given what drives them."""
        for index, (node, currents) in enumerate(zip(self.members, groups, strict=True)):
            if not isinstance(currents, Currents):
                yield EventGroup(node.name, None)
                continue
            neuron = self.neurons[node]
            reached = [e for e in self.edges if e.target == index and not e.is_delayed]
            is_driven = currents.is_varying and self.prioritize_input
            wanted = (*neuron.fire.step_inputs, *neuron.fire.lane_inputs)
            yield EventGroup(
                name=neuron.forward.name,
                fire=neuron.fire,
                starts=is_driven or not reached,
                is_output=self.is_last(index),
                adjoint=differentiate(neuron.fire, wanted),
                where=neuron.forward.where,
            )

    def is_last(self, group: int) -> bool:
        """Tell whether the spikes of a group act on others no earlier than in the next time step.

        What they act on then is itself, or leads to it.
        """
        if any(e.source == group and not e.is_delayed for e in self.edges):
            return False
        reach = [self.reached(index) | {index} for index in range(len(self.members))]
        return all(group in reach[other] for other in reach[group])

    def reached(self, group: int) -> set[int]:
        """Return the groups that the spikes of a group act on, and what these act on in turn."""
        found, wanted = set[int](), [group]
        while wanted:
            source = wanted.pop()
            targets = {e.target for e in self.edges if e.source == source} - found
            found |= targets
            wanted += targets
        return found

    def shown(self) -> Iterator[tuple[Node, EventResult]]:
        """Yield the nodes that are results of the network, and which."""
        for node, neuron in self.neurons.items():
            index, forward = self.members.index(node), neuron.forward
            names = (*forward.outputs, *forward.finals)
            update = next(s.update for s in forward.states if s.name == neuron.membrane)
            for user in node.users:
                position: Any = user.args[1]
                if position >= len(forward.outputs):
                    if names[position] == neuron.membrane:
                        yield user, EventResult(index, Shown.LAST)
                elif names[position] == neuron.spike:
                    yield user, EventResult(index, Shown.SPIKES)
                elif names[position] == update:
                    yield user, EventResult(index, Shown.MEMBRANES)
            for name in () if neuron.rest is None else neuron.rest.step_inputs:
                if name in (neuron.spike, update):
                    shown = Shown.SPIKES if name == neuron.spike else Shown.MEMBRANES
                    yield node, EventResult(index, shown)
