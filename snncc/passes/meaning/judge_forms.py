"""Judge for a neuron the other ways to execute time: which it allows, and why not the rest.

==================  =============================================================================
form                legal where
==================  =============================================================================
fused time          always
fixed point         with all comparisons given, the states are affine in those before
scan                the states are affine in themselves and no spike changes them
parallel reset      after some outcome of its comparisons no state depends on those before
==================  =============================================================================

Legality only: whether a form is worth it is another question.
"""

from __future__ import annotations

from collections.abc import Iterator

from snncc.ir.neuron_class import NeuronClass, Role, StateClass
from snncc.ir.nodes import FixedPoint, ParallelReset, Recurrence, Scan
from snncc.passes.base import Rejection
from snncc.passes.meaning.classify_neurons import classify_neuron
from snncc.passes.meaning.find_feedback import find_feedback, find_nonlinearity
from snncc.passes.parallel.parallelize_reset import restart_of
from snncc.passes.scans.chunked import chunked_scan

NO_FEEDBACK = Rejection("no-feedback", "no comparison feeds back into its states")


def other_forms(recurrence: Recurrence) -> Iterator[tuple[str, Rejection]]:
    """Yield the forms that a neuron does not run in, and why."""
    form = recurrence.form
    scans = isinstance(form, Scan) and form.forward
    if scans or isinstance(form, FixedPoint | ParallelReset):
        yield "fused time", Rejection("not-asked", "legal: mode='fused' asks for it")
    if not isinstance(form, FixedPoint):
        yield "fixed point", _sweeps(recurrence)
    if not isinstance(form, ParallelReset):
        yield "parallel reset", _restart(recurrence)
    if not scans:
        yield "scan", _scan(recurrence, classify_neuron(recurrence))


def _sweeps(recurrence: Recurrence) -> Rejection:
    cuts = find_feedback(recurrence)
    if not cuts:
        return NO_FEEDBACK
    legal = Rejection("not-asked", "legal: mode='fpt' asks for it")
    return find_nonlinearity(recurrence, cuts) or legal


def _restart(recurrence: Recurrence) -> Rejection:
    restart = restart_of(recurrence)
    if isinstance(restart, Rejection):
        return restart
    if restart is None:
        return NO_FEEDBACK
    return Rejection("not-asked", "legal: mode='parallel_reset' asks for it")


def _scan(recurrence: Recurrence, neuron: NeuronClass) -> Rejection:
    found = chunked_scan(recurrence)
    if not isinstance(found, Rejection):
        return Rejection("not-asked", "legal: mode='scan' asks for it")
    changed = [*neuron.resets, *(s for s in neuron.states if s.role is Role.ADAPTATION)]
    if changed:
        return Rejection("reset", f"a spike changes '{_shown(changed[0])}'")
    return found


def _shown(state: StateClass) -> str:
    return state.name.removesuffix("_prev")
