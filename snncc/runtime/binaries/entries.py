"""Compiled kernels on disk, found by what they were made from, and in memory.

An entry is a folder that appears under its final name in one rename, after everything in it is
written; ``meta.json`` is written last and holds the hash of what was made.  Whatever does not
load - cut short, changed, of another format - counts as absent, is removed and made again.  No
locks between processes: if two make the same entry, the first rename wins.
"""

from __future__ import annotations

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
from typing import Any, Generic, TypeVar

from snncc.errors import BuildError, SnnccError, SnnccWarning
from snncc.options import settings
from snncc.runtime.binaries.build import is_writable

# Counts changes of the folder's layout and of the meaning of its files.
FORMAT = 2
_ABANDONED_S = 24 * 3600

T = TypeVar("T")


class Entries(Generic[T]):
    """The entries of one kind.

    Args:
        made: The name of the file that a compiler makes.
        open: Loads that file; is also given the name of the kernel.
        folder: Where entries live; None means what the settings say, asked at each use.
    """

    def __init__(
        self, made: str, open: Callable[[Path, str], T], folder: Path | None = None
    ) -> None:
        self._made, self._open, self._folder = made, open, folder
        self._loaded: dict[str, T] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._private: Path | None = None
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 1)
        if hasattr(os, "register_at_fork"):
            entries = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _reset_locks(entries))

    def start(self, key: str, load: Callable[[], object]) -> None:
        """Load an entry that will probably be needed soon, in a thread.

        Whatever goes wrong is left to the load that is waited for, which meets the same error.
        """
        if key not in self._loaded and key not in self._locks:
            self._locks[key] = threading.Lock()
            threading.Thread(target=self._try, args=(load,), name="snncc-build").start()

    def _try(self, load: Callable[[], object]) -> None:
        with self._slots, suppress(SnnccError):
            load()

    def load(self, key: str, name: str, build: Callable[[Path], str]) -> T:
        """Return what an entry holds, making it where it is not there yet.

        Args:
            key: A hash of everything that it is made from.
            name: The kernel.
            build: Makes the file in an empty folder and returns what it did, for people to read.

        Raises:
            BuildError: The disk is full; or what ``build`` raises.
        """
        found = self._loaded.get(key)
        if found is not None:
            return found
        # One lock a kernel: different kernels are built at the same time.
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._loaded:
                self._loaded[key] = self._find_or_make(key, name, build)
        return self._loaded[key]

    def folder(self) -> Path:
        """Return the folder of this format's entries."""
        return (self._folder or settings().cache_dir) / str(FORMAT)

    def _find_or_make(self, key: str, name: str, build: Callable[[Path], str]) -> T:
        folder = self.folder()
        found = self._find(_entry(folder, key))
        if found is not None:
            return found
        if not is_writable(folder):
            folder = self._private_folder(folder)
        try:
            return self._make(folder, key, name, build)
        except OSError as error:
            raise BuildError(
                f"The kernel '{name}' cannot be written to the cache.",
                code="build.cache-write",
                notes=[f"{type(error).__name__}: {error}"],
                hints=[
                    f"Make room in '{folder}'.",
                    "Or name another folder in the environment variable SNNCC_CACHE_DIR.",
                ],
            ) from error

    def _find(self, entry: Path) -> T | None:
        """Load an entry; remove it and return None where anything about it is wrong."""
        if not entry.exists():
            return None
        try:
            meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
            file = entry / self._made
            # A library that was cut short would crash the process when its pages are touched.
            if _digest(file) != meta["sha256"]:
                raise ValueError("the file was changed")
            return self._open(file, meta["kernel"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            _remove(entry)
            return None

    def _make(self, folder: Path, key: str, name: str, build: Callable[[Path], str]) -> T:
        _remove_abandoned(folder)
        work = Path(tempfile.mkdtemp(prefix="tmp-", dir=folder))
        try:
            log, file = build(work), work / self._made
            meta: dict[str, Any] = {"kernel": name, "sha256": _digest(file)}
            meta["log"] = log.splitlines()
            (work / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            # Loaded first: a library stays usable whatever becomes of its file.
            loaded = self._open(file, name)
            _publish(work, _entry(folder, key))
            return loaded
        finally:
            shutil.rmtree(work, ignore_errors=True)

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


def _reset_locks(entries: weakref.ref[Entries[T]]) -> None:
    """Forget builds under way in a forked child: the threads that made them are not there."""
    alive = entries()
    if alive is not None:
        alive._locks = {}
        alive._slots = threading.BoundedSemaphore(os.cpu_count() or 1)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _entry(folder: Path, key: str) -> Path:
    return folder / key[:2] / key


def _remove(entry: Path) -> None:
    """Take an entry out of the way in one rename, then delete it."""
    with suppress(OSError):
        grave = Path(tempfile.mkdtemp(prefix="tmp-", dir=entry.parent.parent))
        with suppress(OSError):
            entry.rename(grave / "entry")
        shutil.rmtree(grave, ignore_errors=True)


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
