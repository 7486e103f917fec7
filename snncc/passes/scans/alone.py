"""An adjoint as a recurrence of its own, which reads the states that forward kept."""

from __future__ import annotations

from dataclasses import replace

from snncc.ir.nodes import Input, Rank, Recurrence
from snncc.ir.program import Adjoint
from snncc.ir.walk import names_read
from snncc.passes.scans.chunked import needed_lets


def adjoint_alone(forward: Recurrence, adjoint: Adjoint) -> Recurrence:
    """Return an adjoint whose residuals are computed in its step, from inputs and kept states.

    Its inputs are those of the neuron, the states before each step, and the cotangents.
    """
    reverse = adjoint.recurrence
    states = {s.name for s in forward.states}
    again = needed_lets(forward.lets, adjoint.residuals)
    lets = (*(replace(let, surrogate=None) for let in again), *reverse.lets)
    read = {n for let in lets for n in names_read(let.expr)} | {*reverse.outputs}
    read |= {s.update for s in reverse.states}
    residuals = {*adjoint.residuals} | {i.name for i in forward.inputs} | states
    cotangents = [i for i in reverse.inputs if i.name not in residuals]
    inputs = [
        *(i for i in forward.inputs if i.name in read),
        *(Input(s.name, Rank.STEP) for s in forward.states if s.name in read),
        *cotangents,
    ]
    order = sorted(inputs, key=lambda i: i.rank is Rank.LANE)
    return replace(reverse, inputs=tuple(order), lets=lets)


def keeping_states(forward: Recurrence, alone: Recurrence) -> tuple[Recurrence, tuple[str, ...]]:
    """Return a neuron that also returns the states that its adjoint reads, and their names."""
    read = {i.name for i in alone.inputs}
    kept = tuple(s.name for s in forward.states if s.name in read)
    return replace(forward, outputs=tuple(dict.fromkeys((*forward.outputs, *kept)))), kept
