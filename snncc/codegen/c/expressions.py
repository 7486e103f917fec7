"""The spelling of scalar expressions in C11."""

from __future__ import annotations

import bisect
import functools
import math
import struct
from collections.abc import Iterable, Mapping
from fractions import Fraction

from snncc.codegen.base import FloatType
from snncc.codegen.prepare import identifier
from snncc.ir.names import Names
from snncc.ir.nodes import Op
from snncc.ir.printer import ATOM, Dialect, Spelling, call, infix

C_TYPE = {FloatType.FLOAT32: "float", FloatType.FLOAT64: "double"}

# Functions of <math.h>, without the suffix of the float version.
MATH = {
    Op.ABS: "fabs",
    Op.EXP: "exp",
    Op.EXPM1: "expm1",
    Op.LOG: "log",
    Op.LOG1P: "log1p",
    Op.SQRT: "sqrt",
    Op.TANH: "tanh",
    Op.SIN: "sin",
    Op.COS: "cos",
    Op.FLOOR: "floor",
    Op.CEIL: "ceil",
    Op.ROUND: "rint",  # half to even in the default rounding mode
    Op.POW: "pow",
}
# Functions that the emitted file defines itself.
HELPERS = {
    Op.MIN: "snncc_min",
    Op.MAX: "snncc_max",
    Op.SIGN: "snncc_sign",
    Op.SIGMOID: "snncc_sigmoid",
}

# Words that cannot name a variable: the language's own, and what emitted code uses.
RESERVED = frozenset(
    {
        "auto",
        "break",
        "case",
        "char",
        "const",
        "continue",
        "default",
        "do",
        "double",
        "else",
        "enum",
        "extern",
        "float",
        "for",
        "goto",
        "if",
        "inline",
        "int",
        "long",
        "register",
        "restrict",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "typedef",
        "union",
        "unsigned",
        "void",
        "volatile",
        "while",
        "n",
        "BLOCK",
        "TILE",
        "NULL",
        "INFINITY",
        "NAN",
        "stdin",
        "stdout",
        "stderr",
        "errno",
        "bool",
        "true",
        "false",
        "asm",
        "typeof",
        "linux",
        "unix",
        "signgam",
    }
)
_UNARY = 60  # operands of a logical operator are at least this tight: gcc warns on a & b == c


def dialect(dtype: FloatType, names: dict[str, str]) -> Dialect:
    """Return the spelling of expressions on a float type.

    Args:
        dtype: The working type.
        names: For each IR name the C variable that holds it.
    """
    return Dialect(
        operations=_operations(dtype),
        select=Spelling("{0} ? {1} : {2}", 2, (20, 3, 3)),
        detach=Spelling("{0}", ATOM, (ATOM,)),
        literal=lambda value: literal(value, dtype),
        variable=lambda name: names[name],
    )


@functools.cache
def _operations(dtype: FloatType) -> Mapping[Op, Spelling]:
    suffix = "f" if dtype is FloatType.FLOAT32 else ""
    one, zero = literal(1.0, dtype), literal(0.0, dtype)
    return {
        **{op: call(name + suffix) for op, name in MATH.items()},
        **{op: call(name) for op, name in HELPERS.items()},
        Op.NEG: Spelling("-{0}", _UNARY, (_UNARY + 1,)),
        Op.NOT: Spelling("!{0}", 22, (_UNARY + 1,)),  # gcc warns on !a & b too
        Op.FLOAT: Spelling(f"{{0}} ? {one} : {zero}", 2, (_UNARY,)),
        Op.ADD: infix("+", 40),
        Op.SUB: infix("-", 40),
        Op.MUL: infix("*", 50),
        Op.DIV: infix("/", 50),
        Op.LT: _comparison("<"),
        Op.LE: _comparison("<="),
        Op.GT: _comparison(">"),
        Op.GE: _comparison(">="),
        Op.EQ: _comparison("=="),
        Op.NE: _comparison("!="),
        Op.AND: _logical("&"),
        Op.OR: _logical("|"),
        Op.XOR: _logical("^"),
    }


def _comparison(symbol: str) -> Spelling:
    return Spelling(f"{{0}} {symbol} {{1}}", 30, (31, 31))


def _logical(symbol: str) -> Spelling:
    return Spelling(f"{{0}} {symbol} {{1}}", 20, (_UNARY, _UNARY))


def literal(value: float | bool, dtype: FloatType) -> str:
    """Return the C literal of a number, rounded to the working type first, as torch does."""
    if isinstance(value, bool):
        return str(int(value))
    if math.isnan(value):
        return "NAN"
    if dtype is FloatType.FLOAT32:
        value = round_to_float32(value)
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    if dtype is FloatType.FLOAT64:
        return repr(float(value))
    return _float32_digits(value) + "f"


def round_to_float32(value: float) -> float:
    """Round to the nearest float32, halves to even; values out of range become infinite."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _float32_digits(value: float) -> str:
    """Return the shortest decimal that a C compiler reads as this float32."""
    half_gap = _half_gap(value)

    def is_read(digits: int) -> bool:
        text = f"{value:.{digits}g}"
        error = abs(float(text) - value)  # exact, as the two are close
        if error == half_gap:  # float() has rounded
            return abs(Fraction(text) - Fraction(value)) < half_gap
        return error < half_gap

    # One digit more is never further away.
    digits = bisect.bisect_left(range(1, 9), True, key=is_read) + 1
    return repr(float(f"{value:.{digits}g}"))


def _half_gap(value: float) -> float:
    """Return half the distance to the nearest other float32."""
    mantissa, exponent = math.frexp(value)
    # Below a power of two floats are twice as dense; zero and subnormals have one spacing.
    bits = 25 if abs(mantissa) == 0.5 else 24
    return math.ldexp(0.5, max(exponent - bits, -149) if value else -149)


def c_names(names: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Give each IR name a C variable of the same name where that is possible."""
    functions = {*MATH.values(), *(f"{name}f" for name in MATH.values())}
    fresh = Names({*RESERVED, *functions, *taken})
    return {name: fresh.fresh(identifier(name)) for name in names}
