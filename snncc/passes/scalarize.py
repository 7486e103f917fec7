"""From the fx nodes of a neuron to its scalar recurrence: one let for each operator, in order.

The lets keep the user's order of operations, names and source lines; nothing is simplified, so the
recurrence rounds exactly as the serial code does.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.fx

from snncc.errors import InternalError
from snncc.frontend.variables import variable_of
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.nodes import (
    Const,
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
from snncc.passes.scalar_ops import SCALAR_OPS, Scope

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


@dataclass
class Neuron:
    """A recurrence under construction, and where its values come from and go to.

    Attributes:
        recurrence: The scalar recurrence.
        steps: For each STEP input the body node that it is.
        lanes: For each LANE input the body node, or the carry whose initial value it is.
        outputs: Body nodes written at every step, in the order of ``recurrence.outputs``.
        finals: Body nodes whose last value is returned, in the order of ``recurrence.finals``.
    """

    recurrence: Recurrence
    steps: list[torch.fx.Node]
    lanes: list[torch.fx.Node | Carry]
    outputs: list[torch.fx.Node]
    finals: list[torch.fx.Node]


def scalarize(
    name: str,
    nodes: Iterable[torch.fx.Node],
    carries: Mapping[torch.fx.Node, tuple[Carry, torch.fx.Node]],
    per_step: Callable[[torch.fx.Node], bool],
    wanted: tuple[list[torch.fx.Node], list[torch.fx.Node]],
) -> Neuron:
    """Return the recurrence of the nodes of a neuron.

    Args:
        name: Name of the recurrence.
        nodes: The body nodes of the neuron, in order.
        carries: For each carry placeholder among them the carry and its update node.
        per_step: Tells whether an outside node has a value for each step (else: for each lane).
        wanted: The nodes needed at every step, and those whose last value is needed.
    """
    builder = _Builder(per_step)
    nodes = list(nodes)
    for node in nodes:
        if node in carries:
            builder.add_state(node, carries[node][1])
    for node in nodes:
        if node.op == "call_function":
            builder.add_let(node)
    states = [builder.finish_state(n, *carries[n]) for n in nodes if n in carries]
    outputs, last = wanted
    finals = [builder.final_state(node, states) for node in last]
    recurrence = Recurrence(
        name=name,
        inputs=tuple(builder.inputs),
        states=tuple(states),
        lets=tuple(builder.lets),
        outputs=tuple(builder.names[n] for n in outputs),
        finals=tuple(finals),
        where=next((n.meta.get("where") for n in nodes if n.op == "call_function"), None),
    )
    return Neuron(recurrence, builder.steps, builder.lanes, outputs, last)


@dataclass
class _Builder:
    per_step: Callable[[torch.fx.Node], bool]
    names: dict[torch.fx.Node, str] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    steps: list[torch.fx.Node] = field(default_factory=list)
    lanes: list[torch.fx.Node | Carry] = field(default_factory=list)
    lets: list[Let] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    bools: set[str] = field(default_factory=set)

    def fresh(self, base: str) -> str:
        """Return an unused identifier that resembles ``base``."""
        base = re.sub(r"\W", "_", base).strip("_") or "value"
        if base[0].isdigit() or base in RESERVED or keyword.iskeyword(base):
            base = f"v_{base}"
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name

    def add_state(self, node: torch.fx.Node, update: torch.fx.Node) -> None:
        variable = variable_of(update.meta.get("where"))
        self.names[node] = self.fresh(f"{variable}_prev" if variable else node.name)

    def add_let(self, node: torch.fx.Node) -> None:
        if isinstance(node.target, CustomGradient):
            self.add_surrogate(node, node.target)
            return
        expr = self.build(node, self.operand)
        self.names[node] = self.append(base_name(node), expr, node)

    def append(
        self, base: str, expr: Expr, node: torch.fx.Node, surrogate: Surrogate | None = None
    ) -> str:
        name = self.fresh(base)
        self.lets.append(Let(name, expr, surrogate, node.meta.get("where")))
        if is_bool(expr, self.bools):
            self.bools.add(name)
        return name

    def build(self, node: torch.fx.Node, operand: Callable[[Any], Any]) -> Expr:
        """Return the expression of one elementwise node."""
        scope = Scope(lambda e: is_bool(e, self.bools))
        args = [operand(a) for a in node.args]
        kwargs = {k: v if k == "alpha" else operand(v) for k, v in node.kwargs.items()}
        assert callable(node.target)
        expr = SCALAR_OPS[node.target](scope, *args, **kwargs)
        if isinstance(expr, Rejection):
            raise InternalError(f"'{node.name}' was taken for elementwise: {expr.reason}")
        return expr

    def operand(self, value: Any) -> Any:
        """Return the expression of an argument; what is no operand stays as it is."""
        if isinstance(value, torch.fx.Node):
            return Var(self.names[value] if value in self.names else self.add_input(value))
        return literal(value)

    def add_input(self, node: torch.fx.Node) -> str:
        name = self.names[node] = self.fresh(node.name)
        if self.per_step(node):
            self.inputs.append(Input(name, Rank.STEP))
            self.steps.append(node)
        else:
            self.inputs.append(Input(name, Rank.LANE))
            self.lanes.append(node)
        return name

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
        self.names[node] = name

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
        places = [n for n in function.backward.nodes if n.op == "placeholder"]
        # The graph's placeholders are the tensor arguments, then the cotangent of the result.
        bound = [*args, Var(cotangent)]
        values: dict[torch.fx.Node, Expr] = dict(zip(places, bound, strict=True))
        results = self.inline(function.backward, values)
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

    def finish_state(self, node: torch.fx.Node, carry: Carry, update: torch.fx.Node) -> State:
        """Return the state of a carry, whose update may come from outside the neuron."""
        if isinstance(carry.initial, Fill):
            initial: Const | Var = Const(float(carry.initial.value))
        else:
            name = self.fresh(f"{node.name}_initial")
            self.inputs.append(Input(name, Rank.LANE))
            self.lanes.append(carry)
            initial = Var(name)
        name = self.names[update] if update in self.names else self.add_input(update)
        return State(self.names[node], initial, name, update.meta.get("where"))

    def final_state(self, node: torch.fx.Node, states: list[State]) -> str:
        """Return the state that ends with the last value of a node; add one where there is none."""
        name = self.names[node]
        for state in states:
            if state.update == name:
                return state.name
        extra = State(self.fresh(f"{name}_last"), Const(0.0), self.as_float(name, node))
        states.append(extra)
        return extra.name

    def as_float(self, name: str, node: torch.fx.Node) -> str:
        if name not in self.bools:
            return name
        scope = Scope(lambda e: is_bool(e, self.bools))
        return self.append(name, scope.as_float(Var(name)), node)


def base_name(node: torch.fx.Node) -> str:
    """Return the user's name for the value of a node, or the operator's."""
    return variable_of(node.meta.get("where")) or node.name


def literal(value: Any) -> Any:
    """Return a number as a constant of the IR; anything else as it is."""
    return Const(value) if isinstance(value, bool | int | float) else value
