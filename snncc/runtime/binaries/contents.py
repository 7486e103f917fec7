"""List the kernel cache on disk, and empty it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Contents:
    """How many kernels a folder holds, and how many bytes all of it takes."""

    folder: Path
    kernels: int
    bytes: int


def contents(folder: Path) -> Contents:
    """Return what a cache holds, kernels of older versions included."""
    entries = list(_entries(folder))
    kernels = sum((entry / "meta.json").is_file() for entry in entries)
    return Contents(folder, kernels, sum(map(_size, entries)))


def clear(folder: Path) -> Contents:
    """Delete all that is in a cache and return what that was; files of others are left alone.

    Kernels that processes have loaded stay usable for them.
    """
    before = contents(folder)
    for entry in list(_entries(folder)):
        shutil.rmtree(entry, ignore_errors=True)
        with suppress(OSError):  # not empty: another process has just written there
            entry.parent.rmdir()
    return before


def _entries(folder: Path) -> Iterator[Path]:
    """Yield what the cache has made: ``<format>/<2 digits>/<digits>`` and ``<format>/tmp-*``."""
    for version in _folders(folder):
        if not version.name.isdigit():
            continue
        for inner in _folders(version):
            if inner.name.startswith("tmp-"):
                yield inner
            elif len(inner.name) == 2 and set(inner.name) <= _HEX:
                yield from (e for e in _folders(inner) if set(e.name) <= _HEX)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return []


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # deleted meanwhile
            total += file.lstat().st_size if file.is_file() else 0
    return total
