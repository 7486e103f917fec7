"""Arithmetic of torch in half types on a GPU, as scalar expressions in float32.

An operator converts its operands to float32, computes there, and rounds its result once::

    a * b            bfloat16(a * b)
    x + 0.1          bfloat16(x + 0.1)     the number is not rounded
    x > 0.1          x > bfloat16(0.1)     the number takes the type of x
    p * x            bfloat16(bfloat16(p) * x), where p is one number in a tensor of float32
    x ** 3           bfloat16(bfloat16(x * x) * x)

On the CPU torch differs in two places: it rounds the number in ``x + 0.1``, and the square in
``x ** 3`` in bfloat16 alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import cast
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.interpret import HALVES
from snncc.ir.nodes import Binary, Const, Detach, Expr, Op, Unary, Var

ROUNDING = {torch.float16: Op.FLOAT16, torch.bfloat16: Op.BFLOAT16}
# Operators that compute with a number as it is.
_ARITHMETIC = frozenset({torch.add, torch.sub, torch.mul, torch.div})
# Operations whose result is a value of the half type if their operand is.
_EXACT = frozenset({Op.NEG, Op.ABS, Op.SIGN, Op.FLOAT})
# Powers that torch computes by a square in its own type.
_BY_SQUARES = frozenset({3.0, -2.0})


def can_round(node: torch.fx.Node) -> bool:
    """Tell whether an operator can be written with the roundings that torch makes.

    Numbers that differ from step to step are not rounded, so nothing but arithmetic may read them.
    """
    if isinstance(node.target, CustomGradient):
        return all(can_round(n) for n in node.target.forward.nodes if n.op == "call_function")
    reads_numbers = any("shape" not in n.meta for n in node.all_input_nodes)
    takes_numbers = node.target in _ARITHMETIC or _working_half(node) is None
    return "dtype" in node.meta and (takes_numbers or not reads_numbers)


def converted(node: torch.fx.Node, argument: Any, expr: Any) -> Any:
    """Return an operand as an operator takes it.

    Args:
        node: The operator.
        argument: The operand in its arguments.
        expr: The operand as an expression; anything else stays as it is.
    """
    half = _working_half(node)
    if half is None or node.target is cast:
        return expr
    if isinstance(argument, torch.fx.Node):
        is_wide = _is_wide(argument) and isinstance(expr, Expr)
        return Unary(ROUNDING[half], expr) if is_wide else expr
    takes_type = isinstance(expr, Const) and node.target not in {*_ARITHMETIC, torch.pow}
    return _rounded_number(expr, half) if takes_type else expr


def rounded(node: torch.fx.Node, expr: Expr) -> Expr:
    """Return the value of an operator, rounded to its type where that is a half type."""
    half = node.meta.get("dtype")
    if half not in HALVES:
        return expr
    match expr:
        case Const():
            return _rounded_number(expr, half)
        case Var() | Detach() if node.target is not cast:
            return expr
        case Unary(op, _) if op in _EXACT:
            return expr
        case Binary(Op.POW, base, Const(exponent)) if exponent in _BY_SQUARES:
            square = Unary(ROUNDING[half], Binary(Op.MUL, base, base))
            cube = Binary(Op.MUL, square, base)
            expr = cube if exponent > 0 else Binary(Op.DIV, Const(1.0), square)
    return Unary(ROUNDING[half], expr)


def half_of(expr: Expr) -> torch.dtype | None:
    """Return the half type to which a value is rounded, if to one."""
    op = expr.op if isinstance(expr, Unary) else None
    return next((dtype for dtype, rounding in ROUNDING.items() if rounding is op), None)


def _working_half(node: torch.fx.Node) -> torch.dtype | None:
    """Return the half type in which an operator computes; None where it is another type."""
    own = node.meta.get("dtype")
    if own != torch.bool:
        return own if own in HALVES else None
    seen = [n.meta for n in node.all_input_nodes if "dtype" in n.meta]
    floats = [m for m in seen if m["dtype"].is_floating_point]
    types = {m["dtype"] for m in floats if m.get("shape")} or {m["dtype"] for m in floats}
    (half,) = types if len(types) == 1 else (None,)
    return half if half in HALVES else None


def _is_wide(node: torch.fx.Node) -> bool:
    return node.meta.get("dtype") in (torch.float32, torch.float64)


def _rounded_number(expr: Const, half: torch.dtype) -> Const:
    if isinstance(expr.value, bool):
        return expr
    return Const(float(torch.tensor(expr.value, dtype=half)))
