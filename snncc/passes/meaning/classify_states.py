"""Classify one state: its charge while nothing fires, and what a spike does to it.

The update of a state is looked at for every outcome of the decisions in it::

    no spike:   v' = decay * v + drive          the charge
    spike:      v' = value                      hard reset
                v' = charge - amount * spike    subtractive reset
                v' = threshold                  clip, where the spike is what lies above (P2)

Coefficients are split off the user's own expression; sympy confirms that they make the whole, and
that what is said to be equal is equal.
"""

from __future__ import annotations

from dataclasses import replace

from snncc.ir.neuron_class import Decay, Reset, Role, StateClass, Values
from snncc.ir.nodes import Const, Expr, Op, Unary, Var
from snncc.ir.symbolic import constant, degree, equal
from snncc.ir.walk import names_read
from snncc.passes.meaning.affine import ZERO, join, simplified, split
from snncc.passes.meaning.find_spikes import sides
from snncc.passes.meaning.read_update import Update


def classify_state(update: Update) -> StateClass:
    """Return what a state means; the role is left open where it does not hold a spike."""
    state = update.state
    role = Role.SPIKE if state.name in update.history.memories else Role.OTHER
    found = StateClass(state.name, state.update, role, is_truncated=update.is_truncated)
    if role is Role.SPIKE:
        return found
    charges = [simplified(update.expr, outcome) for outcome in update.outcomes(fired=False)]
    is_one = bool(charges) and all(equal(charges[0], other) for other in charges)
    # A rounding in the charge is a decision too, and depends on what algebra cannot see.
    if is_one and not update.step.decisions_in(charges[0]):
        found = _charged(update, replace(found, charge=charges[0]))
    if not update.reset_by:
        return found
    found = _reset(update, found)
    if found.reset is Reset.NONE:
        return found
    return replace(found, is_delayed=not update.involved, is_detached=update.is_detached)


def _charged(update: Update, found: StateClass) -> StateClass:
    """Split the charge into decay and drive, where sympy confirms that they make it."""
    charge = found.charge or ZERO
    read = {*names_read(charge)}
    coupled = tuple(s.name for s in update.step.recurrence.states if s.name in read - {found.name})
    found = replace(found, coupled_to=coupled)
    parts = split(charge, found.name)
    if parts is None:
        return found
    decay, drive = parts
    if not equal(join(Op.ADD, join(Op.MUL, decay, Var(found.name)), drive), charge):
        return found
    found = replace(found, decay=decay, drive=drive, varies=_variation(update, decay, drive))
    driven_by = update.inputs & {*names_read(drive)}
    if len(driven_by) == 1:
        (source,) = driven_by
        parts = split(drive, source)
        if parts is not None and degree(parts[0], update.names | update.inputs) == 0:
            return replace(found, driven_by=source, gain=parts[0])
    return found


def _variation(update: Update, decay: Expr, drive: Expr) -> Decay:
    read = {*names_read(decay)}
    value = constant(decay)
    if value is not None:
        return {0.0: Decay.NONE, 1.0: Decay.UNIT}.get(value, Decay.CONSTANT)
    past = update.step.past_inputs
    if read & update.names - past or update.step.decisions_in(decay):
        return Decay.STATE
    if read & (update.inputs | past):
        driven_by = update.inputs & {*names_read(drive)}
        return Decay.INPUT if driven_by and driven_by <= read else Decay.STEP
    return Decay.LANE


def _reset(update: Update, found: StateClass) -> StateClass:
    """Compare what the update is where a spike fires with the charge, where there is one."""
    counts = sorted(d for d in update.reset_by if d.startswith("#"))
    if counts:
        return _subtracted_by_count(update, found, counts)
    results = [simplified(update.expr, outcome) for outcome in update.outcomes(fired=True)]
    if any(update.step.decisions_in(result) for result in results):
        return replace(found, reset=Reset.OTHER)
    if found.charge is not None and all(equal(result, found.charge) for result in results):
        return found
    is_one = bool(results) and all(equal(results[0], result) for result in results)
    value = _clipped_to(update, results[0]) if is_one else None
    if value is not None:
        return replace(found, reset=Reset.CLIP, amount=value)
    value = _reset_value(update, found, results[0]) if is_one else None
    if value is not None:
        return replace(found, reset=Reset.HARD, amount=value)
    amount = None if found.charge is None else _subtracted(update, found.charge)
    if amount is not None:
        return replace(found, reset=Reset.SUBTRACT, amount=amount)
    return replace(found, reset=Reset.OTHER)


def _clipped_to(update: Update, result: Expr) -> Expr | None:
    """Return the threshold of a graded spike, where that is what it leaves."""
    graded = [s for s in update.involved if s.kind is Values.GRADED]
    thresholds = (threshold for s in graded for _, _, threshold in sides(update.step, s))
    return next((t for t in thresholds if equal(t, result)), None)


def _reset_value(update: Update, found: StateClass, result: Expr) -> Expr | None:
    """Return the value of a hard reset; one of the step before is followed by a charge."""
    moving = update.names | update.inputs
    if degree(result, moving) == 0:
        return _spelled(update, result)
    if update.involved or found.drive is None:
        return None
    rest = join(Op.SUB, result, found.drive)
    return _spelled(update, rest) if degree(rest, moving) == 0 else None


def _subtracted(update: Update, charge: Expr) -> Expr | None:
    """Return what each spike takes away, where that is the same amount for each."""
    amounts = []
    for outcome in update.outcomes(fired=True):
        taken = join(Op.SUB, charge, simplified(update.expr, outcome))
        units = [constant(simplified(s.value, outcome)) for s in update.involved]
        unit = units[0] if len(units) == 1 else None
        amounts.append(taken if unit is None else join(Op.DIV, taken, Const(unit)))
    fixed = degree(amounts[0], frozenset({update.state.name})) == 0
    if not fixed or not all(equal(amounts[0], other) for other in amounts):
        return None
    amount = _spelled(update, amounts[0])
    return None if update.inputs & {*names_read(amount)} else amount


def _subtracted_by_count(update: Update, found: StateClass, counts: list[str]) -> StateClass:
    """Recognise a reset in proportion to a spike that counts."""
    other = replace(found, reset=Reset.OTHER)
    parts = split(update.expr, counts[0]) if len(counts) == 1 else None
    if parts is None or found.charge is None or not equal(parts[1], found.charge):
        return other
    amount = _spelled(update, simplified(Unary(Op.NEG, parts[0])))
    is_fixed = degree(amount, update.names | update.inputs) == 0
    return replace(found, reset=Reset.SUBTRACT, amount=amount) if is_fixed else other


def _spelled(update: Update, amount: Expr) -> Expr:
    """Return an amount as the user wrote it, where that can be told."""
    value = constant(amount)
    if value is not None:
        return Const(value)
    known = [threshold for s in update.spikes for _, _, threshold in sides(update.step, s)]
    known += [Var(name) for name in update.step.recurrence.lane_inputs]
    return next((e for e in known if equal(e, amount)), amount)
