"""The parameters of a GPU kernel, in whatever language it is written.

A GPU kernel counts all lanes through with one index and runs all steps of its lanes.  An array
whose lanes lie in that order is addressed by the index; in another, the index is taken apart into
groups of lane dimensions, which have strides.  All sizes and strides are parameters: a kernel
serves every length, batch and shape.
"""

from __future__ import annotations

from collections.abc import Iterator

from snncc.codegen.base import Access, Argument, Slot, SlotKind
from snncc.codegen.kernel_ir import Kernel
from snncc.ir.nodes import Rank

# Access with strides for groups of lanes: how many of the innermost groups need none.
IMPLIED = {Access.ROWS: 1, Access.REPEATED: 1, Access.STRIDED: 0}


def slots(kernel: Kernel) -> tuple[Slot, ...]:
    """Return the parameters of a kernel, in order; constants come last."""
    return tuple(_slots(kernel))


def _slots(kernel: Kernel) -> Iterator[Slot]:
    for argument in kernel.arguments:
        yield Slot(argument.name, SlotKind.ARRAY, argument)
    yield Slot("steps", SlotKind.STEPS)
    yield Slot("lanes", SlotKind.LANES)
    if any(argument.access in IMPLIED for argument in kernel.arguments):
        for group in range(1, kernel.groups):
            yield Slot(f"extent{group}", SlotKind.EXTENT, group=group)
    for argument in kernel.arguments:
        yield from _strides(argument, kernel.groups)
    yield Slot("BLOCK", SlotKind.BLOCK)
    yield Slot("GROUP", SlotKind.GROUP)
    if kernel.recompute is not None or kernel.checkpoints:
        yield Slot("CHUNK", SlotKind.CHUNK)
    for argument in kernel.arguments:
        if argument.folded:
            yield Slot(f"{argument.name.upper()}_FOLD", SlotKind.FOLD, argument)


def _strides(argument: Argument, groups: int) -> Iterator[Slot]:
    if argument.rank is Rank.STEP:
        yield Slot(f"{argument.name}_t", SlotKind.TIME, argument)
    for group in strided_groups(argument, groups):
        yield Slot(f"{argument.name}_{group}", SlotKind.STRIDE, argument, group)


def strided_groups(argument: Argument, groups: int) -> range:
    """Return the groups of lanes along which an argument has a stride to multiply with."""
    implied = IMPLIED.get(argument.access)
    return range(0) if implied is None else range(groups - implied)
