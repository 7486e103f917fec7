"""The one traversal of neuron-level expressions, and the questions that need nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import assert_never

from snncc.ir.nodes import (
    COMPARISONS,
    EXACT_POWERS,
    LOGICAL,
    TRANSCENDENTAL,
    Binary,
    Const,
    Detach,
    Expr,
    Let,
    Op,
    Select,
    Unary,
    Var,
)


def children(expr: Expr) -> tuple[Expr, ...]:
    """Return the direct operands of an expression, in order of evaluation."""
    match expr:
        case Const() | Var():
            return ()
        case Unary(_, arg) | Detach(arg):
            return (arg,)
        case Binary(_, lhs, rhs):
            return (lhs, rhs)
        case Select(condition, if_true, if_false):
            return (condition, if_true, if_false)
        case _:
            assert_never(expr)


def rebuild(expr: Expr, operands: tuple[Expr, ...]) -> Expr:
    """Return the expression with its direct operands replaced."""
    match expr:
        case Const() | Var():
            return expr
        case Unary(op, _):
            return Unary(op, *operands)
        case Detach():
            return Detach(*operands)
        case Binary(op, _, _):
            return Binary(op, *operands)
        case Select():
            return Select(*operands)
        case _:
            assert_never(expr)


def transform(expr: Expr, rule: Callable[[Expr], Expr]) -> Expr:
    """Apply ``rule`` to every node of an expression, operands first."""
    return rule(rebuild(expr, tuple(transform(child, rule) for child in children(expr))))


def subexpressions(expr: Expr) -> Iterator[Expr]:
    """Yield an expression and everything inside it, operands first."""
    for child in children(expr):
        yield from subexpressions(child)
    yield expr


def names_read(expr: Expr) -> Iterator[str]:
    """Yield the name of every variable in an expression, with repetitions."""
    for node in subexpressions(expr):
        if isinstance(node, Var):
            yield node.name


def let_reads(let: Let) -> set[str]:
    """Return every outer name that a let reads, in its value and in its surrogate."""
    names = set(names_read(let.expr))
    if let.surrogate is not None:
        inner = {let.surrogate.cotangent, let.name}
        for part in let.surrogate.lets:
            names |= let_reads(part) - inner
            inner.add(part.name)
        for result in let.surrogate.results:
            names |= set(names_read(result)) - inner
        names |= set(let.surrogate.args)
    return names


def substitute(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """Replace variables by expressions, all at once."""
    return transform(expr, lambda e: values.get(e.name, e) if isinstance(e, Var) else e)


def is_bool(expr: Expr, bool_names: frozenset[str] | set[str]) -> bool:
    """Tell whether an expression is a bool, given the names of the bool lets."""
    match expr:
        case Const(value):
            return isinstance(value, bool)
        case Var(name):
            return name in bool_names
        case Unary(op, _) | Binary(op, _, _):
            return op in COMPARISONS or op in LOGICAL
        case Select(_, if_true, _):
            return is_bool(if_true, bool_names)
        case Detach(arg):
            return is_bool(arg, bool_names)
        case _:
            assert_never(expr)


def bool_lets(lets: Iterable[Let]) -> frozenset[str]:
    """Return the names of the lets whose value is a bool."""
    names: set[str] = set()
    for let in lets:
        if is_bool(let.expr, names):
            names.add(let.name)
    return frozenset(names)


def calls_maths(lets: Iterable[Let]) -> int:
    """Return how many maths functions some lets call.

    Their results differ between maths libraries by units in the last place, and each costs as much
    as several accesses to memory.
    """
    return sum(_is_inexact(e) for let in lets for e in subexpressions(let.expr))


def _is_inexact(expr: Expr) -> bool:
    match expr:
        case Binary(Op.POW, _, Const(exponent)):
            return exponent not in EXACT_POWERS
        case Unary(op, _) | Binary(op, _, _):
            return op in TRANSCENDENTAL
        case _:
            return False
