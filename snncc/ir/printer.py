"""Text of neuron-level IR: one precedence-aware expression printer, and the IR's own dialect.

A `Dialect` is data: how literals, variables and each operation are spelled in one language.  The
text of the IR is one more dialect; code generation adds its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
    Expr,
    Let,
    Op,
    Recurrence,
    Select,
    State,
    Unary,
    Var,
)

# Binding strength of infix and prefix operators; a function call binds tightest.
ATOM = 100


@dataclass(frozen=True, slots=True)
class Spelling:
    """How one operation is written: a format over its operands and how tightly it binds.

    Operands that bind less tightly than ``operand_levels`` are put in parentheses.
    """

    template: str
    level: int = ATOM
    operand_levels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dialect:
    """The spelling of expressions in one language.

    ``group`` is what parentheses around an expression are.
    """

    operations: Mapping[Op, Spelling]
    select: Spelling
    detach: Spelling
    literal: Callable[[float | bool], str]
    variable: Callable[[str], str] = str
    group: str = "({})"


def infix(symbol: str, level: int) -> Spelling:
    """Return the spelling of a left-associative infix operator."""
    return Spelling(f"{{0}} {symbol} {{1}}", level, (level, level + 1))


def call(name: str) -> Spelling:
    """Return the spelling of a function of one argument or more."""
    return Spelling(name + "({args})")


def spell(expr: Expr, dialect: Dialect) -> str:
    """Return the text of an expression in a dialect."""
    return _spell(expr, dialect)[0]


def _spell(expr: Expr, dialect: Dialect) -> tuple[str, int]:
    match expr:
        case Const(value):
            negative = not isinstance(value, bool) and (value < 0 or repr(value) == "-0.0")
            return dialect.literal(value), 0 if negative else ATOM
        case Var(name):
            return dialect.variable(name), ATOM
        case Unary(op, arg):
            return _apply(dialect.operations[op], (arg,), dialect)
        case Binary(op, lhs, rhs):
            return _apply(dialect.operations[op], (lhs, rhs), dialect)
        case Select(condition, if_true, if_false):
            return _apply(dialect.select, (condition, if_true, if_false), dialect)
        case Detach(arg):
            return _apply(dialect.detach, (arg,), dialect)
        case _:
            assert_never(expr)


def _apply(spelling: Spelling, operands: tuple[Expr, ...], dialect: Dialect) -> tuple[str, int]:
    texts = []
    for position, operand in enumerate(operands):
        text, level = _spell(operand, dialect)
        levels = spelling.operand_levels
        needed = levels[position] if position < len(levels) else 0
        texts.append(dialect.group.format(text) if level < needed else text)
    return spelling.template.format(*texts, args=", ".join(texts)), spelling.level


# Every nesting of infix operators is in parentheses only where precedence asks for it; equal
# precedence on the right keeps them, so the order of evaluation is visible.
IR_DIALECT = Dialect(
    operations={
        **{op: call(op.value) for op in Op},
        Op.NEG: Spelling("-{0}", 60, (61,)),
        Op.NOT: Spelling("not {0}", 25, (26,)),
        Op.ADD: infix("+", 40),
        Op.SUB: infix("-", 40),
        Op.MUL: infix("*", 50),
        Op.DIV: infix("/", 50),
        Op.LT: infix("<", 30),
        Op.LE: infix("<=", 30),
        Op.GT: infix(">", 30),
        Op.GE: infix(">=", 30),
        Op.EQ: infix("==", 30),
        Op.NE: infix("!=", 30),
        Op.AND: infix("and", 20),
        Op.OR: infix("or", 15),
        Op.XOR: infix("xor", 17),
    },
    select=Spelling("where({args})"),
    detach=Spelling("detach({args})"),
    literal=repr,
)


def print_let(let: Let, indent: str = "  ") -> list[str]:
    """Return the lines of one let, its surrogate below it."""
    lines = [f"{indent}{let.name} = {spell(let.expr, IR_DIALECT)}"]
    if let.surrogate is not None:
        rule = let.surrogate
        lines.append(f"{indent}  surrogate {rule.name}({rule.cotangent}):")
        for inner in rule.lets:
            lines += print_let(inner, indent + "    ")
        for arg, result in zip(rule.args, rule.results, strict=True):
            lines.append(f"{indent}    to {arg}: {spell(result, IR_DIALECT)}")
    return lines


def print_recurrence(recurrence: Recurrence) -> str:
    """Return the canonical text of a recurrence; equal text means equal meaning."""
    inputs = ", ".join(f"{i.name}: {i.rank.value}" for i in recurrence.inputs)
    lines = [f"recurrence {recurrence.name}({inputs}):"]
    lines += [f"  state {_print_state(s)}" for s in recurrence.states]
    for let in recurrence.lets:
        lines += print_let(let)
    lines += [f"  {s.name}' = {s.update}" for s in recurrence.states]
    if recurrence.outputs:
        lines.append(f"  out {', '.join(recurrence.outputs)}")
    if recurrence.finals:
        lines.append(f"  final {', '.join(recurrence.finals)}")
    if recurrence.reverse:
        lines.append("  reverse")
    lines.append(f"  form {type(recurrence.form).__name__}")
    return "\n".join(lines)


def _print_state(state: State) -> str:
    return f"{state.name} = {spell(state.initial, IR_DIALECT)}"
