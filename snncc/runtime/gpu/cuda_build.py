"""Compile CUDA C++ for a GPU that need not be there, and keep what came out."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from snncc.codegen.base import KernelSource
from snncc.errors import BuildError, TargetError
from snncc.options import settings
from snncc.runtime.binaries.build import program_identity
from snncc.runtime.binaries.entries import FORMAT, Entries
from snncc.runtime.gpu.cuda_nvrtc import find_nvrtc

# Where nvcc lies if it is not on the search path.
_USUAL = "/usr/local/cuda/bin/nvcc"
_STDERR_TAIL = 30


class CudaCompiler(Protocol):
    """What turns a text into a binary."""

    @property
    def identity(self) -> str:
        """What changes with its version."""
        ...

    def compile(self, text: str, arch: str, folder: Path, flags: tuple[str, ...]) -> str:
        """Compile a text to ``kernel.cubin`` in a folder and return what was done."""
        ...


@dataclass(frozen=True, slots=True)
class Nvcc:
    """A CUDA compiler: the words that start it, and what tells one version from another."""

    command: tuple[str, ...]
    identity: str

    def compile(self, text: str, arch: str, folder: Path, flags: tuple[str, ...]) -> str:
        """Compile a text, as ``kernel.cu``, to ``kernel.cubin`` and ``kernel.ptx``.

        Args:
            text: A complete unit.
            arch: What it is compiled for.
            folder: Where all files go; nvcc leaves others of its own.
            flags: What its numerics need.

        Returns:
            The command and what the assembler says of registers.

        Raises:
            BuildError: The compiler failed.
        """
        (folder / "kernel.cu").write_text(text, encoding="utf-8")
        # Intermediate files are kept, of which the .ptx is one.
        options = [f"-arch={arch}", *flags, "-cubin", "-keep", "-Xptxas=-v"]
        command = [*self.command, *options, "kernel.cu"]
        try:
            run = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise _failed(command, f"it could not be started: {error}", "") from error
        said = run.stdout + run.stderr
        if run.returncode:
            raise _failed(command, f"it ended with status {run.returncode}", said)
        return "\n".join([shlex.join(command), said])


def find_cuda_compiler() -> CudaCompiler:
    """Find what compiles kernels: nvcc, else the NVRTC that torch's packages for CUDA bring along.

    Raises:
        TargetError: There is neither.
    """
    nvcc = _nvcc()
    found = nvcc if nvcc is not None or settings().nvcc else find_nvrtc()
    if found is None:
        raise _no_compiler()
    return found


def find_nvcc() -> Nvcc:
    """Find nvcc: SNNCC_NVCC, else ``nvcc`` on the search path, else where it usually lies.

    Raises:
        TargetError: There is none.
    """
    found = _nvcc()
    if found is None:
        raise _no_compiler()
    return found


def _nvcc() -> Nvcc | None:
    chosen = settings().nvcc
    for words in [shlex.split(chosen)] if chosen else [["nvcc"], [_USUAL]]:
        program = shutil.which(words[0]) if words else None
        if program is not None:
            identity = " ".join([program_identity(program), *words[1:]])
            return Nvcc((program, *words[1:]), identity)
    return None


def _no_compiler() -> TargetError:
    chosen = settings().nvcc
    headline = "There is no CUDA compiler on this machine."
    if chosen:
        headline = f"The CUDA compiler '{chosen}' that SNNCC_NVCC names is not there."
    return TargetError(
        headline,
        code="target.no-nvcc",
        notes=["Kernels in CUDA C++ are compiled by nvcc, or by the NVRTC that comes with torch."],
        hints=[
            "Install the CUDA toolkit, or name nvcc in the environment variable SNNCC_NVCC.",
            "Or leave out target='cuda': Triton brings a compiler along.",
        ],
    )


def _failed(command: list[str], what: str, said: str) -> BuildError:
    return BuildError(
        f"The CUDA compiler '{command[0]}' failed: {what}.",
        code="build.nvcc-failed",
        notes=[f"Command: {shlex.join(command)}", *said.splitlines()[-_STDERR_TAIL:]],
        hints=["Name another nvcc in the environment variable SNNCC_NVCC."],
    )


_BINARIES: Entries[bytes] = Entries("kernel.cubin", lambda file, _: file.read_bytes())


def cubin_of(source: KernelSource, arch: str) -> bytes:
    """Return the binary of a specialised kernel, compiling it where it is not there yet.

    Raises:
        TargetError: There is no compiler.
        BuildError: It failed, or the disk is full.
    """
    compiler = find_cuda_compiler()
    made_from = (str(FORMAT), compiler.identity, arch, *source.flags, source.anonymous)
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()

    def make(folder: Path) -> str:
        log = compiler.compile(source.anonymous, arch, folder, source.flags)
        for file in folder.iterdir():
            if file.suffix not in (".cu", ".ptx", ".cubin"):
                file.unlink()
        return log

    return _BINARIES.load(key, source.name, make)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one thread and one block of a kernel take.

    Attributes:
        registers: Registers of a thread.
        local: Bytes of local memory of a thread: its stack, and registers that were spilled.
        shared: Bytes of shared memory of a block.
    """

    registers: int
    local: int
    shared: int


def read_usage(log: str, name: str) -> Usage:
    """Return what the assembler said of a function."""
    said = log.split(f"Compiling entry function '{name}'", 1)[1].split("Compiling entry", 1)[0]

    def number(pattern: str) -> int:
        found = re.search(pattern, said)
        return int(found[1]) if found else 0

    local = number(r"(\d+) bytes stack frame") + number(r"(\d+) bytes spill stores")
    return Usage(number(r"Used (\d+) registers"), local, number(r"(\d+) bytes smem"))
