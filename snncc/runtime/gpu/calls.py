"""Bind kernels to sizes, strides and types: all of a call on a GPU but the tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snncc.codegen.base import Access, Argument, GpuSpec, Role, Slot, SlotKind
from snncc.ir.nodes import Rank
from snncc.runtime.gpu.gradients import NO_FOLDS, Folds
from snncc.runtime.gpu.kernels import GpuKernel
from snncc.runtime.gpu.layout import Seen, densify_steps, extents, group_lanes, is_sparse, see
from snncc.runtime.gpu.variants import (
    ALIGNMENT,
    Blocks,
    Launch,
    Variant,
    aligned_slots,
    is_aligned,
    is_wide,
)
from snncc.runtime.launch import as_array
from snncc.runtime.layout import Array, Layout
from snncc.runtime.plans import Shape

_WARPS = 4


@dataclass(frozen=True, slots=True)
class Machine:
    """What sizes of programs depend on.

    Attributes:
        processors: Programs that a device runs at the same time at least.
        threads: Threads of a warp.
    """

    processors: int = 1
    threads: int = 32

    def blocks(self, lanes: int, vector: int) -> tuple[int, int]:
        """Return the lanes and the warps of one program.

        Wide programs have several warps, and threads of several lanes; where there would be fewer
        warps than processors, programs are as narrow as can be.  Each of the two is a binary of
        its own, so that there is none in between.
        """
        if lanes >= self.threads * vector * self.processors:
            return _WARPS * self.threads * vector, _WARPS
        return self.threads, 1


@functools.cache
def machine_of(device: torch.device) -> Machine:
    """Return the machine behind a device."""
    if device.type == "cpu":
        return Machine()
    properties = torch.cuda.get_device_properties(device)
    threads = getattr(properties, "warp_size", 32 if torch.version.hip is None else 64)
    return Machine(properties.multi_processor_count, threads)


@dataclass(frozen=True)
class Arrays:
    """The arrays of a call besides its inputs, by IR name.

    Attributes:
        written: What the kernel writes, by role.
        kept: What a forward kernel has kept for it.
        sums: The finals that it adds up over lanes, and their types; the caller allocates them.
        across: Programs that share a row of lanes.
    """

    written: Mapping[Role, Mapping[str, Shape]]
    kept: Mapping[str, Shape] = field(default_factory=dict)
    sums: Mapping[str, torch.dtype] = field(default_factory=dict)
    across: int = 1


class Call:
    """A kernel bound to sizes, strides and types: all of a call but the tensors.

    Args:
        kernel: The kernel.
        inputs: What it reads from outside.
        arrays: What it reads and writes besides.
        blocks: The constants.
        device: Where it runs.
    """

    def __init__(
        self,
        kernel: GpuKernel,
        inputs: Inputs,
        arrays: Arrays,
        blocks: Blocks,
        device: torch.device,
    ) -> None:
        self.kernel, self._device = kernel, device
        self._written = [shape for shapes in arrays.written.values() for shape in shapes.values()]
        places = [(Role.INPUT, name) for name in inputs.seen]
        places += [(role, name) for role, shapes in arrays.written.items() for name in shapes]
        places += [(Role.FINAL, name) for name in arrays.sums]
        places += [(Role.SAVED, name) for name in arrays.kept]
        arguments = kernel.source.signature.arguments
        self._order = [places.index((_GIVEN.get(a.role, a.role), a.value)) for a in arguments]
        dtypes = [*inputs.dtypes, *(shape.dtype for shape in self._written)]
        dtypes += [*arrays.sums.values(), *(shape.dtype for shape in arrays.kept.values())]
        pointers = tuple(dtypes[index] for index in self._order)
        slots, layout = kernel.slots, inputs.layout
        numbers = [(slot, _value(slot, layout, inputs.seen, arrays.across)) for slot in slots]
        self._values = [value for _, value in numbers if value is not None]
        hinted = aligned_slots(slots)
        self._sizes_fit = blocks.vector > 1 and all(
            value is None or slot not in hinted or is_aligned(slot, value, blocks.vector)
            for slot, value in numbers
        )
        pointed = [slot for slot in slots if slot.kind is SlotKind.ARRAY]
        self._aligned = [index for index, slot in enumerate(pointed) if slot in hinted]
        wide = is_wide(blocks.programs(self._values) * blocks.lanes)
        self.variants = tuple(Variant(pointers, blocks, wide, fits) for fits in (False, True))
        self._launches: dict[bool, Launch] = {}  # by whether all arrays are aligned

    @property
    def variant(self) -> Variant:
        """What is compiled for these sizes, where all arrays start at multiples of 16 bytes."""
        return self.variants[self._sizes_fit]

    def allocate(self) -> list[Tensor]:
        """Return tensors for what the kernel writes, in order of role and name."""
        return [
            torch.empty_strided(s.sizes, s.strides, dtype=s.dtype, device=self._device)
            for s in self._written
        ]

    def run(self, tensors: Sequence[Tensor]) -> None:
        """Call the kernel on the inputs, what it writes, its sums and what was kept for it."""
        arrays = [tensors[index] for index in self._order]
        offsets = [arrays[index].data_ptr() % ALIGNMENT for index in self._aligned]
        aligned = self._sizes_fit and not any(offsets)
        launch = self._launches.get(aligned)
        if launch is None:
            launch = self.kernel.bind(self.variants[aligned], self._values, self._device)
            self._launches[aligned] = launch
        launch(arrays)


# Checkpoints are among the values that forward keeps.
_GIVEN = {Role.CHECKPOINT: Role.SAVED}


def _value(slot: Slot, layout: Layout, seen: Mapping[str, Seen], across: int) -> int | None:
    """Return the number of a parameter; None for arrays and constants."""
    match slot.kind:
        case SlotKind.STEPS:
            return layout.steps
        case SlotKind.LANES:
            return math.prod(extents(layout))
        case SlotKind.ACROSS:
            return across
        case SlotKind.EXTENT:
            return extents(layout)[slot.group]
        case SlotKind.TIME | SlotKind.STRIDE:
            assert slot.argument is not None
            array = _see(slot.argument, layout, seen)
            return array.time if slot.kind is SlotKind.TIME else array.strides[slot.group]
        case _:
            return None


def _see(argument: Argument, layout: Layout, seen: Mapping[str, Seen]) -> Seen:
    if argument.role is Role.INPUT:
        return seen[argument.value]
    if argument.role is Role.OUTPUT:
        return see_output(layout)
    return Seen(Access.FLAT, math.prod(extents(layout)), ())


def see_output(layout: Layout) -> Seen:
    """Say how a kernel sees the [T, *lanes] arrays that it writes."""
    time, *lanes = layout.step_strides
    return see(Array(time, tuple(lanes)), layout)


class Inputs:
    """The inputs of a kernel: how it sees them, and copies of those that lie too far apart.

    Args:
        layout: The sizes, without groups.
        tensors: The inputs by IR name.
        ranks: Whether each has a time axis.
    """

    def __init__(
        self, layout: Layout, tensors: Mapping[str, Tensor], ranks: Mapping[str, Rank]
    ) -> None:
        self._plain = layout
        self.copied = tuple(
            index
            for index, (name, tensor) in enumerate(tensors.items())
            if ranks[name] is Rank.STEP
            and is_sparse(as_array(tensor, layout, has_time=True), layout)
        )
        fitted = dict(zip(tensors, self.fit(list(tensors.values())), strict=True))
        arrays = {
            name: as_array(tensor, layout, has_time=ranks[name] is Rank.STEP)
            for name, tensor in fitted.items()
        }
        self.dtypes = tuple(tensor.dtype for tensor in tensors.values())
        self.layout = group_lanes(layout, list(arrays.values()))
        self.seen = {name: see(array, self.layout) for name, array in arrays.items()}

    def fit(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the tensors that the kernel reads."""
        if not self.copied:
            return tensors
        fitted = list(tensors)
        for index in self.copied:
            fitted[index] = densify_steps(fitted[index], self._plain)
        return fitted

    def spec(self, folds: Folds = NO_FOLDS, *, checkpoints: bool = False) -> GpuSpec:
        """Return what the text of the kernel depends on."""
        accesses = sorted((name, seen.access) for name, seen in self.seen.items())
        return GpuSpec(
            groups=len(extents(self.layout)),
            inputs=tuple(pair for pair in accesses if pair[1] is not Access.FLAT),
            outputs=see_output(self.layout).access,
            folded=frozenset(folds.runs),
            tiled=folds.width > 0,
            checkpoints=checkpoints,
        )
