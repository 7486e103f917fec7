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

import math
import operator
from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import networkx as nx
import torch
import torch.fx

from snncc.frontend.operators.canonical import graft
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.interpret import HALVES
from snncc.ir.time_loop import TimeLoop
from snncc.passes.base import Rejection
from snncc.passes.hoisting.keep_apart import keep_apart
from snncc.passes.scalars.complex_ops import COMPLEX_OPS
from snncc.passes.scalars.scalar_ops import SCALAR_OPS
from snncc.passes.scalars.small_integers import INTEGERS, SmallIntegers

FLOATS = (torch.float32, torch.float64)
# The float type of the lanes that hold a value; integers and bools take that of their neighbours.
LANE_TYPES = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
}


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

    ``reason`` tells of a SERIAL group why it is not a neuron, ``culprit`` which node is at fault;
    ``dtype`` is the float type of a NEURON, ``most_steps`` for how many steps it is exact.
    """

    kind: Kind
    nodes: tuple[torch.fx.Node, ...]
    reason: Rejection | None = None
    culprit: torch.fx.Node | None = None
    dtype: torch.dtype = torch.float32
    most_steps: int | None = None


def find_recurrences(
    loop: TimeLoop, halves: bool = False, apart: bool = False
) -> tuple[Group, ...]:
    """Partition the body of a loop into groups, in an order in which they can run.

    Args:
        loop: The loop.
        halves: Whether neurons may have values of a half type.
        apart: Whether each state is a neuron of its own, as `keep_apart` says.
    """
    return _Partition(loop, halves=halves, apart=apart).groups()


def elementwise(
    node: torch.fx.Node, small: Container[torch.fx.Node], *, halves: bool = False
) -> Rejection | None:
    """Tell why a body node cannot be part of a scalar recurrence; None where it can.

    Args:
        node: The node.
        small: The integers that floats hold exactly.
        halves: Whether values may be of a half type.
    """
    if is_complex(node):
        if node.target not in COMPLEX_OPS or node.kwargs.get("alpha", 1) != 1:
            return Rejection("complex", f"'{_spelled(node)}' of complex numbers has no kernel")
        return _mixed(node)
    for rejection in (pointwise(node), _not_small(node, small), _dtype_rejection(node, halves)):
        if rejection is not None:
            return rejection
    return None


def is_complex(node: torch.fx.Node) -> bool:
    """Tell whether an operator has to do with complex numbers."""
    seen = (node.meta.get("dtype"), *(n.meta.get("dtype") for n in node.all_input_nodes))
    return any(dtype is not None and dtype.is_complex for dtype in seen)


def pointwise(node: torch.fx.Node) -> Rejection | None:
    """Tell why a body node does not treat every element alike; None where it does."""
    if isinstance(node.target, CustomGradient):
        if isinstance(node.target.forward.output_node().args[0], tuple | list):
            return Rejection("operator", f"'{_spelled(node)}' has several results")
        inner = [n for g in (node.target.forward, node.target.lane_backward) for n in g.nodes]
        bad = [n for n in inner if n.op == "call_function" and n.target not in SCALAR_OPS]
        if bad:
            return Rejection("operator", f"'{_spelled(bad[0])}' is not elementwise")
    elif node.target not in SCALAR_OPS and node.target is not graft:
        return Rejection("operator", f"'{_spelled(node)}' is not elementwise")
    if node.meta.get("impure"):
        return Rejection("random", f"'{_spelled(node)}' draws random numbers")
    return None


def _not_small(node: torch.fx.Node, small: Container[torch.fx.Node]) -> Rejection | None:
    """Tell why the integers of an operator may be none that floats hold exactly."""
    dtype = node.meta.get("dtype")
    if dtype in INTEGERS and node not in small:
        return Rejection("integer", f"'{_spelled(node)}' makes integers of any size, in {dtype}")
    if dtype in FLOATS and not isinstance(node.target, CustomGradient):
        return None  # torch converts integers to floats first
    for operand in node.all_input_nodes:
        seen = operand.meta.get("dtype")
        of_any_size = operand not in small or isinstance(node.target, CustomGradient)
        if "shape" in operand.meta and seen in INTEGERS and of_any_size:
            return Rejection("integer", f"'{_spelled(node)}' reads integers of any size, in {seen}")
    return None


def _dtype_rejection(node: torch.fx.Node, halves: bool) -> Rejection | None:
    known = (*FLOATS, *(HALVES if halves else ()), *INTEGERS, torch.bool)
    dtype = node.meta.get("dtype")
    read = (*known, *HALVES) if dtype in FLOATS else known
    if dtype not in known:
        return Rejection("dtype", f"'{_spelled(node)}' computes in {dtype}")
    for operand in node.all_input_nodes:
        seen = operand.meta.get("dtype")
        if "shape" in operand.meta and seen not in read:
            return Rejection("dtype", f"'{_spelled(node)}' reads a tensor of {seen}")
    return _mixed(node)


def _mixed(node: torch.fx.Node) -> Rejection | None:
    """Refuse an operator on floats of two types; a single number takes the other's."""
    seen = [n.meta.get("dtype") for n in node.all_input_nodes if n.meta.get("shape")]
    own = node.meta.get("dtype")
    if own in FLOATS:  # a half type is converted without rounding
        seen = [d for d in seen if d not in HALVES]
    floats = {LANE_TYPES[d] for d in (own, *seen) if d in LANE_TYPES}
    if len(floats) > 1:
        names = " and ".join(sorted(str(d).removeprefix("torch.") for d in floats))
        return Rejection("mixed-dtype", f"'{_spelled(node)}' mixes {names}")
    return None


def _spelled(node: torch.fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


class Lanes(NamedTuple):
    """What the values of a kernel have in common: sizes at one step, and the float type."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None


class _Partition:
    """The partition of one body; built once, then read by `groups`."""

    def __init__(self, loop: TimeLoop, *, halves: bool, apart: bool) -> None:
        self.loop, self.halves, self.apart = loop, halves, apart
        self.order = {node: i for i, node in enumerate(loop.body.nodes)}
        self.by_name = {node.name: node for node in loop.body.nodes}
        self.updates = {self.by_name[c.name]: self.by_name[c.update] for c in loop.carries}
        self.invariant = self._find_invariant()
        self.flow = self._data_flow()
        self.parts = nx.condensation(self.flow)
        self.small = SmallIntegers(loop)
        self.rejections = {
            n: elementwise(n, self.small, halves=halves)
            for n in self.flow
            if n.op == "call_function"
        }
        self.lanes = {part: self._find_lanes(part) for part in self.parts}
        self._spread_dtypes()

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
        flow.add_edges_from(_parts_of_steps(flow))
        return flow

    def _order_of_effects(self) -> Iterable[tuple[torch.fx.Node, torch.fx.Node]]:
        """Tie operators with a common side effect together, so that their order is kept."""
        impure = [n for n in self.loop.body.nodes if n.meta.get("impure")]
        shared: dict[Any, list[torch.fx.Node]] = {}
        for node in impure:
            shared.setdefault(effect(node), []).append(node)
            for changed in node.args[1:3] if node.target is torch.nn.functional.batch_norm else ():
                if isinstance(changed, torch.fx.Node) and changed not in self.invariant:
                    yield node, changed  # who reads it, does so behind the change
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
        component, order = self.parts.graph["mapping"], list(nx.topological_sort(self.parts))
        depth: dict[int, int] = {}
        for part in order:
            depth[part] = max(
                (depth[p] + self._barrier(p, part) for p in self.parts.predecessors(part)),
                default=0,
            )
        pairs = {
            e for e in self.parts.edges if depth[e[0]] == depth[e[1]] and not self._barrier(*e)
        }
        if self.apart:
            pairs = keep_apart(self.parts, order, pairs, self.loop)
        union = nx.Graph(sorted(pairs))
        union.add_nodes_from(self.parts)
        label = {p: i for i, parts in enumerate(nx.connected_components(union)) for p in parts}
        return {node: label[component[node]] for node in self.flow}

    def _barrier(self, a: int, b: int) -> int:
        """Return 1 where components a and b cannot share a kernel, 0 where they can."""
        lanes_a, lanes_b = self.lanes[a], self.lanes[b]
        return int(lanes_a is None or lanes_a != lanes_b)

    def _spread_dtypes(self) -> None:
        """Let bools and integers take the float type of their neighbours."""
        order = list(nx.topological_sort(self.parts))
        for part in order:
            self._take_dtype(part, self.parts.predecessors(part))
        for part in reversed(order):
            self._take_dtype(part, self.parts.successors(part))
        for part, lanes in self.lanes.items():
            if lanes is not None and lanes.dtype is None:
                self.lanes[part] = lanes._replace(dtype=torch.get_default_dtype())

    def _take_dtype(self, part: int, neighbours: Iterable[int]) -> None:
        lanes = self.lanes[part]
        if lanes is None or lanes.dtype is not None:
            return
        for neighbour in neighbours:
            other = self.lanes[neighbour]
            if other is not None and other.dtype is not None and other.shape == lanes.shape:
                self.lanes[part] = other
                return

    def _find_lanes(self, part: int) -> Lanes | None:
        """Return the lanes of an elementwise component; None for any other."""
        nodes = self.parts.nodes[part]["members"]
        calls = [n for n in nodes if n.op == "call_function"]
        if any(self.rejections[n] is not None for n in calls):
            return None
        carries = [n for n in nodes if n in self.updates]
        if not calls and not carries:
            return None
        shape, *others = {self._shape(n) for n in nodes}
        is_one = not others and all(map(self._has_lanes, carries))
        return Lanes(shape, self._lane_dtype(nodes)) if is_one else None

    def _shape(self, node: torch.fx.Node) -> tuple[int, ...] | None:
        shape: tuple[int, ...] | None = self.updates.get(node, node).meta.get("shape")
        return shape

    def _has_lanes(self, carry: torch.fx.Node) -> bool:
        """Tell whether a state can be held by floats."""
        dtype = self.updates[carry].meta.get("dtype")
        small = dtype in INTEGERS and carry in self.small
        if dtype in HALVES:
            return self.halves
        return small or dtype in LANE_TYPES or dtype is torch.bool

    def _lane_dtype(self, nodes: Iterable[torch.fx.Node]) -> torch.dtype | None:
        for node in nodes:
            for seen in (node, self.updates.get(node, node), *node.all_input_nodes):
                if seen.meta.get("dtype") in LANE_TYPES and seen.meta.get("shape"):
                    return LANE_TYPES[seen.meta["dtype"]]
        return None

    def _classify(self, nodes: list[torch.fx.Node]) -> list[Group]:
        calls = [n for n in nodes if n.op == "call_function"]
        carries = [n for n in nodes if n in self.updates]
        parts = {self.parts.graph["mapping"][n] for n in nodes}
        lanes = [self.lanes[p] for p in parts]
        dtype = None if lanes[0] is None else lanes[0].dtype
        counts = any(n.meta.get("dtype") in INTEGERS for n in nodes)
        if carries and dtype in HALVES and counts:
            return [Group(Kind.SERIAL, tuple(nodes), _counts_in(dtype), calls[0])]
        if carries and lanes[0] is not None and None not in lanes:
            return [self._neuron(tuple(nodes), lanes[0].dtype or torch.float32)]
        if not carries:
            cyclic = len(calls) > 1 and len(parts) == 1
            if not cyclic:
                return [Group(Kind.STATELESS, (n,)) for n in calls]
        culprit = next((n for n in calls if self.rejections[n] is not None), None)
        if not carries and all(n.meta.get("impure") for n in calls):
            return [Group(Kind.SERIAL, tuple(nodes), IN_ORDER, culprit)]
        return [Group(Kind.SERIAL, tuple(nodes), self._serial_reason(nodes, culprit), culprit)]

    def _neuron(self, nodes: tuple[torch.fx.Node, ...], dtype: torch.dtype) -> Group:
        counts = dtype is not torch.float64 and any(n.meta.get("dtype") in INTEGERS for n in nodes)
        steps = self.small.most_steps if counts else math.inf
        most_steps = None if math.isinf(steps) else int(steps)
        return Group(Kind.NEURON, nodes, dtype=dtype, most_steps=most_steps)

    def _serial_reason(
        self, nodes: list[torch.fx.Node], culprit: torch.fx.Node | None
    ) -> Rejection:
        if all(self._shape(n) == () for n in nodes):
            return Rejection("counter", "it counts, one number for all lanes")
        reason = None if culprit is None else self.rejections[culprit]
        if reason is not None:
            return reason
        for carry in (n for n in nodes if n in self.updates and not self._has_lanes(n)):
            seen = self.updates[carry].meta.get("dtype")
            kind = "integers of any size" if seen in INTEGERS else "a tensor"
            return Rejection("state", f"its state is {kind}, in {seen}")
        return Rejection("state", "its values have several shapes at one step")


def _counts_in(dtype: torch.dtype | None) -> Rejection:
    return Rejection("integer", f"it counts, and its other values are {dtype}")


def _parts_of_steps(flow: nx.DiGraph) -> list[tuple[torch.fx.Node, torch.fx.Node]]:
    """Tie the results of an operator with several to it, where a state depends on one of them.

    The operator stays one step after another, and a tuple has no place on the time axis.
    """
    cycles = [part for part in nx.strongly_connected_components(flow) if len(part) > 1]
    return [
        (user, node)
        for part in cycles
        for node in part
        for user in node.users
        if user.target is operator.getitem and "shape" not in node.meta and user in flow
    ]


def effect(node: torch.fx.Node) -> Any:
    """Return what an impure operator changes: the buffer that it updates, or the generator."""
    if node.target is torch.nn.functional.batch_norm:
        return node.args[1]
    return "generator"
