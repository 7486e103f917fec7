"""Find the neurons in a time loop: state feedback as strongly connected components.

The graph is the data flow of the loop's body plus one edge from the update of each carry back to
the carry.  What a component makes of time decides how it can run:

* no state at all: the same operator at every step, to be applied to the whole sequence;
* state fed back through elementwise operators only: a neuron, one scalar recurrence for each lane;
* state fed back through anything else (a matrix product, a convolution, a reduction): the steps
  depend on each other across lanes and stay one after another.

Elementwise neighbours of a neuron join it, so that one kernel reads the input and writes spikes:
components of the same lane shape are merged where no other operator lies between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import networkx as nx
import torch
import torch.fx

from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.time_loop import TimeLoop
from snncc.passes.base import Rejection
from snncc.passes.scalar_ops import SCALAR_OPS

FLOATS = (torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


IN_ORDER = Rejection("effect", "it draws random numbers, in the order of the serial code")


class Kind(Enum):
    """How a group of body nodes runs once time is an axis."""

    INVARIANT = "invariant"  # does not depend on the step: runs once
    STATELESS = "stateless"  # one operator, applied to the whole sequence
    NEURON = "neuron"  # an elementwise recurrence
    SERIAL = "serial"  # stays one step after another


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes of a loop body that run together; ``nodes`` are in the order of the body.

    ``reason`` tells of a SERIAL group why it is not a neuron, ``culprit`` which node is at fault.
    """

    kind: Kind
    nodes: tuple[torch.fx.Node, ...]
    reason: Rejection | None = None
    culprit: torch.fx.Node | None = None


def find_recurrences(loop: TimeLoop) -> tuple[Group, ...]:
    """Partition the body of a loop into groups, in an order in which they can run."""
    return _Partition(loop).groups()


def elementwise(node: torch.fx.Node) -> Rejection | None:
    """Tell why a body node cannot be part of a scalar recurrence; None where it can."""
    rejection = pointwise(node)
    return _dtype_rejection(node) if rejection is None else rejection


def pointwise(node: torch.fx.Node) -> Rejection | None:
    """Tell why a body node does not treat every element alike; None where it does."""
    if isinstance(node.target, CustomGradient):
        if isinstance(node.target.forward.output_node().args[0], tuple | list):
            return Rejection("operator", f"'{_spelled(node)}' has several results")
        inner = [n for g in (node.target.forward, node.target.backward) for n in g.nodes]
        bad = [n for n in inner if n.op == "call_function" and n.target not in SCALAR_OPS]
        if bad:
            return Rejection("operator", f"'{_spelled(bad[0])}' is not elementwise")
    elif node.target not in SCALAR_OPS:
        return Rejection("operator", f"'{_spelled(node)}' is not elementwise")
    if node.meta.get("impure"):
        return Rejection("random", f"'{_spelled(node)}' draws random numbers")
    return None


def _dtype_rejection(node: torch.fx.Node) -> Rejection | None:
    dtype = node.meta.get("dtype")
    if dtype not in (*FLOATS, torch.bool):
        return Rejection("dtype", f"'{_spelled(node)}' computes in {dtype}")
    floats = {dtype} & set(FLOATS)
    for operand in node.all_input_nodes:
        seen = operand.meta.get("dtype")
        if "shape" in operand.meta and seen not in _readable(node):
            return Rejection("dtype", f"'{_spelled(node)}' reads a tensor of {seen}")
        if operand.meta.get("shape"):
            floats |= {seen} & set(FLOATS)
    if len(floats) > 1:
        return Rejection("mixed-dtype", f"'{_spelled(node)}' mixes float32 and float64")
    return None


def _readable(node: torch.fx.Node) -> tuple[torch.dtype, ...]:
    """Return the dtypes of operands that mean the same once they are converted to floats."""
    known = (*FLOATS, torch.bool)
    # An operator that gives floats promotes integers first; inside a custom gradient they may meet.
    gives_floats = node.meta.get("dtype") in FLOATS and not isinstance(node.target, CustomGradient)
    return (*known, *INTEGERS) if gives_floats else known


def _spelled(node: torch.fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


class _Partition:
    """The partition of one body; built once, then read by `groups`."""

    def __init__(self, loop: TimeLoop) -> None:
        self.loop = loop
        self.order = {node: i for i, node in enumerate(loop.body.nodes)}
        self.by_name = {node.name: node for node in loop.body.nodes}
        self.updates = {self.by_name[c.name]: self.by_name[c.update] for c in loop.carries}
        self.invariant = self._find_invariant()
        self.flow = self._data_flow()
        self.parts = nx.condensation(self.flow)
        self.rejections = {n: elementwise(n) for n in self.flow if n.op == "call_function"}

    def _find_invariant(self) -> set[torch.fx.Node]:
        """Return the nodes that have the same value at every step."""
        found = {self.by_name[i.name] for i in self.loop.invariants}
        for node in self.loop.body.nodes:
            fixed = all(n in found for n in node.all_input_nodes)
            if node.op == "call_function" and fixed and not node.meta.get("impure"):
                found.add(node)
        return found

    def _data_flow(self) -> nx.DiGraph:
        flow = nx.DiGraph()
        for node in self.loop.body.nodes:
            if node.op == "output" or node in self.invariant:
                continue
            flow.add_node(node)
            flow.add_edges_from((n, node) for n in node.all_input_nodes if n not in self.invariant)
        flow.add_edges_from((update, carry) for carry, update in self.updates.items())
        flow.add_edges_from(self._order_of_effects())
        return flow

    def _order_of_effects(self) -> Iterable[tuple[torch.fx.Node, torch.fx.Node]]:
        """Tie operators with a common side effect together, so that their order is kept."""
        impure = [n for n in self.loop.body.nodes if n.meta.get("impure")]
        shared: dict[Any, list[torch.fx.Node]] = {}
        for node in impure:
            shared.setdefault(effect(node), []).append(node)
        for nodes in shared.values():
            if len(nodes) > 1:
                yield from zip(nodes, nodes[1:] + nodes[:1], strict=True)

    def groups(self) -> tuple[Group, ...]:
        """Return the groups in an order in which they can run."""
        merged = self._merge()
        quotient = nx.DiGraph()
        quotient.add_nodes_from(set(merged.values()))
        for a, b in self.flow.edges:
            if merged[a] != merged[b]:
                quotient.add_edge(merged[a], merged[b])
        members: dict[int, list[torch.fx.Node]] = {}
        for node in sorted(self.flow, key=self.order.__getitem__):
            members.setdefault(merged[node], []).append(node)
        first = {group: self.order[nodes[0]] for group, nodes in members.items()}
        ordered = nx.lexicographical_topological_sort(quotient, key=first.__getitem__)
        invariant = sorted(self.invariant, key=self.order.__getitem__)
        found = [Group(Kind.INVARIANT, (n,)) for n in invariant if n.op == "call_function"]
        for group in ordered:
            found += self._classify(members[group])
        return tuple(found)

    def _merge(self) -> dict[torch.fx.Node, int]:
        """Map each node to its group: components, merged with elementwise neighbours."""
        component = self.parts.graph["mapping"]
        depth: dict[int, int] = {}
        for part in nx.topological_sort(self.parts):
            depth[part] = max(
                (depth[p] + self._barrier(p, part) for p in self.parts.predecessors(part)),
                default=0,
            )
        union = nx.Graph()
        union.add_nodes_from(self.parts)
        union.add_edges_from(
            (a, b) for a, b in self.parts.edges if depth[a] == depth[b] and not self._barrier(a, b)
        )
        label = {
            part: number
            for number, parts in enumerate(nx.connected_components(union))
            for part in parts
        }
        return {node: label[component[node]] for node in self.flow}

    def _barrier(self, a: int, b: int) -> int:
        """Return 1 where components a and b cannot share a kernel, 0 where they can."""
        lanes_a, lanes_b = self._lanes(a), self._lanes(b)
        return int(lanes_a is None or lanes_a != lanes_b)

    def _lanes(self, part: int) -> tuple[Any, ...] | None:
        """Return shape and float dtype of an elementwise component; None for any other."""
        nodes = self.parts.nodes[part]["members"]
        calls = [n for n in nodes if n.op == "call_function"]
        if any(self.rejections[n] is not None for n in calls):
            return None
        carries = [n for n in nodes if n in self.updates]
        if not calls and not carries:
            return None
        shapes = {self._shape(n) for n in nodes}
        if len(shapes) != 1 or not all(self._is_float_state(n) for n in carries):
            return None
        return (*shapes, self._float_dtype(nodes))

    def _shape(self, node: torch.fx.Node) -> tuple[int, ...] | None:
        shape: tuple[int, ...] | None = self.updates.get(node, node).meta.get("shape")
        return shape

    def _is_float_state(self, carry: torch.fx.Node) -> bool:
        return self.updates[carry].meta.get("dtype") in FLOATS

    def _float_dtype(self, nodes: Iterable[torch.fx.Node]) -> torch.dtype | None:
        for node in nodes:
            for seen in (node, self.updates.get(node, node), *node.all_input_nodes):
                if seen.meta.get("dtype") in FLOATS and seen.meta.get("shape"):
                    dtype: torch.dtype = seen.meta["dtype"]
                    return dtype
        return None

    def _classify(self, nodes: list[torch.fx.Node]) -> list[Group]:
        calls = [n for n in nodes if n.op == "call_function"]
        carries = [n for n in nodes if n in self.updates]
        parts = {self.parts.graph["mapping"][n] for n in nodes}
        if carries and all(self._lanes(p) is not None for p in parts):
            return [Group(Kind.NEURON, tuple(nodes))]
        if not carries:
            cyclic = len(calls) > 1 and len(parts) == 1
            if not cyclic:
                return [Group(Kind.STATELESS, (n,)) for n in calls]
        culprit = next((n for n in calls if self.rejections[n] is not None), None)
        if not carries and all(n.meta.get("impure") for n in calls):
            return [Group(Kind.SERIAL, tuple(nodes), IN_ORDER, culprit)]
        return [Group(Kind.SERIAL, tuple(nodes), self._serial_reason(nodes, culprit), culprit)]

    def _serial_reason(
        self, nodes: list[torch.fx.Node], culprit: torch.fx.Node | None
    ) -> Rejection:
        if all(self._shape(n) == () for n in nodes):
            return Rejection("counter", "it counts, one number for all lanes")
        reason = None if culprit is None else self.rejections[culprit]
        if reason is None:
            return Rejection("state", "its state is not a float tensor of one shape")
        return reason


def effect(node: torch.fx.Node) -> Any:
    """Return what an impure operator changes: the buffer that it updates, or the generator."""
    if node.target is torch.nn.functional.batch_norm:
        return node.args[1]
    return "generator"
