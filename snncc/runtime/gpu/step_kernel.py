"""Kernels on a GPU that compute one time step of a loop at each call.

They are the kernels of neurons, for a sequence of one step.  Everything about a call but its
tensors is decided when a loop is planned; a call waits for nothing and moves no number from the
CPU, so that a CUDA graph can hold the calls of all steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snncc.codegen.base import FloatType, Job, KernelSpec, Role
from snncc.codegen.lower import lower
from snncc.codegen.target import Target
from snncc.ir.nodes import Rank
from snncc.ir.program import NeuronProgram
from snncc.ir.step_call import StepCall
from snncc.runtime.gpu.calls import Arrays, Call, Inputs, Machine, machine_of
from snncc.runtime.gpu.kernels import GpuKernel, kernel_of
from snncc.runtime.gpu.layout import extents
from snncc.runtime.gpu.variants import ALIGNMENT, Blocks
from snncc.runtime.layout import Layout, Sizes
from snncc.runtime.loops.step_kernel import Operand
from snncc.runtime.plans import Shape


class GpuStepKernel:
    """A fused step; what it is called with decides which kernels are compiled.

    Args:
        call: The step.
        language: What its kernels are written in.
        device: Where it runs.
        machine: What kernels are sized for; None is the device.
    """

    def __init__(
        self,
        call: StepCall,
        language: Target,
        device: torch.device,
        machine: Machine | None = None,
    ) -> None:
        self.call = call
        self._language, self._device = language, device
        self._machine = machine or machine_of(device)
        self._loaded: dict[KernelSpec, GpuKernel] = {}

    def bind(self, operands: Mapping[str, Operand], _threads: int = 1) -> BoundGpuStep:
        """Bind the kernel to operands; a GPU takes no number of threads."""
        lanes = torch.Size(torch.broadcast_shapes(*(o.sizes for o in operands.values())))  # type: ignore[no-untyped-call]
        layout = Layout(1, lanes, tuple(range(len(lanes) + 1)))
        examples = {name: self._example(operand) for name, operand in operands.items()}
        inputs = Inputs(layout, examples, dict.fromkeys(examples, Rank.STEP))
        copied = frozenset(name for i, name in enumerate(examples) if i in inputs.copied)
        if copied:
            fitting = {n: o.spread(lanes) if n in copied else o for n, o in operands.items()}
            return replace(self.bind(fitting), copied=copied)
        names = self.call.recurrence.outputs
        shapes = {
            name: Shape((1, *lanes), layout.step_strides, self.call.type_of(name)) for name in names
        }
        arrays = Arrays({Role.OUTPUT: shapes})
        kernel = self._load(inputs)
        types = {*inputs.dtypes, *(shape.dtype for shape in shapes.values())}
        call = Call(kernel, inputs, arrays, self._blocks(inputs.layout, types), self._device)
        slots = {name: i for i, name in enumerate((*examples, *names))}
        return BoundGpuStep(call, lanes, slots)

    def _example(self, operand: Operand) -> Tensor:
        """Return a tensor without data, of one step."""
        sizes, strides = (1, *operand.sizes), (0, *operand.strides)
        return torch.empty_strided(sizes, strides, dtype=operand.dtype, device="meta")

    def _blocks(self, layout: Layout, types: Collection[torch.dtype]) -> Blocks:
        vector = ALIGNMENT // max(dtype.itemsize for dtype in types)
        block, warps = self._machine.blocks(math.prod(extents(layout)), vector)
        return Blocks(block, warps, group=1, chunk=1, folds=(), vector=vector)

    def _load(self, inputs: Inputs) -> GpuKernel:
        dtype = FloatType.FLOAT64 if self.call.dtype is torch.float64 else FloatType.FLOAT32
        spec = KernelSpec(Job.INFERENCE, dtype, gpu=inputs.spec())
        if spec not in self._loaded:
            program = NeuronProgram(self.call.recurrence)
            self._loaded[spec] = kernel_of(self._language.emit(lower(program, spec)))
        return self._loaded[spec]


@dataclass(frozen=True, slots=True)
class BoundGpuStep:
    """A step bound to sizes and strides.

    Attributes:
        call: Its kernel, bound.
        lanes: The lanes that it computes.
        slots: For each input and output its place among the tensors of a call.
        copied: Inputs that have to be given as contiguous copies of all lanes.
    """

    call: Call
    lanes: Sizes
    slots: dict[str, int]
    copied: frozenset[str] = frozenset()

    def launches(self, places: Mapping[str, Any], _length: int) -> Callable[[int], None]:
        """Return the calls of all steps.

        Args:
            places: For each input and output its tensor, or those of all steps.
        """
        columns = [places[name] for name in self.slots]
        return functools.partial(_launch, self.call, columns)


def _launch(call: Call, columns: Sequence[Tensor | Sequence[Tensor]], k: int) -> None:
    call.run([column if isinstance(column, Tensor) else column[k] for column in columns])
