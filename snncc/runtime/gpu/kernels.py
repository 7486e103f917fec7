"""The interface of a GPU kernel to plans, in whatever language it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from snncc.codegen.base import KernelSource, Slot
from snncc.runtime.gpu.cuda_kernels import CudaKernel
from snncc.runtime.gpu.triton_kernels import TritonKernel
from snncc.runtime.gpu.variants import Launch, Variant


class GpuKernel(Protocol):
    """A kernel that can be called.

    Attributes:
        source: Its text.
        slots: Its parameters.
    """

    source: KernelSource
    slots: tuple[Slot, ...]

    def bind(self, variant: Variant, values: Sequence[int], device: torch.device) -> Launch:
        """Compile the kernel, and return calls of it.

        Args:
            variant: What it is compiled for.
            values: The numbers of the slots that are neither arrays nor constants, in order.
            device: Where the arrays are.

        Returns:
            A function of the tensors of its array slots, in order.
        """
        ...


def kernel_of(source: KernelSource) -> GpuKernel:
    """Return the kernel that a text makes."""
    return CudaKernel(source) if source.target == "cuda" else TritonKernel(source)
