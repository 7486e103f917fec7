"""Kernel IR: what one kernel does for a tile of lanes, in whatever language it is written.

A kernel is one or two `Sweep`s over time.  Each sweep runs one `Step`, a straight line of scalar
code for one lane, at every time step.  Nothing here says how lanes are spread over threads and
vector registers: that is the target's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from snncc.codegen.base import Argument, FloatType
from snncc.ir.nodes import Const, Let, Var


@dataclass(frozen=True, slots=True)
class Load:
    """Read a value of this step and lane: ``name`` from an argument, or from the scratch.

    ``after`` names a carry in the scratch whose value before the *next* step is read instead.
    """

    name: str
    argument: Argument | None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """Write the value ``name`` of this step and lane to an argument, or to the scratch."""

    name: str
    argument: Argument | None


@dataclass(frozen=True, slots=True)
class Carry:
    """A value that a sweep carries from step to step.

    Attributes:
        name: Its value before the step.
        update: The name of its value after the step.
        initial: Its value before the first step: a number, or a LANE input by its IR name.
    """

    name: str
    update: str
    initial: Const | Var


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The value of a carry at the start of each chunk of time but the first, in an argument."""

    name: str
    argument: Argument


@dataclass(frozen=True, slots=True)
class Step:
    """One time step of one lane: loads, then lets in order, then stores and the new carries."""

    loads: tuple[Load, ...]
    carries: tuple[Carry, ...]
    lets: tuple[Let, ...]
    bools: frozenset[str]
    stores: tuple[Store, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A step at every time step.

    Attributes:
        name: What it does, in one word.
        step: The step.
        finals: Carries whose value after the last step is written, by their argument's ``value``.
        backwards: Whether it runs against the direction of the forward recurrence.
    """

    name: str
    step: Step
    finals: tuple[Store, ...] = ()
    backwards: bool = False


@dataclass(frozen=True, slots=True)
class Solve:
    """Sweeps over a chunk of time, repeated until each finds what it was given.

    The first of a chunk is given zeros.  A sweep reads a guess and writes what it found in its
    place under two names; they are no arrays of the caller, and packed where they are bools.

    Attributes:
        sweep: What is repeated.
        guesses: Its guesses as the sweeps read them.
        counts: Where the number of sweeps is written.
    """

    sweep: Sweep
    guesses: tuple[Argument, ...]
    counts: Argument

    def place(self, argument: Argument) -> int:
        """Return the number of a guess among those of its kind, as it is read or written."""
        kind = [g.value for g in self.guesses if g.packed == argument.packed]
        return kind.index(argument.value)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One generated function.

    Attributes:
        name: A C identifier.
        comment: The IR text of what it computes, for the reader.
        dtype: The working type.
        arguments: Every array, in order.
        recompute: The forward sweep that fills the scratch, in kernels that have one.
        advance: The same sweep without stores: it only moves the carries.
        main: The sweep that writes the results.
        scratch: The names of the values that ``recompute`` leaves to ``main``, in order.
        checkpoints: Carries that a forward kernel keeps for the ``recompute`` of a backward kernel.
        groups: Groups of lane dimensions that some argument tells apart.
        tiled: Whether the lanes of a program are pieces of several rows, rather than one piece.
        short: Whether a sequence is shorter than a chunk, of those that are recomputed.
        solve: What finds the guesses that ``main`` reads, in kernels that have them.
    """

    name: str
    comment: str
    dtype: FloatType
    arguments: tuple[Argument, ...]
    main: Sweep
    recompute: Sweep | None = None
    advance: Sweep | None = None
    scratch: tuple[str, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    groups: int = 1
    tiled: bool = False
    short: bool = False
    solve: Solve | None = None
