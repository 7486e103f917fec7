"""The parameters of a GPU kernel, in whatever language it is written.

A GPU kernel counts all lanes through with one index and runs all steps of its lanes.  An array
whose lanes lie in that order is addressed by the index; in another, the index is taken apart into
groups of lane dimensions, which have strides.  All sizes and strides are parameters: a kernel
serves every length, batch and shape, but for sequences that are shorter than a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

from snncc.codegen.base import Access, Argument, Role, Slot, SlotKind
from snncc.codegen.kernel_ir import Kernel, Load, Solve, Step, Store, Sweep
from snncc.ir.nodes import Rank

# Access with strides for groups of lanes: how many of the innermost groups need none.
IMPLIED = {Access.ROWS: 1, Access.REPEATED: 1, Access.STRIDED: 0}

# Parameters that are constants of a binary.
CONSTANTS = frozenset(
    {SlotKind.BLOCK, SlotKind.WIDTH, SlotKind.GROUP, SlotKind.CHUNK, SlotKind.FOLD}
)


def slots(kernel: Kernel) -> tuple[Slot, ...]:
    """Return the parameters of a kernel, in order; constants come last."""
    return tuple(_slots(kernel))


def _slots(kernel: Kernel) -> Iterator[Slot]:
    for argument in kernel.arguments:
        yield Slot(argument.name, SlotKind.ARRAY, argument)
    yield Slot("steps", SlotKind.STEPS)
    yield Slot("lanes", SlotKind.LANES)
    if kernel.tiled:
        yield Slot("across", SlotKind.ACROSS)
    if any(argument.access in IMPLIED for argument in kernel.arguments):
        for group in range(1, kernel.groups):
            yield Slot(f"extent{group}", SlotKind.EXTENT, group=group)
    for argument in kernel.arguments:
        yield from _strides(argument, kernel.groups)
    yield Slot("BLOCK", SlotKind.BLOCK)
    if kernel.tiled:
        yield Slot("WIDTH", SlotKind.WIDTH)
    yield Slot("GROUP", SlotKind.GROUP)
    if kernel.recompute is not None or kernel.checkpoints or kernel.solve is not None:
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


def values(kernel: Kernel) -> Iterator[str]:
    """Yield the IR name of everything that a kernel holds in a variable."""
    solve = None if kernel.solve is None else kernel.solve.sweep
    for sweep in (solve, kernel.main, kernel.recompute):
        if sweep is not None:
            yield from (load.name for load in sweep.step.loads)
            yield from (carry.name for carry in sweep.step.carries)
            yield from (let.name for let in sweep.step.lets)
    yield from (a.value for a in kernel.arguments if a.rank is Rank.LANE and not a.written)


def step_loads(step: Step) -> list[Load]:
    """Return the loads of values that lie in memory for each step."""
    return [
        load
        for load in step.loads
        if load.argument is not None
        and load.argument.rank is Rank.STEP
        and load.argument.role is not Role.GUESS
    ]


def solved_loads(kernel: Kernel, solve: Solve) -> list[Load]:
    """Return what the sweeps of a chunk read from memory, all of them once."""
    loads = [*step_loads(solve.sweep.step), *step_loads(kernel.main.step)]
    return list({load.name: load for load in loads}.values())


def packed_stores(sweep: Sweep) -> list[Store]:
    """Return the stores of bools that are packed into words."""
    return [s for s in sweep.step.stores if s.argument is not None and s.argument.packed]


def lane_inputs(kernel: Kernel) -> dict[str, Argument]:
    """Return the inputs without a time axis, by IR name."""
    return {
        argument.value: argument
        for argument in kernel.arguments
        if argument.rank is Rank.LANE and not argument.written
    }


def guarded(kernel: Kernel, sweep: Sweep) -> frozenset[str]:
    """Return the carries that steps after the last must leave alone."""
    if sweep is kernel.recompute:
        return frozenset()
    if sweep.backwards:
        return frozenset(carry.name for carry in sweep.step.carries)
    return frozenset(final.name for final in sweep.finals)


def followed(kernel: Kernel) -> tuple[str, ...]:
    """Return the kept carries of which the value after a step is needed too."""
    return tuple(dict.fromkeys(load.after for load in kernel.main.step.loads if load.after))
