"""Questions about expressions over the real numbers, answered by sympy.

sympy is an oracle here: expressions go in, answers come out, and no expression comes back.  An
expression becomes a quotient of two polynomials over the rationals, in which every float is the
exact rational that it is.  What is not rational (``exp``, ``floor``, a comparison) is a variable of
its own, one for each distinct expression; ``expm1(x)`` is ``exp(x) - 1``.  So the answers "equal",
"constant" and "of degree n" are proofs; their opposites only say that there is no such proof.
"""

from __future__ import annotations

import functools
import math
from typing import Any, TypeAlias

from snncc.ir.nodes import EXACT_POWERS, Binary, Const, Detach, Expr, Op, Select, Unary, Var
from snncc.ir.walk import names_read, subexpressions

# Polynomials of more terms take longer than an answer is worth.
MOST_TERMS = 200
MOST_VARIABLES = 24

Quotient: TypeAlias = tuple[Any, Any]


class UnanswerableError(Exception):
    """An expression is too large, or holds a number that is not real."""


@functools.lru_cache(maxsize=4096)
def equal(a: Expr, b: Expr) -> bool:
    """Tell whether two expressions are proven equal over the reals."""
    if a == b:
        return True
    try:
        ring = _Ring((a, b))
        (a_top, a_bottom), (b_top, b_bottom) = ring.quotient(a), ring.quotient(b)
    except UnanswerableError:
        return False
    return bool(a_top * b_bottom == b_top * a_bottom)


@functools.lru_cache(maxsize=4096)
def constant(expr: Expr) -> float | None:
    """Return the number that an expression is proven to be whatever its variables are, or None."""
    try:
        top, bottom = _Ring((expr,)).quotient(expr)
    except UnanswerableError:
        return None
    ratio = top.LC / bottom.LC
    return float(ratio) if top == ratio * bottom else None


@functools.lru_cache(maxsize=4096)
def degree(expr: Expr, names: frozenset[str]) -> int | None:
    """Return the degree of a polynomial in some variables together; None for no polynomial."""
    try:
        ring = _Ring((expr,))
        top, bottom = ring.quotient(expr)
    except UnanswerableError:
        return None
    moving, opaque = ring.changing_with(names)
    if any(bottom.degree(x) > 0 for x in moving) or any(top.degree(x) > 0 for x in opaque):
        return None
    places = [ring.variables.index(x) for x in moving]
    return max((sum(m[i] for i in places) for m in top.monoms()), default=0)


class _Ring:
    """The polynomials that some expressions are made of.

    Raises:
        UnanswerableError: The expressions are too large.
    """

    def __init__(self, exprs: tuple[Expr, ...]) -> None:
        # Imported here: sympy takes a third of a second, and most programs never ask.
        from sympy.polys.domains import QQ
        from sympy.polys.rings import ring

        parts = dict.fromkeys(_as_exp(e) for expr in exprs for e in subexpressions(expr))
        self._keys = [e for e in parts if isinstance(e, Var) or _is_opaque(e)]
        if len(self._keys) > MOST_VARIABLES:
            raise UnanswerableError
        self._domain = QQ
        symbols = [f"x{i}" for i in range(max(len(self._keys), 1))]
        self._ring, *self.variables = ring(symbols, QQ)

    def changing_with(self, names: frozenset[str]) -> tuple[list[Any], list[Any]]:
        """Return the variables that change with some names, and those of them that are opaque."""
        pairs = list(zip(self._keys, self.variables, strict=False))
        moving = [x for key, x in pairs if names & set(names_read(key))]
        return moving, [x for key, x in pairs if x in moving and not isinstance(key, Var)]

    def quotient(self, expr: Expr) -> Quotient:
        """Return an expression as a quotient of polynomials."""
        top, bottom = self._quotient(expr)
        if bottom == 0 or len(top) > MOST_TERMS or len(bottom) > MOST_TERMS:
            raise UnanswerableError
        return top, bottom

    def _quotient(self, expr: Expr) -> Quotient:
        if expr in self._keys:
            return self.variables[self._keys.index(expr)], self._ring.one
        match expr:
            case Const(value) if not isinstance(value, bool) and math.isfinite(value):
                return self._ring(self._domain(*float(value).as_integer_ratio())), self._ring.one
            case Detach(arg):
                return self.quotient(arg)
            case Unary(Op.NEG, arg):
                top, bottom = self.quotient(arg)
                return -top, bottom
            case Unary(Op.EXPM1, _):
                top, bottom = self.quotient(_as_exp(expr))
                return top - bottom, bottom
            case Binary(Op.POW, base, Const(exponent)):
                top, bottom = self.quotient(base)
                power = abs(int(exponent))
                if max(len(top), len(bottom)) ** power > MOST_TERMS**2:
                    raise UnanswerableError
                pair = (top**power, bottom**power)
                return pair if exponent >= 0 else pair[::-1]
            case Binary(op, lhs, rhs) if op in _ARITHMETIC:
                return _ARITHMETIC[op](*self.quotient(lhs), *self.quotient(rhs))
            case _:
                raise UnanswerableError


_ARITHMETIC = {
    Op.ADD: lambda a, b, c, d: (a * d + c * b, b * d) if b != d else (a + c, b),
    Op.SUB: lambda a, b, c, d: (a * d - c * b, b * d) if b != d else (a - c, b),
    Op.MUL: lambda a, b, c, d: (a * c, b * d),
    Op.DIV: lambda a, b, c, d: (a * d, b * c),
}


def _as_exp(expr: Expr) -> Expr:
    return Unary(Op.EXP, expr.arg) if isinstance(expr, Unary) and expr.op is Op.EXPM1 else expr


def _is_opaque(expr: Expr) -> bool:
    match expr:
        case Unary(op, _):
            return op is not Op.NEG
        case Binary(Op.POW, _, Const(value)):
            return float(value) not in EXACT_POWERS
        case Binary(op, _, _):
            return op not in _ARITHMETIC
        case _:
            return isinstance(expr, Select)
