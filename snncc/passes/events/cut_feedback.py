"""Cut loops over time where spikes go from one step to the next by way of an operator.

Before, a loop with recurrent weights::

    for t:  h = decay * v + x[t] + W s;   s = fire(h);   v = reset(h, s)

is one state that no neuron kernel holds.  After::

    r = recalled(s)                           what s was one step before
    for t:  h = decay * v + x[t] + W r[t];    s[t] = fire(h);   v = reset(h, s[t])

which leaves a neuron, a product over all steps, and a name for the spikes of the step before
(`snncc.ir.events.recalled`).  The sequences that are recalled become results of the graph, behind
those that it has.

Precondition of a cut: the state is made of the spikes of one step and of what is the same at all
steps, and what reads it adds it, or mixes lanes.  What multiplies with it, as some late resets do,
reads a state.
Numerics: a name for a value changes no number; the graph runs in no order before it is one of
events.
"""

from __future__ import annotations

import operator
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.fx

from snncc.frontend.operators.canonical import graft
from snncc.ir.events.recalled import Recalled
from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import Carry, Fill, Result, Step, TimeLoop
from snncc.passes.events.between import SHAPES
from snncc.passes.hoisting.find_recurrences import pointwise
from snncc.passes.hoisting.keep_apart import is_spike
from snncc.passes.neurons import copy_graph

Node: TypeAlias = torch.fx.Node
_SUMS = frozenset({torch.add, torch.sub})
_SCALES = frozenset({torch.mul, torch.div, torch.neg})


@dataclass(frozen=True, slots=True)
class CutFeedback:
    """Name the spikes of the step before in all loops, where operators read them."""

    name = "cut-feedback"
    numerics = Numerics.SUBSTITUTED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with spikes recalled; the same where no operator reads any."""
        result = copy_graph(graph)
        calls = [node for node in result.nodes if isinstance(node.target, TimeLoop)]
        counts = [_Cut(result, node, node.target).run() for node in calls]
        return result if any(counts) else graph


class _Cut:
    """Cuts one loop of a graph, in place."""

    def __init__(self, graph: torch.fx.Graph, call: Node, loop: TimeLoop) -> None:
        self.graph, self.call, self.loop = graph, call, loop
        self.body = copy_graph(loop.body)
        self.nodes: dict[str, Node] = {node.name: node for node in self.body.nodes}
        self.mixes, self.drives = _drives(self.body)
        self.shared = {each.name for each in loop.invariants}
        self.operands: list[Any] = [*call.args]
        self.steps: list[Step] = []

    def run(self) -> int:
        """Return how many states were cut."""
        carries = [c for c in self.loop.carries if self.is_cut(c)]
        if not carries:
            return 0
        results, places = self.results(carries)
        for carry in carries:
            self.recall(carry, places[carry.update])
        self.call.target = replace(
            self.loop,
            body=self.body,
            operands=len(self.operands),
            carries=tuple(c for c in self.loop.carries if self.is_needed(c)),
            steps=(*self.loop.steps, *self.steps),
            results=results,
        )
        self.call.args = tuple(self.operands)
        return len(carries)

    def is_cut(self, carry: Carry) -> bool:
        """Tell whether a state is made of spikes, and read in a way that needs no state."""
        has_shape = "shape" in self.nodes[carry.name].meta
        is_made = self.made_of_spikes(carry) is not None and self.has_membrane(carry)
        return has_shape and is_made and bool(self.readers(carry))

    def has_membrane(self, carry: Carry) -> bool:
        """Tell whether what decides is made of a state that is not decided itself.

        A potential may be reset by a function with a gradient of its own, which is no spike.
        """
        kept = {c.name for c in self.loop.carries if self.made_of_spikes(c) is None}
        wanted, seen = [self.nodes[carry.update]], set[Node]()
        while wanted:
            node = wanted.pop()
            if node not in seen:
                seen.add(node)
                wanted += node.all_input_nodes
        return any(node.name in kept for node in seen)

    def made_of_spikes(self, carry: Carry) -> set[Node] | None:
        """Return what makes a state of the spikes of a step and of what all steps share.

        None stands for a state that is made of anything else.
        """
        wanted, seen = [self.nodes[carry.update]], set[Node]()
        fires = False
        while wanted:
            node = wanted.pop()
            if node.target is graft or node.meta.get("impure"):
                return None
            if is_spike(node):
                fires = True
            elif node.op == "call_function" and node not in seen:
                seen.add(node)
                wanted += node.all_input_nodes
            elif node.op == "placeholder" and node.name not in self.shared:
                return None
        return seen if fires else None

    def readers(self, carry: Carry) -> list[Node]:
        """Return what reads a state made of spikes in a way that needs no state."""
        users = [*self.nodes[carry.name].users]
        made = self.made_of_spikes(carry) or set()
        if not self.mixes.isdisjoint(made):
            return [user for user in users if user.target not in SHAPES]
        return [user for user in users if user in self.drives or self.is_added(user)]

    def is_added(self, node: Node) -> bool:
        """Tell whether spikes that an operator reads are added to what differs by step."""
        fixed = [n for n in node.all_input_nodes if n.name in self.shared]
        if len(node.all_input_nodes) > len(fixed) + 1:
            return node.target in _SUMS
        is_kept = node.target in _SUMS | _SCALES and bool(node.users)
        return is_kept and all(map(self.is_added, node.users))

    def results(self, carries: list[Carry]) -> tuple[tuple[Result, ...], dict[str, int]]:
        """Return the results with what is recalled, and which result of the graph each of it is."""
        results, places = list(self.loop.results), dict[str, int]()
        output = self.graph.output_node()
        shown: list[Any] = list(output.args[0])  # type: ignore[arg-type]
        for update in dict.fromkeys(carry.update for carry in carries):
            with self.graph.inserting_after(self.call):
                value = self.graph.call_function(operator.getitem, (self.call, len(results)))
            value.meta.update(self.nodes[update].meta)
            value.meta.pop("shape", None)
            results.append(Result(update, stacked=True))
            places[update] = len(shown)
            shown.append(value)
        output.args = (tuple(shown),)
        return tuple(results), places

    def recall(self, carry: Carry, result: int) -> None:
        """Let operators read the spikes of the step before from outside of the loop."""
        old = self.nodes[carry.name]
        start = carry.initial
        initial = start.value if isinstance(start, Fill) else self.operands[start]
        shape = (self.loop.trip.seen, *old.meta["shape"])
        target = Recalled(result, shape, old.meta["dtype"])
        with self.graph.inserting_before(self.call):
            recalled = self.graph.call_function(target, (initial,))
        recalled.meta.update(where=self.nodes[carry.update].meta.get("where"))
        recalled.meta.update(dtype=old.meta["dtype"])
        with self.body.inserting_before(old):
            late = self.body.placeholder(f"{carry.name}_recalled")
        late.meta.update(old.meta)
        for reader in self.readers(carry):
            reader.replace_input_with(old, late)
        self.steps.append(Step(late.name, len(self.operands), 0, 0, 1))
        self.operands.append(recalled)

    def is_needed(self, carry: Carry) -> bool:
        """Tell whether anything but operators reads a state; forget it where nothing does."""
        node, shown = self.nodes[carry.name], {result.node for result in self.loop.results}
        updates = {each.update for each in self.loop.carries}
        likes = {c.initial.like for c in self.loop.carries if isinstance(c.initial, Fill)}
        is_read = bool(node.users) or carry.name in shown | updates | likes
        if is_read or self.made_of_spikes(carry) is None:
            return True
        self.body.erase_node(node)
        return False


def _drives(body: torch.fx.Graph) -> tuple[Set[Node], Set[Node]]:
    """Return the operators that mix lanes, and all that reaches one before it makes a spike."""
    mixes, found = set[Node](), set[Node]()
    for node in reversed(body.nodes):
        if node.op != "call_function" or is_spike(node) or node.target in SHAPES:
            continue
        if pointwise(node) is not None:
            mixes.add(node)
        if node in mixes or not found.isdisjoint(node.users):
            found.add(node)
    return mixes, found
