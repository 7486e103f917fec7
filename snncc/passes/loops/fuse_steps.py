"""Fuse the elementwise operators of each step of a recurrent loop.

What feeds back through a matrix product or a reduction stays a loop::

    for t:  r = W s;  h = 0.9 v + x[t] + r;  s = spike(h - 1);  v = h - s

Before, each operator of its body is a call of its own at every step.  After, the elementwise
operators between two products are one call, ``v, s = step(v, x[t], r)``.  The products stay the
calls that the user's code makes, on the operands that it has, so a loop is still run one step
after another, and each value is rounded as before.

Half types, which kernels for GPUs read and write, are computed in float32, and each operator is
rounded as torch rounds it (`half_types`).

Precondition: something is elementwise, and on floats of one type.
Numerics: bitwise.
Source: `find_step_groups` says which operators share a call.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import cast
from snncc.frontend.variables import variable_of
from snncc.ir.interpret import HALVES
from snncc.ir.loop_call import LoopCall
from snncc.ir.numerics import Numerics
from snncc.ir.step_call import StepCall
from snncc.ir.time_loop import Fill, TimeLoop
from snncc.passes.base import Rejection
from snncc.passes.loops.builder import renamed
from snncc.passes.loops.find_step_groups import Lanes, StepGroup, find_step_groups
from snncc.passes.loops.product_rules import find_product
from snncc.passes.loops.start_shapes import fit_starts, settle_start_shapes
from snncc.passes.neurons import copy_graph
from snncc.passes.scalars.scalarize import Port, scalarize
from snncc.passes.simplify_step import simplify_step

Node = torch.fx.Node


@dataclass(frozen=True, slots=True)
class FuseSteps:
    """Turn every residual loop that has an elementwise part into a `LoopCall`.

    ``halves`` tells whether kernels can read and write values of half types.
    """

    name = "fuse-steps"
    numerics = Numerics.BITWISE
    halves: bool = False

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with the steps of its recurrent loops fused."""
        if not any(isinstance(n.target, TimeLoop) and n.target.carries for n in graph.nodes):
            return graph
        result = copy_graph(graph)
        for node in result.nodes:
            if isinstance(node.target, TimeLoop) and node.target.carries:
                fused = fuse_steps(node.target, node.args, halves=self.halves)
                if not isinstance(fused, Rejection):
                    node.target = LoopCall(fused)
                elif fused.code == "start-shape":
                    node.meta["rejection"] = fused
        return result


def fuse_steps(
    loop: TimeLoop, operands: Sequence[Any] = (), *, halves: bool = False
) -> TimeLoop | Rejection:
    """Return a loop whose body calls one `StepCall` for each group of elementwise operators.

    Args:
        loop: The loop.
        operands: The nodes that it is called with.
        halves: Whether kernels can read and write values of half types.
    """
    named = settle_start_shapes(_with_names(loop))
    groups = find_step_groups(named, halves=halves)
    products = (find_product(named, group.nodes[0]) for group in groups if group.lanes is None)
    types = {product.node.meta["dtype"] for product in products if product}
    if not any(group.lanes for group in groups) and types <= {*HALVES}:
        return Rejection("not-elementwise", "no part of its step can be fused")
    fused = {node for group in groups if group.lanes for node in group.nodes}
    fitted = fit_starts(named, operands, lambda n: n in fused or find_product(named, n) is not None)
    if isinstance(fitted, Rejection):
        return fitted
    return _Fused(fitted, groups).build()


def _with_names(loop: TimeLoop) -> TimeLoop:
    """Return the loop with the user's names on the nodes of its body."""
    body = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    updates = {c.name: c.update for c in loop.carries}
    where = {n.name: n.meta.get("where") for n in loop.body.nodes}
    for node in loop.body.nodes:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), copies.__getitem__)
        name = _user_name(node, updates, where)
        copies[node] = copy = body.create_node(node.op, node.target, args, kwargs, name)
        copy.meta = dict(node.meta)
    return renamed(loop, body, {n.name: copy.name for n, copy in copies.items()})


def _user_name(node: Node, updates: dict[str, str], where: dict[str, Any]) -> str:
    if node.name in updates:
        variable = variable_of(where[updates[node.name]])
        return f"{variable}_prev" if variable else node.name
    variable = variable_of(where[node.name]) if node.op == "call_function" else None
    return variable or node.name


class _Fused:
    """Builds the fused body; ``floats`` and ``values`` map old nodes to new ones.

    A bool that a step computes is 0 or 1 to other steps (``floats``) and is converted for
    everything else (``values``).
    """

    def __init__(self, loop: TimeLoop, groups: tuple[StepGroup, ...]) -> None:
        self.loop = loop
        self.groups = groups
        self.body = torch.fx.Graph()
        self.floats: dict[Node, Node] = {}
        self.values: dict[Node, Node] = {}
        self.by_name = {n.name: n for n in loop.body.nodes}
        self.group_of = {n: g for g in groups for n in g.nodes}
        self.carries = {self.by_name[c.name]: c for c in loop.carries}
        self.as_float = {c for c in self.carries if self.stays_float(c)}

    def build(self) -> TimeLoop:
        """Return the fused loop."""
        for node in self.loop.body.nodes:
            if node.op == "placeholder":
                self.bind(node, self.copy_of(node, lambda n: n))
        numbers = itertools.count(1)
        for group in self.groups:
            if group.lanes is None:
                for node in group.nodes:
                    self.bind(node, self.copy_of(node, self.values.__getitem__))
            else:
                self.emit_step(f"step{next(numbers)}", group.nodes, group.lanes)
        name = {old.name: new.name for old, new in self.values.items()}
        loop = renamed(self.loop, self.body, name)
        carries = tuple(
            replace(new, update=self.floats[self.by_name[old.update]].name)
            if self.by_name[old.name] in self.as_float
            else new
            for old, new in zip(self.loop.carries, loop.carries, strict=True)
        )
        return replace(loop, carries=carries)

    def bind(self, node: Node, value: Node) -> None:
        self.floats[node] = self.values[node] = value

    def copy_of(self, node: Node, mapped: Callable[[Node], Node]) -> Node:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), mapped)
        copy = self.body.create_node(node.op, node.target, args, kwargs, node.name)
        copy.meta = dict(node.meta)
        return copy

    def emit_step(self, name: str, nodes: tuple[Node, ...], lanes: Lanes) -> None:
        """Emit one call for a group and bind its outputs."""
        outputs = [n for n in nodes if self.is_needed(n)]
        scalar = scalarize(name, nodes, {}, lambda _: True, (outputs, []), halves=True)
        types = zip(scalar.recurrence.outputs, (n.meta["dtype"] for n in outputs), strict=True)
        narrow = tuple((output, dtype) for output, dtype in types if dtype in HALVES)
        target = StepCall(simplify_step(scalar.recurrence), lanes.dtype, narrow)
        call = self.emit(
            target, *(self.floats[self.node_of(p)] for p in scalar.steps), like=nodes[0]
        )
        for position, node in enumerate(outputs):
            self.floats[node] = value = self.body.create_node(
                "call_function", operator.getitem, (call, position), {}, node.name
            )
            value.meta = node.meta | {"dtype": target.type_of(scalar.recurrence.outputs[position])}
            if node.meta.get("dtype") == torch.bool and self.is_needed_as_bool(node):
                value = self.emit(cast, value, torch.bool, like=node)
            self.values[node] = value

    def node_of(self, port: Port) -> Node:
        assert isinstance(port.value, Node)  # steps have no carries, whose starts are the others
        return port.value

    def emit(self, target: Any, *args: Any, like: Node) -> Node:
        node = self.body.call_function(target, args)
        node.meta = dict(like.meta)
        return node

    def is_needed(self, node: Node) -> bool:
        """Tell whether anything outside of its group reads a value."""
        group = self.group_of[node]
        outside = any(self.group_of[user] is not group for user in node.users)
        return outside or self.is_shown(node) or self.gives_shape(node)

    def is_shown(self, node: Node) -> bool:
        updates = {c.update for c in self.loop.carries}
        return node.name in updates or any(r.node == node.name for r in self.loop.results)

    def gives_shape(self, node: Node) -> bool:
        """Tell whether a carry that another group reads takes its first shape from a value."""
        group = self.group_of[node]
        return any(
            isinstance(c.initial, Fill)
            and c.initial.like == node.name
            and any(self.group_of[user] is not group for user in place.users)
            for place, c in self.carries.items()
        )

    def is_needed_as_bool(self, node: Node) -> bool:
        if any(self.group_of[user].lanes is None for user in node.users):
            return True
        if any(r.node == node.name for r in self.loop.results):
            return True
        read = {p for p, c in self.carries.items() if c.update == node.name}
        return bool(read - self.as_float)

    def stays_float(self, place: Node) -> bool:
        """Tell whether a bool carry is read by steps alone."""
        update = self.by_name[self.carries[place].update]
        return (
            update.meta.get("dtype") == torch.bool
            and update in self.group_of
            and self.group_of[update].lanes is not None
            and all(self.group_of[user].lanes is not None for user in place.users)
            and not any(r.node == place.name for r in self.loop.results)
            and not any(c.update == place.name for c in self.loop.carries)
        )
