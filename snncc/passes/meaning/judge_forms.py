"""Which other ways to execute time a neuron would allow, and why the others do not apply.

==================  =============================================================================
form                legal where
==================  =============================================================================
fused time          always
fixed point         with all comparisons given, the states are affine in those before
parallel scan       the states are affine in themselves and no spike changes them
next-spike map      one membrane that each spike sets to a value, whatever its potential was
==================  =============================================================================

Legality only: whether a form is worth it is another question.
"""

from __future__ import annotations

from collections.abc import Iterator

from snncc.ir.neuron_class import NeuronClass, Reset, Role, StateClass
from snncc.ir.nodes import FixedPoint, Recurrence
from snncc.passes.base import Rejection
from snncc.passes.meaning.classify_neurons import classify_neuron
from snncc.passes.meaning.find_feedback import find_feedback, find_nonlinearity

NOT_BUILT = Rejection("not-built", "legal here, but not part of this version")


def other_forms(recurrence: Recurrence) -> Iterator[tuple[str, Rejection]]:
    """Yield the forms that a neuron does not run in, and why."""
    if isinstance(recurrence.form, FixedPoint):
        yield "fused time", Rejection("not-asked", "legal: mode='fused' asks for it")
    else:
        yield "fixed point", _sweeps(recurrence)
    neuron = classify_neuron(recurrence)
    scan, jump = can_scan(neuron), can_jump(neuron)
    yield "parallel scan", NOT_BUILT if scan is None else scan
    yield "next-spike map", NOT_BUILT if jump is None else jump


def _sweeps(recurrence: Recurrence) -> Rejection:
    cuts = find_feedback(recurrence)
    if not cuts:
        return Rejection("no-feedback", "no comparison feeds back into its states")
    legal = Rejection("not-asked", "legal: mode='fpt' asks for it")
    return find_nonlinearity(recurrence, cuts) or legal


def can_scan(neuron: NeuronClass) -> Rejection | None:
    """Return why the states cannot be found by a parallel scan, or None where they can."""
    changed = [*neuron.resets, *(s for s in neuron.states if s.role is Role.ADAPTATION)]
    if changed:
        return Rejection("reset", f"a spike changes '{_shown(changed[0])}'")
    if not neuron.is_affine:
        return Rejection("nonlinear-state", "its charge is not proven affine in its states")
    return None


def can_jump(neuron: NeuronClass) -> Rejection | None:
    """Return why the steps between spikes are not independent of what came before, or None."""
    if not neuron.spikes:
        return Rejection("no-spike", "it does not spike")
    if len(neuron.membranes) != 1 or len(neuron.spikes) != 1:
        return Rejection("not-understood", "it is not one membrane with one threshold")
    (membrane,) = neuron.membranes
    if membrane.reset is not Reset.HARD:
        return Rejection("no-hard-reset", f"its reset is '{membrane.reset.value}', not 'hard'")
    memory = [s for s in neuron.states if s.role in (Role.ADAPTATION, Role.REFRACTORY)]
    if memory:
        return Rejection("memory", f"'{_shown(memory[0])}' remembers earlier spikes")
    if neuron.spikes[0].is_early:
        return Rejection("memory", "it fires by what the step before left")
    if neuron.spikes[0].is_gated:
        return Rejection("memory", f"something else can forbid '{neuron.spikes[0].name}'")
    return None


def _shown(state: StateClass) -> str:
    return state.name.removesuffix("_prev")
