"""Run the spiking neurons of a network, and what is between them, as one queue of spikes.

Before, each neuron layer runs over all steps, one layer after another.  After, one node runs the
network time step by time step, in each of which spikes of all layers are processed in groups of a
few (`snncc.ir.events.run`).  What comes before the first neuron and after the last stays.

Precondition: every spiking neuron takes its input in parts (`find_neurons`); what is between two of
them is linear in spikes and the same at all steps (`linear_rules`).
Numerics: substituted: the order of spikes is part of the network.  Where a group holds the widest
layer and layers form a chain, equal to the layered network over the reals.
Source: arXiv 2408.05098; `docs/async.md`.
"""

from __future__ import annotations

import operator
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.fx

from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.events.network import EventOrder, EventResult, Shown
from snncc.ir.events.recalled import Recalled
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.numerics import Numerics
from snncc.ir.program import NeuronProgram
from snncc.ir.sequence_ops import TripLength, shift_time
from snncc.passes.base import Rejection
from snncc.passes.events.between import closure
from snncc.passes.events.find_network import Found, NetworkFinder, find_spikes
from snncc.passes.events.find_neurons import EventNeuron, find_neuron, may_fire
from snncc.passes.events.settle_recalls import settle_recalls
from snncc.passes.hoisting.hoist_stateless import serial_part
from snncc.passes.neurons import copy_graph, neuron_nodes

Node: TypeAlias = torch.fx.Node
FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class QueueSpikes:
    """Replace all spiking neurons by one network of events.

    Attributes:
        order: In what order spikes are processed.
        inputs: For each placeholder of the graph whether it is an input of the model.
        prioritize_input: Whether the input of a time step arrives at once, before all spikes.
    """

    order: EventOrder
    inputs: tuple[bool, ...]
    prioritize_input: bool = True
    name = "queue-spikes"
    numerics = Numerics.SUBSTITUTED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the graph with one network of events, or what does not allow it."""
        for refused in (serial_part(graph), _spike_outside(graph)):
            if refused is not None:
                return refused
        graph = copy_graph(graph)
        neurons = _neurons(graph)
        if isinstance(neurons, Rejection):
            return neurons
        recalled = settle_recalls(graph, {*find_spikes(neurons)})
        if isinstance(recalled, Rejection):
            return recalled
        finder = NetworkFinder(
            graph, neurons, recalled, self.inputs, self.order, self.prioritize_input
        )
        found = finder.find()
        return found if isinstance(found, Rejection) else _Replacement(graph, found).build()


def _neurons(graph: torch.fx.Graph) -> dict[Node, EventNeuron] | Rejection:
    """Return the neurons of a network, or why one of them cannot be part of it."""
    found: dict[Node, EventNeuron] = {}
    for node in neuron_nodes(graph):
        program: NeuronProgram = node.target.program  # type: ignore[union-attr]
        forward = program.forward
        if not may_fire(forward):
            continue
        neuron = find_neuron(forward)
        if isinstance(neuron, Rejection):
            return neuron
        if node.meta.get("dtype") not in FLOATS or program.narrow or program.result is not None:
            return Rejection("type", f"'{forward.name}' is not of floats alone", forward.where)
        found[node] = neuron
    if not found:
        return Rejection("no-neuron", "the model has no spiking neuron")
    first = next(iter(found))
    if len({node.meta["dtype"] for node in found}) > 1:
        return Rejection("type", "its neurons are of several types", first.meta.get("where"))
    recalls = (node for node in graph.nodes if isinstance(node.target, Recalled))
    after = closure(graph, (*found, *recalls))
    for node, neuron in found.items():
        if not _is_as_long(node.args[0], first.args[0], after):
            reason = "its neurons run for different numbers of steps"
            return Rejection("lengths", reason, neuron.forward.where)
    return found


def _is_as_long(length: Any, first: Any, after: Set[Node]) -> bool:
    """Tell whether a neuron runs for as many steps as the first one."""
    if length == first:
        return True
    count = getattr(length, "target", None)
    if not isinstance(count, TripLength):
        return False
    if length.args[0] in after:  # spikes, and what was made of them, have as many steps
        return count.offset == 0
    other = getattr(first, "target", None)
    if not isinstance(other, TripLength) or length.args != first.args:
        return False
    return (count.dim, count.offset) == (other.dim, other.offset)


def _spike_outside(graph: torch.fx.Graph) -> Rejection | None:
    """Return the refusal of a spike that is no part of a loop, as that of a first step."""
    for node in graph.nodes:
        if isinstance(node.target, CustomGradient):
            reason = "a spike is outside of the loop over time: one step is another program"
            return Rejection("first-step", reason, node.meta.get("where"))
    return None


class _Replacement:
    """Makes the graph around a network: all that it does not need, the network, all the rest."""

    def __init__(self, graph: torch.fx.Graph, found: Found) -> None:
        self.graph, self.found = graph, found
        self.inputs = len(found.region.groups) - len(found.neurons)

    def build(self) -> torch.fx.Graph:
        """Return the graph around the region."""
        made, env = torch.fx.Graph(), dict[Node, Any]()
        for node in self.graph.nodes:
            if node not in self.found.after and node.op != "output":
                env[node] = made.node_copy(node, env.__getitem__)
        first = next(iter(self.found.neurons))
        known = torch.fx.node.map_arg((first.args[0], *self.found.arguments), env.__getitem__)
        call = made.call_function(self.found.region, known)
        call.meta.update({k: first.meta[k] for k in ("where", "loop", "dtype") if k in first.meta})
        values = dict[EventResult, Node]()
        for result in self.found.region.network.results:
            values[result] = made.call_function(operator.getitem, (call, len(values)))
            values[result].meta["dtype"] = first.meta["dtype"]
        for node, result in self.found.shown:
            if node not in self.found.neurons:
                values[result].meta.update(node.meta)
                env[node] = values[result]
        for node, spikes in self.found.recalled.items():
            initial = torch.fx.node.map_arg(node.args[0], env.__getitem__)
            env[node] = made.call_function(shift_time, (env[spikes], initial))
            env[node].meta.update(node.meta)
        for node in self.graph.nodes:
            if node in self.found.neurons:
                self.emit_rest(made, node, env, values)
            elif node in self.found.after and node not in env and node.op != "output":
                env[node] = made.node_copy(node, env.__getitem__)
        output = self.graph.output_node()
        made.output(torch.fx.node.map_arg(output.args[0], env.__getitem__))
        made.eliminate_dead_code()
        made.lint()
        return made

    def emit_rest(
        self,
        made: torch.fx.Graph,
        node: Node,
        env: dict[Node, Any],
        values: dict[EventResult, Node],
    ) -> None:
        """Add what a neuron gives beside spikes and membranes."""
        neuron, index = self.found.neurons[node], [*self.found.neurons].index(node) + self.inputs
        rest, forward = neuron.rest, neuron.forward
        if rest is None:
            return
        given = dict(zip((*forward.step_inputs, *forward.lane_inputs), node.args[1:], strict=True))
        known = {n: torch.fx.node.map_arg(v, env.get) for n, v in given.items()}
        update = next(s.update for s in forward.states if s.name == neuron.membrane)
        for name, shown in ((neuron.spike, Shown.SPIKES), (update, Shown.MEMBRANES)):
            if (result := EventResult(index, shown)) in values:
                known[name] = values[result]
        program: NeuronProgram = node.target.program  # type: ignore[union-attr]
        target = NeuronCall(replace(program, forward=rest))
        names = (*rest.step_inputs, *rest.lane_inputs)
        length = torch.fx.node.map_arg(node.args[0], env.__getitem__)
        call = made.call_function(target, (length, *(known[name] for name in names)))
        call.meta.update(node.meta)
        before, after = (*forward.outputs, *forward.finals), (*rest.outputs, *rest.finals)
        for user in node.users:
            name = before[user.args[1]]  # type: ignore[index]
            if user not in env and name in after:
                env[user] = made.call_function(operator.getitem, (call, after.index(name)))
                env[user].meta.update(user.meta)
