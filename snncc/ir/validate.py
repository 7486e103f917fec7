"""The numbered invariants of a recurrence, checked before code generation.

V1 every name is defined once: inputs, states and lets do not collide
V2 every name that is read is defined earlier
V3 outputs, finals and state updates name something that exists; finals are states
V4 states are floats: their updates are not bools
V5 the initial value of a state is a number or reads a LANE input
V6 operands have the type that the operation takes (float or bool)
V7 a surrogate names arguments that exist and has one result for each
"""

from __future__ import annotations

from collections.abc import Iterable

from snncc.errors import InternalError
from snncc.ir.nodes import (
    COMPARISONS,
    LOGICAL,
    Binary,
    Const,
    Expr,
    Let,
    Op,
    Recurrence,
    Select,
    Unary,
    Var,
)
from snncc.ir.walk import bool_lets, is_bool, let_reads, subexpressions


def validate(recurrence: Recurrence) -> None:
    """Check every invariant.

    Raises:
        InternalError: An invariant does not hold; the message starts with its number.
    """
    names = [i.name for i in recurrence.inputs] + [s.name for s in recurrence.states]
    _check_unique([*names, *(let.name for let in recurrence.lets)], recurrence)
    _check_order(names, recurrence)
    _check_ends(recurrence)
    bools = bool_lets(recurrence.lets)
    for let in recurrence.lets:
        _check_types(let, bools, recurrence)
        _check_surrogate(let, recurrence)


def _fail(number: str, text: str, recurrence: Recurrence) -> InternalError:
    return InternalError(f"{number}: {text} (recurrence '{recurrence.name}')")


def _check_unique(names: list[str], recurrence: Recurrence) -> None:
    for name in names:
        if names.count(name) > 1:
            raise _fail("V1", f"'{name}' is defined twice", recurrence)


def _check_order(known: Iterable[str], recurrence: Recurrence) -> None:
    defined = set(known)
    for let in recurrence.lets:
        missing = let_reads(let) - defined
        if missing:
            raise _fail("V2", f"'{let.name}' reads {sorted(missing)} too early", recurrence)
        defined.add(let.name)


def _check_ends(recurrence: Recurrence) -> None:
    defined = {i.name for i in recurrence.inputs} | {s.name for s in recurrence.states}
    defined |= {let.name for let in recurrence.lets}
    states = {s.name for s in recurrence.states}
    bools = bool_lets(recurrence.lets)
    for name in (*recurrence.outputs, *(s.update for s in recurrence.states)):
        if name not in defined:
            raise _fail("V3", f"'{name}' does not exist", recurrence)
    for name in recurrence.finals:
        if name not in states:
            raise _fail("V3", f"final '{name}' is not a state", recurrence)
    for state in recurrence.states:
        if state.update in bools:
            raise _fail("V4", f"state '{state.name}' is a bool", recurrence)
        if isinstance(state.initial, Var) and state.initial.name not in recurrence.lane_inputs:
            raise _fail("V5", f"state '{state.name}' starts from no lane input", recurrence)


def _check_types(let: Let, bools: frozenset[str], recurrence: Recurrence) -> None:
    for expr in subexpressions(let.expr):
        for operand, wants_bool in _operand_types(expr):
            if is_bool(operand, bools) != wants_bool:
                raise _fail("V6", f"'{let.name}' mixes float and bool", recurrence)


def _operand_types(expr: Expr) -> list[tuple[Expr, bool]]:
    match expr:
        case Unary(Op.FLOAT, arg):
            return [(arg, True)]
        case Unary(op, arg):
            return [(arg, op in LOGICAL)]
        case Binary(op, lhs, rhs):
            wants = op in LOGICAL and op not in COMPARISONS
            return [(lhs, wants), (rhs, wants)]
        case Select(condition, _, _):
            return [(condition, True)]
        case _:
            return []


def _check_surrogate(let: Let, recurrence: Recurrence) -> None:
    rule = let.surrogate
    if rule is None:
        return
    if len(rule.args) != len(rule.results):
        raise _fail("V7", f"the surrogate of '{let.name}' lacks a result", recurrence)
    if any(isinstance(r, Const) and isinstance(r.value, bool) for r in rule.results):
        raise _fail("V7", f"the surrogate of '{let.name}' returns a bool", recurrence)
