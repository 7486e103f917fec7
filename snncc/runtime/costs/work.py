"""The work of a call, in units that a machine has a price for.

A C kernel takes each row of lanes through all of its steps; rows are shared by the threads.  Its
time is that of calling it, of waking threads, of each step of a row, of the operations on blocks of
lanes, and of the bytes that do not stay in a cache.  ``prices.json`` beside this file has the
prices in seconds; ``python -m benchmarks.forms --fit`` measures and writes them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from snncc.codegen.base import BLOCK
from snncc.ir.nodes import Binary, Recurrence, Select, Unary
from snncc.ir.program import NeuronProgram, Place
from snncc.ir.walk import calls_maths, subexpressions
from snncc.runtime.schedule import LEAST_WORK

# Choices of one layer that are remembered: T may vary with the data.
MOST_CHOICES = 256
PRICES = Path(__file__).parent / "prices.json"


@dataclass(frozen=True, slots=True)
class Work:
    """Work by kind.

    Attributes:
        calls: Kernels called.
        forks: Those for which other threads are woken.
        rows: Steps of rows that one thread takes one after another.
        operations: Operations on blocks of lanes that one thread does.
        maths: Calls of maths functions on blocks of lanes.
        operators: Operators of torch called around the kernels.
        bytes: Bytes read and written by kernels, by all threads together.
        copies: Bytes that copies around the kernels read and write.
    """

    calls: float = 0.0
    forks: float = 0.0
    rows: float = 0.0
    operations: float = 0.0
    maths: float = 0.0
    operators: float = 0.0
    bytes: float = 0.0
    copies: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self.amounts, other.amounts, strict=True)))

    def __sub__(self, other: Work) -> Work:
        return Work(*(a - b for a, b in zip(self.amounts, other.amounts, strict=True)))

    @property
    def amounts(self) -> tuple[float, ...]:
        """The amounts in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def seconds(self, prices: Mapping[str, float]) -> float:
        """Return what the work takes at given prices."""
        names = (field.name for field in fields(self))
        return sum(prices[n] * amount for n, amount in zip(names, self.amounts, strict=True))


@dataclass(frozen=True, slots=True)
class StepWork:
    """The work of one step on one block: operations, maths functions, arrays read or written."""

    operations: int
    maths: int
    arrays: int

    def __add__(self, other: StepWork) -> StepWork:
        return StepWork(
            self.operations + other.operations, self.maths + other.maths, self.arrays + other.arrays
        )


@functools.lru_cache(maxsize=1024)
def step_work(recurrence: Recurrence) -> StepWork:
    """Return the work of one step of a recurrence."""
    nodes = (e for let in recurrence.lets for e in subexpressions(let.expr))
    operations = sum(isinstance(e, Unary | Binary | Select) for e in nodes)
    arrays = len(recurrence.step_inputs) + len(recurrence.outputs)
    carried = 2 * len(recurrence.states)
    return StepWork(operations + arrays + carried, calls_maths(recurrence.lets), arrays)


def kernel_work(step: StepWork, steps: int, rows: int, lanes: int, threads: int) -> Work:
    """Return the work of one C kernel.

    Args:
        step: That of one step on one block of lanes.
        steps: Time steps.
        rows: Rows of lanes.
        lanes: Lanes of a row.
        threads: The most threads.
    """
    blocks = max(-(-lanes // BLOCK), 1)
    shared = min(threads, rows * blocks) if steps * rows * lanes >= LEAST_WORK else 1
    shared = max(shared, 1)
    turns = steps * rows * blocks / shared
    return Work(
        calls=1,
        forks=float(shared > 1),
        rows=steps * max(rows, shared) / shared,
        operations=turns * step.operations,
        maths=turns * step.maths,
        bytes=4.0 * step.arrays * steps * rows * lanes,
    )


def fused_work(
    program: NeuronProgram, steps: int, lanes: int, threads: int, *, training: bool
) -> Work:
    """Return the work of a neuron in fused time: forward, and backward where it is trained."""
    forward = step_work(program.forward)
    total = kernel_work(forward, steps, 1, lanes, threads)
    adjoint, storage = program.adjoint, program.storage
    if not training or adjoint is None or storage is None:
        return total
    again = forward + forward if storage.place is Place.SCRATCH else forward
    # What is computed again stays in cache; the inputs are read once more.
    back = step_work(adjoint.recurrence) + StepWork(again.operations, again.maths, 0)
    return total + kernel_work(back, steps, 1, lanes, threads)


@functools.cache
def prices_of(target: str) -> Mapping[str, float] | None:
    """Return the measured prices of a target; None where none were measured."""
    measured: dict[str, dict[str, float]] = json.loads(PRICES.read_text())
    return measured.get(target)
