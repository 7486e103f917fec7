"""The spelling of scalar expressions in Triton, where each is about a block of lanes."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterable

from snncc.codegen.base import FloatType
from snncc.codegen.c.expressions import literal as c_literal
from snncc.codegen.prepare import identifier
from snncc.ir.names import Names
from snncc.ir.nodes import (
    COMPARISONS,
    HALF_ROUNDINGS,
    Binary,
    Const,
    Expr,
    Op,
    Select,
    Unary,
    Var,
)
from snncc.ir.printer import ATOM, Dialect, Spelling, call, infix
from snncc.ir.walk import children, rebuild, transform

TRITON_TYPE = {FloatType.FLOAT32: "tl.float32", FloatType.FLOAT64: "tl.float64"}

# Functions of libdevice and ocml, which are those that torch's own kernels call.
LIBRARY = {
    Op.EXP: "exp",
    Op.EXPM1: "expm1",
    Op.LOG: "log",
    Op.LOG1P: "log1p",
    Op.TANH: "tanh",
    Op.SIN: "sin",
    Op.COS: "cos",
    Op.ROUND: "nearbyint",  # half to even
    Op.POW: "pow",
}
# Operators that take a Python number beside a block at the full precision of the block's type.
_INFIX = frozenset({Op.ADD, Op.SUB, Op.MUL, *COMPARISONS})
_ONE, _ZERO, _MINUS_ONE = Const(1.0), Const(0.0), Const(-1.0)


def dialect(dtype: FloatType, names: dict[str, str]) -> Dialect:
    """Return the spelling of expressions on a float type.

    Args:
        dtype: The working type.
        names: For each IR name the variable that holds it.
    """
    single = dtype is FloatType.FLOAT32
    # Triton's '/' and sqrt are approximate for float32; for float64 there is only the exact one.
    divide = call("tl.div_rn") if single else infix("/", 50)
    nan = "propagate_nan=tl.PropagateNan.ALL"
    return Dialect(
        operations={
            **{op: call(f"libdevice.{name}") for op, name in LIBRARY.items()},
            Op.ABS: call("tl.abs"),
            Op.SQRT: call("tl.sqrt_rn" if single else "tl.sqrt"),
            Op.FLOOR: call("tl.floor"),
            Op.CEIL: call("tl.ceil"),
            Op.NOT: Spelling("~{0}", 60, (ATOM,)),
            Op.FLOAT: Spelling(f"{{0}}.to({TRITON_TYPE[dtype]})", ATOM, (ATOM,)),
            **{op: _rounded(op, dtype) for op in HALF_ROUNDINGS},
            Op.ADD: infix("+", 40),
            Op.SUB: infix("-", 40),
            Op.MUL: infix("*", 50),
            Op.DIV: divide,
            Op.QUOTIENT: infix("/", 50),
            Op.MIN: Spelling(f"tl.minimum({{args}}, {nan})"),
            Op.MAX: Spelling(f"tl.maximum({{args}}, {nan})"),
            Op.LT: _comparison("<"),
            Op.LE: _comparison("<="),
            Op.GT: _comparison(">"),
            Op.GE: _comparison(">="),
            Op.EQ: _comparison("=="),
            Op.NE: _comparison("!="),
            Op.AND: infix("&", 22),
            Op.OR: infix("|", 20),
            Op.XOR: infix("^", 21),
        },
        select=call("tl.where"),
        detach=Spelling("{0}", ATOM, (ATOM,)),
        literal=lambda value: literal(value, dtype),
        variable=lambda name: names[name],
    )


def _rounded(op: Op, dtype: FloatType) -> Spelling:
    return Spelling(f"{{0}}.to(tl.{op.value}).to({TRITON_TYPE[dtype]})", ATOM, (ATOM,))


def _comparison(symbol: str) -> Spelling:
    # In Python comparisons bind less tightly than & and |, and a chain means something else.
    return Spelling(f"{{0}} {symbol} {{1}}", 10, (11, 11))


def literal(value: float | bool, dtype: FloatType) -> str:
    """Return the Python literal of a number, rounded to the working type first, as torch does."""
    if isinstance(value, bool):
        return str(value)
    if math.isnan(value):
        return 'float("nan")'
    text = c_literal(value, dtype)
    return text.replace("INFINITY", 'float("inf")') if "INF" in text else text.removesuffix("f")


def expand(expr: Expr) -> Expr:
    """Return an expression of operations that Triton rounds as torch does.

    Triton negates by subtracting from zero, which loses the sign of zero; it has no sign and no
    sigmoid of that accuracy.
    """

    def rule(node: Expr) -> Expr:
        match node:
            case Unary(Op.NEG, x):
                return Binary(Op.MUL, x, _MINUS_ONE)
            case Unary(Op.SIGN, x):
                positive, negative = Binary(Op.GT, x, _ZERO), Binary(Op.LT, x, _ZERO)
                return Binary(Op.SUB, Unary(Op.FLOAT, positive), Unary(Op.FLOAT, negative))
            case Unary(Op.SIGMOID, x):
                power = Unary(Op.EXP, Binary(Op.MUL, x, _MINUS_ONE))
                return Binary(Op.DIV, _ONE, Binary(Op.ADD, _ONE, power))
            case _:
                return node

    return transform(expr, rule)


class Constants:
    """Numbers that a kernel keeps as blocks of the working type.

    Triton takes a Python number for a float32 (or for a float64, if it is very small) wherever its
    type is not told by a block next to it.  Such numbers become variables of the right type.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._variables: dict[str, tuple[str, Const]] = {}

    def extract(self, expr: Expr) -> Expr:
        """Return an expression whose numbers all stand beside a block."""
        operands = tuple(self.extract(child) for child in children(expr))
        match expr:
            case Const():
                return expr
            case Binary(op, _, _) if op in _INFIX and _numbers(operands) == 1:
                return rebuild(expr, operands)
            case Unary() | Binary() | Select():
                typed = (self._variable(o) if isinstance(o, Const) else o for o in operands)
                return rebuild(expr, tuple(typed))
            case _:
                return rebuild(expr, operands)

    def value(self, expr: Expr) -> Expr:
        """Return an expression that is a block even where it is one number."""
        expr = self.extract(expr)
        return self._variable(expr) if isinstance(expr, Const) else expr

    def lines(self, dtype: FloatType) -> list[str]:
        """Return the definitions of the variables."""
        lines = []
        for name, const in self._variables.values():
            kind = "tl.int1" if isinstance(const.value, bool) else TRITON_TYPE[dtype]
            lines.append(f"{name} = tl.full((BLOCK,), {literal(const.value, dtype)}, {kind})")
        return lines

    def names(self) -> dict[str, str]:
        """Return the variables as names that stand for themselves."""
        return {name: name for name, _ in self._variables.values()}

    def _variable(self, const: Const) -> Var:
        key = repr(const.value)
        if key not in self._variables:
            words = key.replace("-", "minus_").replace("+", "")
            name = self._names.fresh("const_" + re.sub(r"\W", "_", words))
            self._variables[key] = (name, const)
        return Var(self._variables[key][0])


def _numbers(operands: tuple[Expr, ...]) -> int:
    return sum(isinstance(operand, Const) for operand in operands)


def python_names(names: Iterable[str], fresh: Names) -> dict[str, str]:
    """Give each IR name a Python variable of the same name where that is possible."""
    return {name: fresh.fresh(_variable(name)) for name in names}


def _variable(name: str) -> str:
    word = identifier(name)
    return f"{word}_" if keyword.iskeyword(word) else word
