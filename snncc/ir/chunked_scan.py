"""A recurrence whose time is cut into chunks that run side by side.

With ``s`` the states, each chunk is an affine map of what it starts from::

    summary   (A, b) of each chunk:  s after it = A (s before it) + b
    carry     one short recurrence over the chunks: what each of them starts from
    apply     the recurrence itself on every chunk, from there

All of them are recurrences: chunks are lanes to `summary` and `apply`, and steps to `carry`.
"""

from __future__ import annotations

from dataclasses import dataclass

from snncc.ir.nodes import Recurrence


@dataclass(frozen=True, slots=True)
class Factor:
    """One entry of the matrix ``A``: the final ``name`` of a summary; the others are zero."""

    name: str
    into: str
    source: str


@dataclass(frozen=True, slots=True)
class ChunkedScan:
    """The parts of a scan over chunks of time.

    Attributes:
        whole: The recurrence, run from the first step to the last.
        linear: States that are affine in one another: what chunks start from is found by `carry`.
        delays: States that depend on the last few inputs alone, found by `lookback`.
        sums: States that only add up what the others give: each chunk adds up its own part.
        starts: For each state the LANE input of `apply` that it starts from.
        anchor: A LANE input of every part that nothing reads; its shape is that of the lanes.
        apply: The recurrence, from given states; its finals are all states and the peaks.
        peaks: For each linear state the final of `apply` that holds its largest magnitude.
        summary: Its finals are the offsets ``b`` under the names of the linear states, and the
            factors; None where there are no linear states.
        carry: Its STEP inputs are the finals of `summary`; its outputs are the linear states after
            each chunk.
        lookback: The delays alone; as many steps of it as there are delays give their values.
        factors: The entries of ``A`` that are not zero for every chunk of `least` steps.
        least: The fewest steps of a chunk.
    """

    whole: Recurrence
    linear: tuple[str, ...]
    delays: tuple[str, ...]
    sums: tuple[str, ...]
    starts: tuple[tuple[str, str], ...]
    anchor: str
    apply: Recurrence
    peaks: tuple[str, ...]
    summary: Recurrence | None
    carry: Recurrence | None
    lookback: Recurrence | None
    factors: tuple[Factor, ...]
    least: int

    @property
    def carry_inputs(self) -> tuple[str, ...]:
        """The STEP inputs of `carry`, in the order of the finals of `summary`."""
        return () if self.carry is None else self.carry.step_inputs


@dataclass(frozen=True, slots=True)
class ScanPrograms:
    """What a neuron in scan form runs.

    Attributes:
        forward: The neuron by chunks; None where it runs from the first step to the last.
        training: The same, and the states before each step as further outputs.
        keeping: The neuron with these outputs, from the first step to the last.
        kept: The names of these outputs.
        backward: Its adjoint by chunks, which reads them; None where that is not affine.
    """

    forward: ChunkedScan | None = None
    training: ChunkedScan | None = None
    keeping: Recurrence | None = None
    kept: tuple[str, ...] = ()
    backward: ChunkedScan | None = None
