"""The interface of a GPU kernel to plans, in whatever language it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from snncc.codegen.base import KernelSource, Slot
from snncc.runtime.gpu.cuda_kernels import CudaKernel
from snncc.runtime.gpu.triton_kernels import TritonKernel
from snncc.runtime.gpu.variants import Variant


class GpuKernel(Protocol):
    """A kernel that can be called.

    Attributes:
        source: Its text.
        slots: Its parameters.
    """

    source: KernelSource
    slots: tuple[Slot, ...]

    def launch(self, variant: Variant, arrays: Sequence[Tensor], values: Sequence[int]) -> None:
        """Call the kernel.

        Args:
            variant: What it is compiled for.
            arrays: The tensors of its array slots, in order, all on one device.
            values: The numbers of the other slots that are no constants, in order.
        """
        ...


def kernel_of(source: KernelSource) -> GpuKernel:
    """Return the kernel that a text makes."""
    return CudaKernel(source) if source.target == "cuda" else TritonKernel(source)
