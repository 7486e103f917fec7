"""The numbered invariants of a recurrence, checked before code generation.

V1 every name is defined once: inputs, states and lets do not collide
V2 every name that is read is defined earlier
V3 outputs, finals and state updates name something that exists; finals are states
V4 states are floats: their updates are not bools
V5 the initial value of a state is a number or reads a LANE input
V6 operands have the type that the operation takes (float or bool)
V7 a surrogate names arguments that exist and has one result for each

and of a recurrent loop:

V8 a fused step has STEP inputs only, one for each argument, and neither states nor finals
V9 carries, per-step inputs and results of a loop name nodes of its body, and operands that it has
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
from snncc.ir.step_call import StepCall
from snncc.ir.time_loop import TimeLoop
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


def validate_loop(loop: TimeLoop) -> None:
    """Check every invariant of a loop with fused steps, and of its steps.

    Raises:
        InternalError: An invariant does not hold; the message starts with its number.
    """
    for node in loop.body.nodes:
        if isinstance(node.target, StepCall):
            step = node.target.recurrence
            if len(node.args) != len(step.step_inputs) or step.lane_inputs:
                raise _fail("V8", f"'{node.name}' has other arguments than inputs", step.name)
            if step.states or step.finals:
                raise _fail("V8", f"'{node.name}' has a state of its own", step.name)
            validate(step)
    inside = {node.name for node in loop.body.nodes}
    named = [c.name for c in loop.carries] + [c.update for c in loop.carries]
    named += [name for name, _ in loop.inputs] + [table.name for table in loop.tables]
    missing = {*named, *(r.node for r in loop.results)} - inside
    operands = [operand for _, operand in loop.inputs]
    operands += [c.initial for c in loop.carries if isinstance(c.initial, int)]
    if missing or not all(0 <= operand < loop.operands for operand in operands):
        raise _fail("V9", f"{sorted(missing)} or an operand does not exist", loop.name)


def _fail(number: str, text: str, owner: str) -> InternalError:
    return InternalError(f"{number}: {text} (in '{owner}')")


def _check_unique(names: list[str], recurrence: Recurrence) -> None:
    for name in names:
        if names.count(name) > 1:
            raise _fail("V1", f"'{name}' is defined twice", recurrence.name)


def _check_order(known: Iterable[str], recurrence: Recurrence) -> None:
    defined = set(known)
    for let in recurrence.lets:
        missing = let_reads(let) - defined
        if missing:
            raise _fail("V2", f"'{let.name}' reads {sorted(missing)} too early", recurrence.name)
        defined.add(let.name)


def _check_ends(recurrence: Recurrence) -> None:
    defined = {i.name for i in recurrence.inputs} | {s.name for s in recurrence.states}
    defined |= {let.name for let in recurrence.lets}
    states = {s.name for s in recurrence.states}
    bools = bool_lets(recurrence.lets)
    for name in (*recurrence.outputs, *(s.update for s in recurrence.states)):
        if name not in defined:
            raise _fail("V3", f"'{name}' does not exist", recurrence.name)
    for name in recurrence.finals:
        if name not in states:
            raise _fail("V3", f"final '{name}' is not a state", recurrence.name)
    for state in recurrence.states:
        if state.update in bools:
            raise _fail("V4", f"state '{state.name}' is a bool", recurrence.name)
        if isinstance(state.initial, Var) and state.initial.name not in recurrence.lane_inputs:
            raise _fail("V5", f"state '{state.name}' starts from no lane input", recurrence.name)


def _check_types(let: Let, bools: frozenset[str], recurrence: Recurrence) -> None:
    for expr in subexpressions(let.expr):
        for operand, wants_bool in _operand_types(expr):
            if is_bool(operand, bools) != wants_bool:
                raise _fail("V6", f"'{let.name}' mixes float and bool", recurrence.name)


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
        raise _fail("V7", f"the surrogate of '{let.name}' lacks a result", recurrence.name)
    if any(isinstance(r, Const) and isinstance(r.value, bool) for r in rule.results):
        raise _fail("V7", f"the surrogate of '{let.name}' returns a bool", recurrence.name)
