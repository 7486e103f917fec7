"""From the fx nodes of a neuron to its scalar recurrence: one let for each operator, in order.

The lets keep the user's order of operations, names and source lines; nothing is simplified, so the
recurrence rounds exactly as the serial code does.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.fx

from snncc.errors import InternalError
from snncc.frontend.operators.canonical import cast, graft
from snncc.frontend.variables import variable_of
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.names import fresh_name
from snncc.ir.nodes import (
    Const,
    Detach,
    Expr,
    Input,
    Let,
    Rank,
    Recurrence,
    State,
    Surrogate,
    Var,
)
from snncc.ir.time_loop import Carry, Fill
from snncc.ir.walk import is_bool
from snncc.passes.base import Rejection
from snncc.passes.hoisting.find_recurrences import is_complex
from snncc.passes.scalars import half_types
from snncc.passes.scalars.complex_ops import COMPLEX_OPS
from snncc.passes.scalars.expressions import expression_of, literal, operands
from snncc.passes.scalars.scalar_ops import Scope, is_set
from snncc.passes.scalars.small_integers import INTEGERS

# Names that a let must not have in any of the languages that recurrences are printed to.
RESERVED = frozenset(
    {
        "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else",
        "enum", "extern", "float", "for", "goto", "if", "inline", "int", "long", "register",
        "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch",
        "typedef", "union", "unsigned", "void", "volatile", "while", "bool", "true", "false", "t",
        "T", "n", "N", "row", "lane", "tile", "width", "start"
    }
)  # fmt: skip


class Port(NamedTuple):
    """A value that crosses the border of a neuron: a body node, or the start of a carry.

    ``part`` is ``"real"`` or ``"imag"`` for the parts of a complex value.
    """

    value: torch.fx.Node | Carry
    part: str = ""


@dataclass
class Neuron:
    """A recurrence under construction, and where its values come from and go to.

    Attributes:
        recurrence: The scalar recurrence.
        steps: For each STEP input what it is.
        lanes: For each LANE input what it is.
        outputs: What is written at every step, in the order of ``recurrence.outputs``.
        finals: What is returned after the last step, in the order of ``recurrence.finals``.
        has_products: Whether complex numbers are multiplied.
    """

    recurrence: Recurrence
    steps: list[Port]
    lanes: list[Port]
    outputs: list[Port]
    finals: list[Port]
    has_products: bool


def scalarize(  # noqa: PLR0913 - the nodes, and how they are seen from outside
    name: str,
    nodes: Iterable[torch.fx.Node],
    carries: Mapping[torch.fx.Node, tuple[Carry, torch.fx.Node]],
    per_step: Callable[[torch.fx.Node], bool],
    wanted: tuple[list[torch.fx.Node], list[torch.fx.Node]],
    *,
    halves: bool = False,
) -> Neuron:
    """Return the recurrence of the nodes of a neuron.

    Args:
        name: Name of the recurrence.
        nodes: The body nodes of the neuron, in order.
        carries: For each carry placeholder among them the carry and its update node.
        per_step: Tells whether an outside node has a value for each step (else: for each lane).
        wanted: The nodes needed at every step, and those whose last value is needed.
        halves: Whether values of half types are rounded to them, as by torch.
    """
    builder = _Builder(per_step, halves)
    nodes = list(nodes)
    for node in nodes:
        if node in carries:
            builder.add_state(node, carries[node][1])
    for node in nodes:
        if node.op == "call_function":
            builder.add_let(node)
    carried = [n for n in nodes if n in carries]
    states = [state for n in carried for state in builder.finish_states(n, *carries[n])]
    outputs, last = wanted
    finals = [name for node in last for name in builder.final_states(node, states)]
    recurrence = Recurrence(
        name=name,
        inputs=tuple(builder.inputs),
        states=tuple(states),
        lets=tuple(builder.lets),
        outputs=tuple(name for node in outputs for name in builder.names[node]),
        finals=tuple(finals),
        where=next((n.meta.get("where") for n in nodes if n.op == "call_function"), None),
    )
    return Neuron(
        recurrence,
        builder.steps,
        builder.lanes,
        [port for node in outputs for port in ports(node, node)],
        [port for node in last for port in ports(node, node)],
        any(n.target is torch.mul and n.meta["dtype"].is_complex for n in nodes),
    )


def ports(value: torch.fx.Node | Carry, like: torch.fx.Node) -> list[Port]:
    """Return the ports of a value of the type of a body node."""
    dtype = like.meta.get("dtype")
    if dtype is not None and dtype.is_complex:
        return [Port(value, "real"), Port(value, "imag")]
    return [Port(value)]


@dataclass
class _Builder:
    """Builds a recurrence; ``flags`` are the names of floats that stand for bools."""

    per_step: Callable[[torch.fx.Node], bool]
    halves: bool = False
    names: dict[torch.fx.Node, tuple[str, ...]] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    steps: list[Port] = field(default_factory=list)
    lanes: list[Port] = field(default_factory=list)
    lets: list[Let] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    bools: set[str] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)

    @property
    def scope(self) -> Scope:
        """Tells which expressions are bools."""
        return Scope(lambda e: is_bool(e, self.bools), self.flags)

    def fresh(self, base: str) -> str:
        """Return an unused identifier that resembles ``base``."""
        base = re.sub(r"\W", "_", base).strip("_") or "value"
        if base[0].isdigit() or base in RESERVED or keyword.iskeyword(base):
            base = f"v_{base}"
        return fresh_name(base, self.taken)

    def fresh_for(self, node: torch.fx.Node, base: str) -> tuple[str, ...]:
        """Return a name for each part of the value of a node."""
        names = tuple(
            self.fresh(f"{base}_{port.part}" if port.part else base) for port in ports(node, node)
        )
        if node.meta.get("dtype") is torch.bool:
            self.flags.update(names)
        return names

    def add_state(self, node: torch.fx.Node, update: torch.fx.Node) -> None:
        variable = variable_of(update.meta.get("where"))
        self.names[node] = self.fresh_for(update, f"{variable}_prev" if variable else node.name)

    def add_let(self, node: torch.fx.Node) -> None:
        if isinstance(node.target, CustomGradient):
            self.add_surrogate(node, node.target)
            return
        if node.target is graft:
            self.add_graft(node)
            return
        value = self.build(node, self.operand)
        if not isinstance(value, tuple):
            self.names[node] = (self.append(base_name(node), value, node),)
            return
        parts = zip(ports(node, node), value, strict=True)
        self.names[node] = tuple(
            self.append(f"{base_name(node)}_{port.part}", expr, node) for port, expr in parts
        )

    def append(
        self, base: str, expr: Expr, node: torch.fx.Node, surrogate: Surrogate | None = None
    ) -> str:
        name = self.fresh(base)
        self.lets.append(Let(name, expr, surrogate, node.meta.get("where")))
        if is_bool(expr, self.bools):
            self.bools.add(name)
        return name

    def build(self, node: torch.fx.Node, operand: Callable[[Any], Any]) -> Any:
        """Return the expression of one elementwise node: a pair for a complex number."""
        if self.halves:
            value = self.build_plainly(node, lambda a: half_types.converted(node, a, operand(a)))
            return half_types.rounded(node, value)
        return self.build_plainly(node, operand)

    def build_plainly(self, node: torch.fx.Node, operand: Callable[[Any], Any]) -> Any:
        """Return the expression of one elementwise node on operands of the working type."""
        args, kwargs = operands(node.args, node.kwargs, operand)
        expr: Any
        if is_complex(node):
            expr = COMPLEX_OPS[node.target](self.scope, *args, **kwargs)
        elif node.target is cast and node.args[1] in INTEGERS:
            expr = Detach(self.scope.as_float(args[0]))  # it is an integer already
        else:
            expr = expression_of(node.target, self.scope, args, kwargs)
        if isinstance(expr, Rejection):
            raise InternalError(f"'{node.name}' was taken for elementwise: {expr.reason}")
        return expr

    def operand(self, value: Any) -> Any:
        """Return the expression of an argument; what is no operand stays as it is."""
        if not isinstance(value, torch.fx.Node):
            return literal(value)
        names = self.names[value] if value in self.names else self.add_input(value)
        if len(names) > 1:
            return tuple(map(Var, names))
        return is_set(Var(names[0])) if names[0] in self.flags else Var(names[0])

    def add_input(self, node: torch.fx.Node) -> tuple[str, ...]:
        names = self.names[node] = self.fresh_for(node, node.name)
        rank = Rank.STEP if self.per_step(node) else Rank.LANE
        self.inputs += [Input(name, rank) for name in names]
        (self.steps if rank is Rank.STEP else self.lanes).extend(ports(node, node))
        return names

    def add_surrogate(self, node: torch.fx.Node, function: CustomGradient) -> None:
        """Inline the forward of a custom gradient and attach its backward as a surrogate."""
        args = [self.operand(a) for a in node.args]
        places = [n for n in function.forward.nodes if n.op == "placeholder"]
        values: dict[torch.fx.Node, Expr] = dict(zip(places, args, strict=True))
        value = self.inline(function.forward, values)[0]
        name = self.fresh(base_name(node))
        rule = self.surrogate(function, args, name)
        self.lets.append(Let(name, value, rule, node.meta.get("where")))
        if is_bool(value, self.bools):
            self.bools.add(name)
        self.names[node] = (name,)

    def add_graft(self, node: torch.fx.Node) -> None:
        """Take the value of one operand; a rule hands the whole cotangent to the other."""
        value, carrier = (self.operand(a) for a in node.args)
        name = self.fresh(base_name(node))
        rule = None
        if isinstance(carrier, Var):
            cotangent = self.fresh(f"g_{name}")
            rule = Surrogate("graft", cotangent, (carrier.name,), (), (Var(cotangent),))
        where = node.meta.get("where")
        self.lets.append(Let(name, Detach(self.scope.as_float(value)), rule, where))
        self.names[node] = (name,)

    def inline(self, graph: torch.fx.Graph, values: dict[torch.fx.Node, Expr]) -> list[Expr]:
        """Return the outputs of a graph of elementwise nodes as nested expressions."""

        def operand(value: Any) -> Any:
            return values[value] if isinstance(value, torch.fx.Node) else literal(value)

        for inner in graph.nodes:
            if inner.op == "call_function":
                values[inner] = self.build(inner, operand)
        results = graph.output_node().args[0]
        results = results if isinstance(results, tuple | list) else (results,)
        return [Const(0.0) if r is None else operand(r) for r in results]

    def surrogate(self, function: CustomGradient, args: list[Any], name: str) -> Surrogate:
        """Return the backward rule: lets for what is used more than once, then the results."""
        cotangent = self.fresh(f"g_{name}")
        places = [n for n in function.lane_backward.nodes if n.op == "placeholder"]
        # The graph's placeholders are the tensor arguments, then the cotangent of the result.
        bound = [*args, Var(cotangent)]
        values: dict[torch.fx.Node, Expr] = dict(zip(places, bound, strict=True))
        results = self.inline(function.lane_backward, values)
        pairs = [
            (a.name, r)
            for a, r in zip(args, results, strict=True)
            if isinstance(a, Var) and r != Const(0.0)
        ]
        return Surrogate(
            name=function.name,
            cotangent=cotangent,
            args=tuple(a for a, _ in pairs),
            lets=(),
            results=tuple(r for _, r in pairs),
        )

    def finish_states(
        self, node: torch.fx.Node, carry: Carry, update: torch.fx.Node
    ) -> list[State]:
        """Return the states of a carry, whose update may come from outside the neuron."""
        names = self.names[update] if update in self.names else self.add_input(update)
        starts = self.starts(node, carry, update)
        return [
            State(state, start, self.as_float(name, update), update.meta.get("where"))
            for state, start, name in zip(self.names[node], starts, names, strict=True)
        ]

    def starts(self, node: torch.fx.Node, carry: Carry, update: torch.fx.Node) -> list[Const | Var]:
        """Return what the states of a carry are before the first step."""
        if isinstance(carry.initial, Fill):
            number = complex(carry.initial.value)
            parts = [number.real, number.imag]
            return [Const(part) for part, _ in zip(parts, self.names[node], strict=False)]
        names = [self.fresh(f"{name}_initial") for name in self.names[node]]
        self.inputs += [Input(name, Rank.LANE) for name in names]
        self.lanes += ports(carry, update)
        return [Var(name) for name in names]

    def final_states(self, node: torch.fx.Node, states: list[State]) -> list[str]:
        """Return the states that end with the last value of a node; add those that lack."""
        return [self.final_state(name, node, states) for name in self.names[node]]

    def final_state(self, name: str, node: torch.fx.Node, states: list[State]) -> str:
        held = self.as_float(name, node)
        for state in states:
            if state.update == held:
                return state.name
        extra = State(self.fresh(f"{name}_last"), Const(0.0), held)
        states.append(extra)
        return extra.name

    def as_float(self, name: str, node: torch.fx.Node) -> str:
        """Return the name of a float with the value of a let."""
        if name not in self.bools:
            return name
        let = next((x for x in self.lets if x.expr == self.scope.as_float(Var(name))), None)
        return self.append(name, self.scope.as_float(Var(name)), node) if let is None else let.name


def base_name(node: torch.fx.Node) -> str:
    """Return the user's name for the value of a node, or the operator's."""
    return variable_of(node.meta.get("where")) or node.name
