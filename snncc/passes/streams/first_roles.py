"""What each node of a sequence graph has to do with the first step, see `first_step`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import size
from snncc.ir import sequence_ops
from snncc.ir.loop_call import loop_of
from snncc.ir.neuron_call import NeuronCall
from snncc.passes.base import Rejection
from snncc.passes.streams.time_runs import takes_as_length

# What to do about a first step of its own that cannot be taken apart.
ALIKE = (
    "Let all loops begin at the first step: begin with tensors, as 'torch.zeros', where a state is "
    "'None' at first, and multiply what begins later by '(t > 2)'."
)


def reached(
    graph: torch.fx.Graph, seeds: Iterable[torch.fx.Node], borders: Iterable[torch.fx.Node] = ()
) -> set[torch.fx.Node]:
    """Return nodes and all that depends on them, but for what depends on them by borders alone."""
    found, outside = set(seeds), frozenset(borders)
    for node in graph.nodes:
        if node not in outside and found.intersection(node.all_input_nodes):
            found.add(node)
    return found - {graph.output_node()}


def is_loop(node: torch.fx.Node) -> bool:
    """Tell whether a node is a neuron or a loop."""
    return isinstance(node.target, NeuronCall) or loop_of(node) is not None


def refused(reason: str, node: torch.fx.Node | None = None) -> Rejection:
    """Return why a first step cannot be taken apart, at the line of a node."""
    return Rejection("first-step", reason, None if node is None else node.meta.get("where"), ALIKE)


@dataclass(eq=False)
class Roles:
    """What each node has to do with the first step.

    Attributes:
        moving: What depends on the input.
        trips: The numbers of steps of the loops, taken from what they visit not all of.
        views: What the loops read of the input.
        later: What depends on steps after the first.
        before: What the loops read is computed from: steps of the input, or of layers before.
        joins: Concatenations of a first step with the steps after it.
        joined: What depends on these, but for what loops read of it.
        alone: What depends on the first step of a sequence, and on no later one.
    """

    graph: torch.fx.Graph
    moving: set[torch.fx.Node]
    trips: list[torch.fx.Node]
    views: list[torch.fx.Node]
    later: set[torch.fx.Node] = field(init=False)
    before: set[torch.fx.Node] = field(init=False)
    joins: dict[torch.fx.Node, tuple[torch.fx.Node, torch.fx.Node]] = field(init=False)
    joined: set[torch.fx.Node] = field(init=False)
    alone: set[torch.fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        nodes = list(self.graph.nodes)
        heads = [node for node in nodes if self.is_head(node)]
        self.later = reached(self.graph, [*self.trips, *self.views], heads)
        sources: set[Any] = {view.args[0] for view in self.views}
        self.before = self.moving & sources
        for node in reversed(nodes):
            if node in self.before:
                self.before.update(self.moving.intersection(node.all_input_nodes))
        self.joins = {}
        for node in nodes:
            if node.target is torch.cat and node in self.later and len(node.args[0]) == 2:
                head, tail = node.args[0]
                if head not in self.later and tail in self.later:
                    self.joins[node] = (head, tail)
        self.alone = reached(self.graph, heads) - self.later
        # What a loop reads of a joined sequence is the steps after the first.
        self.joined = reached(self.graph, self.joins, [*heads, *self.trips, *self.views])

    def is_head(self, node: torch.fx.Node) -> bool:
        """Tell whether a node is the first step of a sequence whose other steps a loop visits."""
        if node.target is not torch.select or node.args[2] != 0:
            return False
        return any(view.args[:2] == node.args[:2] for view in self.views)

    def refusal(self) -> Rejection | None:
        """Return why the first step cannot be taken apart from the others."""
        if any(trip.target.offset != -1 for trip in self.trips):  # type: ignore[union-attr]
            return Rejection(
                "late-loops", "its loops begin after the second step, or at different steps"
            )
        for node in self.graph.nodes:
            reason = self.reason(node)
            if reason is not None:
                return refused(reason, node)
        return None

    def reason(self, node: torch.fx.Node) -> str | None:
        """Return what is wrong with one node."""
        if isinstance(node.target, sequence_ops.TripLength) and not self.is_after_first(node):
            return "its loops begin at different steps"
        if node in self.trips and not all(_only_counts(user, node) for user in node.users):
            return "it computes with the number of steps after the first"
        if node in self.views and node.args[2:4] != (1, 1):
            return "a loop reads another step of its input than the one that it is at"
        if node in self.before and not all(self.may_read(user, node) for user in node.users):
            return "its first step reads more of the sequence than a step"
        if is_loop(node) and node in self.moving:
            return self.loop_reason(node)
        if node in self.joined and node.target is sequence_ops.shift_time:
            return "a layer whose first step is another is delayed"
        if node in self.later and node.target is sequence_ops.step_numbers:
            return "its first step is another, and the others have numbers of their own"
        return None

    def is_after_first(self, trip: torch.fx.Node) -> bool:
        """Tell whether a number of steps is that of the steps after the first."""
        is_inner = trip.args[0] in self.later and trip.args[0] not in self.joined
        is_before = self.before.issuperset(trip.users)
        return trip in self.trips or trip not in self.moving or is_inner or is_before

    def loop_reason(self, node: torch.fx.Node) -> str | None:
        """Return what is wrong with a loop."""
        loop = loop_of(node)
        if node in self.joined:
            return "some of its loops begin at the first step, others at the second"
        if loop is None:
            return None if node.args[0] in self.later else "its loops visit different steps"
        if loop.trip.operand is None or node.args[loop.trip.operand] not in self.later:
            return "its loops visit different steps"
        if loop.trip.offset or any((step.start, step.stride) != (0, 1) for step in loop.steps):
            return "its loops visit different steps"
        return None

    def may_read(self, user: torch.fx.Node, source: torch.fx.Node) -> bool:
        """Tell whether a reader of a sequence reads the step that it is at, and no other."""
        if user in self.before or user in self.joined or user.op == "output":
            return True
        if user in self.views or user in self.trips or user.target is size:
            return True
        axes = {n.args[1] for n in source.users if n.target is sequence_ops.time_view}
        return user.target is torch.select and user.args[2] in {0} and axes == {user.args[1]}


def _only_counts(user: torch.fx.Node, trip: torch.fx.Node) -> bool:
    """Tell whether a node takes a number of steps to make as many."""
    if user.target is torch.arange:
        return all(takes_as_length(loop, user) for loop in user.users)
    if isinstance(user.target, NeuronCall):
        return user.args.index(trip) == 0
    return user.target in (sequence_ops.time_view, sequence_ops.repeat_time)
