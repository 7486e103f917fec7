"""Kernels that compute one time step of a loop at each call.

Everything about T calls is prepared before the first: their argument structures lie behind one
another in memory and differ in nothing but addresses.  A call is then one foreign call with the
address of its structure.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from snncc.codegen.base import FloatType, Job, KernelSource, KernelSpec, Role
from snncc.codegen.c.target import CTarget
from snncc.codegen.lower import lower
from snncc.ir.program import NeuronProgram
from snncc.ir.step_call import StepCall
from snncc.runtime.binaries.cache import Function, KernelCache
from snncc.runtime.launch import LoadedKernel, pack_sizes
from snncc.runtime.layout import Array, Layout, Placed, Sizes, choose_groups, dense_strides, place
from snncc.runtime.plans import uniform_names
from snncc.runtime.schedule import make_schedule

# The address of a value at every step, or at each of them in turn.
Addresses = int | Sequence[int]


@dataclass(frozen=True, slots=True)
class Operand:
    """What a step reads: the type, sizes and strides of the value of one step.

    ``fixed`` says that it is the same at all steps.
    """

    dtype: torch.dtype
    sizes: Sizes
    strides: Sizes
    fixed: bool

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        sizes: Sizes,
        strides: Sizes | None = None,
        *,
        fixed: bool = False,
    ) -> Operand:
        """Return an operand; without strides it is contiguous."""
        return cls(dtype, sizes, strides or dense_strides(sizes, range(len(sizes))), fixed)

    def spread(self, lanes: Sizes) -> Operand:
        """Return the operand as a contiguous copy that changes from step to step."""
        return Operand.of(self.dtype, lanes)


class StepKernel:
    """A fused step; what it is called with decides which kernels are compiled."""

    def __init__(self, call: StepCall, cache: KernelCache) -> None:
        self.call = call
        self._cache = cache
        self._loaded: dict[frozenset[str], tuple[KernelSource, LoadedKernel]] = {}

    def bind(self, operands: Mapping[str, Operand], threads: int) -> BoundStep:
        """Bind the kernel to operands.

        Args:
            operands: For each input of the step what it reads.
            threads: The most threads.
        """
        lanes = torch.Size(torch.broadcast_shapes(*(o.sizes for o in operands.values())))  # type: ignore[no-untyped-call]
        layout = Layout(1, lanes, tuple(range(len(lanes) + 1)))
        arrays = {name: _as_array(operand, lanes) for name, operand in operands.items()}
        layout = choose_groups(layout, list(arrays.values()))
        placed = dict(zip(arrays, place(layout, list(arrays.values())), strict=True))
        copied = frozenset(name for name, seen in placed.items() if seen.copy is not None)
        if copied:
            fitting = {n: o.spread(lanes) if n in copied else o for n, o in operands.items()}
            return replace(self.bind(fitting, threads), copied=copied)
        source, kernel = self._load(uniform_names(placed))
        schedule = make_schedule(kernel.signature, layout, threads)
        arguments = kernel.signature.arguments
        written = Placed(None, layout.place_step(), False)
        seen = [
            _at_one_step(placed[a.value] if a.role is Role.INPUT else written) for a in arguments
        ]
        values, slots = pack_sizes(layout, schedule, seen)
        named = dict(zip((a.value for a in arguments), slots, strict=True))
        return BoundStep(source, kernel.function, lanes, tuple(values), named)

    def _load(self, uniform: frozenset[str]) -> tuple[KernelSource, LoadedKernel]:
        found = self._loaded.get(uniform)
        if found is None:
            dtype = FloatType.FLOAT64 if self.call.dtype is torch.float64 else FloatType.FLOAT32
            spec = KernelSpec(Job.INFERENCE, dtype, uniform)
            source = CTarget().emit(lower(NeuronProgram(self.call.recurrence), spec))
            found = source, LoadedKernel(self._cache.load(source), source.signature)
            self._loaded[uniform] = found
        return found


@dataclass(frozen=True, slots=True)
class BoundStep:
    """A step bound to sizes and strides.

    Attributes:
        source: The text of the kernel.
        function: The kernel.
        lanes: The lanes that it computes.
        values: Its argument structure without addresses.
        slots: For each input and output that the kernel has, where its address belongs.
        copied: Inputs that have to be given as contiguous copies of all lanes.
    """

    source: KernelSource
    function: Function
    lanes: Sizes
    values: tuple[int, ...]
    slots: dict[str, int]
    copied: frozenset[str] = frozenset()

    def launches(self, addresses: Mapping[str, Addresses], length: int) -> Launches:
        """Return the calls of all steps.

        Args:
            addresses: For each input and output its address.
            length: How many steps there are.
        """
        table = argument_table(self.values, self.slots, addresses, length)
        return Launches(self.function, table, len(self.values) * table.itemsize)


def argument_table(
    values: Sequence[int], slots: Mapping[str, int], given: Mapping[str, Addresses], length: int
) -> array[int]:
    """Return the argument structures of a kernel at all steps, one behind another.

    Args:
        values: A structure without addresses.
        slots: Where the addresses belong.
        given: The addresses.
        length: How many steps there are.
    """
    table = array("q", values) * length
    for name, slot in slots.items():
        value = given[name]
        column = [value] * length if isinstance(value, int) else value
        table[slot :: len(values)] = array("q", column)
    return table


class Launches:
    """The calls of a kernel at all steps of a loop: ``launches(k)`` makes that of step k."""

    __slots__ = ("_address", "_function", "_size", "_table")

    def __init__(self, function: Function, table: array[int], size: int) -> None:
        self._function = function
        self._table = table
        self._address = table.buffer_info()[0]
        self._size = size

    def __call__(self, k: int) -> None:
        """Call the kernel."""
        self._function(self._address + k * self._size)


def _as_array(operand: Operand, lanes: Sizes) -> Array:
    missing = len(lanes) - len(operand.sizes)
    own = (
        stride if size == full else 0
        for size, stride, full in zip(operand.sizes, operand.strides, lanes[missing:], strict=True)
    )
    # A value that changes is never worth a copy that fills the lanes: the time axis says so.
    return Array(None if operand.fixed else 1, (*[0] * missing, *own))


def _at_one_step(placed: Placed) -> Placed:
    """Return an array as a kernel of a single step sees it: the time axis has no extent."""
    return Placed(None, (0, *placed.strides[-2:]), placed.uniform)
