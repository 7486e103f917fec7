"""Write kernels in Triton: one program runs all steps of a block of lanes, its state in registers.

The loads of a group of steps are issued together, before the first of them is used: they do not
depend on the state, and memory answers after hundreds of instructions.  A backward kernel that
recomputes goes through time in chunks, from the last to the first: it runs a chunk forward from the
state at its start, keeps what the reverse step needs in registers, and runs it backwards.
Lengths and sizes are run-time parameters; constants are sizes of blocks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from snncc.codegen.anonymize import anonymize
from snncc.codegen.base import KernelSource, Signature
from snncc.codegen.description import describe, operations
from snncc.codegen.gpu import slots
from snncc.codegen.kernel_ir import Kernel
from snncc.codegen.prepare import identifier
from snncc.codegen.triton.expressions import LIBRARY
from snncc.codegen.triton.writer import Writer
from snncc.ir.nodes import Op

# Eager torch rounds after every operation; a fused multiply-add does not.
FLAGS = ("enable_fp_fusion=False",)

# No order in which a compiler adds two numbers changes a bit, so that the order is this.
_HALVE = """\
@triton.jit
def add(a, b):
    return a + b


@triton.jit
def halve(value, COUNT: tl.constexpr, SIZE: tl.constexpr):
    # Of each of COUNT pieces add the second half to the first until SIZE numbers are left.
    for _ in tl.static_range(16):
        if value.numel > SIZE:
            pairs = tl.reshape(value, (COUNT, 2, value.numel // (2 * COUNT)))
            value = tl.reduce(pairs, 1, add)
    return tl.reshape(value, (SIZE,))""".splitlines()


class TritonTarget:
    """Triton, for CUDA and ROCm."""

    name: ClassVar[str] = "triton"

    def emit(self, kernel: Kernel) -> KernelSource:
        """Write a kernel as one Python module."""
        signature = Signature(kernel.dtype, kernel.arguments, slots=slots(kernel))
        job = kernel.name.rsplit("_", 1)[-1]
        return KernelSource(
            name=identifier(kernel.name),
            target=self.name,
            text=_module(kernel),
            anonymous=_module(replace(anonymize(kernel), name=f"snncc_{job}")),
            signature=signature,
            flags=FLAGS,
        )


def _module(kernel: Kernel) -> str:
    function = Writer(kernel).function(identifier(kernel.name))
    return "\n".join([*_head(kernel), "", "", *function]) + "\n"


def _head(kernel: Kernel) -> list[str]:
    first, *rest = describe(kernel)
    lines = [f'"""{first}', *rest, '"""', "", "import triton", "import triton.language as tl"]
    if set(operations(kernel)) & {*LIBRARY, Op.SIGMOID}:
        lines.append("from triton.language.extra import libdevice")
    if any(argument.folded for argument in kernel.arguments):
        lines += ["", "", *_HALVE]
    if kernel.solve is not None:
        lines += ["", "", "@triton.jit", "def either(a, b):", "    return a | b"]
    return lines
