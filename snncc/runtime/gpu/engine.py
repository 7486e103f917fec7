"""The GPU side of a neuron layer: its kernels, plans and the shapes of its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from snncc.codegen.base import KernelSource, KernelSpec
from snncc.codegen.lower import checkpointed, saved_values
from snncc.errors import LaunchError
from snncc.ir.program import NeuronProgram
from snncc.ir.walk import bool_lets
from snncc.runtime.gpu.calls import Machine
from snncc.runtime.gpu.kernels import GpuKernel, kernel_of
from snncc.runtime.gpu.plans import GpuForwardPlan
from snncc.runtime.gpu.results import GpuResources, plan_gpu_results
from snncc.runtime.launch import check_layouts, check_presence, dtype_name
from snncc.runtime.plans import Results

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class GpuEngine:
    """The GPU side of a neuron layer.

    Args:
        program: The neuron.
        source: Gives the source of a kernel.
        machine: What kernels are sized for; None is the device of the tensors.
    """

    def __init__(
        self,
        program: NeuronProgram,
        source: Callable[[KernelSpec], KernelSource],
        machine: Machine | None = None,
    ) -> None:
        self._source = source
        forward = program.forward
        self._names = (*forward.step_inputs, *forward.lane_inputs)
        self._steps = len(forward.step_inputs)
        self._kernels: dict[KernelSpec, GpuKernel] = {}
        self._resources = GpuResources(
            program=program,
            kernels=self._kernel,
            saved=saved_values(program),
            checkpoints=checkpointed(program),
            bools=bool_lets(forward.lets),
            machine=machine,
        )
        self.sweeps = self._resources.sweeps

    def plan(
        self, tensors: Sequence[Tensor], length: int | None, *, training: bool
    ) -> GpuForwardPlan:
        """Return the plan of a forward call."""
        self._check(tensors)
        return GpuForwardPlan(self._resources, tensors, length, training=training)

    def results(self, tensors: Sequence[Tensor], length: int | None, *, training: bool) -> Results:
        """Return the shapes of the results of a forward call; sizes may be symbols."""
        self._check(tensors)
        return plan_gpu_results(self._resources, tensors, length, training=training)[1]

    def specs(self) -> tuple[KernelSpec, ...]:
        """Return what kernels the calls so far have asked for, in order."""
        return tuple(self._kernels)

    def _kernel(self, spec: KernelSpec) -> GpuKernel:
        if spec not in self._kernels:
            self._kernels[spec] = kernel_of(self._source(spec))
        return self._kernels[spec]

    def _check(self, tensors: Sequence[Tensor]) -> None:
        """Check what tensors must have in common.

        Raises:
            LaunchError: In this order: dtype, device, layout or rank of a tensor is wrong.
        """
        check_presence(tensors)
        first = tensors[0]
        for name, tensor in zip(self._names, tensors, strict=True):
            if tensor.dtype not in DTYPES:
                raise LaunchError(
                    f"Input '{name}' is {dtype_name(tensor)}; kernels compute with floats.",
                    code="launch.dtype",
                    hints=[f"Convert it: '{name}.float()'."],
                )
        for name, tensor in zip(self._names, tensors, strict=True):
            if tensor.device != first.device:
                raise LaunchError(
                    f"Inputs '{self._names[0]}' and '{name}' are on {first.device} and"
                    f" {tensor.device}.",
                    code="launch.device",
                    hints=["All inputs of a neuron are on one device."],
                )
        check_layouts(self._names, tensors, self._steps)
