"""Compiled C kernels, loaded.

The names of values are no part of what a kernel is made from: layers of equal neurons share one.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from snncc.codegen.base import KernelSource
from snncc.errors import BuildError
from snncc.runtime.binaries.build import Compiler, build, build_identity, find_compiler
from snncc.runtime.binaries.entries import FORMAT, Entries

# Calls the kernel on its argument structure: the bytes, or the address of them.
Function: TypeAlias = Callable[[bytes | int], None]


class KernelCache:
    """Loads the library of a kernel source, building it where it is not there yet.

    Args:
        folder: Where entries live; None means what the settings say, asked at each use.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._entries = Entries("kernel.so", _open_library, folder)

    def prepare(self, source: KernelSource) -> None:
        """Start to build a kernel that will probably be loaded soon.

        Whatever goes wrong is left to the load, which then meets the same error.
        """
        self._entries.start(entry_key(source, find_compiler()), lambda: self.load(source))

    def load(self, source: KernelSource) -> Function:
        """Return the function of a kernel, or of one that differs from it in names only.

        Raises:
            TargetError: There is no compiler.
            BuildError: The compiler failed, or the disk is full.
        """
        compiler = find_compiler()

        def make(folder: Path) -> str:
            log = build(source, compiler, folder)
            _check_library(folder / "kernel.so", source.name)
            return log

        return self._entries.load(entry_key(source, compiler), source.name, make)

    def folder(self) -> Path:
        """Return the folder of this format's entries."""
        return self._entries.folder()


def entry_key(source: KernelSource, compiler: Compiler) -> str:
    """Return the name of a kernel's entry: a hash of everything that it is made from."""
    made_from = (str(FORMAT), build_identity(source, compiler), source.anonymous)
    return hashlib.sha256("\0".join(made_from).encode()).hexdigest()


def _open_library(library: Path, name: str) -> Function:
    function: Any = ctypes.CDLL(str(library))[name]
    function.argtypes = [ctypes.c_void_p]
    function.restype = None
    return function  # type: ignore[no-any-return]


def _check_library(library: Path, name: str) -> None:
    try:
        _open_library(library, name)
    except (OSError, AttributeError) as error:
        raise BuildError(
            f"The compiler made a library for kernel '{name}' that does not load.",
            code="build.unloadable",
            notes=[str(error)],
            hints=["Name another compiler in the environment variable SNNCC_CC."],
        ) from error


CACHE = KernelCache()
"""The cache of the process."""


def load(source: KernelSource) -> Function:
    """Return the function of a kernel from the cache of the process."""
    return CACHE.load(source)
