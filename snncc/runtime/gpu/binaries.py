"""Compile Triton kernels for a GPU that need not be there, and read what came out.

The loops of a kernel are the steps of time, so that the accesses to memory inside loops, divided by
the lanes of a thread and the steps of one round, are what the kernel moves for each neuron-step.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snncc.codegen.base import KernelSource
from snncc.errors import OptionError
from snncc.runtime.gpu.triton_kernels import compile_kernel, load
from snncc.runtime.gpu.variants import (
    Variant,
)

_WARP = {"cuda": 32, "hip": 64}
_ACCESS = re.compile(r"\b(ld|st)\.(global|local)(?:\.\w+?)*?(?:\.v(\d))?\.[bsuf](\d+)\b")
_LABEL = re.compile(r"^(\$L\w+):")
_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$L\w+);")


@dataclass(frozen=True, slots=True)
class Accesses:
    """Memory accesses of one thread, in bytes.

    Attributes:
        loads: The size of each load in a loop.
        stores: The size of each store in a loop.
        local: Accesses to local memory, anywhere.
    """

    loads: tuple[int, ...]
    stores: tuple[int, ...]
    local: int


@dataclass(frozen=True, slots=True)
class Binary:
    """A compiled kernel.

    Attributes:
        name: The kernel.
        arch: What it is compiled for.
        stages: The text or the bytes of each stage, by the suffix of its file.
        registers: Registers of one thread.
        spilled: Bytes of local memory of one thread, where registers did not suffice.
        shared: Bytes of shared memory of one program.
        accesses: Its accesses to memory; None where the stages do not show them.
    """

    name: str
    arch: str
    stages: Mapping[str, str | bytes]
    registers: int
    spilled: int
    shared: int
    accesses: Accesses | None


def find_target(arch: str) -> Any:
    """Return Triton's name of an architecture such as ``sm_90`` or ``gfx942``.

    Raises:
        OptionError: The architecture is not known.
    """
    from triton.backends.compiler import GPUTarget

    if re.fullmatch(r"sm_\d+", arch):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), _WARP["cuda"])
    if re.fullmatch(r"gfx\w+", arch):
        return GPUTarget("hip", arch, _WARP["hip"])
    raise OptionError(
        f"There is no architecture '{arch}'.",
        code="option.arch",
        hints=["Name one as 'sm_90' (NVIDIA) or 'gfx942' (AMD)."],
    )


def compile_offline(source: KernelSource, variant: Variant, arch: str) -> Binary:
    """Compile a kernel.

    Args:
        source: The kernel.
        variant: What it is compiled for.
        arch: The architecture.
    """
    compiled = compile_kernel(source, load(source).function, variant, find_target(arch))
    stages = {suffix: text for suffix, text in compiled.asm.items() if suffix != "source"}
    ptx = stages.get("ptx")
    if ptx is not None:
        registers, spilled = _nvidia_usage(stages["cubin"])
        return Binary(
            source.name, arch, stages, registers, spilled, compiled.metadata.shared,
            read_accesses(ptx),
        )  # fmt: skip
    registers, spilled = _amd_usage(stages["amdgcn"])
    return Binary(source.name, arch, stages, registers, spilled, compiled.metadata.shared, None)


def read_accesses(ptx: str) -> Accesses:
    """Return the accesses to memory in the text of a kernel."""
    lines = ptx.splitlines()
    inside = _loop_lines(lines)
    sizes: dict[str, list[int]] = {"ld": [], "st": []}
    local = 0
    for number, line in enumerate(lines):
        for kind, space, vector, bits in _ACCESS.findall(line):
            if space == "local":
                local += 1
            elif number in inside:
                sizes[kind].append(int(vector or 1) * int(bits) // 8)
    return Accesses(tuple(sizes["ld"]), tuple(sizes["st"]), local)


def _loop_lines(lines: Sequence[str]) -> set[int]:
    """Return the numbers of the lines between a label and a later branch back to it."""
    labels: dict[str, int] = {}
    inside: set[int] = set()
    for number, line in enumerate(lines):
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = number
        branch = _BRANCH.search(line)
        if branch and branch[1] in labels:
            inside |= set(range(labels[branch[1]], number + 1))
    return inside


def _nvidia_usage(cubin: bytes) -> tuple[int, int]:
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [str(tool), "--dump-resource-usage", str(file)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers = re.search(r"\bREG:(\d+)", report)
    stack, local = (re.search(rf"\b{key}:(\d+)", report) for key in ("STACK", "LOCAL"))
    assert registers is not None
    assert stack is not None
    assert local is not None
    return int(registers[1]), int(stack[1]) + int(local[1])


def _amd_usage(assembly: str) -> tuple[int, int]:
    registers = re.search(r"\.vgpr_count:\s*(\d+)", assembly)
    scratch = re.search(r"\.private_segment_fixed_size:\s*(\d+)", assembly)
    assert registers is not None
    assert scratch is not None
    return int(registers[1]), int(scratch[1])
