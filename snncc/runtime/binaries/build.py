"""Turn kernel sources into shared libraries with the C compiler of the machine."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snncc.codegen.base import KernelSource
from snncc.errors import BuildError, TargetError
from snncc.options import settings

_STDERR_TAIL = 30
# Flags that save gcc work and change no value; other compilers refuse them.
_OF_GCC = frozenset({"-fno-split-loops"})
_GCC_VERSION = re.compile(r"\S+ \(.*?\) (\d+)\.")
_FIRST_GCC = 7
_LITTLE_ROOM = 1 << 20
_AS_PATHS = {"encoding": "utf-8", "errors": "surrogateescape"}  # as the system spells paths
_HINTS = (
    "Install gcc or clang (Debian, Ubuntu: 'apt install gcc').",
    "Or name a C compiler in the environment variable SNNCC_CC.",
    "Or choose target='torch', the slow reference interpreter.",
)


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler: the words that start it, and what tells one version from another.

    Attributes:
        command: The program, by its full path, and arguments that it always gets.
        identity: Path, size and time of the program file.
    """

    command: tuple[str, ...]
    identity: str

    def version(self) -> str:
        """Ask the compiler for its version; takes some milliseconds."""
        try:
            command = [*self.command, "--version"]
            run = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        except OSError as error:
            return f"unknown: {error}"
        return (run.stdout.splitlines() or ["unknown"])[0]


def understood(flags: Sequence[str], version: str) -> list[str]:
    """Return those of the flags of a kernel that a compiler of some version takes."""
    gcc = _GCC_VERSION.match(version)
    is_known = gcc is not None and int(gcc[1]) >= _FIRST_GCC
    return [flag for flag in flags if is_known or flag not in _OF_GCC]


def find_compiler() -> Compiler:
    """Find the C compiler: SNNCC_CC, else ``cc``, ``gcc`` or ``clang``.

    Raises:
        TargetError: There is none.
    """
    chosen = settings().cc
    for words in [_words(chosen)] if chosen else [["cc"], ["gcc"], ["clang"]]:
        program = shutil.which(words[0]) if words else None
        if program is not None:
            return Compiler((program, *words[1:]), program_identity(program))
    headline = "There is no C compiler on this machine."
    if chosen:
        headline = f"The C compiler '{chosen}' that SNNCC_CC names is not there."
    raise TargetError(headline, code="target.no-compiler", hints=_HINTS)


def _words(command: str) -> list[str]:
    """Return the words of a command; none where a quotation does not end."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def program_identity(program: str) -> str:
    """Return what changes with the version of a program; reading it takes no process."""
    file = Path(program).resolve()
    stat = file.stat()
    return f"{file} {stat.st_size} {stat.st_mtime_ns}"


@functools.cache
def find_openmp() -> Path | None:
    """Find the OpenMP runtime that torch has loaded into this process.

    Kernels are linked against that very file: with a second runtime there would be two pools
    of threads, each with as many threads as there are cores.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    files = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "omp" in line}
    runtimes = (Path(file) for file in sorted(files))
    return next((file for file in runtimes if _is_openmp(file.name) and file.exists()), None)


def _is_openmp(name: str) -> bool:
    return name.startswith(("libgomp", "libiomp5", "libomp")) and ".so" in name


@functools.cache
def cpu_identity() -> str:
    """Return what ``-march=native`` depends on."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    return "\n".join(line for line in first.splitlines() if line.startswith(kept))


def build_identity(source: KernelSource, compiler: Compiler) -> str:
    """Return everything besides the text that decides what a build results in."""
    return "\n".join(
        (
            compiler.identity,
            *compiler.command[1:],
            *source.flags,
            str(find_openmp()),
            cpu_identity(),
        )
    )


def build(source: KernelSource, compiler: Compiler, folder: Path) -> str:
    """Compile ``kernel.c`` to ``kernel.so``, both in a folder.

    Args:
        source: The kernel.
        compiler: What compiles it.
        folder: An empty folder; it also receives ``build.log``.

    Returns:
        The commands that were run, one a line.

    Raises:
        BuildError: The compiler failed or could not write.
    """
    text, thing, library = folder / "kernel.c", folder / "kernel.o", folder / "kernel.so"
    openmp = find_openmp()
    runtime = [str(openmp)] if openmp else ["-fopenmp"]
    version = compiler.version()
    flags = understood(source.flags, version)
    compile_ = [*flags, "-fopenmp", "-fPIC", "-c", str(text), "-o", str(thing)]
    link = ["-shared", str(thing), "-o", str(library), *runtime, "-lm"]
    text.write_text(source.text, encoding="utf-8")
    log = [f"# {version}"]
    for arguments, made in ((compile_, thing), (link, library)):
        command = [*compiler.command, *arguments]
        log += _run(command, text)
        if not made.exists():
            raise _failed(command, text, f"it made no '{made.name}'", "")
        (folder / "build.log").write_text("\n".join(log) + "\n", **_AS_PATHS)
    thing.unlink()
    return "\n".join(log)


def _run(command: list[str], text: Path) -> list[str]:
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise _failed(command, text, f"it could not be started: {error}", "") from error
    if run.returncode < 0:
        raise _failed(command, text, f"it was killed by signal {-run.returncode}", run.stderr)
    if run.returncode > 0:
        raise _failed(command, text, f"it ended with status {run.returncode}", run.stderr)
    return [shlex.join(command), *run.stderr.splitlines()]


def _failed(command: list[str], text: Path, what: str, stderr: str) -> BuildError:
    tail = stderr.splitlines()[-_STDERR_TAIL:]
    hints = ["Name another compiler in the environment variable SNNCC_CC."]
    if shutil.disk_usage(text.parent).free < _LITTLE_ROOM:
        hints = [f"Make room in '{text.parent.parent}': its disk is full."]
    return BuildError(
        f"The C compiler '{command[0]}' failed: {what}.",
        code="build.compiler-failed",
        notes=[f"Command: {shlex.join(command)}", f"Source: {text}", *tail],
        hints=hints,
    )


def is_writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder, making the folder where needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
