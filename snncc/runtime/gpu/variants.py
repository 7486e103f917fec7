"""The variants of one GPU kernel, each with a binary of its own.

Each kernel has at most two variants for each choice of constants: one for arrays that lie at
multiples of 16 bytes with sizes to match, so that a thread moves up to 16 bytes at a time, and one
for any other.  Lengths and sizes are no constants.  What they choose is coarse: programs are wide,
or narrow where lanes are few, and chunks are as long as a sequence, up to the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from snncc.codegen.base import Access, Argument, Slot, SlotKind
from snncc.ir.nodes import Rank

# A call of a kernel whose sizes are decided, on the tensors of its array slots.
Launch: TypeAlias = Callable[[Sequence[Tensor]], None]

# Bytes that a thread moves at once; arrays start at multiples of it in the aligned variant.
ALIGNMENT = 16
# Sizes below this leave room for the lanes of one program in 32 bits.
_INT32 = 2**31 - 2**16


@dataclass(frozen=True, slots=True)
class Blocks:
    """The constants of a kernel.

    Attributes:
        lanes: Lanes of one program.
        warps: Warps of one program.
        group: Steps whose loads are issued together.
        chunk: Steps between checkpoints, or steps recomputed at a time.
        folds: For each folded argument how many neighbouring lanes it holds the sum of.
        vector: Lanes that a thread moves at once where arrays are aligned.
        width: Lanes of one program that lie in one row; 0 where all of them are one piece.
        registers: The most that a thread may take, or None.
    """

    lanes: int
    warps: int
    group: int
    chunk: int
    folds: tuple[tuple[str, int], ...]
    vector: int
    width: int = 0
    registers: int | None = None

    def programs(self, values: Sequence[int]) -> int:
        """Return how many programs there are.

        Args:
            values: The numbers that a kernel is given, in order: steps, lanes, and where the lanes
                of a program lie in several rows, how many programs share a row.
        """
        across = values[2] if self.width else 1
        return across * -(-values[1] // (across * self.lanes))


@dataclass(frozen=True, slots=True)
class Variant:
    """What one binary of a kernel is compiled for.

    Attributes:
        pointers: The type of each array, in order.
        blocks: The constants.
        wide: Whether lanes are counted in 64 bits.
        aligned: Whether arrays lie at multiples of 16 bytes.
    """

    pointers: tuple[torch.dtype, ...]
    blocks: Blocks
    wide: bool
    aligned: bool


def constants_of(slots: Sequence[Slot], blocks: Blocks) -> dict[int, int]:
    """Return the values of the parameters that are constants, by position."""
    folds = dict(blocks.folds)
    sizes = {
        SlotKind.BLOCK: blocks.lanes,
        SlotKind.WIDTH: blocks.width,
        SlotKind.GROUP: blocks.group,
        SlotKind.CHUNK: blocks.chunk,
    }
    constants = {}
    for position, slot in enumerate(slots):
        if slot.kind in sizes:
            constants[position] = sizes[slot.kind]
        elif slot.kind is SlotKind.FOLD and slot.argument is not None:
            constants[position] = folds[slot.argument.value]
    return constants


def aligned_slots(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    """Return the parameters that have to be multiples for the aligned variant of a kernel.

    What is read once for all steps need not be fast, and may lie anywhere.
    """
    rows = any(_moves_vectors(slot.argument) and _has_rows(slot.argument) for slot in slots)
    last = max((slot.group for slot in slots if slot.kind is SlotKind.EXTENT), default=0)
    return tuple(
        slot
        for slot in slots
        if slot.kind is SlotKind.LANES
        or (slot.kind is SlotKind.EXTENT and rows and slot.group == last)
        or (slot.kind in _PLACES and _moves_vectors(slot.argument))
    )


_PLACES = frozenset({SlotKind.ARRAY, SlotKind.TIME, SlotKind.STRIDE})


def _moves_vectors(argument: Argument | None) -> bool:
    if argument is None or argument.folded:
        return False
    dense = argument.access in (Access.FLAT, Access.ROWS)
    return dense and (argument.rank is Rank.STEP or argument.written)


def _has_rows(argument: Argument | None) -> bool:
    return argument is not None and argument.access is Access.ROWS


def multiple_of(slot: Slot, vector: int) -> int:
    """Return what the aligned variant of a kernel knows a parameter to be a multiple of."""
    return ALIGNMENT if slot.kind is SlotKind.ARRAY else vector


def is_aligned(slot: Slot, value: int, vector: int) -> bool:
    """Tell whether the value of a parameter suits the aligned variant of a kernel."""
    return value % multiple_of(slot, vector) == 0


def is_wide(lanes: int) -> bool:
    """Tell whether lanes have to be counted in 64 bits."""
    return lanes >= _INT32
