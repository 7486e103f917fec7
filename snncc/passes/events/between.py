"""What is between the spikes of some layers and the input of another one.

As graphs of their own: the operators as they are, and without all that they add, which is linear in
the spikes (`linear_rules`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any, TypeAlias

import torch
import torch.fx

from snncc.frontend.operators.canonical import draw, full, full_like, numel, size
from snncc.ir import sequence_ops
from snncc.ir.events.recalled import from_start
from snncc.passes.base import Rejection
from snncc.passes.events.linear_rules import Call, without_offset

Node: TypeAlias = torch.fx.Node
SHAPES = frozenset({size, numel, full, full_like})


class Between:
    """The operators between some spikes and the inputs of a neuron.

    Attributes:
        nodes: They, in order.
        sources: The spikes that they read.
        externals: What else they read.
        is_started: Whether the first step is one of its own.
        refused: Why they are not linear; None where they are.

    Args:
        graph: The sequence graph.
        targets: The inputs of the neuron.
        sources: The nodes that are spikes.
        after: The nodes that have to do with spikes, if only by their shape.
        varying: What else depends on inputs of the model, or is drawn.
    """

    def __init__(
        self,
        graph: torch.fx.Graph,
        targets: Iterable[Node],
        sources: Iterable[Node],
        after: Set[Node],
        varying: Set[Node],
    ) -> None:
        known, read = {*sources}, set[Node]()
        inside, wanted = set[Node](), [*targets]
        while wanted:
            node = wanted.pop()
            if node in known or node not in after:
                read.add(node)
            elif node not in inside:
                inside.add(node)
                wanted += node.all_input_nodes
        self.nodes = [node for node in graph.nodes if node in inside]
        self.sources = [node for node in graph.nodes if node in read & known]
        self.externals = [node for node in graph.nodes if node in read - known]
        self.is_started = any(node.target is from_start for node in self.nodes)
        self.tainted = closure(graph, known, by_value=True)
        self.refused: Rejection | None = None
        self.calls: dict[Node, Any] = {}
        for node in self.nodes:
            if node not in self.tainted:
                self.calls[node] = (node.target, node.args, dict(node.kwargs))
                continue
            call = without_offset(node, self.tainted, varying)
            if isinstance(call, Rejection) and self.refused is None:
                self.refused = call
            self.calls[node] = call

    def whole(self, values: Sequence[Any]) -> torch.fx.Graph:
        """Return the operators as they are: from spikes and externals to some values."""
        return self._graph({node: self._written(node) for node in self.nodes}, values)

    def _written(self, node: Node) -> Call:
        """Return the call of an operator; a view of all steps is no slice of so many."""
        if node.target is sequence_ops.time_view:
            return torch.movedim, (node.args[0], node.args[1], 0), {}
        return node.target, node.args, dict(node.kwargs)

    def linear(self, values: Sequence[Any]) -> torch.fx.Graph:
        """Return what of them is linear in spikes; None for values without spikes."""
        graph = self._graph(self.calls, [v if v in self.tainted else None for v in values])
        graph.eliminate_dead_code()
        return graph

    def _graph(self, calls: dict[Node, Any], values: Sequence[Any]) -> torch.fx.Graph:
        graph, env = torch.fx.Graph(), dict[Node, Node]()
        for node in (*self.sources, *self.externals):
            env[node] = graph.placeholder(node.name)
        for node, (target, args, kwargs) in calls.items():
            mapped = torch.fx.node.map_arg((args, kwargs), env.__getitem__)
            env[node] = graph.call_function(target, *mapped)
            env[node].meta.update(node.meta)
        graph.output(tuple(torch.fx.node.map_arg(value, env.__getitem__) for value in values))
        graph.lint()
        return graph


def find_varying(graph: torch.fx.Graph, inputs: tuple[bool, ...]) -> set[Node]:
    """Return the nodes whose values depend on inputs of the model, or are drawn."""
    flags = iter(inputs)
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            varies = next(flags)
        elif _is_shape(node):
            varies = False
        else:
            is_drawn = node.target is draw or bool(node.meta.get("impure"))
            varies = is_drawn or not found.isdisjoint(node.all_input_nodes)
        if varies:
            found.add(node)
    return found


def closure(graph: torch.fx.Graph, roots: Iterable[Node], *, by_value: bool = False) -> set[Node]:
    """Return some nodes and all that depend on them, by value or if only by shape."""
    found: set[Node] = set(roots)
    for node in graph.nodes:
        depends = not found.isdisjoint(node.all_input_nodes)
        if depends and not (by_value and _is_shape(node)):
            found.add(node)
    return found


def _is_shape(node: Node) -> bool:
    """Tell whether a node depends on data through its shape alone."""
    return node.target in SHAPES or isinstance(node.target, sequence_ops.TripLength)


def compares(value: Any) -> bool:
    """Tell whether anything is decided where a value is computed."""
    wanted, seen = [value], set[Any]()
    while wanted:
        node = wanted.pop()
        if isinstance(node, torch.fx.Node) and node not in seen:
            seen.add(node)
            wanted += node.all_input_nodes
    return any(node.meta.get("dtype") is torch.bool for node in seen)
