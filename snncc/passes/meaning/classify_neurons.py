"""Classify a neuron: its states, its spikes, and the name it is known by.

The step is read as arithmetic and decisions (`read_step`), spikes are the values that decisions
make (`find_spikes`), each state has a charge and a reset (`classify_states`).  What a state is for
follows from who reads it: a membrane is what a threshold looks at, a current drives a membrane, an
adaptation is raised by spikes.  Nothing is claimed that sympy does not confirm; a step that does
not fit is an "elementwise recurrence".
"""

from __future__ import annotations

import functools
from dataclasses import replace

from snncc.ir.neuron_class import Decay, NeuronClass, Reset, Role, SpikeClass, StateClass
from snncc.ir.nodes import Const, Expr, Op, Recurrence, Sequential, Var
from snncc.ir.symbolic import constant, degree, equal
from snncc.ir.walk import names_read, subexpressions
from snncc.passes.meaning.affine import join, simplified
from snncc.passes.meaning.classify_states import classify_state
from snncc.passes.meaning.find_spikes import Spike, find_spikes, is_gated, sides
from snncc.passes.meaning.name_neurons import UNKNOWN, name_neuron
from snncc.passes.meaning.read_step import Step, TooLargeError, read_step
from snncc.passes.meaning.read_update import find_history, read_update

# What a state is for that only holds what others do, or counts steps.
HELD = frozenset({Role.SPIKE, Role.LAST, Role.REFRACTORY})


def classify_neuron(recurrence: Recurrence) -> NeuronClass:
    """Return what a recurrence means as a neuron; never raises, whatever the recurrence is."""
    return _classified(replace(recurrence, name="", form=Sequential()))


@functools.lru_cache(maxsize=1024)
def _classified(recurrence: Recurrence) -> NeuronClass:
    try:
        return _classify(read_step(recurrence))
    except (TooLargeError, RecursionError):
        states = tuple(StateClass(s.name, s.update, Role.OTHER) for s in recurrence.states)
        return NeuronClass(UNKNOWN, states, (), is_affine=False, reason="its step is too large")


def _classify(step: Step) -> NeuronClass:
    spikes = find_spikes(step)
    history = find_history(step, spikes)
    updates = [read_update(step, state, spikes, history) for state in step.recurrence.states]
    states = [classify_state(update) for update in updates]
    fired = [_spike(step, spike, states) for spike in spikes]
    roles = _Roles(step, states, fired)
    states = [_with_role(s, roles.role(s)) for s in states]
    is_affine = _is_affine(states)
    neuron = NeuronClass(UNKNOWN, tuple(states), tuple(fired), is_affine)
    return replace(neuron, name=name_neuron(neuron))


def _with_role(state: StateClass, role: Role) -> StateClass:
    if role is Role.LAST:  # nothing is carried, so nothing is reset
        return StateClass(state.name, state.update, role, is_truncated=state.is_truncated)
    return replace(state, role=role)


def _spike(step: Step, spike: Spike, states: list[StateClass]) -> SpikeClass:
    """Return what a spike means, given the charges of the states."""
    rules = (
        let.surrogate.name
        for let in step.recurrence.lets
        if let.surrogate and step.decisions_in(step.value(let.name)) & spike.decisions
    )
    surrogate = next(rules, None)
    found = SpikeClass(spike.name, spike.kind, spike.levels, surrogate=surrogate)
    counted = next((d for d in sorted(spike.decisions) if d.startswith("#")), None)
    if counted is not None:
        rounded = step.without_idle(step.wholes[counted].arg)
        inside = [e for e in subexpressions(rounded) if not isinstance(e, Const)]
        # From the outside in: a charge is itself made of what other states hold.
        outer = reversed(inside)
        charges = ((s, e) for e in outer for s in states if s.charge and equal(e, s.charge))
        membrane, _ = next(charges, (None, None))
        name = None if membrane is None else membrane.name
        compared = _named(step, step.wholes[counted].arg)
        return replace(found, potential=rounded, compared=compared, membrane=name)
    readings = list(sides(step, spike))
    for potential, comparison, threshold in readings:
        membrane = _membrane(step, spike, potential, threshold, states)
        if membrane is not None:
            names = {s.name for s in states}
            is_adaptive = bool(names & {*names_read(threshold)} or step.decisions_in(threshold))
            return replace(
                found,
                potential=potential,
                comparison=comparison,
                threshold=threshold,
                compared=_named(step, potential),
                membrane=membrane.name,
                is_adaptive=is_adaptive,
                is_gated=is_gated(step, spike),
                is_early=potential == Var(membrane.name),
            )
    if readings:
        potential, comparison, threshold = readings[-2]
        return replace(found, potential=potential, comparison=comparison, threshold=threshold)
    return found


def _named(step: Step, value: Expr) -> str | None:
    """Return the let that has a value, or None."""
    return next((let.name for let in step.recurrence.lets if step.value(let.name) == value), None)


def _membrane(
    step: Step, spike: Spike, potential: Expr, threshold: Expr, states: list[StateClass]
) -> StateClass | None:
    """Return the state whose potential a spike's comparison looks at, apart from the threshold."""
    if not {*names_read(potential)} & {*step.recurrence.step_inputs}:
        return next((state for state in states if potential == Var(state.name)), None)
    outcomes = step.outcomes(spike.decisions)
    quiet = next(o for o in outcomes if constant(simplified(spike.value, o)) == 0.0)
    for state in states:
        before = simplified(step.value(state.update), quiet)
        known = (before,) if state.charge is None else (before, state.charge)
        if state.name not in names_read(threshold) and any(equal(potential, e) for e in known):
            return state
    return None


def _is_affine(states: list[StateClass]) -> bool:
    """Tell whether the states that make the potential are affine in one another together."""
    names = frozenset(s.name for s in states)
    active = [s for s in states if s.role not in HELD]
    return bool(active) and all(
        s.charge is not None and s.is_affine and degree(s.charge, names) in (0, 1) for s in active
    )


class _Roles:
    """Finds out what each state is for, from who reads it."""

    def __init__(self, step: Step, states: list[StateClass], spikes: list[SpikeClass]) -> None:
        self.step = step
        self.states = states
        self.reads = {s.name: self.all_reads(step.value(s.update)) for s in states}
        self.gates = {
            frozenset(names_read(decision))
            for spike in spikes
            for name, decision in step.decisions.items()
            if name in step.decisions_in(step.value(spike.name))
        }
        decays = [s.decay for s in states if s.decay is not None]
        self.gating = {name for decay in decays for name in names_read(decay)}
        thresholds = [s.threshold for s in spikes if s.threshold is not None and s.membrane]
        self.thresholds = {name for e in thresholds for name in names_read(e)}
        self.membranes = {s.membrane for s in spikes if s.membrane is not None}
        if not spikes:
            self.membranes = {s.name for s in states if self.is_potential(s)}

    def all_reads(self, expr: Expr) -> set[str]:
        """Return what an expression reads, also to decide."""
        found = {*names_read(expr)}
        for decision in self.step.decisions_in(expr):
            found |= {*names_read(self.step.argument(decision))}
        return found

    def readers(self, state: StateClass) -> set[str]:
        """Return the other states that read a state."""
        return {n for n, read in self.reads.items() if state.name in read and n != state.name}

    def is_potential(self, state: StateClass) -> bool:
        """Tell whether a state of a neuron that does not spike is what it is for."""
        kept = state.varies not in (Decay.NONE, Decay.UNIT, None)
        return kept and not self.readers(state)

    def role(self, state: StateClass) -> Role:
        """Return what a state is for."""
        if state.role is Role.SPIKE:
            return Role.SPIKE
        if state.name in self.membranes:
            return Role.MEMBRANE
        if state.name in self.step.past_inputs & self.gating:
            return Role.PAST
        if self.counts_down(state):
            return Role.REFRACTORY
        if state.name in self.thresholds or self.is_raised(state):
            return Role.ADAPTATION
        return self.role_by_readers(state)

    def role_by_readers(self, state: StateClass) -> Role:
        if not self.readers(state):
            if state.name not in self.reads[state.name]:
                return Role.LAST
            return Role.SUM if state.varies is Decay.UNIT else Role.OTHER
        if {*state.coupled_to} & self.membranes:
            return Role.PARTNER
        if self.is_driven(state, set()) and self.drives_a_membrane(state, set()):
            return Role.CURRENT
        return Role.OTHER

    def drives_a_membrane(self, state: StateClass, seen: set[str]) -> bool:
        """Tell whether a state is part of the charge of a membrane, directly or through another."""
        if state.varies in (None, Decay.STATE):
            return False
        driven = [s for s in self.states if state.name in s.coupled_to and s.name not in seen]
        return any(
            s.name in self.membranes or self.drives_a_membrane(s, seen | {state.name})
            for s in driven
        )

    def is_driven(self, state: StateClass, seen: set[str]) -> bool:
        """Tell whether an input reaches the charge of a state."""
        if state.charge is None or state.name in seen:
            return False
        if {*self.step.recurrence.step_inputs} & {*names_read(state.charge)}:
            return True
        sources = [s for s in self.states if s.name in state.coupled_to]
        return any(self.is_driven(s, seen | {state.name}) for s in sources)

    def is_raised(self, state: StateClass) -> bool:
        """Tell whether spikes add to a state that another one reads."""
        value = None if state.amount is None else constant(state.amount)
        return (
            bool(self.readers(state))
            and value is not None
            and value < 0.0
            and (state.reset is Reset.SUBTRACT)
        )

    def counts_down(self, state: StateClass) -> bool:
        """Tell whether a state gets smaller by itself and, until it is small, forbids spikes."""
        if frozenset({state.name}) not in self.gates:
            return False
        update = self.step.value(state.update)
        outcomes = self.step.outcomes(self.step.decisions_in(update))
        steps = (constant(join(Op.SUB, Var(state.name), simplified(update, o))) for o in outcomes)
        return any(step is not None and step > 0.0 for step in steps)
