"""Find where spikes feed back into states, and whether these are affine once spikes are given.

A let is *cut* where it compares and the states depend on it.  With all cut lets given, a step of
most neurons is affine in its states: nothing waits for a comparison any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from snncc.ir.nodes import Let, Recurrence
from snncc.ir.walk import bool_lets, let_reads
from snncc.passes.base import Rejection
from snncc.passes.meaning.affine import degree_in


def find_feedback(forward: Recurrence) -> tuple[str, ...]:
    """Return the lets that compare and whose result the states depend on, in order."""
    bools = bool_lets(forward.lets)
    compares = {let.name for let in forward.lets if _compares(let, bools)}
    reads = {let.name: let_reads(replace(let, surrogate=None)) for let in forward.lets}
    reached: set[str] = set()
    pending = [state.update for state in forward.states]
    while pending:
        name = pending.pop()
        if name not in reached and name in reads:
            reached.add(name)
            # What a comparison compares feeds back through the comparison alone.
            pending += [] if name in compares else reads[name]
    return tuple(let.name for let in forward.lets if let.name in reached & compares)


def _compares(let: Let, bools: frozenset[str]) -> bool:
    """Tell whether a let is a spike: a bool, or a number with a gradient of its own."""
    return let.name in bools or let.surrogate is not None


def find_nonlinearity(forward: Recurrence, cuts: Iterable[str]) -> Rejection | None:
    """Return why the states are not affine in the states before, the cut lets given.

    A state that follows from given lets alone, such as the spike of the step before, is given too.
    """
    given, names = frozenset(cuts), {state.name for state in forward.states}
    known: set[str] = set()
    while True:
        degrees = _degrees(forward, given, names - known)
        follow = {state.name for state in forward.states if degrees[state.update] == 0}
        if follow <= known:
            break
        known |= follow
    for state in forward.states:
        degree = degrees[state.update]
        if degree is None or degree > 1:
            return Rejection(
                "nonlinear-state",
                f"the next '{state.name}' is not affine in the states, even with spikes given",
                state.where or forward.where,
            )
    return None


def _degrees(
    forward: Recurrence, given: frozenset[str], open_states: set[str]
) -> dict[str, int | None]:
    """Return the degree of every name in the states that are not given."""
    degrees: dict[str, int | None] = {i.name: 0 for i in forward.inputs}
    degrees |= {s.name: int(s.name in open_states) for s in forward.states}
    for let in forward.lets:
        degrees[let.name] = 0 if let.name in given else degree_in(let.expr, degrees)
    return degrees
