"""Find the values of a step that are spikes: zero or not by a decision about the potential.

A spike is a let that takes, whatever the potential is otherwise, one of a few values of which 0 is
one (binary, ternary, scaled by a parameter), a whole number (rounded), or 0 below a threshold and
what is above it elsewhere (graded).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from snncc.ir.neuron_class import Values
from snncc.ir.nodes import Binary, Const, Expr, Op, Unary
from snncc.ir.symbolic import constant, equal
from snncc.ir.walk import bool_lets, names_read
from snncc.passes.meaning.affine import ONE, ZERO, join, number, simplified
from snncc.passes.meaning.read_step import OPPOSITE, Outcome, Step


@dataclass(frozen=True, slots=True)
class Spike:
    """A let that is a spike.

    Attributes:
        name: The let.
        value: What it is over inputs, states and decisions.
        kind: What it can be.
        levels: Its values other than 0, where they are numbers.
        decisions: The decisions that it depends on.
    """

    name: str
    value: Expr
    kind: Values
    levels: tuple[float, ...]
    decisions: frozenset[str]


def find_spikes(step: Step) -> tuple[Spike, ...]:
    """Return the spikes of a step: those that leave it, and others that change a state."""
    found = list(_candidates(step))
    chosen = [s for s in found if s.name in step.recurrence.outputs]
    # Of spikes that are computed from one another the last counts, and no spike is "no spike".
    for spike in reversed(found):
        known = {d for s in chosen for d in s.decisions}
        if (
            not spike.decisions & known
            and _changes_a_state(step, spike)
            and not any(_is_opposite(spike, other) for other in found)
        ):
            chosen.append(spike)
    return tuple(sorted(chosen, key=found.index))


def _is_opposite(spike: Spike, other: Spike) -> bool:
    return (
        spike.kind is Values.BINARY
        and spike.name != other.name
        and spike.decisions == other.decisions
        and equal(spike.value, join(Op.SUB, ONE, other.value))
        and isinstance(spike.value, Binary)
    )


def _changes_a_state(step: Step, spike: Spike) -> bool:
    """Tell whether a spike is decided by this step's input and changes a state."""
    changed = {d for s in step.recurrence.states for d in step.decisions_in(step.value(s.update))}
    asked = {n for d in spike.decisions for n in names_read(step.argument(d))}
    return bool(spike.decisions & changed) and bool(asked & {*step.recurrence.step_inputs})


def _candidates(step: Step) -> Iterator[Spike]:
    states = {s.name for s in step.recurrence.states}
    bools = bool_lets(step.recurrence.lets)
    for let in step.recurrence.lets:
        value = step.value(let.name)
        if let.name in bools:
            if let.name not in step.recurrence.outputs:
                continue
            value = simplified(Unary(Op.FLOAT, value))
        decisions = step.decisions_in(value)
        asked = {n for d in decisions for n in names_read(step.argument(d))}
        if any(n in states or n[0] in "?#" for n in asked):
            spike = _judged(step, Spike(let.name, value, Values.BINARY, (), decisions))
            if spike is not None:
                yield spike


def _judged(step: Step, spike: Spike) -> Spike | None:
    """Return a candidate with what it can be, or None where it is no spike."""
    results = (simplified(spike.value, outcome) for outcome in step.outcomes(spike.decisions))
    seen = {e if (n := constant(e)) is None else Const(n) for e in results}
    numbers = {number(value) for value in seen}
    lanes = {*step.recurrence.lane_inputs}
    wholes = {d for d in spike.decisions if d.startswith("#")}
    if wholes and all({*names_read(value)} <= wholes | lanes for value in seen):
        return replace(spike, kind=Values.INTEGER)
    if len(seen) < 2 or 0.0 not in numbers:
        return None
    if all({*names_read(value)} <= lanes for value in seen):
        kind = _kind_of(numbers, len(seen))
        levels = () if None in numbers else tuple(sorted(v for v in numbers if v))
        return None if kind is None else replace(spike, kind=kind, levels=levels)
    if len(seen) == 2 and any(_is_excess(step, d, seen) for d in spike.decisions):
        return replace(spike, kind=Values.GRADED)
    return None


def _kind_of(numbers: set[float | None], values: int) -> Values | None:
    """Return what a value can be that takes a few values, some of them numbers."""
    levels = numbers - {0.0}
    if levels == {1.0}:
        return Values.BINARY
    if levels <= {-1.0, 1.0}:
        return Values.TERNARY
    if len(levels) == 1:
        return Values.SCALED if values == 2 else None
    if None in levels:
        return None
    return Values.INTEGER if all(float(v or 0).is_integer() for v in levels) else Values.GRADED


def _is_excess(step: Step, decision: str, seen: set[Expr]) -> bool:
    """Tell whether the value that is not 0 is what lies above the threshold of a decision.

    Without a threshold it is the positive part of a potential, which is no spike.
    """
    comparison = step.decisions.get(decision)
    if comparison is None:
        return False
    (value,) = (v for v in seen if v != ZERO)
    excess = join(Op.SUB, comparison.lhs, comparison.rhs)
    has_threshold = isinstance(excess, Binary) and excess.op is Op.SUB
    return has_threshold and (equal(value, excess) or equal(value, join(Op.SUB, ZERO, excess)))


def firing(step: Step, spike: Spike) -> Binary | None:
    """Return the comparison about this step's input that alone makes a spike fire (upwards).

    Other decisions may forbid it, as a refractory period does.  A spike that no input decides is
    fired by a comparison about what the step before left.
    """
    compared = [d for d in sorted(spike.decisions) if d.startswith("?")]
    inputs = {*step.recurrence.step_inputs}
    about_input = [d for d in compared if {*names_read(step.decisions[d])} & inputs] or compared
    for outcome in step.outcomes(spike.decisions):
        if constant(simplified(spike.value, outcome)) != 0.0:
            continue
        for decision in about_input:
            flipped = Const(outcome[decision] == Const(False))
            fired = constant(simplified(spike.value, {**outcome, decision: flipped}))
            without = {decision: outcome[decision]}
            if (fired is None or fired > 0.0) and _is_silent(step, spike, without):
                comparison = step.decisions[decision]
                op = comparison.op if flipped.value else OPPOSITE[comparison.op]
                return Binary(op, comparison.lhs, comparison.rhs)
    return None


def _is_silent(step: Step, spike: Spike, without: Outcome) -> bool:
    """Tell whether a spike is never above 0 where one decision has a given outcome."""
    for outcome in step.outcomes(spike.decisions):
        value = constant(simplified(spike.value, {**outcome, **without}))
        if value is None or value > 0.0:
            return False
    return True


def is_gated(step: Step, spike: Spike) -> bool:
    """Tell whether a spike can be 0 although the comparison that makes it fire holds."""
    fires = firing(step, spike)
    if fires is None or spike.kind is Values.TERNARY:
        return False
    for name in (d for d in spike.decisions if d.startswith("?")):
        decision = step.decisions[name]
        if (decision.lhs, decision.rhs) != (fires.lhs, fires.rhs):
            continue
        holds = {name: Const(decision.op is fires.op)}
        results = (simplified(spike.value, {**o, **holds}) for o in step.outcomes(spike.decisions))
        return any(constant(result) == 0.0 for result in results)
    return False


def sides(step: Step, spike: Spike) -> Iterator[tuple[Expr, Op, Expr]]:
    """Yield the ways to read a spike's comparison as potential, operator and threshold."""
    fires = firing(step, spike)
    if fires is None:
        return
    op, lhs, rhs = fires.op, fires.lhs, fires.rhs
    if rhs == ZERO and isinstance(lhs, Binary) and lhs.op is Op.SUB:
        yield lhs.lhs, op, lhs.rhs
        yield lhs.rhs, MIRROR[op], lhs.lhs
    yield lhs, op, rhs
    yield rhs, MIRROR[op], lhs


# What a comparison is with its sides exchanged.
MIRROR = {
    Op.LT: Op.GT,
    Op.GT: Op.LT,
    Op.LE: Op.GE,
    Op.GE: Op.LE,
    Op.EQ: Op.EQ,
    Op.NE: Op.NE,
}
