"""The words of a plan for a form and its promise."""

from __future__ import annotations

from typing import assert_never

from snncc.ir.nodes import FixedPoint, Form, FusedTime, ParallelReset, Scan, Sequential
from snncc.ir.numerics import Numerics


def form_text(form: Form) -> str:
    """Return how a form is called in a plan."""
    match form:
        case FixedPoint(sweeps=None):
            return "sweeps until stable"
        case FixedPoint(sweeps, None):
            return f"{sweeps} sweeps"
        case FixedPoint(sweeps, draws=draws):
            return f"{sweeps} soft sweeps{', spikes drawn' if draws else ''}"
        case Scan(forward=True):
            return "scan"
        case Scan():
            return "fused time, backward scan"
        case ParallelReset(backward):
            return f"parallel reset{', backward scan' if backward else ''}"
        case Sequential() | FusedTime():
            return "fused time"
        case _:
            assert_never(form)


def promise_of(form: Form) -> Numerics:
    """Return what a form keeps of the serial results."""
    match form:
        case FixedPoint(sweeps, schedule) if sweeps is not None:
            # With sigmoids in place of thresholds the solution is another neuron's.
            return Numerics.ITERATED if schedule is None else Numerics.SUBSTITUTED
        case Scan(forward=True):
            return Numerics.REASSOCIATED
        case _:
            return Numerics.BITWISE
