"""Equations typeset: one more dialect of the one expression printer."""

from __future__ import annotations

import html
from dataclasses import replace

from snncc.ir.nodes import Expr, Op, Unary
from snncc.ir.printer import Dialect, Spelling, spell
from snncc.ir.walk import subexpressions
from snncc.reporting.equations import Equations, Symbol, number
from snncc.reporting.page.markup import Markup, tag


def equations(step: Equations) -> Markup:
    """Return the step of a neuron as rows of left side, equals sign and right side."""
    rows = [
        _row(_symbol(replace(step.symbols[name], time="-1")), _math(step, initial), "start")
        for name, initial in step.initial
    ]
    for each in step.steps:
        note = "" if each.surrogate is None else f"gradient {each.surrogate}"
        rows.append(_row(_symbol(step.symbols[each.name]), _math(step, each.expr), note))
    brackets = any(
        isinstance(e, Unary) and e.op is Op.FLOAT
        for s in step.steps
        for e in subexpressions(s.expr)
    )
    hint = tag("p", "[\N{HORIZONTAL ELLIPSIS}] is 1 where it holds, else 0.", class_="hint")
    return tag("div", rows, hint if brackets else None, class_="equations")


def inline(step: Equations, expr: Expr) -> Markup:
    """Return one expression as mathematics in a line of text."""
    return tag("math", _math(step, expr))


def _row(left: Markup, right: Markup, note: str) -> Markup:
    sides = tag("math", left), tag("math", tag("mo", "=")), tag("math", right)
    return tag(
        "div",
        [tag("span", side) for side in sides],
        tag("span", note, class_="note") if note else None,
        class_="equation",
    )


def _math(step: Equations, expr: Expr) -> Markup:
    def variable(name: str) -> str:
        symbol = step.symbols.get(name)
        return tag("mi", name) if symbol is None else _symbol(symbol)

    return Markup(f"<mrow>{spell(expr, replace(MATHML, variable=variable))}</mrow>")


def _symbol(symbol: Symbol) -> Markup:
    base = tag("mi", symbol.base, mathvariant="normal")
    primes = "\N{PRIME}" * symbol.primes
    if symbol.time == "":
        return tag("msup", base, tag("mo", primes)) if primes else base
    index = tag("mrow", _index(symbol.time))
    if primes:
        return tag("msubsup", base, index, tag("mo", primes))
    return tag("msub", base, index)


def _index(time: str) -> list[Markup]:
    """Return ``t``, ``t-1`` or ``-1`` with a proper minus sign."""
    return [
        tag("mo", "\N{MINUS SIGN}") if c == "-" else tag("mn" if c.isdigit() else "mi", c)
        for c in time
    ]


def _operator(symbol: str) -> str:
    return f"<mo>{html.escape(symbol)}</mo>"


def _infix(symbol: str, level: int) -> Spelling:
    return Spelling(f"{{0}}{_operator(symbol)}{{1}}", level, (level, level + 1))


def _call(name: str) -> Spelling:
    return Spelling(f"<mi>{name}</mi><mo>(</mo>{{args}}<mo>)</mo>")


def _literal(value: float | bool) -> str:
    text = number(value)
    if text.startswith("-"):
        return f"<mrow><mo>\N{MINUS SIGN}</mo><mn>{text[1:]}</mn></mrow>"
    return f"<mn>{text}</mn>"


_CASE = "<mtr><mtd>{}</mtd><mtd><mtext>{}</mtext>{}</mtd></mtr>"

MATHML = Dialect(
    operations={
        **{op: _call(op.value) for op in Op},
        Op.NEG: Spelling(f"{_operator('−')}{{0}}", 60, (61,)),  # noqa: RUF001
        Op.FLOAT: Spelling("<mo>[</mo>{0}<mo>]</mo>"),
        Op.ABS: Spelling("<mo>|</mo>{0}<mo>|</mo>"),
        Op.SQRT: Spelling("<msqrt>{0}</msqrt>"),
        Op.POW: Spelling("<msup><mrow>{0}</mrow><mrow>{1}</mrow></msup>", 70, (71, 0)),
        Op.DIV: Spelling("<mfrac><mrow>{0}</mrow><mrow>{1}</mrow></mfrac>", 90, (0, 0)),
        Op.ADD: _infix("+", 40),
        Op.SUB: _infix("\N{MINUS SIGN}", 40),
        Op.MUL: _infix("\N{DOT OPERATOR}", 50),
        Op.LT: _infix("<", 30),
        Op.LE: _infix("\N{LESS-THAN OR EQUAL TO}", 30),
        Op.GT: _infix(">", 30),
        Op.GE: _infix("\N{GREATER-THAN OR EQUAL TO}", 30),
        Op.EQ: _infix("=", 30),
        Op.NE: _infix("\N{NOT EQUAL TO}", 30),
        Op.NOT: Spelling(f"{_operator('¬')}{{0}}", 25, (26,)),
        Op.AND: _infix("\N{LOGICAL AND}", 20),
        Op.OR: _infix("\N{LOGICAL OR}", 15),
        Op.XOR: _infix("\N{XOR}", 17),
    },
    select=Spelling(
        "<mrow><mo>{{</mo><mtable>"
        + _CASE.format("{1}", "if ", "{0}")
        + _CASE.format("{2}", "else", "")
        + "</mtable></mrow>"
    ),
    detach=_call("detach"),
    literal=_literal,
    group="<mrow><mo>(</mo>{}<mo>)</mo></mrow>",
)
