"""Divide fast where a gradient is all that comes of it.

A quotient that IEEE 754 rounds is a dozen instructions on a GPU and a branch for rare operands, and
a branch keeps a compiler from overlapping the steps of a chunk.  Gradients are promised up to the
order of their sums, so that the reverse sweep of a kernel takes quotients that are within two units
in the last place.  What is compared or rounded decides something, and stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from snncc.codegen.kernel_ir import Carry, Step
from snncc.ir.nodes import COMPARISONS, HALF_ROUNDINGS, Binary, Const, Expr, Let, Op, Unary
from snncc.ir.walk import children, names_read, rebuild, subexpressions

_ONE = Const(1.0)
# What gives another result, or none that is close, where an operand changes by a unit.
_STEEP = frozenset({*COMPARISONS, *HALF_ROUNDINGS, Op.FLOOR, Op.CEIL, Op.ROUND, Op.SIGN})


def divide_fast(step: Step) -> Step:
    """Return a step of a reverse sweep whose quotients are fast where they decide nothing."""
    exact = _deciding(step.lets, step.carries)
    lets = tuple(
        let if let.name in exact else Let(let.name, _loosen(let.expr), where=let.where)
        for let in step.lets
    )
    return replace(step, lets=lets)


def _deciding(lets: Sequence[Let], carries: Sequence[Carry]) -> set[str]:
    """Return the names of the values that a comparison or a rounding reads, over all steps."""
    names: set[str] = set()
    for let in lets:
        for node in subexpressions(let.expr):
            if isinstance(node, Unary | Binary) and node.op in _STEEP:
                names |= set(names_read(node))
    size = -1
    while size != len(names):
        size = len(names)
        names |= {carry.update for carry in carries if carry.name in names}
        for let in reversed(lets):
            if let.name in names:
                names |= set(names_read(let.expr))
    return names


def _loosen(expr: Expr) -> Expr:
    if isinstance(expr, Unary | Binary) and expr.op in _STEEP:
        return expr
    node = rebuild(expr, tuple(_loosen(child) for child in children(expr)))
    match node:
        case Binary(Op.DIV, x, y):
            return Binary(Op.QUOTIENT, x, y)
        case Unary(Op.SIGMOID, x):
            power = Unary(Op.EXP, Unary(Op.NEG, x))
            return Binary(Op.QUOTIENT, _ONE, Binary(Op.ADD, _ONE, power))
        case _:
            return node
