"""Compile CUDA C++ by NVRTC, the compiler library that torch's packages for CUDA bring along."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snncc.errors import BuildError
from snncc.runtime.binaries.build import program_identity

_STDERR_TAIL = 30


@dataclass(frozen=True)
class Nvrtc:
    """A compiler library.

    Attributes:
        library: Its functions; they return 0 where all is well.
        file: The file that it is in.
        include: Folders with the headers of half types.
    """

    library: Any
    file: str
    include: tuple[str, ...]

    @property
    def identity(self) -> str:
        """What tells one version from another."""
        return program_identity(self.file)

    def compile(self, text: str, arch: str, folder: Path, flags: tuple[str, ...]) -> str:
        """Compile a text, as ``kernel.cu``, to ``kernel.cubin``, both in a folder.

        Returns:
            The options that it was compiled with.

        Raises:
            BuildError: The compiler failed.
        """
        (folder / "kernel.cu").write_text(text, encoding="utf-8")
        options = [f"-arch={arch}", *flags, *(f"-I{path}" for path in self.include)]
        program = ctypes.c_void_p()
        self._check(
            "nvrtcCreateProgram",
            self.library.nvrtcCreateProgram(
                ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None
            ),
        )
        try:
            words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self.library.nvrtcCompileProgram(program, len(options), words)
            if status:
                said = self._read("nvrtcGetProgramLog", program).rstrip(b"\0").decode()
                raise _failed(status, options, said)
            (folder / "kernel.cubin").write_bytes(self._read("nvrtcGetCUBIN", program))
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return " ".join(["NVRTC", self.file, *options])

    def _read(self, name: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._check(name, getattr(self.library, f"{name}Size")(program, ctypes.byref(size)))
        data = ctypes.create_string_buffer(size.value)
        self._check(name, getattr(self.library, name)(program, data))
        return data.raw

    def _check(self, name: str, status: int) -> None:
        if status:
            raise _failed(status, [], f"in {name}")


def _failed(status: int, options: list[str], said: str) -> BuildError:
    return BuildError(
        f"NVRTC failed with status {status}.",
        code="build.nvrtc-failed",
        notes=[f"Options: {' '.join(options)}", *said.splitlines()[-_STDERR_TAIL:]],
        hints=["Install the CUDA toolkit: nvcc is taken where it is there."],
    )


@functools.cache
def find_nvrtc() -> Nvrtc | None:
    """Return the NVRTC of the packages that torch depends on; None where there is none."""
    for file in _packaged("lib/libnvrtc.so.*"):
        try:
            # The library asks for this one by name alone, and finds it where it is loaded already.
            for other in file.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(other))
            library = ctypes.CDLL(str(file))
        except OSError:
            continue
        headers = _packaged("include/cuda_fp16.h")
        return Nvrtc(library, str(file), tuple(str(path.parent) for path in headers))
    return None


def _packaged(pattern: str) -> Iterator[Path]:
    """Yield files of NVIDIA's Python packages, which lie side by side in one namespace."""
    found = importlib.util.find_spec("nvidia")
    for folder in (found.submodule_search_locations or ()) if found else ():
        yield from sorted(Path(folder).glob(f"*/{pattern}"))
