"""Literals and names in C."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snncc.codegen.base import FloatType
from snncc.codegen.c.expressions import c_names, dialect, literal, round_to_float32
from snncc.ir.nodes import Binary, Const, Detach, Op, Select, Unary, Var
from snncc.ir.printer import spell

NAMES = {name: name for name in "abc"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1f"),
        (0.9, "0.9f"),
        (1 / 3, "0.33333334f"),
        (1.0, "1.0f"),
        (-0.0, "-0.0f"),
        (1e30, "1e+30f"),
        (16777217.0, "16777216.0f"),
        (1e-45, "1e-45f"),
        (1e39, "INFINITY"),
        (-math.inf, "-INFINITY"),
        (math.nan, "NAN"),
        (True, "1"),
    ],
)
def test_float32_literals(value, text):
    """Literals are rounded to float32 first and are as short as they can be."""
    assert literal(value, FloatType.FLOAT32) == text


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_literals_read_back(value):
    """The nearest float32 to the decimal is the value."""
    text = literal(value, FloatType.FLOAT32)

    assert struct.pack("f", float(text.removesuffix("f"))) == struct.pack("f", value)


def test_float64_literal():
    """Python's shortest decimal is exact for float64."""
    assert literal(0.1, FloatType.FLOAT64) == "0.1"


@given(st.floats())
def test_rounding_to_float32_saturates(value):
    """Numbers out of range become infinite, as a C cast does."""
    rounded = round_to_float32(value)

    assert (
        math.isnan(value) or abs(rounded) <= abs(value) * (1 + 1e-6) + 1e-45 or math.isinf(rounded)
    )


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (Binary(Op.SUB, Var("a"), Binary(Op.SUB, Var("b"), Var("c"))), "a - (b - c)"),
        (Binary(Op.MUL, Detach(Binary(Op.ADD, Var("a"), Var("b"))), Var("c")), "(a + b) * c"),
        (Unary(Op.NEG, Const(-1.0)), "-(-1.0f)"),
        (Unary(Op.NEG, Unary(Op.NEG, Var("a"))), "-(-a)"),
        (
            Binary(Op.AND, Binary(Op.LT, Var("a"), Var("b")), Unary(Op.NOT, Var("c"))),
            "(a < b) & (!c)",
        ),
        (
            Binary(Op.MUL, Select(Var("a"), Var("b"), Var("c")), Var("b")),
            "(a ? b : c) * b",
        ),
        (
            Unary(Op.FLOAT, Binary(Op.GE, Var("a"), Const(1.0))),
            "(a >= 1.0f) ? 1.0f : 0.0f",
        ),
    ],
)
def test_parentheses(expr, text):
    """Parentheses stand where C or the compiler's warnings ask for them."""
    assert spell(expr, dialect(FloatType.FLOAT32, NAMES)) == text


def test_names_avoid_the_words_of_c():
    """A user may call variables as C calls its keywords and functions."""
    names = c_names(["double", "n", "τ", "h", "x_in"], ["x_in"])

    assert list(names.values()) == ["double_2", "n_2", "u03c4", "h", "x_in_2"]
