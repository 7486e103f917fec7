"""Trace what a graph recalls back to spikes.

What `cut_feedback` names is a value of the step before, and what an event network has of that step
is its spikes.  With ``E`` the operators between::

    recalled(E(s))   becomes   from_start(E(recalled(s)), initial)

where the second value differs from ``E`` of no spikes before the first step, which a bias and a
given start do.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, TypeAlias

import torch
import torch.fx

from snncc.ir.events.recalled import Recalled, from_start
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.time_loop import TimeLoop
from snncc.passes.base import Rejection

Node: TypeAlias = torch.fx.Node


def settle_recalls(graph: torch.fx.Graph, spikes: Set[Node]) -> dict[Node, Node] | Rejection:
    """Let a graph recall spikes alone, in place, and end with the results that the model has.

    Args:
        graph: The graph, which recalls what is among its results.
        spikes: The nodes that are spikes of neurons.

    Returns:
        For each node that recalls something the spikes that it recalls.
    """
    recalls = [node for node in graph.nodes if isinstance(node.target, Recalled)]
    output = graph.output_node()
    values: Any = output.args[0]
    late = _Late(graph, spikes)
    for node in recalls:
        value = values[node.target.result]
        if value in spikes:
            late.found[node] = value
        elif (refused := late.replace(node, value)) is not None:
            return refused
    shown = min((n.target.result for n in recalls), default=len(values))
    output.args = (values[:shown],)
    return late.found


class _Late:
    """Makes of spikes of the step before what the graph makes of spikes."""

    def __init__(self, graph: torch.fx.Graph, spikes: Set[Node]) -> None:
        self.graph, self.spikes = graph, spikes
        self.found: dict[Node, Node] = {}

    def replace(self, node: Node, value: Node) -> Rejection | None:
        """Put what is made of recalled spikes in place of a node that recalls that."""
        order = {each: place for place, each in enumerate(self.graph.nodes)}
        wanted, cone = [value], set[Node]()
        while wanted:
            each = wanted.pop()
            if order[each] < order[node] or each in cone:
                continue
            cone.add(each)
            if each in self.spikes:
                continue
            if isinstance(each.target, NeuronCall | TimeLoop) or each.meta.get("impure"):
                reason = "what goes from one step to the next is made of more than spikes"
                return Rejection("recurrent", reason, node.meta.get("where"))
            wanted += each.all_input_nodes
        env = dict[Node, Node]()
        with self.graph.inserting_before(node):
            for each in sorted(cone, key=order.__getitem__):
                env[each] = self.late(each, env)
            started = self.graph.call_function(from_start, (env[value], node.args[0]))
        started.meta.update(node.meta)
        node.replace_all_uses_with(started)
        self.graph.erase_node(node)
        return None

    def late(self, node: Node, env: Mapping[Node, Node]) -> Node:
        """Return a node made of spikes of the step before, of which there are none at first."""
        if node not in self.spikes:
            return self.graph.node_copy(node, lambda each: env.get(each, each))
        made = self.graph.call_function(Recalled(-1, (), node.meta["dtype"]), (0.0,))
        made.meta.update({k: node.meta[k] for k in ("where", "dtype") if k in node.meta})
        self.found[made] = node
        return made
