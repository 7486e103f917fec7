"""Call kernels that are written in CUDA C++.

Layers whose kernels differ in nothing but the names of the user share one binary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from snncc.codegen.base import KernelSource
from snncc.runtime.gpu.cuda_build import cubin_of
from snncc.runtime.gpu.cuda_driver import Device, Function, open_device
from snncc.runtime.gpu.cuda_source import specialize, threads_of
from snncc.runtime.gpu.variants import Launch, Variant


class CudaKernel:
    """A kernel that can be compiled and called.

    Args:
        source: The kernel.
    """

    def __init__(self, source: KernelSource) -> None:
        self.source = source
        self.slots = source.signature.slots
        self._functions: dict[tuple[Variant, torch.device], tuple[Device, Function]] = {}

    def bind(self, variant: Variant, values: Sequence[int], device: torch.device) -> Launch:
        """Return calls of the kernel, see `GpuKernel`."""
        where, function = self._function(variant, device)
        shape = variant.blocks.programs(values), threads_of(variant)
        launch, stream = where.driver.launch, where.stream

        def call(arrays: Sequence[Tensor]) -> None:
            launch(function, shape, [*(array.data_ptr() for array in arrays), *values], stream())

        return call

    def _function(self, variant: Variant, where: torch.device) -> tuple[Device, Function]:
        key = variant, where
        if key not in self._functions:
            device = open_device(where)
            source = specialize(self.source, variant)
            image, name = cubin_of(source, device.arch), entry_name(source.anonymous)
            self._functions[key] = device, device.driver.load(device.ordinal, image, name)
        return self._functions[key]


def entry_name(text: str) -> str:
    """Return the name of the kernel in a text."""
    found = re.search(r"__launch_bounds__\(THREADS, 1\) (\w+)\(", text)
    assert found is not None
    return found[1]
