"""Compiled kernels on disk, found by what they were made from, and in memory.

The names of values are no part of what a kernel is made from: layers of equal neurons share one.

An entry is a folder that appears under its final name in one rename, after everything in it is
written; ``meta.json`` is written last and holds the hash of the library.  Whatever does not
load - cut short, changed, of another format - counts as absent, is removed and made again.  No
locks between processes: if two make the same entry, the first rename wins.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from snncc.codegen.base import KernelSource
from snncc.errors import BuildError, SnnccError, SnnccWarning
from snncc.options import settings
from snncc.runtime.build import (
    Compiler,
    build,
    build_identity,
    find_compiler,
    is_writable,
)

# Counts changes of the folder's layout and of the meaning of its files.
FORMAT = 2
_ABANDONED_S = 24 * 3600

# Calls the kernel on its argument structure: the bytes, or the address of them.
Function: TypeAlias = Callable[[bytes | int], None]


class KernelCache:
    """Loads the library of a kernel source, building it where it is not there yet.

    Args:
        folder: Where entries live; None means what the settings say, asked at each use.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._functions: dict[str, Function] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._private: Path | None = None
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 1)
        if hasattr(os, "register_at_fork"):
            cache = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _reset_locks(cache))

    def prepare(self, source: KernelSource) -> None:
        """Start to build a kernel that will probably be loaded soon.

        Whatever goes wrong is left to the load, which then meets the same error.
        """
        key = entry_key(source, find_compiler())
        if key not in self._functions and key not in self._locks:
            self._locks[key] = threading.Lock()
            threading.Thread(target=self._try_to_load, args=(source,), name="snncc-build").start()

    def _try_to_load(self, source: KernelSource) -> None:
        with self._slots, suppress(SnnccError):
            self.load(source)

    def load(self, source: KernelSource) -> Function:
        """Return the function of a kernel, or of one that differs from it in names only.

        Raises:
            TargetError: There is no compiler.
            BuildError: The compiler failed, or the disk is full.
        """
        compiler = find_compiler()
        key = entry_key(source, compiler)
        function = self._functions.get(key)
        if function is not None:
            return function
        # One lock a kernel: different kernels are built at the same time.
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._functions:
                self._functions[key] = self._find_or_build(source, compiler, key)
        return self._functions[key]

    def folder(self) -> Path:
        """Return the folder of this format's entries."""
        return (self._folder or settings().cache_dir) / str(FORMAT)

    def _find_or_build(self, source: KernelSource, compiler: Compiler, key: str) -> Function:
        folder = self.folder()
        found = _open_entry(_entry(folder, key))
        if found is not None:
            return found
        if not is_writable(folder):
            folder = self._private_folder(folder)
        try:
            return _make_entry(source, compiler, folder, key)
        except OSError as error:
            raise BuildError(
                f"The kernel '{source.name}' cannot be written to the cache.",
                code="build.cache-write",
                notes=[f"{type(error).__name__}: {error}"],
                hints=[
                    f"Make room in '{folder}'.",
                    "Or name another folder in the environment variable SNNCC_CACHE_DIR.",
                ],
            ) from error

    def _private_folder(self, refused: Path) -> Path:
        if self._private is None:
            self._private = Path(tempfile.mkdtemp(prefix="snncc-"))
            weakref.finalize(self, shutil.rmtree, self._private, ignore_errors=True)
            warnings.warn(
                f"The kernel cache '{refused}' cannot be written; kernels are compiled anew in"
                f" each process. Name another folder in SNNCC_CACHE_DIR.",
                SnnccWarning,
                stacklevel=2,
            )
        return self._private


def _reset_locks(cache: weakref.ref[KernelCache]) -> None:
    """Forget builds under way in a forked child: the threads that made them are not there."""
    alive = cache()
    if alive is not None:
        alive._locks = {}
        alive._slots = threading.BoundedSemaphore(os.cpu_count() or 1)


def entry_key(source: KernelSource, compiler: Compiler) -> str:
    """Return the name of a kernel's entry: a hash of everything that it is made from."""
    made_from = (str(FORMAT), build_identity(source, compiler), source.anonymous)
    return hashlib.sha256("\0".join(made_from).encode()).hexdigest()


def _entry(folder: Path, key: str) -> Path:
    return folder / key[:2] / key


def _open_entry(entry: Path) -> Function | None:
    """Load an entry; remove it and return None where anything about it is wrong."""
    if not entry.exists():
        return None
    try:
        meta = json.loads((entry / "meta.json").read_text())
        library = entry / "kernel.so"
        # A library that was cut short would crash the process when its pages are touched.
        if hashlib.sha256(library.read_bytes()).hexdigest() != meta["sha256"]:
            raise ValueError("the library was changed")
        return _open_library(library, meta["kernel"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        _remove(entry)
        return None


def _open_library(library: Path, name: str) -> Function:
    function: Any = ctypes.CDLL(str(library))[name]
    function.argtypes = [ctypes.c_void_p]
    function.restype = None
    return function  # type: ignore[no-any-return]


def _remove(entry: Path) -> None:
    """Take an entry out of the way in one rename, then delete it."""
    with suppress(OSError):
        grave = Path(tempfile.mkdtemp(prefix="tmp-", dir=entry.parent.parent))
        with suppress(OSError):
            entry.rename(grave / "entry")
        shutil.rmtree(grave, ignore_errors=True)


def _make_entry(source: KernelSource, compiler: Compiler, folder: Path, key: str) -> Function:
    _remove_abandoned(folder)
    work = Path(tempfile.mkdtemp(prefix="tmp-", dir=folder))
    try:
        log = build(source, compiler, work)
        digest = hashlib.sha256((work / "kernel.so").read_bytes()).hexdigest()
        meta = {"kernel": source.name, "sha256": digest, "log": log.splitlines()}
        (work / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        # Loaded first: the library stays usable whatever becomes of its file.
        function = _open_built(work / "kernel.so", source.name)
        _publish(work, _entry(folder, key))
        return function
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open_built(library: Path, name: str) -> Function:
    try:
        return _open_library(library, name)
    except (OSError, AttributeError) as error:
        raise BuildError(
            f"The compiler made a library for kernel '{name}' that does not load.",
            code="build.unloadable",
            notes=[str(error)],
            hints=["Name another compiler in the environment variable SNNCC_CC."],
        ) from error


def _publish(work: Path, entry: Path) -> None:
    """Move a finished folder to its name; it may be there already, made by another process."""
    entry.parent.mkdir(exist_ok=True)
    with suppress(FileExistsError):
        try:
            work.rename(entry)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise


def _remove_abandoned(folder: Path) -> None:
    """Delete the working folders of processes that were killed long ago."""
    for work in folder.glob("tmp-*"):
        with suppress(OSError):
            if time.time() - work.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(work, ignore_errors=True)


CACHE = KernelCache()
"""The cache of the process."""


def load(source: KernelSource) -> Function:
    """Return the function of a kernel from the cache of the process."""
    return CACHE.load(source)
