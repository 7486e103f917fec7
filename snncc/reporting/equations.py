"""The step of a neuron as equations that a person reads: the user's names, with time indices.

``h1[t] = 0.9 * v1[t-1] + layer1[t]``.  A let that the user's code gives no name to and that is used
once is written where it is used, which changes no order of evaluation.  A variable that is bound
again in the same step has a prime (``v'``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from snncc.frontend.variables import variable_of
from snncc.ir.nodes import Expr, Let, Op, Recurrence
from snncc.ir.printer import IR_DIALECT, Dialect, Spelling, spell
from snncc.ir.walk import names_read, substitute
from snncc.source import Location

NOW, BEFORE, ALWAYS = "t", "t-1", ""


@dataclass(frozen=True, slots=True)
class Symbol:
    """How a name of the recurrence is shown: its base, primes, and the step that it belongs to."""

    base: str
    primes: int = 0
    time: str = NOW

    def __str__(self) -> str:
        index = f"[{self.time}]" if self.time else ""
        return self.base + "'" * self.primes + index


@dataclass(frozen=True, slots=True)
class Equation:
    """One line of a step: ``name = expr``, with the gradient that the user gave it."""

    name: str
    expr: Expr
    surrogate: str | None
    where: Location | None


@dataclass(frozen=True)
class Equations:
    """The step of a neuron to be shown.

    Attributes:
        symbols: How each name of the recurrence is shown.
        initial: For each state what it starts from.
        steps: The step, in order.
        outputs: Names of what leaves the neuron at each step.
    """

    symbols: Mapping[str, Symbol]
    initial: tuple[tuple[str, Expr], ...]
    steps: tuple[Equation, ...]
    outputs: tuple[str, ...]

    def spell(self, expr: Expr) -> str:
        """Return an expression as text."""
        return spell(expr, replace(TEXT, variable=self.shown))

    def shown(self, name: str) -> str:
        """Return how a name of the recurrence is shown; decisions and the like have their own."""
        symbol = self.symbols.get(name)
        return name if symbol is None else str(symbol)

    def lines(self) -> tuple[str, ...]:
        """Return the equations as text, one line each."""
        starts = ", ".join(
            f"{replace(self.symbols[name], time='-1')} = {self.spell(e)}"
            for name, e in self.initial
        )
        lines = [starts] if starts else []
        for step in self.steps:
            gradient = f"    gradient: {step.surrogate}" if step.surrogate else ""
            lines.append(f"{self.symbols[step.name]} = {self.spell(step.expr)}{gradient}")
        return tuple(lines)


def equations_of(recurrence: Recurrence, shown: Mapping[str, str]) -> Equations:
    """Return the step of a neuron to be shown.

    Args:
        recurrence: The step.
        shown: For its inputs the names of what they come from.
    """
    lets = _inlined(recurrence)
    inputs = {i.name: i.rank.value == "step" for i in recurrence.inputs}
    symbols: dict[str, Symbol] = {}
    for name, is_step in inputs.items():
        base = shown.get(name, name)
        symbols[name] = Symbol(base, 0, NOW if is_step else ALWAYS)
    seen: Counter[str] = Counter(symbol.base for symbol in symbols.values())
    for let in lets:
        base = _user_name(let) or let.name
        symbols[let.name] = Symbol(base, seen[base])
        seen[base] += 1
    for state in recurrence.states:
        update = symbols.get(state.update)
        known = update is not None and replace(update, time=BEFORE) not in symbols.values()
        own = Symbol(state.name.removesuffix("_prev"), 0, BEFORE)
        symbols[state.name] = replace(update, time=BEFORE) if update and known else own
    return Equations(
        symbols=symbols,
        initial=tuple((s.name, s.initial) for s in recurrence.states),
        steps=tuple(
            Equation(let.name, let.expr, let.surrogate.name if let.surrogate else None, let.where)
            for let in lets
        ),
        outputs=recurrence.outputs,
    )


def _user_name(let: Let) -> str | None:
    """Return the variable that a let is named after, or None where it has a name of ours."""
    variable = variable_of(let.where)
    if variable is None or re.fullmatch(re.escape(variable) + r"(_\d+)?", let.name) is None:
        return None
    return variable


def _inlined(recurrence: Recurrence) -> list[Let]:
    """Return the lets that are shown, with the others written into them."""
    used = Counter(name for let in recurrence.lets for name in names_read(let.expr))
    kept = {*recurrence.outputs, *(s.update for s in recurrence.states)}
    values: dict[str, Expr] = {}
    shown: list[Let] = []
    for let in recurrence.lets:
        expr = substitute(let.expr, values)
        is_part = let.name not in kept and used[let.name] <= 1 and let.surrogate is None
        if is_part and _user_name(let) is None:
            values[let.name] = expr
        else:
            shown.append(replace(let, expr=expr))
    return shown


def number(value: float | bool) -> str:
    """Return a number without a fraction of zero."""
    text = repr(value)
    return text.removesuffix(".0")


TEXT = Dialect(
    operations={
        **IR_DIALECT.operations,
        Op.FLOAT: Spelling("1 if {0} else 0", 5, (15,)),
        Op.POW: Spelling("{0}**{1}", 70, (71, 61)),
    },
    select=Spelling("{1} if {0} else {2}", 5, (15, 6, 5)),
    detach=IR_DIALECT.detach,
    literal=number,
)
