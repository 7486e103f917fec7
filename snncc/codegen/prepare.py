"""Make the lets of a recurrence ready for a kernel: no surrogates, no detach, no dead values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from snncc.codegen.kernel_ir import Carry
from snncc.ir.names import Names
from snncc.ir.nodes import (
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
from snncc.ir.walk import children, is_bool, names_read, rebuild, substitute, transform

# torch.pow computes these exponents without pow; so that results are equal bit for bit.
_ONE = Const(1.0)
_POWERS: Mapping[float, Callable[[Expr], Expr]] = {
    0.5: lambda x: Unary(Op.SQRT, x),
    -0.5: lambda x: Binary(Op.DIV, _ONE, Unary(Op.SQRT, x)),
    1.0: lambda x: x,
    -1.0: lambda x: Binary(Op.DIV, _ONE, x),
    2.0: lambda x: Binary(Op.MUL, x, x),
    -2.0: lambda x: Binary(Op.DIV, _ONE, Binary(Op.MUL, x, x)),
    3.0: lambda x: Binary(Op.MUL, Binary(Op.MUL, x, x), x),
}


def prepare(lets: Iterable[Let], taken: Iterable[str]) -> tuple[Let, ...]:
    """Return lets that compute the same values in a form that kernels can be written from.

    Surrogates and detaches have done their work in differentiation and are dropped.  Powers with
    a simple exponent become products, and the logarithm of a sigmoid that of a sum.  Calls of maths
    functions move out of the arms of selects into lets of their own: such a call is cheap to run on
    every lane and costs the vector code if it is conditional.

    Args:
        lets: The lets of one step, in order.
        taken: Names that new lets must avoid.
    """
    lets = tuple(lets)
    names = Names({*taken, *(let.name for let in lets)})
    result: list[Let] = []
    for let in lets:
        expr = transform(let.expr, lambda e: e.arg if isinstance(e, Detach) else e)
        expr = _expand(expr, let.name, names, result)
        expr = _hoist_calls(expr, let.name, names, result)
        result.append(Let(let.name, expr, where=let.where))
    return tuple(result)


def identifier(name: str) -> str:
    """Return an ASCII identifier that looks like a name; different names stay different."""
    return re.sub(r"[^A-Za-z0-9_]", lambda match: f"u{ord(match[0]):04x}", name)


def _expand(expr: Expr, owner: str, names: Names, before: list[Let]) -> Expr:
    def rule(node: Expr) -> Expr:
        match node:
            case Binary(Op.POW, base, Const(exponent)) if exponent in _POWERS:
                return _POWERS[float(exponent)](_named(base, owner, names, before))
            case Binary(Op.POW, _, Const(exponent)) if exponent == 0.0:
                return _ONE
            case Unary(Op.LOGSIGMOID, x):
                return _log_of_sum(_named(x, owner, names, before))
            case _:
                return node

    return transform(expr, rule)


def _log_of_sum(x: Expr) -> Expr:
    """Return log(sigmoid(x)) as min(x, 0) - log(1 + exp(-|x|)), in which nothing overflows."""
    tail = Unary(Op.LOG1P, Unary(Op.EXP, Unary(Op.NEG, Unary(Op.ABS, x))))
    return Binary(Op.SUB, Binary(Op.MIN, x, Const(0.0)), tail)


def _named(expr: Expr, owner: str, names: Names, before: list[Let]) -> Expr:
    if isinstance(expr, Const | Var):
        return expr
    name = names.fresh(f"{owner}_part")
    before.append(Let(name, expr))
    return Var(name)


def _hoist_calls(expr: Expr, owner: str, names: Names, before: list[Let]) -> Expr:
    operands = tuple(_hoist_calls(child, owner, names, before) for child in children(expr))
    expr = rebuild(expr, operands)
    if not isinstance(expr, Select):
        return expr
    arms = (_take_calls(arm, owner, names, before) for arm in (expr.if_true, expr.if_false))
    return Select(expr.condition, *arms)


def _take_calls(expr: Expr, owner: str, names: Names, before: list[Let]) -> Expr:
    operands = tuple(_take_calls(child, owner, names, before) for child in children(expr))
    expr = rebuild(expr, operands)
    if isinstance(expr, Unary | Binary) and expr.op in TRANSCENDENTAL:
        return _named(expr, owner, names, before)
    return expr


def rename(lets: Iterable[Let], new_names: Mapping[str, str]) -> tuple[Let, ...]:
    """Rename lets and what they read."""
    values = {old: Var(new) for old, new in new_names.items()}
    return tuple(
        Let(new_names.get(let.name, let.name), substitute(let.expr, values), where=let.where)
        for let in lets
    )


def find_live(
    lets: Sequence[Let], carries: Sequence[Carry], roots: Iterable[str]
) -> frozenset[str]:
    """Return every name of a step that its results depend on, over all steps.

    Args:
        lets: The lets of the step, in order.
        carries: What flows to the next step.
        roots: The names whose values are wanted.
    """
    live = set(roots)
    size = -1
    while size != len(live):
        size = len(live)
        live |= {carry.update for carry in carries if carry.name in live}
        for let in reversed(lets):
            if let.name in live:
                live |= set(names_read(let.expr))
    return frozenset(live)


def find_bools(lets: Iterable[Let], known: Iterable[str]) -> frozenset[str]:
    """Return the names of the bools among some lets and names that are known to be bools."""
    names = set(known)
    for let in lets:
        if is_bool(let.expr, names):
            names.add(let.name)
    return frozenset(names)


def iter_new_names(names: Iterable[str], taken: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield a new name for each of ``names`` that is taken already."""
    taken = set(taken)
    fresh = Names({*taken, *(names := tuple(names))})
    for name in names:
        if name in taken:
            yield name, fresh.fresh(f"{name}_adjoint")
