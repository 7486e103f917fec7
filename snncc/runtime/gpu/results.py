"""The types of a call on a GPU, and what it returns: no sizes are needed but symbols."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snncc.codegen.base import WORD_STEPS, FloatType, KernelSpec
from snncc.ir.chunks import chunk_steps, kept_values
from snncc.ir.program import NeuronProgram
from snncc.runtime.gpu.calls import Machine, machine_of
from snncc.runtime.gpu.kernels import GpuKernel
from snncc.runtime.gpu.variants import (
    ALIGNMENT,
)
from snncc.runtime.launch import broadcast_sizes
from snncc.runtime.layout import Layout
from snncc.runtime.plans import Results, Shape, SweepCounts, input_order

Kernels: TypeAlias = Callable[[KernelSpec], GpuKernel]


@dataclass(frozen=True, slots=True)
class GpuResources:
    """What plans are made with.

    Attributes:
        program: The neuron.
        kernels: Where its kernels come from.
        saved: Names of the forward values that training keeps for each step.
        checkpoints: Names of the states that training keeps for each chunk of steps instead.
        bools: Names of the forward values that are bools.
        machine: What kernels are sized for; None is the device of the tensors.
        sweeps: What counts the sweeps of kernels that solve for their spikes.
    """

    program: NeuronProgram
    kernels: Kernels
    saved: tuple[str, ...]
    checkpoints: tuple[str, ...]
    bools: frozenset[str]
    machine: Machine | None = None
    sweeps: SweepCounts = field(default_factory=SweepCounts)

    def machine_for(self, device: torch.device) -> Machine:
        """Return what kernels for tensors on a device are sized for."""
        return self.machine or machine_of(device)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of everything that training keeps, in order."""
        return (*self.saved, *self.checkpoints)


@dataclass(frozen=True, slots=True)
class Types:
    """The types of a call.

    Attributes:
        working: The type in which a kernel computes.
        result: The type of the outputs and finals.
        vector: Lanes whose elements of each step fill 16 bytes.
        kept: Registers that a backward kernel which recomputes fills for each step of a lane.
        summed: Whether it also sums the gradients of parameters.
    """

    working: torch.dtype
    result: torch.dtype
    vector: int
    kept: int
    summed: bool

    @property
    def period(self) -> int:
        """Steps between two checkpoints."""
        return chunk_steps(self.kept)

    @property
    def float_type(self) -> FloatType:
        """The working type as code generation names it."""
        return FloatType.FLOAT64 if self.working is torch.float64 else FloatType.FLOAT32


def types_of(resources: GpuResources, tensors: Sequence[Tensor], *, training: bool) -> Types:
    """Return the types of a forward call, and of the backward call that follows it."""
    program = resources.program
    steps = len(program.forward.step_inputs)
    promoted = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    result = program.result or promoted
    working = torch.float64 if torch.float64 in (result, promoted) else torch.float32
    sizes = [result.itemsize, *(tensor.dtype.itemsize for tensor in tensors[:steps])]
    if training and resources.saved:
        sizes.append(working.itemsize)
    vector = ALIGNMENT // max(sizes)
    kept, summed = 1, False
    if program.adjoint is not None and program.storage is not None:
        kept = max(kept_values(program.forward, program.adjoint, program.storage), 1)
        summed = len(program.adjoint.recurrence.states) > len(program.forward.states)
    return Types(working, result, vector, kept * working.itemsize // 4, summed)


def plan_gpu_results(
    resources: GpuResources, tensors: Sequence[Tensor], length: int | None, *, training: bool
) -> tuple[Layout, Results]:
    """Return the layout of a forward call and the shapes of its results; sizes may be symbols."""
    forward = resources.program.forward
    names = (*forward.step_inputs, *forward.lane_inputs)
    steps, lanes = broadcast_sizes(names, tensors, len(forward.step_inputs), length)
    layout = Layout(steps, lanes, input_order(tensors[: len(forward.step_inputs)], steps, lanes))
    types = types_of(resources, tensors, training=training)
    narrow = dict(resources.program.narrow)
    outputs = [
        Shape((steps, *lanes), layout.step_strides, narrow.get(name, types.result))
        for name in forward.outputs
    ]
    final = Shape(lanes, layout.lane_strides, types.result)
    kept = [_kept_shape(name, layout, types, resources) for name in resources.kept]
    return layout, Results(
        tuple(outputs),
        (final,) * len(forward.finals),
        tuple(kept) if training else (),
    )


def _kept_shape(name: str, layout: Layout, types: Types, resources: GpuResources) -> Shape:
    rows, dtype = layout.steps, types.working
    if name not in resources.saved:
        rows = (_at_least_one(rows) - 1) // types.period
    elif name in resources.bools:
        rows, dtype = -(-rows // WORD_STEPS), torch.int8
    lanes = math.prod(layout.lanes)
    return Shape((rows, lanes), (lanes, 1), dtype)


def _at_least_one(steps: int) -> int:
    most: Any = torch.sym_max  # has no types
    result: int = most(steps, 1)
    return result
