"""Group the operators of one step of a loop into kernels.

Within a step the body is a graph without cycles.  Elementwise operators of the same lanes can share
a kernel where nothing else lies between them.  Each operator gets a *level*: no edge leads to a
lower level, and an edge between operators that cannot share a kernel leads to a higher one.  So all
elementwise operators of one level and the same lanes make one kernel, and running the levels in
order respects every dependency.

An operator is put on the level of what reads it, as far as it can be: ``0.5 * v`` waits for the
matrix product that is added to it, and costs no kernel of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import cast
from snncc.ir.interpret import HALVES
from snncc.ir.time_loop import Fill, TimeLoop
from snncc.passes.hoisting.find_recurrences import FLOATS, effect, elementwise, is_complex
from snncc.passes.loops.start_shapes import can_broadcast
from snncc.passes.scalars.half_types import can_round

Node = torch.fx.Node
Edges = Mapping[Node, list[Node]]


@dataclass(frozen=True, slots=True)
class Lanes:
    """What operators of one kernel have in common: the shape of the lanes and the working type.

    Half types are computed in float32.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class StepGroup:
    """Operators of a body that run together, in order; ``lanes`` is None where torch runs them."""

    nodes: tuple[Node, ...]
    lanes: Lanes | None


def find_step_groups(loop: TimeLoop, *, halves: bool = False) -> tuple[StepGroup, ...]:
    """Partition the operators of a loop's body, in an order in which they can run.

    Args:
        loop: The loop.
        halves: Whether kernels can read and write values of half types.
    """
    nodes = [n for n in loop.body.nodes if n.op == "call_function"]
    lanes = _find_lanes(loop, nodes, halves=halves)
    level = assign_levels(nodes, dependencies(loop, nodes), lanes.get)
    members: dict[Hashable, list[Node]] = {}
    for node in nodes:
        key = (level[node], lanes[node]) if node in lanes else node
        members.setdefault(key, []).append(node)
    ordered = sorted(members.values(), key=lambda group: level[group[0]])
    return tuple(StepGroup(tuple(group), lanes.get(group[0])) for group in ordered)


def assign_levels(
    nodes: Sequence[Node], before: Edges, kind: Callable[[Node], Hashable | None]
) -> dict[Node, int]:
    """Return the level of each node.

    Args:
        nodes: The nodes, in an order in which they can run.
        before: For each node what must have run before it.
        kind: Nodes of equal kind may share a level; None is equal to nothing but None.
    """
    after: dict[Node, list[Node]] = {n: [] for n in nodes}
    earliest: dict[Node, int] = {}
    for node in nodes:
        earliest[node] = 0
        for other in before[node]:
            after[other].append(node)
            step = int(kind(other) != kind(node))
            earliest[node] = max(earliest[node], earliest[other] + step)
    level: dict[Node, int] = {}
    for node in reversed(nodes):
        waits = (level[n] - int(kind(n) != kind(node)) for n in after[node])
        level[node] = min(waits, default=earliest[node])
    return level


def dependencies(loop: TimeLoop, nodes: Iterable[Node]) -> dict[Node, list[Node]]:
    """Return for each operator of a body which operators must run before it in the same step."""
    inside = set(nodes)
    likes = _shapes_needed(loop)
    before: dict[Node, list[Node]] = {}
    last: dict[Any, Node] = {}
    for node in loop.body.nodes:
        if node not in inside:
            continue
        found = [*node.all_input_nodes, *(likes[n] for n in node.all_input_nodes if n in likes)]
        if node.meta.get("impure"):
            # One generator, and one buffer for each norm: they see the order of the user's code.
            found += [last[effect(node)]] if effect(node) in last else []
            last[effect(node)] = node
        before[node] = [n for n in found if n in inside]
    return before


def _shapes_needed(loop: TimeLoop) -> dict[Node, Node]:
    """Map a carry to the operator whose shape it takes at the first step, where there is one."""
    by_name = {n.name: n for n in loop.body.nodes}
    return {
        by_name[c.name]: by_name[c.initial.like]
        for c in loop.carries
        if isinstance(c.initial, Fill) and c.initial.like is not None
    }


def _find_lanes(loop: TimeLoop, nodes: Sequence[Node], *, halves: bool) -> dict[Node, Lanes]:
    """Return the lanes of every operator that can be part of a kernel."""
    working = {dtype: dtype for dtype in FLOATS}
    working |= dict.fromkeys(HALVES, torch.float32) if halves else {}
    seen = (n.meta.get("dtype") for n in loop.body.nodes)
    floats = {working[dtype] for dtype in seen if dtype in working}
    only = next(iter(floats)) if len(floats) == 1 else None
    lanes: dict[Node, Lanes] = {}
    for node in nodes:
        shape, dtype = node.meta.get("shape"), _working_type(node, working) or only
        if shape and dtype is not None and is_fusible(node, halves=halves):
            lanes[node] = Lanes(tuple(shape), dtype)
    _widen(loop, nodes, lanes)
    return lanes


def is_fusible(node: Node, *, halves: bool) -> bool:
    """Tell whether an operator can be part of a fused step: elementwise, on floats and bools."""
    if is_complex(node) or (halves and not can_round(node)):
        return False
    rejection = elementwise(node, (), halves=halves)
    return rejection is None or (halves and _narrows(node) and rejection.code == "mixed-dtype")


def _narrows(node: Node) -> bool:
    """Tell whether an operator rounds float32 to a half type."""
    source = node.args[0] if node.target is cast else None
    is_single = isinstance(source, Node) and source.meta.get("dtype") is torch.float32
    return is_single and node.meta["dtype"] in HALVES


def _working_type(node: Node, working: Mapping[torch.dtype, torch.dtype]) -> torch.dtype | None:
    for seen in (node, *node.all_input_nodes):
        if seen.meta.get("dtype") in working and seen.meta.get("shape"):
            return working[seen.meta["dtype"]]
    return None


def _widen(loop: TimeLoop, nodes: Sequence[Node], lanes: dict[Node, Lanes]) -> None:
    """Compute what is only read by one kernel of more lanes in that kernel, lane by lane."""
    shown = {c.update for c in loop.carries} | {r.node for r in loop.results}
    for node in reversed(nodes):
        readers = {lanes.get(user) for user in node.users}
        wider = next(iter(readers)) if len(readers) == 1 else None
        if node in lanes and node.name not in shown and wider is not None:
            own = lanes[node]
            if wider.dtype == own.dtype and can_broadcast(own.shape, wider.shape):
                lanes[node] = wider
