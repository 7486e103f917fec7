"""The oracle proves what holds over the reals, and claims nothing else."""

from __future__ import annotations

import pytest

from snncc.ir.nodes import Binary, Const, Detach, Expr, Op, Select, Unary, Var
from snncc.ir.symbolic import constant, degree, equal

v, x, a = Var("v"), Var("x"), Var("a")


def add(p: Expr, q: Expr) -> Expr:
    return Binary(Op.ADD, p, q)


def mul(p: Expr, q: Expr) -> Expr:
    return Binary(Op.MUL, p, q)


def sub(p: Expr, q: Expr) -> Expr:
    return Binary(Op.SUB, p, q)


def div(p: Expr, q: Expr) -> Expr:
    return Binary(Op.DIV, p, q)


SIGMOID = Unary(Op.SIGMOID, v)
KEPT = sub(Const(1.0), div(Const(1.0), a))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (add(v, x), add(x, v), True),
        (add(v, div(sub(x, v), a)), add(mul(KEPT, v), div(x, a)), True),
        (mul(v, Const(0.1)), div(v, Const(10.0)), False),  # 0.1 is not a tenth
        (mul(v, Const(0.125)), div(v, Const(8.0)), True),
        (mul(v, v), Binary(Op.POW, v, Const(2.0)), True),
        (Binary(Op.POW, v, Const(-2.0)), div(Const(1.0), mul(v, v)), True),
        (Binary(Op.POW, v, Const(0.5)), Unary(Op.SQRT, v), False),
        (sub(SIGMOID, SIGMOID), Const(0.0), True),
        (Detach(v), v, True),
        (mul(v, Const(float("inf"))), mul(v, Const(float("inf"))), True),
        (mul(v, Const(float("inf"))), add(v, Const(float("inf"))), False),
        (div(v, sub(x, x)), v, False),
        (Select(Var("?0"), v, x), Select(Var("?0"), x, v), False),
    ],
)
def test_equal(left: Expr, right: Expr, expected: bool) -> None:
    """Equality is that of rational functions with exact coefficients."""
    assert equal(left, right) is expected
    assert equal(right, left) is expected


def test_constant() -> None:
    """What cancels leaves a number; what does not leaves none."""
    assert constant(sub(add(v, Const(0.5)), v)) == 0.5
    assert constant(div(mul(Const(3.0), v), v)) == 3.0
    assert constant(add(v, Const(0.5))) is None
    assert constant(Const(float("nan"))) is None


def test_degree() -> None:
    """The degree counts some variables, also inside functions, where there is no degree."""
    names = frozenset({"v", "a"})

    assert degree(add(mul(x, v), x), names) == 1
    assert degree(mul(add(v, x), add(a, x)), names) == 2
    assert degree(sub(mul(v, a), mul(a, v)), names) == 0
    assert degree(mul(SIGMOID, x), names) is None
    assert degree(mul(Unary(Op.EXP, x), v), names) == 1
    assert degree(div(x, v), names) is None
    assert degree(div(v, x), names) == 1


def test_large_expressions_have_no_answer() -> None:
    """A product of many sums is given up: multiplied out it has a million terms."""
    wide: Expr = Const(1.0)
    for i in range(20):
        wide = mul(wide, add(Var(f"a{i}"), v))

    assert not equal(wide, add(wide, Const(0.0)))
    assert degree(wide, frozenset({"v"})) is None
