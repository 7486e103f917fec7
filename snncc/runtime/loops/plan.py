"""Everything about a call of a recurrent loop that the sizes of its operands decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import LaunchError
from snncc.ir.interpret import HALVES
from snncc.ir.step_call import StepCall, step_inputs
from snncc.runtime.binaries.cache import CACHE, KernelCache
from snncc.runtime.gpu.step_kernel import BoundGpuStep, GpuStepKernel
from snncc.runtime.loops.row_loop import find_rows
from snncc.runtime.loops.sketch import OUT, LoopSketch, has_several
from snncc.runtime.loops.step_kernel import BoundStep, Operand, StepKernel
from snncc.runtime.loops.storage import ADDRESSES, ALIGNMENT, TENSORS, in_order, is_aligned

Node = torch.fx.Node


class Supply(Enum):
    """How a fused step gets one of its inputs."""

    FIXED = "fixed"  # a tensor that is the same at all steps
    GIVEN = "given"  # a row of a sequence that the loop was called with
    ROWS = "rows"  # a row that the loop has written
    NUMBER = "number"  # a number of each step
    COPY = "copy"  # a copy into a buffer, at each step


# Kernels see the very values of these.
_AS_THEY_ARE = frozenset({Supply.FIXED, Supply.GIVEN, Supply.ROWS})


@dataclass(frozen=True)
class Machinery:
    """What runs the steps of loops.

    Attributes:
        device: Where their values lie.
        on_gpu: Whether kernels for GPUs run them.
        threads: The most threads of a kernel on the CPU.
        cache: Where kernels for the CPU are kept.
    """

    device: torch.device
    on_gpu: bool
    threads: int
    cache: KernelCache = CACHE


class LoopPlan:
    """A call of a loop with operands of given sizes and strides.

    Args:
        sketch: The loop.
        kernels: For each fused step its kernel.
        operands: Operands of these sizes; a sequence that is no tensor is a list.
        machinery: What runs the steps.

    Attributes:
        length: T.
        device: Where the values of the loop lie.
        on_gpu: Whether kernels for GPUs run its steps.
        places: How its kernels are told where values lie.
        like: For each value of the body a tensor without data of its sizes, strides and type; None
            where it is no tensor.
        aligned: The names of values that start where the memory of a new tensor may.
        bound: For each fused step its kernel, bound to sizes.
        seen: For each fused step what it reads.
        supplies: For each fused step how it gets its inputs.
        rows: How the loop is run by rows; None where it is run step by step.
    """

    def __init__(
        self,
        sketch: LoopSketch,
        kernels: Mapping[StepCall, StepKernel | GpuStepKernel],
        operands: Sequence[Any],
        machinery: Machinery,
    ) -> None:
        self.sketch = sketch
        self.length = sketch.loop.length(tuple(operands))
        self.device, self.on_gpu = machinery.device, machinery.on_gpu
        self.places = TENSORS if self.on_gpu else ADDRESSES
        self._numbers: dict[tuple[Node, torch.dtype], Tensor] = {}
        values = rehearse(sketch, operands, self.length)
        self.like = {name: _without_data(value) for name, value in values.items()}
        self.aligned = {name for name, value in values.items() if is_aligned(value)}
        self.bound: dict[Node, BoundStep | BoundGpuStep] = {}
        self.seen: dict[Node, dict[str, Operand]] = {}
        self.supplies: dict[Node, dict[str, Supply]] = {}
        for call in sketch.calls:
            if isinstance(call.target, StepCall):
                inputs = step_inputs(call)
                dtype = call.target.dtype
                supplies = {n: self._supply(node, operands, dtype) for n, node in inputs.items()}
                seen = {n: self._operand(node, supplies[n], dtype) for n, node in inputs.items()}
                self.bound[call] = bound = kernels[call.target].bind(seen, machinery.threads)
                for name in bound.copied:
                    if supplies[name] is Supply.ROWS:
                        supplies[name] = Supply.COPY
                self.supplies[call] = supplies
                self.seen[call] = seen
        self.rows = None
        if not self.on_gpu:
            on_cpu = {step: k for step, k in kernels.items() if isinstance(k, StepKernel)}
            self.rows = find_rows(self, on_cpu, machinery.threads, machinery.cache)

    def sizes(self, node: Node) -> tuple[int, ...]:
        """Return the sizes of a value at one step."""
        like = self.like[node.name]
        return () if like is None else tuple(like.shape)

    def dtype(self, node: Node) -> torch.dtype:
        """Return the type of a value."""
        like = self.like[node.name]
        return torch.get_default_dtype() if like is None else like.dtype

    def copies_steps(self, call: Node) -> bool:
        """Tell whether an input of a fused step is copied at each step."""
        return Supply.COPY in self.supplies[call].values()

    def on_device(self, value: Any, dtype: torch.dtype) -> Tensor:
        """Return a value that is the same at all steps as a tensor that a kernel can read."""
        if isinstance(value, Tensor):
            return value.to(self.device, dtype)
        return torch.full((), value, dtype=dtype, device=self.device)

    def numbers(self, node: Node, dtype: torch.dtype) -> Tensor:
        """Return the numbers of all steps, made once: a copy to a GPU would wait for the CPU."""
        if (node, dtype) not in self._numbers:
            numbers = torch.tensor(self.sketch.tables[node].values, dtype=dtype)
            self._numbers[node, dtype] = numbers.to(self.device)
        return self._numbers[node, dtype]

    def is_array(self, value: Node) -> bool:
        """Tell whether a value is written into rows of an array of ours."""
        producer = self.sketch.producer(value)
        if has_several(producer):
            return True
        is_product = producer.target in OUT and len(self.sizes(value)) == 2 and not producer.kwargs
        return is_product and (not self.on_gpu or self._has_aligned_rows(value))

    def _has_aligned_rows(self, value: Node) -> bool:
        """Tell whether all rows of a value start where the memory of a new tensor may.

        A library may choose how a GPU adds up a product by where its result starts.
        """
        return math.prod(self.sizes(value)) * self.dtype(value).itemsize % ALIGNMENT == 0

    def _supply(self, node: Node, operands: Sequence[Any], dtype: torch.dtype) -> Supply:
        sketch = self.sketch
        if node in sketch.fixed:
            return Supply.FIXED
        if node in sketch.tables:
            return Supply.NUMBER
        base = sketch.reading(node).base
        is_written = base not in sketch.given and self.is_array(base)
        if is_written and self._reads(self.dtype(base), dtype):
            return Supply.ROWS
        if node in sketch.given:
            sequence = operands[sketch.given[node].operand]
            if isinstance(sequence, Tensor) and self._reads(sequence.dtype, dtype):
                return Supply.GIVEN if sequence.device == self.device else Supply.COPY
        return Supply.COPY

    def _reads(self, dtype: torch.dtype, working: torch.dtype) -> bool:
        """Tell whether a kernel of a working type reads values of a type as they are."""
        return dtype == working or (self.on_gpu and dtype in HALVES)

    def _operand(self, node: Node, supply: Supply, dtype: torch.dtype) -> Operand:
        like = self.like[node.name]
        as_it_is = like is not None and self._reads(like.dtype, dtype)
        if like is None or not as_it_is or supply not in _AS_THEY_ARE:
            return Operand.of(dtype, self.sizes(node), fixed=supply is Supply.FIXED)
        strides = None if supply is Supply.ROWS else like.stride()
        return Operand.of(like.dtype, self.sizes(node), strides, fixed=supply is Supply.FIXED)


def rehearse(sketch: LoopSketch, operands: Sequence[Any], length: int) -> dict[str, Any]:
    """Run a few steps by the reference, and return every value of the body.

    They are as many as it takes until nothing is left of what the carries start as.  It leaves no
    trace in buffers and in the random generator.

    Raises:
        LaunchError: A value changes its shape from one step to the next.
    """
    loop = sketch.loop
    arguments = tuple(operands)
    if sketch.is_impure():
        # A norm changes its buffers, also where they are slices of one for each step.
        arguments = tuple(x.clone() if isinstance(x, Tensor) else x for x in operands)
    delay = max((sketch.reading(carry).delay for carry in sketch.carries), default=0)
    times = list(in_order(length, reverse=loop.reverse))
    carried = loop.initial_values(arguments)
    values: dict[str, Any] = {}
    with torch.random.fork_rng(devices=_generators(arguments)), torch.no_grad():
        for k in range(delay + 1):
            before = values
            values = loop.run_step(times[min(k, length - 1)], arguments, carried)
            carried = {c.name: values[c.update] for c in loop.carries}
            for node in sketch.calls:
                _require_equal_shapes(node, before.get(node.name), values[node.name])
    return values


def _generators(operands: Sequence[Any]) -> list[torch.device]:
    """Return the devices whose random numbers a loop may draw besides those of the CPU."""
    device = device_of(operands)
    return [] if device.type == "cpu" else [device]


def device_of(operands: Sequence[Any]) -> torch.device:
    """Return where the values of a loop lie; single numbers may lie on the CPU all the same."""
    devices = (x.device for x in pytree.tree_leaves(operands) if isinstance(x, Tensor))
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


def _without_data(value: Any) -> Tensor | None:
    if not isinstance(value, Tensor):
        return None
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _require_equal_shapes(node: Node, first: Any, second: Any) -> None:
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape != second.shape:
        raise LaunchError(
            f"A value has shape {list(first.shape)} at the first step of the loop and"
            f" {list(second.shape)} at the second.",
            code="launch.sizes",
            location=node.meta.get("where"),
            hints=["Give the state its full shape before the loop."],
        )
