"""Exact local rewrites of one scalar step: constants, copies, repeated and unused lets.

Every rule keeps each rounded value and each gradient::

    x * 1 -> x      x / 1 -> x      --x -> x      where(c, x, x) -> x      where(true, x, y) -> x
    y = x           replaces y by x
    y = e, z = e    replaces z by y (a spike function that the user's code evaluates twice)

``x + 0`` stays, because it turns -0 into +0, and so does ``x * 0``, because of NaN and infinity.

Numerics: bitwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.fx

from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
    Expr,
    Let,
    Op,
    Recurrence,
    Select,
    State,
    Surrogate,
    Unary,
    Var,
)
from snncc.ir.numerics import Numerics
from snncc.ir.walk import let_reads, substitute, transform
from snncc.passes.neurons import rewrite_neurons


@dataclass(frozen=True, slots=True)
class SimplifyStep:
    """Fold constants, merge equal lets, drop unused ones."""

    name = "simplify-step"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with the step of each neuron simplified."""
        return rewrite_neurons(graph, lambda p, _: replace(p, forward=simplify_step(p.forward)))


def simplify_step(recurrence: Recurrence) -> Recurrence:
    """Return the recurrence with every rule applied until nothing changes."""
    while True:
        simpler = _drop_unused(_merge_equal(recurrence))
        if simpler == recurrence:
            return recurrence
        recurrence = simpler


def simplify(expr: Expr) -> Expr:
    """Apply the expression rules everywhere in an expression."""
    return transform(expr, _rule)


def _rule(expr: Expr) -> Expr:
    match expr:
        case Binary(Op.MUL, x, Const(1.0)) | Binary(Op.MUL, Const(1.0), x):
            return x
        case Binary(Op.DIV, x, Const(1.0)):
            return x
        case Unary(Op.NEG, Unary(Op.NEG, x)):
            return x
        case Unary(Op.NOT, Unary(Op.NOT, x)):
            return x
        case Select(Const(bool(value)), x, y):
            return x if value else y
        case Select(_, x, y) if x == y:
            return x
        case Detach(Detach(x)):
            return Detach(x)
        case Detach(Const() as constant):
            return constant
        case Unary(Op.FLOAT, Const(bool(value))):
            return Const(float(value))
        case _:
            return expr


def _merge_equal(recurrence: Recurrence) -> Recurrence:
    """Replace copies and repeated lets by the first of their kind."""
    same: dict[str, Expr] = {}
    seen: dict[object, str] = {}
    lets: list[Let] = []
    keep = {*recurrence.outputs}
    for let in recurrence.lets:
        expr = simplify(substitute(let.expr, same))
        rule = None if let.surrogate is None else _renamed(let.surrogate, same)
        meaning = (expr, None if rule is None else _anonymous(rule))
        if rule is None and isinstance(expr, Var | Const) and let.name not in keep:
            same[let.name] = expr
        elif meaning in seen and let.name not in keep:
            same[let.name] = Var(seen[meaning])
        else:
            seen.setdefault(meaning, let.name)
            lets.append(replace(let, expr=expr, surrogate=rule))
    return _with_updates(recurrence, lets, same)


def _with_updates(recurrence: Recurrence, lets: list[Let], same: dict[str, Expr]) -> Recurrence:
    """Rename what the states become; a constant update keeps a let of its own."""
    states: list[State] = []
    for state in recurrence.states:
        value = same.get(state.update)
        if isinstance(value, Var):
            states.append(replace(state, update=value.name))
        elif value is not None:
            lets.append(Let(state.update, value))
            del same[state.update]
            states.append(state)
        else:
            states.append(state)
    return replace(recurrence, lets=tuple(lets), states=tuple(states))


def _renamed(rule: Surrogate, same: dict[str, Expr]) -> Surrogate:
    """Apply replacements inside a surrogate; an argument that became a constant gets nothing."""
    results = [substitute(r, same) for r in rule.results]
    pairs = [
        (value.name, result)
        for arg, result in zip(rule.args, results, strict=True)
        if isinstance(value := same.get(arg, Var(arg)), Var)
    ]
    return replace(
        rule,
        args=tuple(name for name, _ in pairs),
        lets=tuple(replace(let, expr=substitute(let.expr, same)) for let in rule.lets),
        results=tuple(result for _, result in pairs),
    )


def _anonymous(rule: Surrogate) -> Surrogate:
    """Return the rule with a fixed name for the cotangent, to compare by meaning."""
    names: dict[str, Expr] = {rule.cotangent: Var("")}
    return replace(
        rule,
        cotangent="",
        lets=tuple(replace(let, expr=substitute(let.expr, names)) for let in rule.lets),
        results=tuple(substitute(r, names) for r in rule.results),
    )


def _drop_unused(recurrence: Recurrence) -> Recurrence:
    """Drop states and lets that no output and no final depends on."""
    live = {*recurrence.outputs, *recurrence.finals}
    updates = {s.name: s.update for s in recurrence.states}
    while True:
        grown = live | {updates[name] for name in live if name in updates}
        for let in reversed(recurrence.lets):
            if let.name in grown:
                grown |= let_reads(let)
        if grown == live:
            break
        live = grown
    states = tuple(s for s in recurrence.states if s.name in live)
    return replace(
        recurrence,
        states=states,
        lets=tuple(let for let in recurrence.lets if let.name in live),
    )
