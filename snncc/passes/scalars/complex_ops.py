"""Complex numbers in a recurrence: two floats, with the arithmetic of torch.

A sum is the sums of the parts.  A product rounds as torch's does::

    (a + bi)(c + di) = (ac - bd) + (ad + bc)i

with four rounded products and two rounded sums.  A real operand has an imaginary part of zero, and
takes part with it: infinities and the signs of zeros are those of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from snncc.frontend.operators.canonical import cast, full, full_like
from snncc.ir.nodes import Binary, Const, Detach, Expr, Op, Select, Unary
from snncc.passes.base import Rejection
from snncc.passes.scalars.scalar_ops import ZERO, Scope

Pair: TypeAlias = tuple[Expr, Expr]
Builder = Callable[..., Expr | Pair | Rejection]


def pair(scope: Scope, value: Any) -> Pair:
    """Return a value as real and imaginary part."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, complex):
        return Const(value.real), Const(value.imag)
    return scope.as_float(value), ZERO


def _by_part(op: Op) -> Builder:
    def build(scope: Scope, x: Any, y: Any, *, alpha: float = 1) -> Pair | Rejection:
        if alpha != 1:
            return Rejection("alpha", "torch fuses the product with 'alpha' into the sum")
        (a, b), (c, d) = pair(scope, x), pair(scope, y)
        return Binary(op, a, c), Binary(op, b, d)

    return build


def _multiply(scope: Scope, x: Any, y: Any) -> Pair:
    (a, b), (c, d) = pair(scope, x), pair(scope, y)
    real = Binary(Op.SUB, Binary(Op.MUL, a, c), Binary(Op.MUL, b, d))
    imag = Binary(Op.ADD, Binary(Op.MUL, a, d), Binary(Op.MUL, b, c))
    return real, imag


def _negative(scope: Scope, x: Any) -> Pair:
    a, b = pair(scope, x)
    return Unary(Op.NEG, a), Unary(Op.NEG, b)


def _conjugate(scope: Scope, x: Any) -> Pair:
    a, b = pair(scope, x)
    return a, Unary(Op.NEG, b)


def _real(scope: Scope, x: Any) -> Expr:
    return pair(scope, x)[0]


def _imag(scope: Scope, x: Any) -> Expr:
    return pair(scope, x)[1]


def _of_parts(scope: Scope, real: Expr, imag: Expr) -> Pair:
    return scope.as_float(real), scope.as_float(imag)


def _where(scope: Scope, condition: Expr, x: Any, y: Any) -> Pair:
    (a, b), (c, d) = pair(scope, x), pair(scope, y)
    chosen = scope.as_bool(condition)
    return Select(chosen, a, c), Select(chosen, b, d)


def _detach(scope: Scope, x: Any) -> Pair:
    a, b = pair(scope, x)
    return Detach(a), Detach(b)


def _cast(scope: Scope, x: Any, dtype: torch.dtype) -> Pair | Rejection:
    if not dtype.is_complex:
        return Rejection("complex", "a cast of a complex number drops its imaginary part")
    return pair(scope, x)


def _filled(scope: Scope, like: Any, value: Any, **_: Any) -> Pair:
    return pair(scope, value)


COMPLEX_OPS: Mapping[Any, Builder] = {
    torch.add: _by_part(Op.ADD),
    torch.sub: _by_part(Op.SUB),
    torch.mul: _multiply,
    torch.neg: _negative,
    torch.conj: _conjugate,
    torch.real: _real,
    torch.imag: _imag,
    torch.complex: _of_parts,
    torch.where: _where,
    torch.detach: _detach,
    cast: _cast,
    full: _filled,
    full_like: _filled,
}
