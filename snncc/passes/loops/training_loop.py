"""The forward loop of training: the loop itself, and what its reverse needs of each step.

A reverse loop asks for forward values by node or by name; each becomes one more result of the
training loop and an argument of the backward graph, once.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.fx

from snncc.ir.adjoint_ops import collected
from snncc.ir.local_gradient import Noted
from snncc.ir.norm_ops import normalized
from snncc.ir.step_call import StepCall, output_name, step_inputs
from snncc.ir.time_loop import Result, TimeLoop
from snncc.passes.loops.builder import LoopBuilder, of_type, renamed
from snncc.passes.loops.norm_rules import Norm
from snncc.passes.loops.units import Unit
from snncc.passes.scalars.half_types import half_of

Node = torch.fx.Node
_KEPT = ("where", "impure")  # what is known of an operator, whatever it returns


@dataclass(frozen=True, slots=True)
class ValueKey:
    """The value of a node at every step, or at the last one."""

    node: Node
    stacked: bool


@dataclass(frozen=True, slots=True)
class LetKey:
    """A let inside of a step, at every step."""

    unit: Unit
    name: str


@dataclass(frozen=True, slots=True)
class NoteKey:
    """What autograd noted of a unit, at every step."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class StatisticKey:
    """The mean (1) that a norm took, or one over the deviation (2), at every step."""

    unit: Unit
    position: int


Key: TypeAlias = ValueKey | LetKey | NoteKey | StatisticKey


class TrainingLoop:
    """The training loop under construction, and the head of the backward graph.

    Attributes:
        graph: The backward graph.
        operands: Its nodes for the operands of the loop.
        cotangents: Its nodes for the cotangents of the results.
    """

    def __init__(self, loop: TimeLoop, units: Sequence[Unit], active: Collection[Node]) -> None:
        self.loop = loop
        self.units = units
        self.active = active
        self.by_name = {n.name: n for n in loop.body.nodes}
        self.graph = torch.fx.Graph()
        self.operands = [self.graph.placeholder(f"operand{i}") for i in range(loop.operands)]
        results = [self.graph.placeholder(f"result{i}") for i, _ in enumerate(loop.results)]
        self.cotangents = [self.graph.placeholder(f"g{i}") for i, _ in enumerate(loop.results)]
        self.kept: dict[Key, Node] = {}
        for result, node in zip(loop.results, results, strict=True):
            self.kept.setdefault(ValueKey(self.by_name[result.node], result.stacked), node)
        self.added: list[Key] = []
        self.updates = {self.by_name[c.name]: self.by_name[c.update] for c in loop.carries}
        self.steps_at = {self.by_name[s.name]: s for s in loop.steps}
        self.tables = {self.by_name[t.name]: t for t in loop.tables}
        self.fixed = {self.by_name[i.name]: i.operand for i in loop.invariants}
        self.stored = {k.node for k in self.kept if isinstance(k, ValueKey) and k.stacked}
        for unit in units:
            product = unit.product
            if product and any(weight in active for weight in product.weights):
                self.stored.add(product.x)

    def steps(self) -> Node:
        """Return a node of the backward graph whose first size is T."""
        operand = self.loop.trip.operand
        if operand is not None and self.loop.trip.dim == 0 and self.loop.trip.offset == 0:
            return self.operands[operand]
        return self.graph.call_function(torch.arange, (self.loop.trip.seen,))

    def is_invariant(self, node: Node) -> bool:
        """Tell whether a value is the same at all steps."""
        return node in self.fixed

    def is_operand(self, node: Node) -> bool:
        """Tell whether a value comes from outside of the loop."""
        return node in self.fixed or node in self.steps_at

    def stored_names(self, unit: Unit) -> set[str]:
        """Return the inputs and outputs of a step whose value is there for every step anyway."""
        names = {name for name, node in step_inputs(unit.nodes[0]).items() if self.is_stored(node)}
        return names | {output_name(o) for o in unit.outputs if o in self.stored}

    def is_stored(self, node: Node) -> bool:
        """Tell whether a value is there for every step: given, or kept; a carry with its update."""
        given = self.is_operand(node) or node in self.tables or node in self.stored
        follows = node in self.updates and self.updates[node] in self.stored
        leads = any(u is node and c in self.stored for c, u in self.updates.items())
        return given or follows or leads

    def forward_value(self, reverse: LoopBuilder, unit: Unit, name: str) -> Node:
        """Return the node of the reverse body that holds a value of a step, by its name there."""
        inputs = step_inputs(unit.nodes[0])
        outputs = {output_name(output): output for output in unit.outputs}
        if name in inputs or name in outputs:
            return self.value_of(reverse, inputs.get(name) or outputs[name])
        place = reverse.step(name, self.keep(LetKey(unit, name)))
        lets = unit.step.recurrence.lets if unit.step else ()
        place.meta["dtype"] = next(half_of(let.expr) for let in lets if let.name == name)
        return place

    def value_of(self, reverse: LoopBuilder, node: Node) -> Node:
        """Return the node of the reverse body that holds a forward value."""
        return of_type(self._value_of(reverse, node), node)

    def _value_of(self, reverse: LoopBuilder, node: Node) -> Node:
        if node in self.fixed:
            return reverse.invariant(node.name, self.operands[self.fixed[node]])
        if node in self.tables:
            return reverse.table(self.tables[node])
        if node in self.steps_at:
            step = self.steps_at[node]
            operand = self.operands[step.operand]
            return reverse.step(node.name, operand, step.dim, step.start, step.stride)
        return reverse.step(node.name, self.keep(ValueKey(node, stacked=True)))

    def sequence_of(self, node: Node) -> Node:
        """Return a forward value at all steps [T, *] in the backward graph."""
        if node in self.steps_at:
            return self.operands[self.steps_at[node].operand]
        return self.graph.call_function(collected, (self.keep(ValueKey(node, stacked=True)),))

    def last(self, node: Node) -> Node:
        """Return the value of the last step in the backward graph."""
        return self.keep(ValueKey(node, stacked=False))

    def note(
        self, reverse: LoopBuilder, unit: Unit
    ) -> tuple[Node, tuple[Node, ...], tuple[Node, ...]]:
        """Return a unit's note in the reverse body, its inputs and its outputs with gradients."""
        place = reverse.step("note", self.keep(NoteKey(unit)))
        return place, self.leaves(unit), self.roots(unit)

    def statistics(self, reverse: LoopBuilder, unit: Unit) -> list[Node]:
        """Return the statistics that a norm took in the reverse body."""
        names = ("mean", "deviation")
        keys = [StatisticKey(unit, position) for position, _ in enumerate(names, 1)]
        return [reverse.step(n, self.keep(key)) for n, key in zip(names, keys, strict=True)]

    def leaves(self, unit: Unit) -> tuple[Node, ...]:
        """Return the inputs of a unit that have gradients."""
        return tuple(n for n in unit.inputs if n in self.active)

    def roots(self, unit: Unit) -> tuple[Node, ...]:
        """Return the outputs of a unit that have cotangents."""
        return tuple(n for n in unit.outputs if n in self.active)

    def keep(self, key: Key) -> Node:
        """Return the node of the backward graph that gets a value from the training loop."""
        if key not in self.kept:
            with self.graph.inserting_before(self.cotangents[0]):
                self.kept[key] = self.graph.placeholder(f"kept{len(self.added)}")
            self.added.append(key)
            if isinstance(key, ValueKey) and key.stacked:
                self.stored.add(key.node)
        return self.kept[key]

    def build(self) -> TimeLoop:
        """Return the training loop."""
        return _Copy(self).build()


class _Copy:
    """Copies the body of the loop, with more outputs where something is kept."""

    def __init__(self, training: TrainingLoop) -> None:
        self.training = training
        self.body = torch.fx.Graph()
        self.copies: dict[Node, Node] = {}
        self.lets: dict[Key, Node] = {}

    def build(self) -> TimeLoop:
        training = self.training
        for node in training.loop.body.nodes:
            if node.op == "placeholder":
                self.copy(node)
        for unit in training.units:
            if NoteKey(unit) in training.kept:
                self.copy_noted(unit)
            elif unit.norm is not None and StatisticKey(unit, 1) in training.kept:
                self.copy_norm(unit, unit.norm)
            else:
                self.copy_unit(unit)
        names = {old.name: new.name for old, new in self.copies.items()}
        loop = renamed(training.loop, self.body, names)
        more = tuple(self.result(key) for key in training.added)
        return replace(loop, results=(*loop.results, *more))

    def copy_unit(self, unit: Unit) -> None:
        """Copy a unit as it is; a step with what is kept of its inside."""
        for node in unit.nodes:
            self.copy(node)
        if unit.step is not None:
            self.add_lets(unit, unit.step)

    def copy(self, node: Node) -> None:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.copies.__getitem__)
        self.copies[node] = self.create(node.target, args, kwargs, node)

    def create(self, target: Any, args: Any, kwargs: Any, like: Node) -> Node:
        copy = self.body.create_node(like.op, target, args, kwargs, like.name)
        copy.meta = dict(like.meta)
        return copy

    def add_lets(self, unit: Unit, step: StepCall) -> None:
        """Make what is kept of a step outputs of it."""
        keys = [k for k in self.training.added if isinstance(k, LetKey) and k.unit is unit]
        if not keys:
            return
        recurrence, call = step.recurrence, self.copies[unit.nodes[0]]
        first = len(recurrence.outputs)
        outputs = (*recurrence.outputs, *(key.name for key in keys))
        values = {let.name: let.expr for let in recurrence.lets}
        halves = ((key.name, half_of(values[key.name])) for key in keys)
        narrow = (*step.narrow, *((name, half) for name, half in halves if half is not None))
        call.target = replace(step, recurrence=replace(recurrence, outputs=outputs), narrow=narrow)
        for position, key in enumerate(keys, first):
            self.lets[key] = self.body.create_node(
                "call_function", operator.getitem, (call, position), {}, key.name
            )

    def copy_noted(self, unit: Unit) -> None:
        """Run the operators of a unit under autograd and keep its note."""
        training = self.training
        target = Noted(
            graph=_as_graph(unit),
            wanted=tuple(n in training.active for n in unit.inputs),
            differentiable=tuple(i for i, n in enumerate(unit.outputs) if n in training.active),
        )
        call = self.body.call_function(target, tuple(self.copies[n] for n in unit.inputs))
        for position, node in enumerate(unit.outputs):
            self.copies[node] = self.create(operator.getitem, (call, position), {}, node)
        last = len(unit.outputs)
        self.lets[NoteKey(unit)] = self.body.call_function(operator.getitem, (call, last))

    def copy_norm(self, unit: Unit, norm: Norm) -> None:
        """Run a norm such that its statistics are results, too."""
        args = torch.fx.node.map_arg(norm.node.args, self.copies.__getitem__)
        call = self.body.call_function(normalized, args)
        call.meta.update({k: v for k, v in norm.node.meta.items() if k in _KEPT})
        self.copies[norm.node] = self.create(operator.getitem, (call, 0), {}, norm.node)
        self.copies[norm.node].meta.pop("impure", None)
        for position in (1, 2):
            value = self.body.call_function(operator.getitem, (call, position))
            self.lets[StatisticKey(unit, position)] = value

    def result(self, key: Key) -> Result:
        if isinstance(key, ValueKey):
            return Result(self.copies[key.node].name, key.stacked)
        return Result(self.lets[key].name, stacked=True)


def _as_graph(unit: Unit) -> torch.fx.Graph:
    """Return the operators of a unit as a graph from its inputs to its outputs."""
    graph = torch.fx.Graph()
    copies = {n: graph.placeholder(n.name) for n in unit.inputs}
    for node in unit.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[n] for n in unit.outputs))
    return graph
