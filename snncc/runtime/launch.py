"""Call compiled kernels on tensors: check the arguments, fit them, pack their addresses, call."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from snncc.codegen.base import Signature
from snncc.errors import LaunchError
from snncc.runtime import memory
from snncc.runtime.binaries.cache import Function
from snncc.runtime.layout import Array, Layout, Placed, Sizes
from snncc.runtime.schedule import Schedule

DTYPES = (torch.float32, torch.float64)
_SCRATCH = 10  # where the address of the scratch is among the sizes
_FEW_PAGES = 1 << 16  # bytes that the C library does not ask the system for


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch of a kernel that was noted.

    Attributes:
        again: Launches it again, on the same tensors.
        reads: The tensors that it read and wrote.
    """

    again: Callable[[], object]
    reads: Sequence[Tensor]


# What is told of every launch, besides the operators that torch tells of.
_NOTE: ContextVar[Callable[[Launch], None] | None] = ContextVar("note", default=None)


@contextmanager
def noted_launches(note: Callable[[Launch], None]) -> Iterator[None]:
    """Tell of each launch of a kernel inside of the context."""
    token = _NOTE.set(note)
    try:
        yield
    finally:
        _NOTE.reset(token)


def are_noted() -> bool:
    """Tell whether launches are noted, so that kernels may run while torch records."""
    return not torch.compiler.is_dynamo_compiling() and _NOTE.get() is not None


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """A kernel that can be called, and what it expects."""

    function: Function
    signature: Signature


class Binding:
    """A kernel bound to sizes and strides: all of a call but the addresses.

    Args:
        kernel: The kernel.
        layout: The sizes.
        schedule: How it is run.
        placed: For each argument of the kernel, in order, how the kernel sees it.
    """

    def __init__(
        self,
        kernel: LoadedKernel,
        layout: Layout,
        schedule: Schedule,
        placed: Sequence[Placed],
    ) -> None:
        self._function = kernel.function
        self._layout = layout
        self._dtype = getattr(torch, kernel.signature.dtype.value)
        self._scratch = schedule.threads * schedule.thread_scratch
        self._copies = tuple((i, p) for i, p in enumerate(placed) if p.copy is not None)
        self._values, self._slots = pack_sizes(layout, schedule, placed)
        self._pack = struct.Struct(f"{len(self._values)}q").pack

    def bound(self, tensors: Sequence[Tensor]) -> Callable[[], object]:
        """Return a call of the kernel on these very tensors, which it keeps alive."""
        if self._copies:
            return lambda: self.run(tensors)
        values = self._values.copy()
        scratch = torch.empty(self._scratch, dtype=self._dtype, device="cpu")
        values[_SCRATCH] = scratch.data_ptr()
        for slot, tensor in zip(self._slots, tensors, strict=True):
            values[slot] = tensor.data_ptr()
        packed, function, kept = self._pack(*values), self._function, (*tensors, scratch)
        return lambda: (function(packed), kept)[0]

    def run(self, tensors: Sequence[Tensor]) -> None:
        """Call the kernel on tensors, one for each argument in order."""
        kept = list(tensors)
        for index, placed in self._copies:
            kept[index] = copy_to_fit(kept[index], placed, self._layout)
        values = self._values.copy()
        if self._scratch:
            scratch = self._allocate_scratch()
            values[_SCRATCH] = scratch.data_ptr()
        for slot, tensor in zip(self._slots, kept, strict=True):
            values[slot] = tensor.data_ptr()
        self._function(self._pack(*values))
        note = _NOTE.get()
        if note is not None:
            note(Launch(self.bound(tensors), tensors))

    def _allocate_scratch(self) -> Tensor:
        size = self._scratch * self._dtype.itemsize
        if size <= _FEW_PAGES:
            return torch.empty(self._scratch, dtype=self._dtype, device="cpu")
        # At least what the pool serves: buffers in between would fault in their pages each time.
        return memory.POOL.buffer(max(size, memory.SMALLEST), self._dtype)


def pack_sizes(
    layout: Layout, schedule: Schedule, placed: Sequence[Placed]
) -> tuple[list[int], list[int]]:
    """Return the argument structure of a kernel without addresses, and where these belong.

    Args:
        layout: The sizes.
        schedule: How the kernel is run.
        placed: For each argument of the kernel, in order, how the kernel sees it.
    """
    values = [
        layout.steps,
        *layout.extents,
        schedule.tile,
        schedule.ahead,
        schedule.chunk,
        schedule.threads,
        int(schedule.stream),
        schedule.thread_scratch,
        0,
    ]
    slots = []
    for array in placed:
        slots.append(len(values))
        values += [0, *array.strides]
    return values, slots


def copy_to_fit(tensor: Tensor, placed: Placed, layout: Layout) -> Tensor:
    """Return the contiguous copy of an argument that its kernel can read."""
    assert placed.copy is not None
    order = layout.lane_order
    sizes = placed.copy
    if len(placed.strides) == 2:
        full = tensor.expand(layout.lanes)
    else:
        full = with_lanes(tensor, len(layout.lanes)).expand(layout.steps, *layout.lanes)
        sizes = (layout.steps if placed.strides[0] else 1, *sizes)
        order = (0, *(dim + 1 for dim in order))
    for dim, size in enumerate(sizes):
        full = full.narrow(dim, 0, size)
    return full.permute(order).contiguous()


def with_lanes(step: Tensor, lanes: int) -> Tensor:
    """Return a [T, ...] tensor with size-1 dimensions after time, so that it has all lanes."""
    missing = lanes + 1 - step.dim()
    return step[(slice(None), *[None] * missing)] if missing > 0 else step


def check_arguments(names: Sequence[str], tensors: Sequence[Tensor], steps: int) -> None:
    """Check what tensors must have in common.

    Args:
        names: The name of each tensor, for messages.
        tensors: First the tensors with a time axis, then those without.
        steps: How many have a time axis.

    Raises:
        LaunchError: In this order: dtype, device, layout or rank of a tensor is wrong.
    """
    check_presence(tensors)
    first_name, first = names[0], tensors[0]
    for name, tensor in zip(names, tensors, strict=True):
        _check_dtype(name, tensor, first_name, first)
    for name, tensor in zip(names, tensors, strict=True):
        _check_device(name, tensor)
    check_layouts(names, tensors, steps)


def check_presence(tensors: Sequence[Tensor]) -> None:
    """Check that there is an input at all."""
    if not tensors:
        raise LaunchError(
            "A neuron without any input has no lanes.",
            code="launch.no-input",
            hints=["Give it at least one tensor, for example its initial state."],
        )


def check_layouts(names: Sequence[str], tensors: Sequence[Tensor], steps: int) -> None:
    """Check that tensors are plain ones, and that those with a time axis have a dimension."""
    for position, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
        if tensor.layout is not torch.strided or tensor.is_neg():
            raise LaunchError(
                f"Input '{name}' is not a plain dense tensor: its layout is {tensor.layout}.",
                code="launch.layout",
                hints=["Convert it with 'to_dense()', or with 'resolve_neg()'."],
            )
        if position < steps and tensor.dim() == 0:
            raise LaunchError(
                f"Input '{name}' has no time axis: its shape is [].", code="launch.rank"
            )


def _check_dtype(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise LaunchError(
            f"Input '{name}' is {dtype_name(tensor)}; C kernels compute in float32 or float64.",
            code="launch.dtype",
            hints=[f"Convert it: '{name}.float()'."],
        )
    if tensor.dtype != first.dtype:
        raise LaunchError(
            f"Inputs '{first_name}' and '{name}' are {dtype_name(first)} and {dtype_name(tensor)}.",
            code="launch.dtype",
            hints=["All inputs of a neuron have one dtype."],
        )


def dtype_name(tensor: Tensor) -> str:
    """Return the dtype of a tensor without its module."""
    return str(tensor.dtype).removeprefix("torch.")


def _check_device(name: str, tensor: Tensor) -> None:
    if tensor.device.type not in ("cpu", "meta"):
        raise LaunchError(
            f"Input '{name}' is on {tensor.device}; C kernels run on the CPU.",
            code="launch.device",
            hints=["Move the model and its inputs to the CPU."],
        )


def broadcast_sizes(
    names: Sequence[str], tensors: Sequence[Tensor], steps: int, length: int | None
) -> tuple[int, Sizes]:
    """Return T and the lanes that tensors have together.

    Args:
        names: The name of each tensor, for messages.
        tensors: First the tensors with a time axis, then those without.
        steps: How many have a time axis.
        length: T, where it is known otherwise.

    Raises:
        LaunchError: The sizes do not broadcast.
    """
    times = [tensor.shape[0] for tensor in tensors[:steps]]
    total = length if length is not None else max(times, default=0)
    if length is None and 0 in times:
        total = 0
    for name, time in zip(names, times, strict=False):
        if time not in (1, total):
            raise LaunchError(
                f"Input '{name}' has {time} time steps, where there are {total}.",
                code="launch.sizes",
            )
    lanes: Sizes = ()
    for position, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
        own = tensor.shape[1:] if position < steps else tensor.shape
        together = broadcast_lanes(lanes, tuple(own))
        if together is None:
            raise LaunchError(
                f"Input '{name}' has lanes {list(own)}, which do not fit {list(lanes)}.",
                code="launch.sizes",
                notes=["Lanes are all dimensions but time; they broadcast from the right."],
            )
        lanes = together
    return total, lanes


def broadcast_lanes(left: Sizes, right: Sizes) -> Sizes | None:
    """Return the broadcast of two shapes, or None where there is none."""
    if len(left) < len(right):
        left, right = right, left
    right = (*(1,) * (len(left) - len(right)), *right)
    if any(a not in (1, b) and b != 1 for a, b in zip(left, right, strict=True)):
        return None
    return tuple(b if a == 1 else a for a, b in zip(left, right, strict=True))


def as_array(tensor: Tensor, layout: Layout, *, has_time: bool) -> Array:
    """Return the strides of a tensor that is broadcast to a layout."""
    sizes, strides = tuple(tensor.shape), tensor.stride()
    time = None
    if has_time:
        time = strides[0] if sizes[0] == layout.steps and layout.steps != 1 else 0
        sizes, strides = sizes[1:], strides[1:]
    missing = len(layout.lanes) - len(sizes)
    own = (
        stride if size == lanes else 0
        for size, stride, lanes in zip(sizes, strides, layout.lanes[missing:], strict=True)
    )
    return Array(time, (*[0] * missing, *own))
