"""Write kernels in CUDA C++: one thread runs all steps of its lanes, its state in registers.

The kernels are those of the Triton target, parameter by parameter: the same arrays, strides, chunks
and constants.  A thread has up to 16 bytes of neighbouring lanes where arrays are aligned, so that
it moves them at once; elsewhere its lanes lie a block of threads apart.  What a binary is made for
- sizes of blocks, types of elements - is defined before the text, which needs no header but those
of half types.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from snncc.codegen.anonymize import anonymize
from snncc.codegen.base import KernelSource, Signature
from snncc.codegen.cuda.preamble import preamble
from snncc.codegen.cuda.writer import Writer
from snncc.codegen.description import describe, operations
from snncc.codegen.gpu import slots
from snncc.codegen.kernel_ir import Kernel
from snncc.codegen.prepare import identifier

# Eager torch rounds after every operation; a fused multiply-add does not.
FLAGS = ("-std=c++17", "-fmad=false")


class CudaTarget:
    """CUDA C++, for nvcc and NVRTC."""

    name: ClassVar[str] = "cuda"

    def emit(self, kernel: Kernel) -> KernelSource:
        """Write a kernel as one translation unit."""
        job = kernel.name.rsplit("_", 1)[-1]
        return KernelSource(
            name=identifier(kernel.name),
            target=self.name,
            text=_unit(kernel),
            anonymous=_unit(replace(anonymize(kernel), name=f"snncc_{job}")),
            signature=Signature(kernel.dtype, kernel.arguments, slots=slots(kernel)),
            flags=FLAGS,
        )


def _unit(kernel: Kernel) -> str:
    lines = [*describe(kernel), f"Compile it with {' '.join(FLAGS)}."]
    comment = "\n".join(f" * {line}".rstrip() for line in lines)
    head = preamble(kernel, slots(kernel), operations(kernel))
    function = Writer(kernel).function(identifier(kernel.name))
    return f"/*\n{comment}\n */\n{head}\n" + "\n".join(function) + "\n"
