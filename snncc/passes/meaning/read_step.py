"""One step of a recurrence as expressions of its inputs and states, with its decisions set apart.

A decision is a comparison, or a rounding to a whole number: what makes a step more than arithmetic.
Each distinct one becomes a variable (``?0`` a bool, ``#0`` a number), so that the rest is
arithmetic that algebra can judge, once for each outcome.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from snncc.ir.nodes import (
    COMPARISONS,
    Binary,
    Const,
    Detach,
    Expr,
    Op,
    Recurrence,
    Select,
    Unary,
    Var,
)
from snncc.ir.symbolic import equal
from snncc.ir.walk import children, names_read, rebuild, subexpressions, transform
from snncc.passes.meaning.affine import join, reduced, simplified

# Limits beyond which a step is not looked into.
MOST_LETS = 120
MOST_NODES = 3000
MOST_DECISIONS = 6

_WHOLE = frozenset({Op.ROUND, Op.FLOOR, Op.CEIL})
Outcome = Mapping[str, Expr]


class TooLargeError(Exception):
    """The step has more operations or decisions than is worth looking into."""


@dataclass
class Step:
    """One step, read.

    Attributes:
        recurrence: Where it is from.
        values: Every let over inputs, states, decisions and the lets in ``spikes``.
        decisions: The comparison of each bool variable, sides over the same names.
        wholes: The argument of each whole-number variable.
        spikes: The value of each let that has a surrogate gradient; it stays a variable elsewhere.
    """

    recurrence: Recurrence
    values: dict[str, Expr] = field(default_factory=dict)
    decisions: dict[str, Binary] = field(default_factory=dict)
    wholes: dict[str, Unary] = field(default_factory=dict)
    spikes: dict[str, Expr] = field(default_factory=dict)

    def value(self, name: str) -> Expr:
        """Return a let, input or state over inputs, states and decisions alone."""
        plain = simplified(self.values.get(name, Var(name)), self.spikes)
        return transform(plain, _straight_through)

    def argument(self, decision: str) -> Expr:
        """Return what a decision is about: the comparison, or the rounding."""
        return self.decisions.get(decision) or self.wholes[decision]

    @functools.cached_property
    def past_inputs(self) -> frozenset[str]:
        """The states that hold inputs of earlier steps, or functions of them, and nothing else."""
        recurrence = self.recurrence
        known = {*recurrence.step_inputs, *recurrence.lane_inputs}
        reads = {s.name: {*names_read(self.value(s.update))} for s in recurrence.states}
        found: set[str] = set()
        while more := {name for name, read in reads.items() if read <= known | found} - found:
            found |= more
        return frozenset(found)

    def outcomes(self, decisions: Iterable[str]) -> Iterator[Outcome]:
        """Yield every outcome of some decisions; whole numbers stay open.

        Raises:
            TooLargeError: They are too many.
        """
        names = sorted(name for name in decisions if name.startswith("?"))
        if len(names) > MOST_DECISIONS:
            raise TooLargeError
        for bits in itertools.product((False, True), repeat=len(names)):
            yield dict(zip(names, map(Const, bits), strict=True))

    def without_idle(self, expr: Expr) -> Expr:
        """Return an expression without the decisions on which its value does not depend."""
        for name in sorted(d for d in self.decisions_in(expr) if d.startswith("?")):
            others = self.decisions_in(expr) - {name}
            if all(
                equal(*(simplified(expr, {**outcome, name: Const(v)}) for v in (False, True)))
                for outcome in self.outcomes(others)
            ):
                expr = simplified(expr, {name: Const(False)})
        return expr

    def decisions_in(self, expr: Expr) -> frozenset[str]:
        """Return the decisions that an expression reads."""
        return frozenset(n for n in names_read(expr) if n[0] in "?#")


def read_step(recurrence: Recurrence) -> Step:
    """Return the step of a recurrence, read.

    Raises:
        TooLargeError: It has too many operations.
    """
    if len(recurrence.lets) > MOST_LETS:
        raise TooLargeError
    step = Step(recurrence)
    reader = _Reader(step)
    for let in recurrence.lets:
        value = reader.read(let.expr)
        if sum(1 for _ in subexpressions(value)) > MOST_NODES:
            raise TooLargeError
        if let.surrogate is None:
            step.values[let.name] = value
        else:
            step.values[let.name] = Var(let.name)
            step.spikes[let.name] = value
    for name, value in step.spikes.items():  # a spike may be written in terms of another
        step.spikes[name] = simplified(value, step.spikes)
    _resolve(step)
    return step


def _resolve(step: Step) -> None:
    """Replace decisions about a spike (``s > 0``), and those that say the same in other words."""
    known: dict[str, Expr] = {}
    kept: dict[str, Binary] = {}
    for name, decision in step.decisions.items():
        value = simplified(simplified(decision, step.spikes), known)
        if isinstance(value, Binary) and value.op in COMPARISONS:
            same = next((e for n, c in kept.items() if (e := _same(value, n, c))), None)
            if same is None:
                kept[name] = value
                continue
            value = same
        known[name] = value
    step.decisions = kept
    step.values = {n: simplified(e, known) for n, e in step.values.items()}
    step.spikes = {n: simplified(e, known) for n, e in step.spikes.items()}
    for name, whole in step.wholes.items():
        argument = simplified(simplified(whole.arg, step.spikes), known)
        step.wholes[name] = Unary(whole.op, argument)


def _same(decision: Binary, name: str, other: Binary) -> Expr | None:
    """Return a decision in terms of another one about the same difference, or None."""
    if decision.op not in (other.op, OPPOSITE[other.op]):
        return None
    a, b = (join(Op.SUB, d.lhs, d.rhs) for d in (decision, other))
    if not equal(a, b):
        return None
    return Var(name) if decision.op is other.op else Unary(Op.NOT, Var(name))


def _straight_through(expr: Expr) -> Expr:
    """Return ``a`` for ``detach(a - b) + b``: the value, with the gradient of b."""
    match expr:
        case Binary(Op.ADD, Detach(Binary(Op.SUB, a, b)), c) if b == c:
            return a
        case Binary(Op.ADD, c, Detach(Binary(Op.SUB, a, b))) if b == c:
            return a
        case _:
            return expr


class _Reader:
    def __init__(self, step: Step) -> None:
        self.step = step
        self.names: dict[Expr, str] = {}

    def read(self, expr: Expr) -> Expr:
        """Return an expression with lets replaced and decisions named."""
        if isinstance(expr, Var):
            return self.step.values.get(expr.name, expr)
        inner = reduced(rebuild(expr, tuple(self.read(child) for child in children(expr))))
        match inner:
            case Binary(Op.MIN | Op.MAX as op, a, b):
                comparison = Binary(Op.LE if op is Op.MIN else Op.GE, a, b)
                return Select(self.decide(comparison), a, b)
            case Binary(op, _, _) if op in COMPARISONS:
                return self.decide(inner)
            case Unary(op, _) if op in _WHOLE:
                return self.whole(inner)
            case _:
                return inner

    def decide(self, comparison: Binary) -> Expr:
        """Return the variable of a comparison; the opposite of a known one is no new one."""
        opposite = Binary(OPPOSITE[comparison.op], comparison.lhs, comparison.rhs)
        if opposite in self.names:
            return Unary(Op.NOT, Var(self.names[opposite]))
        name = self.names.setdefault(comparison, f"?{len(self.step.decisions)}")
        self.step.decisions[name] = comparison
        return Var(name)

    def whole(self, rounding: Unary) -> Expr:
        name = self.names.setdefault(rounding, f"#{len(self.step.wholes)}")
        self.step.wholes[name] = rounding
        return Var(name)


# Where one holds the other does not, and the reverse, unless a side is no number.
OPPOSITE = {
    Op.LT: Op.GE,
    Op.GE: Op.LT,
    Op.GT: Op.LE,
    Op.LE: Op.GT,
    Op.EQ: Op.NE,
    Op.NE: Op.EQ,
}
