"""The number of steps that a GPU kernel recomputes at a time: as many as registers hold.

A backward kernel that recomputes goes through time in chunks.  What the reverse step needs of each
step of a chunk stays in registers, and the states at the start of each chunk but the first come
from memory, where the forward kernel put them: the longer a chunk, the fewer bytes they cost.  The
more a chunk keeps, the fewer lanes a thread can serve.
"""

from __future__ import annotations

from collections.abc import Mapping

from snncc.ir.nodes import Recurrence
from snncc.ir.program import Adjoint, Storage
from snncc.ir.walk import names_read

# More steps would be compiled slowly: a chunk is straight code.
MOST_STEPS = 16
# Registers that a chunk of one lane may fill, of the 128 of a thread.
_MOST_REGISTERS = 48
# Registers that a chunk of one lane may take where a thread serves so many lanes.  A kernel that
# recomputes chunks leaves room for sixteen warps on a multiprocessor, of 128 registers a thread;
# one that solves them takes what it gets.
RECOMPUTED = {4: 4, 2: 24}
SOLVED = {4: 16, 2: 32}


def chunk_steps(registers: int) -> int:
    """Return the steps of a chunk, a power of two.

    Args:
        registers: Registers that one step of one lane takes.
    """
    steps = MOST_STEPS
    while steps > 2 and steps * registers > _MOST_REGISTERS:
        steps //= 2
    return steps


def thread_lanes(registers: int, most: Mapping[int, int]) -> int:
    """Return how many lanes a thread serves.

    Args:
        registers: Registers that a chunk of one lane takes.
        most: How many they may be, by lanes; a thread always serves one.
    """
    return next((lanes for lanes, limit in most.items() if registers <= limit), 1)


def followers(forward: Recurrence, storage: Storage) -> dict[str, str]:
    """Return the values that need not be computed again: what a kept state becomes.

    Within a chunk that is the state before the next step.
    """
    return {
        state.update: state.name
        for state in forward.states
        if state.name in storage.saved and state.update in storage.recomputed
    }


def kept_values(forward: Recurrence, adjoint: Adjoint, storage: Storage) -> int:
    """Return how many values of a step and lane the reverse step needs from the forward sweep."""
    again = set(storage.recomputed) - set(followers(forward, storage))
    recomputed = [let for let in forward.lets if let.name in again]
    read = {name for let in recomputed for name in names_read(let.expr)} | set(adjoint.residuals)
    return len(storage.saved) + len(read & set(forward.step_inputs))
