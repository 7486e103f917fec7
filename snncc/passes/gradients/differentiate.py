"""The adjoint recurrence: gradients of one step, run backwards in time.

For a step ``v[t], s[t] = f(v[t-1], x[t], p)`` the cotangents obey::

    gv[t-1] = (df/dv)^T (gv[t], gs[t])     gx[t] = (df/dx)^T (gv[t], gs[t])
    gp      = sum over t of (df/dp)^T (gv[t], gs[t])

which is itself a recurrence, in reverse time, with the states ``gv`` and ``gp``.  Lets with a
surrogate are differentiated by the user's own rule, ``Detach`` stops the cotangent.

Numerics: the gradients of autograd up to the order in which contributions are summed.
Source: reverse accumulation; Griewank and Walther, Evaluating Derivatives, 2008, section 3.2.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.fx

from snncc.ir.names import fresh_name
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
    Expr,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    Select,
    State,
    Surrogate,
    Unary,
    Var,
)
from snncc.ir.numerics import Numerics
from snncc.ir.own_tensor import OwnTensor
from snncc.ir.program import Adjoint, NeuronProgram
from snncc.ir.walk import bool_lets, let_reads, substitute
from snncc.passes.gradients.derivatives import partials
from snncc.passes.gradients.find_histories import find_histories
from snncc.passes.neurons import copy_graph, rewrite_neurons

ZERO = Const(0.0)


@dataclass(frozen=True, slots=True)
class Differentiate:
    """Give every neuron that may need gradients its adjoint.

    ``leaves`` tells for each placeholder of the graph whether its tensor requires gradients.
    """

    leaves: tuple[bool, ...]
    name = "differentiate"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with adjoints for the inputs that may require gradients."""
        marked = copy_graph(graph)
        _mark_gradients(marked, self.leaves)
        return rewrite_neurons(marked, _with_adjoint)


def _with_adjoint(program: NeuronProgram, node: torch.fx.Node) -> NeuronProgram:
    forward, wanted = program.forward, _wanted(program, node)
    if not wanted:
        return program
    results = {*forward.outputs, *forward.finals}
    constant = results - find_histories(forward, wanted)
    adjoint = differentiate(forward, wanted)
    return replace(program, adjoint=adjoint, constant=frozenset(constant))


def _wanted(program: NeuronProgram, node: torch.fx.Node) -> list[str]:
    """Return the names of the inputs that require gradients."""
    names = (*program.forward.step_inputs, *program.forward.lane_inputs)
    return [
        name
        for name, argument in zip(names, node.args[1:], strict=True)
        if isinstance(argument, torch.fx.Node) and argument.meta.get("requires_grad", True)
    ]


def _mark_gradients(graph: torch.fx.Graph, leaves: Sequence[bool]) -> None:
    """Set ``meta["requires_grad"]`` on every node, given which placeholders require gradients."""
    flags = iter(leaves)
    for node in graph.nodes:
        if node.op == "placeholder":
            node.meta["requires_grad"] = next(flags)
        elif isinstance(node.target, OwnTensor):
            node.meta["requires_grad"] = node.target.requires_grad
        else:
            inputs = any(n.meta["requires_grad"] for n in node.all_input_nodes)
            exact = node.meta.get("dtype") not in (torch.bool, torch.int64)
            exact = exact and node.target is not torch.detach and not _is_constant(node)
            node.meta["requires_grad"] = inputs and exact


def _is_constant(node: torch.fx.Node) -> bool:
    """Tell whether a node is a result of a neuron that requires no gradients."""
    if node.target is not operator.getitem or not isinstance(node.args[0], torch.fx.Node):
        return False
    call = node.args[0]
    if not isinstance(call.target, NeuronCall):
        return False
    if "gradients" not in call.meta:
        program = call.target.program
        call.meta["gradients"] = find_histories(program.forward, _wanted(program, call))
    forward = call.target.program.forward
    return (*forward.outputs, *forward.finals)[node.args[1]] not in call.meta["gradients"]  # type: ignore[index]


def differentiate(recurrence: Recurrence, wanted: Iterable[str] | None = None) -> Adjoint:
    """Return the adjoint of a recurrence.

    Args:
        recurrence: The forward recurrence.
        wanted: Names of the inputs whose gradient is needed; all of them by default.

    Returns:
        The adjoint and how its inputs and outputs relate to the forward recurrence.
    """
    names = [i.name for i in recurrence.inputs]
    wanted = frozenset(names if wanted is None else wanted)
    live = frozenset(s.name for s in recurrence.states)
    while True:
        builder = _Builder(recurrence, wanted, live)
        builder.build()
        silent = live - builder.reached
        if not silent:
            return builder.finish()
        live -= silent


@dataclass
class _Builder:
    """Builds the reverse step; ``live`` are the states whose cotangent may be nonzero."""

    forward: Recurrence
    wanted: frozenset[str]
    live: frozenset[str]
    lets: list[Let] = field(default_factory=list)
    contributions: dict[str, list[Expr]] = field(default_factory=dict)
    reached: frozenset[str] = frozenset()

    def build(self) -> None:
        forward = self.forward
        self.taken = {i.name for i in forward.inputs} | {s.name for s in forward.states}
        self.taken |= {let.name for let in forward.lets}
        self.output_names = {o: self.fresh(f"g_{o}") for o in forward.outputs}
        self.state_names = {s.name: self.fresh(f"g_{s.name}") for s in forward.states}
        self.final_names = {f: self.fresh(f"g_{f}_final") for f in forward.finals}
        self.bools = bool_lets(forward.lets)
        for state in forward.states:
            if state.name in self.live:
                self.add(state.update, Var(self.state_names[state.name]))
        for output in forward.outputs:
            self.add(output, Var(self.output_names[output]))
        for let in reversed(forward.lets):
            self.reverse_let(let)
        finals = set(forward.finals)
        self.reached = frozenset(
            s.name for s in forward.states if s.name in finals or s.name in self.contributions
        )

    def fresh(self, base: str) -> str:
        """Return a name that nobody uses yet."""
        return fresh_name(base, self.taken)

    def add(self, name: str, cotangent: Expr) -> None:
        """Note a contribution to the cotangent of a forward name."""
        if name not in self.bools:
            self.contributions.setdefault(name, []).append(cotangent)

    def total(self, name: str, base: str) -> Expr:
        """Return the sum of the contributions to a name, bound to a let unless it is atomic."""
        parts = self.contributions.get(name, [])
        if not parts:
            return ZERO
        value = parts[0]
        for part in parts[1:]:
            value = Binary(Op.ADD, value, part)
        return value if isinstance(value, Var) else self.bind(base, value)

    def bind(self, base: str, value: Expr) -> Var:
        """Bind a value to a new let of the reverse step."""
        name = self.fresh(base)
        self.lets.append(Let(name, value))
        return Var(name)

    def reverse_let(self, let: Let) -> None:
        """Pass the cotangent of a let on to what it was computed from."""
        if let.name not in self.contributions:
            return
        cotangent = self.total(let.name, f"g_{let.name}")
        if let.surrogate is not None:
            self.reverse_surrogate(let.surrogate, cotangent)
        else:
            self.reverse_expr(let.expr, Var(let.name), cotangent)

    def reverse_surrogate(self, rule: Surrogate, cotangent: Expr) -> None:
        """Splice the user's backward rule into the reverse step."""
        names: dict[str, Expr] = {rule.cotangent: cotangent}
        for let in rule.lets:
            names[let.name] = self.bind(let.name, substitute(let.expr, names))
        for arg, result in zip(rule.args, rule.results, strict=True):
            value = substitute(result, names)
            if value != ZERO:
                self.add(arg, value)

    def reverse_expr(self, expr: Expr, value: Expr, cotangent: Expr) -> None:
        """Pass a cotangent through one expression whose value is ``value``."""
        match expr:
            case Var(name):
                self.add(name, cotangent)
            case Const() | Detach():
                return
            case Select(condition, if_true, if_false):
                self.reverse_expr(if_true, if_true, Select(condition, cotangent, ZERO))
                self.reverse_expr(if_false, if_false, Select(condition, ZERO, cotangent))
            case Unary() | Binary():
                for operand, partial in partials(expr, value, cotangent):
                    self.reverse_expr(operand, operand, partial)

    def finish(self) -> Adjoint:
        """Put the reverse recurrence together."""
        forward, wanted = self.forward, self.wanted
        step_gradients = {
            name: self.output_of(name) for name in forward.step_inputs if name in wanted
        }
        sums = {
            name: self.accumulator(name)
            for name in forward.lane_inputs
            if name in wanted and name in self.contributions
        }
        states = [self.adjoint_state(s) for s in forward.states if s.name in self.live]
        initial_of = {s.initial.name: s.name for s in forward.states if isinstance(s.initial, Var)}
        lane_gradients = tuple(
            self.lane_finals(name, sums, initial_of) if name in wanted else ()
            for name in forward.lane_inputs
        )
        kept = {f for finals in lane_gradients for f in finals}
        recurrence, residuals = self.assemble(
            [*states, *sums.values()], tuple(dict.fromkeys(step_gradients.values())), kept
        )
        return Adjoint(
            recurrence=recurrence,
            residuals=residuals,
            output_cotangents=tuple(self.output_names[o] for o in forward.outputs),
            final_cotangents=tuple(self.final_names[f] for f in forward.finals),
            step_gradients=tuple(step_gradients.get(n) for n in forward.step_inputs),
            lane_gradients=lane_gradients,
        )

    def lane_finals(
        self, name: str, sums: dict[str, State], initial_of: dict[str, str]
    ) -> tuple[str, ...]:
        finals = [sums[name].name] if name in sums else []
        state = initial_of.get(name)
        if state is not None and state in self.live:
            finals.append(self.state_names[state])
        return tuple(finals)

    def output_of(self, name: str) -> str:
        """Return the name of the let that holds the gradient of a step input."""
        value = self.total(name, f"g_{name}")
        taken = {*self.output_names.values(), *self.state_names.values()}
        if isinstance(value, Var) and value.name not in taken:
            return value.name
        return self.bind(f"g_{name}", value).name

    def accumulator(self, name: str) -> State:
        """Sum the gradient of a lane input over time."""
        total = self.fresh(f"sum_{name}")
        value = self.total(name, f"g_{name}")
        return State(total, ZERO, self.bind(total, Binary(Op.ADD, Var(total), value)).name)

    def adjoint_state(self, state: State) -> State:
        """Return the state that carries the cotangent of a forward state."""
        update = self.total(state.name, f"g_{state.name}_before")
        if not isinstance(update, Var):
            update = self.bind(f"g_{state.name}_before", update)
        final = self.final_names.get(state.name)
        return State(
            self.state_names[state.name], ZERO if final is None else Var(final), update.name
        )

    def assemble(
        self, states: list[State], outputs: tuple[str, ...], kept: set[str]
    ) -> tuple[Recurrence, tuple[str, ...]]:
        """Order the inputs and drop what nothing reads."""
        forward = self.forward
        lets = _needed(self.lets, {*outputs, *(s.update for s in states)})
        reads = {name for let in lets for name in let_reads(let)}
        reads |= {s.update for s in states} | set(outputs)
        residuals = tuple(
            name
            for name in (
                *forward.step_inputs,
                *(s.name for s in forward.states),
                *(let.name for let in forward.lets),
            )
            if name in reads
        )
        inputs = [
            *(Input(name, Rank.STEP) for name in self.output_names.values()),
            *(Input(name, Rank.STEP) for name in residuals),
            *(Input(name, Rank.LANE) for name in forward.lane_inputs if name in reads),
            *(Input(name, Rank.LANE) for name in self.final_names.values()),
        ]
        recurrence = Recurrence(
            name=f"{forward.name}_adjoint",
            inputs=tuple(inputs),
            states=tuple(states),
            lets=tuple(lets),
            outputs=outputs,
            finals=tuple(s.name for s in states if s.name in kept),
            reverse=True,
        )
        return recurrence, residuals


def _needed(lets: list[Let], roots: set[str]) -> list[Let]:
    """Return the lets that the roots depend on, in order."""
    needed, kept = set(roots), []
    for let in reversed(lets):
        if let.name in needed:
            needed |= let_reads(let)
            kept.append(let)
    return kept[::-1]
