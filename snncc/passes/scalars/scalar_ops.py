"""Elementwise torch operators as scalar expressions.

One table, from the canonical torch function to a builder of the scalar expression that rounds
exactly as the operator does.  What is not in the table is not elementwise for snncc.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from snncc.frontend.operators.canonical import cast, full, full_like
from snncc.ir.nodes import Binary, Const, Detach, Expr, Op, Select, Unary, Var
from snncc.passes.base import Rejection

ZERO, ONE, INFINITY = Const(0.0), Const(1.0), Const(math.inf)


class Scope:
    """Tells the builders which expressions are bools; coerces bools to floats where torch does.

    Args:
        is_bool: Tells which expressions are bools.
        flags: Names of floats that are 0 or 1, which stand for bools.
    """

    def __init__(
        self, is_bool: Callable[[Expr], bool], flags: Collection[str] = frozenset()
    ) -> None:
        self.is_bool = is_bool
        self.flags = flags

    def as_float(self, expr: Expr) -> Expr:
        """Return a float: a bool becomes 0 or 1, as torch promotes it."""
        if isinstance(expr, Const):
            return Const(float(expr.value))
        if isinstance(expr, Binary) and expr == is_set(expr.lhs) and self.is_flag(expr.lhs):
            return expr.lhs
        return Unary(Op.FLOAT, expr) if self.is_bool(expr) else expr

    def is_flag(self, expr: Expr) -> bool:
        """Tell whether an expression is a float that stands for a bool."""
        return isinstance(expr, Var) and expr.name in self.flags

    def are_bools(self, *exprs: Expr) -> bool:
        """Tell whether torch would see nothing but bools."""
        return all(map(self.is_bool, exprs))

    def as_bool(self, expr: Expr) -> Expr:
        """Return a bool: a float is true where it is not zero."""
        if isinstance(expr, Const):
            return Const(bool(expr.value))
        return expr if self.is_bool(expr) else is_set(expr)


def is_set(expr: Expr) -> Expr:
    """Return whether a float is not zero."""
    return Binary(Op.NE, expr, ZERO)


Builder = Callable[..., Expr | Rejection]


def _unary(op: Op) -> Builder:
    def build(scope: Scope, x: Expr) -> Expr:
        return Unary(op, scope.as_float(x))

    return build


# What arithmetic on two bools is: torch gives a bool.
_OF_BOOLS = {Op.ADD: Op.OR, Op.MUL: Op.AND, Op.MIN: Op.AND, Op.MAX: Op.OR}


def _binary(op: Op) -> Builder:
    def build(scope: Scope, x: Expr, y: Expr) -> Expr:
        if op in _OF_BOOLS and scope.are_bools(x, y):
            return Binary(_OF_BOOLS[op], x, y)
        return Binary(op, scope.as_float(x), scope.as_float(y))

    return build


def _logical(op: Op) -> Builder:
    def build(scope: Scope, x: Expr, y: Expr) -> Expr:
        return Binary(op, scope.as_bool(x), scope.as_bool(y))

    return build


def _additive(op: Op) -> Builder:
    def build(scope: Scope, x: Expr, y: Expr, *, alpha: float = 1) -> Expr | Rejection:
        if alpha != 1:
            return Rejection("alpha", "torch fuses the product with 'alpha' into the sum")
        if op in _OF_BOOLS and scope.are_bools(x, y):
            return Binary(_OF_BOOLS[op], x, y)
        return Binary(op, scope.as_float(x), scope.as_float(y))

    return build


def _divide(
    scope: Scope, x: Expr, y: Expr, *, rounding_mode: str | None = None
) -> Expr | Rejection:
    if rounding_mode is not None:
        return Rejection("rounding-mode", "division with a rounding mode is not elementwise here")
    return Binary(Op.DIV, scope.as_float(x), scope.as_float(y))


def _power(scope: Scope, x: Expr, y: Expr) -> Expr:
    return Binary(Op.POW, scope.as_float(x), scope.as_float(y))


def _logical_not(scope: Scope, x: Expr) -> Expr:
    return Unary(Op.NOT, scope.as_bool(x))


def _where(scope: Scope, condition: Expr, x: Expr, y: Expr) -> Expr:
    if scope.is_bool(x) and scope.is_bool(y):
        return Select(scope.as_bool(condition), x, y)
    return Select(scope.as_bool(condition), scope.as_float(x), scope.as_float(y))


def _clamp(scope: Scope, x: Expr, low: Expr | None = None, high: Expr | None = None) -> Expr:
    # Written with comparisons so that NaN stays NaN and the gradient at the bound is kept, as
    # torch.clamp has it; minimum and maximum would halve it.
    value = scope.as_float(x)
    if low is not None:
        value = Select(Binary(Op.LT, value, scope.as_float(low)), scope.as_float(low), value)
    if high is not None:
        value = Select(Binary(Op.GT, value, scope.as_float(high)), scope.as_float(high), value)
    return value


def _relu(scope: Scope, x: Expr) -> Expr:
    value = scope.as_float(x)
    return Select(Binary(Op.LE, value, ZERO), ZERO, value)


def _square(scope: Scope, x: Expr) -> Expr:
    return Binary(Op.POW, scope.as_float(x), Const(2.0))


def _reciprocal(scope: Scope, x: Expr) -> Expr:
    return Binary(Op.DIV, ONE, scope.as_float(x))


def _heaviside(scope: Scope, x: Expr, at_zero: Expr) -> Expr:
    value = scope.as_float(x)
    positive = Unary(Op.FLOAT, Binary(Op.GT, value, ZERO))
    return Select(Binary(Op.EQ, value, ZERO), scope.as_float(at_zero), positive)


def _detach(scope: Scope, x: Expr) -> Expr:
    return Detach(x)


def _cast(scope: Scope, x: Expr, dtype: torch.dtype) -> Expr | Rejection:
    if dtype == torch.bool:
        return scope.as_bool(x)
    if dtype.is_floating_point:
        return scope.as_float(x)
    return Rejection("integer", f"a cast to {dtype} leaves floating point")


def _is_nan(scope: Scope, x: Expr) -> Expr:
    value = scope.as_float(x)
    return Binary(Op.NE, value, value)


def _is_infinite(scope: Scope, x: Expr) -> Expr:
    return Binary(Op.EQ, Unary(Op.ABS, scope.as_float(x)), INFINITY)


def _is_finite(scope: Scope, x: Expr) -> Expr:
    return Binary(Op.LT, Unary(Op.ABS, scope.as_float(x)), INFINITY)


def _filled(scope: Scope, like: Any, value: Expr, **_: Any) -> Expr:
    return value


SCALAR_OPS: Mapping[Callable[..., Any], Builder] = {
    torch.add: _additive(Op.ADD),
    torch.sub: _additive(Op.SUB),
    torch.mul: _binary(Op.MUL),
    torch.div: _divide,
    torch.pow: _power,
    torch.minimum: _binary(Op.MIN),
    torch.maximum: _binary(Op.MAX),
    torch.lt: _binary(Op.LT),
    torch.le: _binary(Op.LE),
    torch.gt: _binary(Op.GT),
    torch.ge: _binary(Op.GE),
    torch.eq: _binary(Op.EQ),
    torch.ne: _binary(Op.NE),
    torch.logical_and: _logical(Op.AND),
    torch.logical_or: _logical(Op.OR),
    torch.logical_xor: _logical(Op.XOR),
    torch.logical_not: _logical_not,
    torch.neg: _unary(Op.NEG),
    torch.abs: _unary(Op.ABS),
    torch.sign: _unary(Op.SIGN),
    torch.exp: _unary(Op.EXP),
    torch.expm1: _unary(Op.EXPM1),
    torch.log: _unary(Op.LOG),
    torch.log1p: _unary(Op.LOG1P),
    F.logsigmoid: _unary(Op.LOGSIGMOID),
    torch.sqrt: _unary(Op.SQRT),
    torch.sigmoid: _unary(Op.SIGMOID),
    torch.tanh: _unary(Op.TANH),
    torch.sin: _unary(Op.SIN),
    torch.cos: _unary(Op.COS),
    torch.floor: _unary(Op.FLOOR),
    torch.ceil: _unary(Op.CEIL),
    torch.round: _unary(Op.ROUND),
    torch.where: _where,
    torch.clamp: _clamp,
    torch.relu: _relu,
    torch.square: _square,
    torch.reciprocal: _reciprocal,
    torch.heaviside: _heaviside,
    torch.isnan: _is_nan,
    torch.isinf: _is_infinite,
    torch.isfinite: _is_finite,
    torch.detach: _detach,
    cast: _cast,
    full: _filled,
    full_like: _filled,
}
