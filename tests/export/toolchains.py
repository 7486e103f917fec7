"""Compilers for other processors, and what runs their programs, where they are installed."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy

import snncc

DEVICE = Path(__file__).parent / "device"
STRICT = ("-std=c11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pedantic")
_NO_SYSTEM = ("-DCORTEX_M", "-mthumb", "-nostartfiles", f"-T{DEVICE / 'cortex_m.ld'}")
_BOARD = (
    *("qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"),
    *("-chardev", "stdio,id=out"),
    *("-semihosting-config", "enable=on,target=native,chardev=out", "-kernel"),
)


@dataclass(frozen=True)
class Toolchain:
    """A compiler and what runs its programs.

    Attributes:
        name: What tests call it.
        compiler: The compiler.
        flags: Its options.
        runner: The command before a program; empty where it runs by itself.
        needs: A file that must be there besides the programs.
    """

    name: str
    compiler: str
    flags: tuple[str, ...]
    runner: tuple[str, ...] = ()
    needs: str = ""

    def missing(self) -> str:
        """Return what is not installed, or nothing."""
        programs = (self.compiler, *self.runner[:1])
        gone = [name for name in programs if find(name) is None]
        if self.needs and not Path(self.needs).exists():
            gone.append(self.needs)
        return ", ".join(gone)

    def run(self, folder: Path, sources: list[Path]) -> str:
        """Build a program and return what it prints."""
        program = folder / f"{self.name}.program"
        command = [str(find(self.compiler)), *STRICT, *self.flags, *map(str, sources)]
        built = subprocess.run(
            [*command, "-o", str(program), "-lm"], capture_output=True, text=True
        )
        assert built.returncode == 0, built.stderr
        runner = [str(find(self.runner[0])), *self.runner[1:]] if self.runner else []
        ran = subprocess.run([*runner, str(program)], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@functools.cache
def find(name: str) -> str | None:
    """Return the path of a program; of clang also that of a version."""
    names = [name, *(f"{name}-{n}" for n in range(21, 12, -1))] if name == "clang" else [name]
    return next((path for n in names if (path := shutil.which(n))), None)


def _cortex(name: str, cpu: str, *flags: str) -> Toolchain:
    return Toolchain(
        name, "arm-none-eabi-gcc", (f"-mcpu={cpu}", *flags, *_NO_SYSTEM, "-O2"), _BOARD
    )


_WASM = Toolchain(
    "wasm32",
    "clang",
    ("--target=wasm32-wasi", "--sysroot=/usr", "-O2"),
    ("node", "--no-warnings", str(DEVICE / "run.mjs")),
    "/usr/lib/wasm32-wasi",
)
TOOLCHAINS = (
    Toolchain("gcc-avx2", "gcc", ("-O3", "-mavx2", "-mfma")),
    Toolchain("clang", "clang", ("-O2",)),
    Toolchain("clang-avx2", "clang", ("-O3", "-mavx2", "-mfma")),
    _cortex("cortex-m0", "cortex-m0plus"),
    _cortex("cortex-m4f", "cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
    _WASM,
)
HOST = Toolchain("host", "cc", ("-O0",))


def sources(bundle: snncc.Bundle, folder: Path) -> list[Path]:
    """Write a program that runs a bundle's test vector; return its files and options."""
    (folder / "vector.h").write_text(_vector(bundle))
    library = [bundle.folder / f"{bundle.name}{end}.c" for end in ("", "_weights")]
    return [DEVICE / "run.c", *library, Path(f"-I{folder}"), Path(f"-I{bundle.folder}")]


def _vector(bundle: snncc.Bundle) -> str:
    """Return the inputs of a bundle's test vector as C, and what runs one step on them."""
    manifest, name = json.loads((bundle.folder / "manifest.json").read_text()), bundle.name
    kind = {"float32": "float", "float64": "double"}.get(manifest["number"])
    number = kind or manifest["number"] + "_t"
    dtype = {"float": "<f4", "double": "<f8", "int16_t": "<i2", "int32_t": "<i4"}[number]
    data = (bundle.folder / "test_vector.bin").read_bytes()
    steps, place = int.from_bytes(data[:4], "little"), 4
    lines, given, shown = [f'#include "{name}.h"', "#include <stddef.h>"], [], []
    for position, shape in enumerate(manifest["inputs"].values()):
        size = int(numpy.prod(shape, dtype=int))
        values = numpy.frombuffer(data, dtype, steps * size, place)
        place += values.nbytes
        items = ", ".join(float(v).hex() if kind else str(v) for v in values)
        lines.append(f"static const {number} in{position}[] = {{{items}}};")
        given.append(f"in{position} + t * {size}")
    for position, shape in enumerate(manifest["outputs"].values()):
        size = int(numpy.prod(shape, dtype=int))
        lines.append(f"static {number} out{position}[{size}];")
        given.append(f"out{position}")
        shown.append(f"print(out{position}, {size});")
    settings = {
        "NUMBER": number, "NETWORK": name, "INIT": f"{name}_init", "WEIGHTS": f"{name}_weights",
        "STEPS": steps, "STEP": f"{name}_step(&net, {', '.join(given)})", "PRINT": " ".join(shown),
    }  # fmt: skip
    return "\n".join([*lines, *(f"#define {k} {v}" for k, v in settings.items())]) + "\n"
