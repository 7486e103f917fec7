"""The derivative of every scalar operation, as autograd defines it.

One rule an operation: given ``y = op(a, b)`` and the cotangent ``g`` of ``y``, the contributions to
the cotangents of the float operands.  Where the derivative does not exist the rules take autograd's
side: 0 for sign and rounding, half each for the tie of a minimum or maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from snncc.ir.nodes import HALF_ROUNDINGS, Binary, Const, Expr, Op, Select, Unary

Partials = tuple[tuple[Expr, Expr], ...]

ZERO, HALF, ONE, TWO = Const(0.0), Const(0.5), Const(1.0), Const(2.0)


def _mul(a: Expr, b: Expr) -> Expr:
    return Binary(Op.MUL, a, b)


def _neg(a: Expr) -> Expr:
    return Unary(Op.NEG, a)


UNARY_RULES: Mapping[Op, Callable[[Expr, Expr, Expr], Expr]] = {
    Op.NEG: lambda a, y, g: _neg(g),
    Op.ABS: lambda a, y, g: _mul(g, Unary(Op.SIGN, a)),
    Op.EXP: lambda a, y, g: _mul(g, y),
    Op.EXPM1: lambda a, y, g: _mul(g, Binary(Op.ADD, y, ONE)),
    Op.LOG: lambda a, y, g: Binary(Op.DIV, g, a),
    Op.LOG1P: lambda a, y, g: Binary(Op.DIV, g, Binary(Op.ADD, ONE, a)),
    Op.SQRT: lambda a, y, g: Binary(Op.DIV, g, _mul(TWO, y)),
    Op.SIGMOID: lambda a, y, g: _mul(_mul(g, Binary(Op.SUB, ONE, y)), y),
    Op.LOGSIGMOID: lambda a, y, g: _mul(g, Unary(Op.SIGMOID, _neg(a))),
    Op.TANH: lambda a, y, g: _mul(g, Binary(Op.SUB, ONE, _mul(y, y))),
    Op.SIN: lambda a, y, g: _mul(g, Unary(Op.COS, a)),
    Op.COS: lambda a, y, g: _mul(g, _neg(Unary(Op.SIN, a))),
    **dict.fromkeys(HALF_ROUNDINGS, lambda a, y, g: g),
}


def partials(expr: Unary | Binary, value: Expr, cotangent: Expr) -> Partials:
    """Return the contributions of one operation.

    Args:
        expr: The operation.
        value: An expression for its result.
        cotangent: The cotangent of its result.

    Returns:
        Pairs of an operand and the contribution to its cotangent; none for bool results.
    """
    if isinstance(expr, Unary):
        rule = UNARY_RULES.get(expr.op)
        return () if rule is None else ((expr.arg, rule(expr.arg, value, cotangent)),)
    binary = BINARY_RULES.get(expr.op)
    return () if binary is None else binary(expr.lhs, expr.rhs, value, cotangent)


def _product(a: Expr, b: Expr, _y: Expr, g: Expr) -> Partials:
    return ((a, _mul(g, b)), (b, _mul(g, a)))


def _quotient(a: Expr, b: Expr, y: Expr, g: Expr) -> Partials:
    return ((a, Binary(Op.DIV, g, b)), (b, _mul(_neg(g), Binary(Op.DIV, y, b))))


def _power(a: Expr, b: Expr, y: Expr, g: Expr) -> Partials:
    if isinstance(b, Const):
        if b.value == 0:
            return ()
        lower = Binary(Op.POW, a, Const(float(b.value) - 1.0))
        return ((a, _mul(g, _mul(b, lower))),)
    lower = Binary(Op.POW, a, Binary(Op.SUB, b, ONE))
    base = Select(Binary(Op.EQ, b, ZERO), ZERO, _mul(g, _mul(b, lower)))
    flat = Binary(Op.AND, Binary(Op.EQ, a, ZERO), Binary(Op.GE, b, ZERO))
    exponent = Select(flat, ZERO, _mul(g, _mul(y, Unary(Op.LOG, a))))
    return ((a, base), (b, exponent))


def _extremum(wins: Op) -> Callable[[Expr, Expr, Expr, Expr], Partials]:
    def rule(a: Expr, b: Expr, _y: Expr, g: Expr) -> Partials:
        tie, half = Binary(Op.EQ, a, b), _mul(g, HALF)
        first = Select(tie, half, Select(Binary(wins, a, b), g, ZERO))
        second = Select(tie, half, Select(Binary(wins, a, b), ZERO, g))
        return ((a, first), (b, second))

    return rule


BINARY_RULES: Mapping[Op, Callable[[Expr, Expr, Expr, Expr], Partials]] = {
    Op.ADD: lambda a, b, y, g: ((a, g), (b, g)),
    Op.SUB: lambda a, b, y, g: ((a, g), (b, _neg(g))),
    Op.MUL: _product,
    Op.DIV: _quotient,
    Op.POW: _power,
    Op.MIN: _extremum(Op.LT),
    Op.MAX: _extremum(Op.GT),
}
