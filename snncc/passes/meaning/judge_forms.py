"""Which other ways to execute time a neuron would allow, and why the others do not apply.

==================  =============================================================================
form                legal where
==================  =============================================================================
fused time          always
fixed point         with all comparisons given, the states are affine in those before
scan                the states are affine in themselves and no spike changes them
next-spike map      one membrane that each spike sets to a value, whatever its potential was
==================  =============================================================================

Legality only: whether a form is worth it is another question.
"""

from __future__ import annotations

from collections.abc import Iterator

from snncc.ir.neuron_class import NeuronClass, Reset, Role, StateClass
from snncc.ir.nodes import FixedPoint, Recurrence, Scan
from snncc.passes.base import Rejection
from snncc.passes.meaning.classify_neurons import classify_neuron
from snncc.passes.meaning.find_feedback import find_feedback, find_nonlinearity
from snncc.passes.scans.chunked import chunked_scan

NOT_BUILT = Rejection("not-built", "legal here, but not part of this version")


def other_forms(recurrence: Recurrence) -> Iterator[tuple[str, Rejection]]:
    """Yield the forms that a neuron does not run in, and why."""
    scans = isinstance(recurrence.form, Scan) and recurrence.form.forward
    if scans or isinstance(recurrence.form, FixedPoint):
        yield "fused time", Rejection("not-asked", "legal: mode='fused' asks for it")
    if not isinstance(recurrence.form, FixedPoint):
        yield "fixed point", _sweeps(recurrence)
    neuron = classify_neuron(recurrence)
    if not scans:
        yield "scan", _scan(recurrence, neuron)
    jump = can_jump(neuron)
    yield "next-spike map", NOT_BUILT if jump is None else jump


def _sweeps(recurrence: Recurrence) -> Rejection:
    cuts = find_feedback(recurrence)
    if not cuts:
        return Rejection("no-feedback", "no comparison feeds back into its states")
    legal = Rejection("not-asked", "legal: mode='fpt' asks for it")
    return find_nonlinearity(recurrence, cuts) or legal


def _scan(recurrence: Recurrence, neuron: NeuronClass) -> Rejection:
    found = chunked_scan(recurrence)
    if not isinstance(found, Rejection):
        return Rejection("not-asked", "legal: mode='scan' asks for it")
    changed = [*neuron.resets, *(s for s in neuron.states if s.role is Role.ADAPTATION)]
    if changed:
        return Rejection("reset", f"a spike changes '{_shown(changed[0])}'")
    return found


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
