"""The result of all passes on a neuron: a recurrence, its adjoint, what is stored between."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from snncc.ir.chunked_scan import ScanPrograms
from snncc.ir.nodes import Let, Recurrence, State


@dataclass(frozen=True, slots=True)
class Adjoint:
    """The reverse-time recurrence that computes the gradients of a forward recurrence.

    ``recurrence`` runs from T-1 down to 0.  Its STEP inputs are the cotangents of the forward
    outputs and the ``residuals``: forward names (step inputs, states *before* the step, lets) whose
    values at the same step the adjoint reads.  Its LANE inputs are forward lane inputs under their
    own names and the cotangents of the forward finals.  Its outputs are the gradients of the
    forward step inputs, and its finals the gradients of the forward lane inputs.

    Attributes:
        recurrence: The adjoint itself.
        residuals: Forward names that are STEP inputs of ``recurrence``, under the same name.
        output_cotangents: For each forward output the STEP input that holds its cotangent.
        final_cotangents: For each forward final the LANE input that holds its cotangent.
        step_gradients: For each forward step input the output name of its gradient, or None.
        lane_gradients: For each forward lane input the finals whose sum is its gradient.
    """

    recurrence: Recurrence
    residuals: tuple[str, ...]
    output_cotangents: tuple[str, ...]
    final_cotangents: tuple[str, ...]
    step_gradients: tuple[str | None, ...]
    lane_gradients: tuple[tuple[str, ...], ...]


class Place(Enum):
    """Where the values live that the reverse sweep needs from the forward sweep."""

    SCRATCH = "scratch"  # not kept: the backward kernel runs forward again, tile by tile, in cache
    MEMORY = "memory"  # written by the forward kernel, one value for each step and lane


@dataclass(frozen=True, slots=True)
class Storage:
    """What connects the forward sweep to the reverse sweep.

    Attributes:
        place: Recomputed into a cache-sized scratch, or stored in memory.
        saved: Forward states (their value before the step) and lets kept for each step and lane.
            A bool takes one bit in memory.
        recomputed: Forward lets evaluated again in each reverse step, in order of evaluation, from
            ``saved``, the inputs and one another; together they cover the adjoint's residuals.
    """

    place: Place
    saved: tuple[str, ...]
    recomputed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Guess:
    """A value that a sweep takes as given at each step.

    Attributes:
        name: The name under which lets read it.
        found: The let that tells what it should have been.
        is_bool: Whether it is a bool; else a float.
    """

    name: str
    found: str
    is_bool: bool


@dataclass(frozen=True, slots=True)
class GuessedStep:
    """The step of a neuron that takes its own spikes as given: one sweep of a fixed-point form.

    Attributes:
        lets: The step, in order of evaluation; it has the outputs of the neuron.
        states: The states of the neuron, their updates computed from the guesses.
        guesses: What is given.
    """

    lets: tuple[Let, ...]
    states: tuple[State, ...]
    guesses: tuple[Guess, ...]


@dataclass(frozen=True, slots=True)
class Restart:
    """The programs of a form that runs chunks of time at once.

    Attributes:
        guess: The neuron, restarted at the first step that it is given, whatever it is given there.
            It has no outputs; its first finals are the states of the neuron.
        chunk: The neuron from any states.  Its lane inputs are those of the neuron, then a value
            for each state; its outputs are those of the neuron, its finals all its states.
        keeping: The same, and the states that a backward scan reads as further outputs.
    """

    guess: NeuronProgram
    chunk: NeuronProgram
    keeping: NeuronProgram | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a neuron probably takes in one form, for the sizes that it was recorded with.

    Attributes:
        form: The form, as in a plan.
        seconds: How long; None where that is not known.
        reason: What to say about it.
    """

    form: str
    seconds: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class NeuronProgram:
    """One neuron layer, ready for code generation.

    ``adjoint`` and ``storage`` are None where the layer can only be run without gradients.
    ``constant`` names the outputs and finals that require no gradients even where inputs do.
    ``sweep`` is the step that a fixed-point form repeats until it finds what it was given.
    ``restart`` holds the programs of a parallel-reset form.
    ``inexact`` says why results may differ from torch's in the last place though every operation
    rounds as written.  ``most_steps`` is the largest T for which integers are held exactly.
    ``result`` is the type of outputs and finals; None stands for that of the inputs.
    ``narrow`` names outputs that are written in a type of their own.
    ``stands_for`` says which neuron the user wrote where this is another one.
    ``written`` is the recurrence of the user where ``forward`` is a chain of sweeps over it.
    ``scan`` is what a scan form runs.
    ``estimates`` are the forms that were compared, the chosen one first.
    """

    forward: Recurrence
    adjoint: Adjoint | None = None
    storage: Storage | None = None
    constant: frozenset[str] = frozenset()
    sweep: GuessedStep | None = None
    restart: Restart | None = None
    inexact: str = ""
    most_steps: int | None = None
    result: torch.dtype | None = None
    narrow: tuple[tuple[str, torch.dtype], ...] = ()
    stands_for: str = ""
    written: Recurrence | None = None
    scan: ScanPrograms | None = None
    estimates: tuple[Estimate, ...] = ()

    @property
    def without_gradient(self) -> tuple[int, ...]:
        """Positions among outputs and finals of the results that require no gradients."""
        if not self.constant:
            return ()
        results = (*self.forward.outputs, *self.forward.finals)
        return tuple(i for i, name in enumerate(results) if name in self.constant)
