"""Compile kernels for a GPU that need not be there, and read what came out.

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

from snncc.codegen.base import Argument, KernelSource, Role, SlotKind
from snncc.errors import OptionError
from snncc.runtime.gpu.calls import Call, Machine
from snncc.runtime.gpu.cuda_build import find_nvcc, read_usage
from snncc.runtime.gpu.cuda_source import specialize
from snncc.runtime.gpu.triton_kernels import compile_kernel, load, require_triton
from snncc.runtime.gpu.variants import Variant

# Threads of a warp by the start of an architecture's name.
_THREADS = {"sm": 32, "gf": 64}


# What an architecture is called, and what is said where it is called something else.
_ARCHES = {
    "triton": (r"sm_\d+|gfx\w+", "Name one as 'sm_90' (NVIDIA) or 'gfx942' (AMD)."),
    "cuda": (r"sm_\d+[af]?", "Name one of NVIDIA's, such as 'sm_90'."),
}


@dataclass(frozen=True, slots=True)
class Assembly:
    """How a language of instructions spells what is looked for.

    Attributes:
        access: A load or store: kind, space, and a vector and an element, or the size in one word.
        label: The start of a line that can be jumped to.
        branch: A jump.
    """

    access: re.Pattern[str]
    label: re.Pattern[str]
    branch: re.Pattern[str]


PTX = Assembly(
    re.compile(
        r"\b(?P<kind>ld|st)\.(?P<space>global|local)(?:\.\w+?)*?"
        r"(?:\.v(?P<vector>\d))?\.[bsuf](?P<bits>\d+)\b"
    ),
    re.compile(r"^(\$L\w+):"),
    re.compile(r"\bbra(?:\.uni)?\s+(\$L\w+);"),
)
AMDGCN = Assembly(
    re.compile(
        r"\b(?P<space>global|buffer|flat|scratch)_(?P<kind>load|store)_"
        r"(?P<word>dwordx4|dwordx3|dwordx2|dword|\w*short\w*|\w*byte\w*)\b"
    ),
    re.compile(r"^(\.L\w+):"),
    re.compile(r"\bs_c?branch\w*\s+(\.L\w+)"),
)
_WORDS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4}
_LOADS = frozenset({"ld", "load"})
_LOCAL = frozenset({"local", "scratch"})


@dataclass(frozen=True, slots=True)
class Accesses:
    """Memory accesses of one thread, in bytes.

    Attributes:
        loads: The size of each load in the loop over time.
        stores: The size of each store in it.
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
        accesses: Its accesses to memory.
    """

    name: str
    arch: str
    stages: Mapping[str, str | bytes]
    registers: int
    spilled: int
    shared: int
    accesses: Accesses


def check_arch(arch: str, target: str) -> None:
    """Check that kernels in a language can be compiled for an architecture.

    Raises:
        OptionError: There is no such architecture, or it is none of NVIDIA's and the language is
            CUDA C++.
    """
    pattern, hint = _ARCHES[target]
    if not re.fullmatch(pattern, arch):
        raise OptionError(
            f"There is no architecture '{arch}' for target '{target}'.",
            code="option.arch",
            hints=[hint],
        )


def find_target(arch: str) -> Any:
    """Return Triton's name of an architecture such as ``sm_90`` or ``gfx942``.

    Raises:
        OptionError: The architecture is not known.
    """
    check_arch(arch, "triton")
    require_triton()
    from triton.backends.compiler import GPUTarget

    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), _THREADS["sm"])
    return GPUTarget("hip", arch, _THREADS["gf"])


def machine_of_arch(arch: str) -> Machine:
    """Return what kernels for an architecture are sized for, where a device is not at hand."""
    return Machine(threads=_THREADS[arch[:2]])


def compile_offline(source: KernelSource, variant: Variant, arch: str) -> Binary:
    """Compile a kernel.

    Args:
        source: The kernel.
        variant: What it is compiled for.
        arch: The architecture.
    """
    if source.target == "cuda":
        return _compile_cuda(source, variant, arch)
    target = find_target(arch)
    compiled = compile_kernel(source, load(source).function, variant, target)
    stages = {suffix: text for suffix, text in compiled.asm.items() if suffix != "source"}
    if target.backend == "cuda":
        usage, accesses = _nvidia_usage(stages["cubin"]), read_accesses(stages["ptx"], PTX)
    else:
        usage, accesses = _amd_usage(stages["amdgcn"]), read_accesses(stages["amdgcn"], AMDGCN)
    shared = int(compiled.metadata.shared)
    return Binary(source.name, arch, stages, *usage, shared, accesses)


def _compile_cuda(source: KernelSource, variant: Variant, arch: str) -> Binary:
    check_arch(arch, source.target)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = find_nvcc().compile(specialize(source, variant).text, arch, folder, source.flags)
        ptx, cubin = (folder / "kernel.ptx").read_text(), (folder / "kernel.cubin").read_bytes()
    usage = read_usage(log, source.name)
    accesses = read_accesses(ptx, PTX)
    used = usage.registers, usage.local, usage.shared
    return Binary(source.name, arch, {"ptx": ptx, "cubin": cubin}, *used, accesses)


def read_accesses(assembly: str, language: Assembly) -> Accesses:
    """Return the accesses to memory in the instructions of a kernel.

    Of several loops, the one over time is the last that accesses much: one before it takes the
    rest of a sequence, and one after it may write results.
    """
    lines = assembly.splitlines()
    loops = _loops(lines, language)
    inside: dict[range, list[re.Match[str]]] = {loop: [] for loop in loops}
    local = 0
    for number, line in enumerate(lines):
        for access in language.access.finditer(line):
            if access["space"] in _LOCAL:
                local += 1
                continue
            for loop in loops:
                if number in loop:
                    inside[loop].append(access)
    most = max(map(len, inside.values()), default=0)
    main = next((found for found in reversed(inside.values()) if 2 * len(found) >= most), [])
    loads = tuple(_size(access) for access in main if access["kind"] in _LOADS)
    stores = tuple(_size(access) for access in main if access["kind"] not in _LOADS)
    return Accesses(loads, stores, local)


def _size(access: re.Match[str]) -> int:
    """Return the bytes of an access."""
    found = access.groupdict()
    if "bits" in found:
        return int(found["vector"] or 1) * int(found["bits"]) // 8
    word = found["word"]
    return _WORDS.get(word, 2 if "short" in word else 1)


def _loops(lines: Sequence[str], language: Assembly) -> list[range]:
    """Return the lines of each outermost loop, between a label and a later branch back to it."""
    labels: dict[str, int] = {}
    loops: list[range] = []
    for number, line in enumerate(lines):
        label = language.label.match(line)
        if label:
            labels[label[1]] = number
        branch = language.branch.search(line)
        if branch and branch[1] in labels:
            first = labels[branch[1]]
            while loops and loops[-1].stop > first:
                first = min(first, loops.pop().start)
            loops.append(range(first, number + 1))
    return loops


def bytes_of_a_step(binary: Binary, call: Call) -> tuple[float, float]:
    """Return what a kernel loads and stores for each neuron-step, by its instructions.

    A forward kernel has a store of its states in each group of steps, under a condition that holds
    once a chunk; it is counted as often as it happens in a long sequence.
    """
    blocks = call.variant.blocks
    lanes = blocks.lanes / (_THREADS[binary.arch[:2]] * blocks.warps)
    kept = [a for a in _arguments(call) if a.role is Role.CHECKPOINT and a.written]
    steps = blocks.chunk if _runs_by_chunks(call) else blocks.group
    stores = sum(binary.accesses.stores) / (lanes * steps)
    if kept:
        size = call.kernel.source.signature.dtype.size * len(kept)
        stores += size / blocks.chunk - size / steps
    return sum(binary.accesses.loads) / (lanes * steps), stores


def _runs_by_chunks(call: Call) -> bool:
    """Tell whether the loop over time takes a chunk at a time: to recompute it, or to solve it."""
    kinds = {slot.kind for slot in call.kernel.slots}
    written = any(a.written and a.role is Role.CHECKPOINT for a in _arguments(call))
    solves = any(a.role is Role.COUNT for a in _arguments(call))
    return solves or (SlotKind.CHUNK in kinds and not written)


def _arguments(call: Call) -> tuple[Argument, ...]:
    return call.kernel.source.signature.arguments


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
