"""Split expressions over the real numbers, keeping the user's own coefficients.

``0.9 * v + x`` is ``factor * v + rest`` with ``factor = 0.9``, ``rest = x``.  The split follows the
expression as it is written, so that a coefficient is what the user wrote; whether the parts make
the whole is for an oracle to confirm (`snncc.ir.symbolic`).

The rules here hold over the reals, not for floats: ``x * 0`` is 0 also where x could be infinite.
Numbers are folded only where the result is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from snncc.ir.nodes import Binary, Const, Detach, Expr, Op, Select, Unary, Var
from snncc.ir.walk import children, names_read, transform

ZERO, ONE = Const(0.0), Const(1.0)
_COMPUTE: Mapping[Op, Callable[..., Any]] = {
    Op.ADD: lambda a, b: a + b,
    Op.SUB: lambda a, b: a - b,
    Op.MUL: lambda a, b: a * b,
    Op.DIV: lambda a, b: a / b if b else math.nan,
    Op.MIN: min,
    Op.MAX: max,
    Op.LT: lambda a, b: a < b,
    Op.LE: lambda a, b: a <= b,
    Op.GT: lambda a, b: a > b,
    Op.GE: lambda a, b: a >= b,
    Op.EQ: lambda a, b: a == b,
    Op.NE: lambda a, b: a != b,
    Op.AND: lambda a, b: a and b,
    Op.OR: lambda a, b: a or b,
    Op.XOR: lambda a, b: a != b,
    Op.NEG: lambda a: -a,
    Op.ABS: abs,
    Op.SIGN: lambda a: float((a > 0) - (a < 0)),
    Op.FLOOR: lambda a: float(math.floor(a)),
    Op.CEIL: lambda a: float(math.ceil(a)),
    Op.ROUND: lambda a: float(round(a)),
    Op.NOT: lambda a: not a,
    Op.FLOAT: float,
}
_ROUNDED = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV})


def reads(expr: Expr, name: str) -> bool:
    """Tell whether an expression reads a variable."""
    return name in names_read(expr)


def number(expr: Expr) -> float | None:
    """Return the number that an expression of numbers is, rounded as floats are, else None."""
    match transform(expr, lambda e: _folded(e, exactly=False)):
        case Const(value) if not isinstance(value, bool):
            return float(value)
        case _:
            return None


def simplified(expr: Expr, values: Mapping[str, Expr] | None = None) -> Expr:
    """Return an expression with variables replaced, simplified over the reals."""
    values = values or {}

    def rule(e: Expr) -> Expr:
        return values.get(e.name, e) if isinstance(e, Var) else reduced(e)

    return transform(expr, rule)


def split(expr: Expr, name: str) -> tuple[Expr, Expr] | None:
    """Return ``(factor, rest)`` with ``expr = factor * name + rest``, both free of ``name``.

    None where the expression is not written in a form that shows it.
    """
    if not reads(expr, name):
        return ZERO, expr
    match expr:
        case Var():
            return ONE, ZERO
        case Detach(arg):
            return split(arg, name)
        case Unary(Op.NEG, arg):
            return _each(split(arg, name), lambda e: reduced(Unary(Op.NEG, e)))
        case Binary(Op.ADD | Op.SUB as op, lhs, rhs):
            left, right = split(lhs, name), split(rhs, name)
            if left is None or right is None:
                return None
            return join(op, left[0], right[0]), join(op, left[1], right[1])
        case Binary(Op.MUL, lhs, rhs) if not reads(lhs, name):
            return _each(split(rhs, name), lambda e: join(Op.MUL, lhs, e))
        case Binary(Op.MUL | Op.DIV as op, lhs, rhs) if not reads(rhs, name):
            return _each(split(lhs, name), lambda e: join(op, e, rhs))
        case _:
            return None


def join(op: Op, lhs: Expr, rhs: Expr) -> Expr:
    """Return ``lhs op rhs``, simplified over the reals where both already are."""
    return reduced(Binary(op, lhs, rhs))


def degree_in(expr: Expr, degrees: Mapping[str, int | None]) -> int | None:
    """Return the degree of an expression: 0, 1, more, or None for no polynomial.

    Args:
        expr: The expression.
        degrees: The degree of each variable in it.
    """
    parts = [degree_in(child, degrees) for child in children(expr)]
    match expr:
        case Var(name):
            return degrees[name]
        case Detach() | Unary(Op.NEG, _):
            return parts[0]
        case Binary(Op.ADD | Op.SUB, _, _):
            return None if None in parts else max(p or 0 for p in parts)
        case Binary(Op.MUL, _, _):
            return None if None in parts else sum(p or 0 for p in parts)
        case Binary(Op.DIV, _, _):
            return parts[0] if parts[1] == 0 else None
        case Select():
            condition, *arms = parts
            return None if condition != 0 or None in arms else max(a or 0 for a in arms)
        case _:
            return 0 if all(p == 0 for p in parts) else None


def linear_part(expr: Expr, tangents: Mapping[str, Expr]) -> Expr:
    """Return what an affine expression changes by when its variables change by their tangents.

    Args:
        expr: An expression of degree one at most in the variables that have tangents.
        tangents: What those variables change by; every other one is fixed.
    """
    match expr:
        case Var(name):
            return tangents.get(name, ZERO)
        case Detach(arg):
            return linear_part(arg, tangents)
        case Unary(Op.NEG, arg):
            return reduced(Unary(Op.NEG, linear_part(arg, tangents)))
        case Binary(Op.ADD | Op.SUB as op, lhs, rhs):
            return join(op, linear_part(lhs, tangents), linear_part(rhs, tangents))
        case Binary(Op.MUL, lhs, rhs):
            left = linear_part(lhs, tangents)
            if left == ZERO:
                return join(Op.MUL, lhs, linear_part(rhs, tangents))
            return join(Op.MUL, left, rhs)
        case Binary(Op.DIV, lhs, rhs):
            return join(Op.DIV, linear_part(lhs, tangents), rhs)
        case Select(condition, if_true, if_false):
            arms = (linear_part(arm, tangents) for arm in (if_true, if_false))
            return reduced(Select(condition, *arms))
        case _:
            return ZERO


def _each(
    parts: tuple[Expr, Expr] | None, rule: Callable[[Expr], Expr]
) -> tuple[Expr, Expr] | None:
    return None if parts is None else (rule(parts[0]), rule(parts[1]))


def reduced(expr: Expr) -> Expr:
    """Return an expression whose operands are simplified, simplified over the reals."""
    expr = _folded(expr, exactly=True)
    match expr:
        case Binary(Op.ADD, x, Const(0.0)) | Binary(Op.ADD, Const(0.0), x):
            return x
        case Binary(Op.SUB, x, Const(0.0)):
            return x
        case Binary(Op.SUB, Const(0.0), x):
            return reduced(Unary(Op.NEG, x))
        case Binary(Op.SUB, x, y) if x == y:
            return ZERO
        case Binary(Op.MUL, _, Const(0.0)) | Binary(Op.MUL | Op.DIV, Const(0.0), _):
            return ZERO
        case Binary(Op.MUL | Op.DIV, x, Const(1.0)) | Binary(Op.MUL, Const(1.0), x):
            return x
        case Unary(Op.NEG, Unary(Op.NEG, x)) | Unary(Op.NOT, Unary(Op.NOT, x)):
            return x
        case Detach(Const() as x) | Detach(Detach() as x):
            return x
        case Unary() | Binary() | Select():
            return _bool_rules(expr)
        case _:
            return expr


def _bool_rules(expr: Expr) -> Expr:
    """Apply the rules about bools to one node."""
    match expr:
        case Select(Const(bool(value)), x, y):
            return x if value else y
        case Select(_, x, y) if x == y:
            return x
        case Binary(Op.AND, Const(bool(value)), x) | Binary(Op.AND, x, Const(bool(value))):
            return x if value else Const(False)
        case Binary(Op.OR, Const(bool(value)), x) | Binary(Op.OR, x, Const(bool(value))):
            return Const(True) if value else x
        case Binary(op, Unary(Op.FLOAT, x), Const(limit)) if op in _COMPUTE:
            return _bool_compared(expr, x, (_COMPUTE[op](0.0, limit), _COMPUTE[op](1.0, limit)))
        case _:
            return expr


def _bool_compared(expr: Expr, x: Expr, outcomes: tuple[Any, Any]) -> Expr:
    """Simplify the comparison of a bool, as a float, with a number, given both outcomes."""
    match outcomes:
        case (bool(a), bool(b)) if a == b:
            return Const(a)
        case (False, True):
            return x
        case (True, False):
            return reduced(Unary(Op.NOT, x))
        case _:
            return expr  # arithmetic


def _folded(expr: Expr, *, exactly: bool) -> Expr:
    """Return the number that one operation on numbers gives."""
    match expr:
        case Unary(op, Const(a)) if op in _COMPUTE and _is_finite(a):
            return Const(_COMPUTE[op](a))
        case Binary(op, Const(a), Const(b)) if op in _COMPUTE and _is_finite(a, b):
            value = _COMPUTE[op](a, b)
            if not exactly or op not in _ROUNDED or _is_exact(op, a, b, value):
                return Const(value)
    return expr


def _is_finite(*values: float | bool) -> bool:
    return all(math.isfinite(value) for value in values)


def _is_exact(op: Op, a: float, b: float, value: float) -> bool:
    if not math.isfinite(value):
        return False
    return bool(_COMPUTE[op](Fraction(a), Fraction(b)) == Fraction(value))
