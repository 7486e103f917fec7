"""Take a time loop apart: ``for t: for layer`` becomes ``for layer: all t``.

Before, one loop runs the whole network step by step.  After, every operator without state runs once
over the whole sequence, each neuron is one call over the whole sequence, and only what feeds back
through a matrix product or a reduction is left as a (smaller) loop.  It is legal because a node of
the body reads, at step t, only values of step t and carries; the groups of `find_recurrences` are
closed under those dependencies, so running them one after another over all t computes the same.

Numerics: bitwise, except for matrix products and reductions over more rows than one step has, and
for maths functions that torch rounds by their place in memory (`batch_rules.is_inexact`).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx

from snncc.errors import InternalError
from snncc.frontend.operators.canonical import graft, size
from snncc.ir import norm_ops, sequence_ops
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import Carry, Result, TimeLoop
from snncc.passes.base import Rejection
from snncc.passes.hoisting.batch_rules import (
    MAPPED,
    MAY_BE_PURE,
    RULES,
    Rule,
    Value,
    elementwise_rule,
    is_inexact,
)
from snncc.passes.hoisting.find_recurrences import (
    IN_ORDER,
    Group,
    Kind,
    find_recurrences,
    pointwise,
)
from snncc.passes.hoisting.neuron_border import NeuronBorder
from snncc.passes.hoisting.residual_loop import ResidualLoop
from snncc.passes.hoisting.step_numbers import number_dtype, takes_numbers
from snncc.passes.loops.open_layers import has_layers

STEP_NUMBERS = Rejection("mapped", "it takes a number of its own at each step")
# Why something runs once a step although it is no recurrence of neurons: exact, and no fallback.
EXACT_LOOPS = frozenset({"mapped", "train-norm", "effect", "counter"})


@dataclass(frozen=True, slots=True)
class HoistStateless:
    """Replace every time loop by sequence operators, neuron calls and residual loops.

    ``halves`` tells whether kernels can read and write values of half types, ``apart`` whether
    neurons stay apart where nothing but elementwise operators is between them.
    """

    halves: bool = False
    apart: bool = False
    name = "hoist-stateless"
    numerics = Numerics.REASSOCIATED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the sequence graph of a graph with time loops."""
        loops = [n for n in graph.nodes if isinstance(n.target, TimeLoop)]
        if not loops and has_layers(graph):
            return graph
        if not loops:
            return Rejection("no-time-loop", "the model has no loop over time")
        result = torch.fx.Graph()
        result.output(result.graph_copy(graph, {}))
        for node in result.nodes:
            if isinstance(node.target, TimeLoop):
                _Split(result, node, node.target, self.halves, self.apart).run()
        result.eliminate_dead_code()
        result.lint()
        return result


@dataclass
class _Split:
    """Takes one loop apart.

    ``env`` maps body nodes to the values that exist outside of it, ``serial`` holds those that are
    part of a smaller loop.
    """

    graph: torch.fx.Graph
    call: torch.fx.Node
    loop: TimeLoop
    halves: bool = False
    apart: bool = False
    env: dict[torch.fx.Node, Value] = field(default_factory=dict)
    tables: dict[torch.fx.Node, tuple[float, ...]] = field(default_factory=dict)
    serial: set[torch.fx.Node] = field(default_factory=set)
    lasts: dict[torch.fx.Node, torch.fx.Node] = field(default_factory=dict)
    where: Any = None
    length: Any = None

    def __post_init__(self) -> None:
        loop = self.loop
        self.body: dict[str, torch.fx.Node] = {n.name: n for n in loop.body.nodes}
        self.carries: dict[torch.fx.Node, tuple[Carry, torch.fx.Node]] = {
            self.body[c.name]: (c, self.body[c.update]) for c in loop.carries
        }
        self.operands: list[Any] = list(self.call.args)

    def run(self) -> None:
        """Emit the groups in order, then connect the results."""
        loop = self.loop
        with self.graph.inserting_before(self.call):
            self.length = self.emit_length()
            self.bind_inputs()
            for group in find_recurrences(loop, self.halves, apart=self.apart):
                self.emit_group(group)
            self.connect()

    def emit(self, target: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
        """Add a call to the sequence graph."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta.update(where=self.where, loop=self.loop.name)
        return node

    def emit_length(self) -> Any:
        trip = self.loop.trip
        if trip.operand is None:
            return trip.seen
        first = next((n for n in self.loop.body.nodes if n.meta.get("where")), None)
        where = first.meta["where"] if first is not None else None
        count = sequence_ops.TripLength(trip.dim, trip.offset, where)
        return self.emit(count, self.operands[trip.operand])

    def bind_inputs(self) -> None:
        """Give the placeholders of the body their values."""
        for step in self.loop.steps:
            node = self.body[step.name]
            view = self.emit(
                sequence_ops.time_view,
                self.operands[step.operand],
                step.dim,
                step.start,
                step.stride,
                self.length,
            )
            self.bind(node, view, stacked=True)
        for invariant in self.loop.invariants:
            self.bind(self.body[invariant.name], self.operands[invariant.operand], stacked=False)
        for table in self.loop.tables:
            self.tables[self.body[table.name]] = table.values

    def bind(self, node: torch.fx.Node, value: Any, *, stacked: bool) -> None:
        """Note the value of a body node and pass on what is known of it."""
        self.env[node] = Value(value, len(node.meta.get("shape", ())), stacked)
        if isinstance(value, torch.fx.Node):
            value.meta.setdefault("where", node.meta.get("where"))
            value.meta.setdefault("dtype", node.meta.get("dtype"))

    def emit_group(self, group: Group) -> None:
        first = next((n for n in group.nodes if n.op == "call_function"), None)
        self.where = first.meta.get("where") if first is not None else None
        if group.kind is Kind.NEURON:
            taken = sum(isinstance(n.target, NeuronCall) for n in self.graph.nodes)
            NeuronBorder(self, group).emit_call(f"neuron{taken + 1}")
        elif group.kind is Kind.SERIAL:
            self.emit_serial(group.nodes, group.reason, group.culprit)
        elif group.kind is Kind.INVARIANT:
            node = group.nodes[0]
            args, kwargs = self.arguments(node, lambda v: v.node)
            self.bind(
                node, self.marked(node, self.emit(node.target, *args, **kwargs)), stacked=False
            )
        elif group.nodes[0] not in self.serial:
            self.emit_stateless(group.nodes[0])

    def emit_stateless(self, node: torch.fx.Node) -> None:
        """Apply one operator to the whole sequence, or map it over time."""
        if node.target is size:
            source = self.env[node.args[0]]  # type: ignore[index]
            dim: Any = node.args[1]
            behind = dim + 1 if source.stacked and dim >= 0 else dim
            self.bind(node, self.emit(size, source.node, behind), stacked=False)
            return
        if not node.meta.get("impure") and not any(map(self.is_stacked, node.all_input_nodes)):
            args, kwargs = self.arguments(node, lambda v: v.node)
            self.bind(node, self.emit(node.target, *args, **kwargs), stacked=False)
            return
        tables = [self.tables[n] for n in node.all_input_nodes if n in self.tables]
        if not all(takes_numbers(node, values) for values in tables):
            self.emit_serial((node,), STEP_NUMBERS, node)
            return
        rank = len(node.meta.get("shape", ()))
        args, kwargs = self.arguments(node, lambda v: v, rank)
        result: torch.fx.Node | Rejection = IN_ORDER if node.meta.get("impure") else MAPPED
        rule = _rule_of(node)
        stacked = [a for a in args if isinstance(a, Value) and a.stacked]
        if rule is not None and (stacked or not node.all_input_nodes or _lists(args)):
            result = rule(self.emit, node, args, kwargs)
        if isinstance(result, Rejection):
            self.emit_serial((node, *_parts(node)), result, node)
            return
        if is_inexact(node):
            result.meta["numerics"] = Numerics.REASSOCIATED
            result.meta["stacked"] = tuple(isinstance(a, Value) and a.stacked for a in args)
        self.bind(node, self.marked(node, result), stacked=True)

    def marked(self, node: torch.fx.Node, value: torch.fx.Node) -> torch.fx.Node:
        """Note on a value of the sequence graph what a norm was folded into."""
        if "folded" in node.meta:
            value.meta["folded"] = node.meta["folded"]
            if node.target is norm_ops.folded_weight:  # it is the same at all steps
                value.meta["shape"] = node.meta["shape"]
        return value

    def arguments(self, node: torch.fx.Node, read: Any, rank: int = 0) -> tuple[Any, Any]:
        """Return the arguments of a body node with its inputs replaced."""

        def replace(value: Any) -> Any:
            if isinstance(value, torch.fx.Node):
                if value in self.tables:
                    return self.numbers(value, rank, number_dtype(node, self.tables[value]))
                return read(self.env[value])
            if isinstance(value, slice):
                return slice(*(replace(p) for p in (value.start, value.stop, value.step)))
            if isinstance(value, tuple | list):
                return type(value)(replace(v) for v in value)
            return value

        args = [replace(a) for a in node.args]
        return args, {k: replace(v) for k, v in node.kwargs.items()}

    def numbers(self, node: torch.fx.Node, rank: int, dtype: torch.dtype) -> Value:
        """Return the numbers of a table as a sequence that broadcasts against ``rank`` axes."""
        like = self.any_sequence()
        values = self.emit(sequence_ops.step_numbers, self.tables[node], rank, like, dtype)
        return Value(values, rank, stacked=True)

    def any_sequence(self) -> Any:
        """Return a tensor [T, *]."""
        stacked = next((v.node for v in self.env.values() if v.stacked), None)
        if stacked is not None:
            return stacked
        tensor = next(v.node for n, v in self.env.items() if "shape" in n.meta)
        return self.emit(sequence_ops.repeat_time, tensor, self.length)

    def is_stacked(self, node: torch.fx.Node) -> bool:
        return node in self.tables or self.env[node].stacked

    def emit_serial(
        self,
        nodes: tuple[torch.fx.Node, ...],
        reason: Rejection | None,
        culprit: torch.fx.Node | None,
    ) -> None:
        """Leave nodes as a loop of their own, over the sequences computed before."""
        residual = ResidualLoop(self, nodes)
        self.serial.update(nodes)
        every, last = self.needed(nodes)
        loop = residual.build([*every], [*last])
        result = self.emit(loop, *residual.operands)
        result.meta["rejection"] = reason
        result.meta["culprit"] = culprit
        for position, node in enumerate((*every, *last)):
            value = self.emit(operator.getitem, result, position)
            if position < len(every):
                self.bind(node, value, stacked=True)
            else:
                self.lasts[node] = value

    def needed(
        self, nodes: tuple[torch.fx.Node, ...]
    ) -> tuple[list[torch.fx.Node], list[torch.fx.Node]]:
        """Return which nodes of a group are read at every step, and whose last value is."""
        inside = set(nodes)
        updates_outside = {
            update for carry, (_, update) in self.carries.items() if carry not in inside
        }
        stacked = {r.node for r in self.loop.results if r.stacked}
        every = [
            n
            for n in nodes
            if n.name in stacked or n in updates_outside or any(u not in inside for u in n.users)
        ]
        last = {r.node for r in self.loop.results if not r.stacked}
        return every, [n for n in nodes if n.name in last]

    def connect(self) -> None:
        """Replace the results of the loop by the values that exist now."""
        for user in list(self.call.users):
            if user.target is not operator.getitem:
                raise InternalError(f"'{user}' reads the loop '{self.loop.name}' as a whole")
            result = self.loop.results[int(user.args[1])]  # type: ignore[arg-type]
            value = self.result(result)
            if isinstance(value, torch.fx.Node) and "shape" in user.meta:
                value.meta.setdefault("shape", user.meta["shape"])
            user.replace_all_uses_with(value)
            self.graph.erase_node(user)
        self.graph.erase_node(self.call)

    def result(self, result: Result) -> Any:
        node = self.body[result.node]
        if not result.stacked and node in self.lasts:
            return self.lasts[node]
        value = self.env[node]
        if result.stacked:
            if value.stacked:
                return value.node
            return self.emit(sequence_ops.repeat_time, value.node, self.length)
        return self.emit(sequence_ops.last_step, value.node) if value.stacked else value.node


def _rule_of(node: torch.fx.Node) -> Rule | None:
    """Return how an operator is applied to all steps at once."""
    if pointwise(node) is None and node.target is not graft:
        return elementwise_rule  # `graft` does not broadcast
    return (
        None
        if node.meta.get("impure") and node.target not in MAY_BE_PURE
        else RULES.get(node.target)
    )


def _parts(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Return the nodes that take the results of a node apart, where it has several."""
    return [] if "shape" in node.meta else [u for u in node.users if u.target is operator.getitem]


def _lists(args: list[Any]) -> bool:
    return any(isinstance(a, tuple | list) for a in args)


def serial_part(graph: torch.fx.Graph) -> Rejection | None:
    """Return the refusal of a loop that is no neuron, such as one with recurrent weights."""
    for node in graph.nodes:
        if isinstance(node.target, TimeLoop) and node.meta["rejection"].code not in EXACT_LOOPS:
            culprit = node.meta.get("culprit")
            where = (node if culprit is None else culprit).meta.get("where")
            reason = f"a state stays outside of neurons: {node.meta['rejection'].reason}"
            return Rejection("recurrent", reason, where)
    return None
