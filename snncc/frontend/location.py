"""Find where in the user's Python an operator was called: its source line and its call path.

The call path of a torch call is the sequence of (code object, instruction) pairs of the Python
frames from the entry of the model down to the call, without the frames of torch and of snncc.  Two
iterations of a loop reach the same statement through the same path.
"""

from __future__ import annotations

import dis
import functools
import linecache
import os
import sys
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

import torch

import snncc
from snncc.errors import Location

Path = tuple[int, ...]
Here = tuple[Path, Location | None]  # a call path and its source line; equal ones are one object
NOWHERE: Here = ((), None)  # of what has no place in the user's code

_PACKAGE = os.path.dirname(os.path.abspath(snncc.__file__))  # noqa: PTH100, PTH120
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))  # noqa: PTH100, PTH120
# Frames of these folders are not the user's; the reference neurons are.
_HIDDEN = (_TORCH + os.sep, os.path.join(_PACKAGE, ""))  # noqa: PTH118
_BRANCHES = frozenset({*dis.hasjrel, *dis.hasjabs, dis.opmap.get("TO_BOOL", -1)})
_SHOWN = (os.path.join(_PACKAGE, "nn", ""),)  # noqa: PTH118


# Bits of a site that say where an instruction stands; no code is longer.
_BITS = 32

# Python 3.11 calls in one instruction, and from the eighth iteration on, in the one before it.
_PRECALL = dis.opmap.get("PRECALL", -1)


@functools.cache
def is_hidden(file: str) -> bool:
    """Tell whether a source file belongs to torch or to the compiler."""
    return file.startswith(_HIDDEN) and not file.startswith(_SHOWN)


def site_of(code: CodeType, instruction: int) -> int:
    """Return a number that identifies an instruction, the same in every run of this process.

    Its last bits are where the instruction stands in its code.
    """
    if 0 <= instruction < len(code.co_code) and code.co_code[instruction] == _PRECALL:
        instruction += 4  # to the instruction that makes the same call while the code is cold
    function = hash((code.co_filename, code.co_qualname, code.co_firstlineno))
    return (function << _BITS) + instruction


def place_in_code(site: int) -> tuple[int, int]:
    """Return the code that the instruction of a site is of, and where it stands there."""
    return site >> _BITS, site & ((1 << _BITS) - 1)


def location_of(code: CodeType, instruction: int) -> Location:
    """Return the source span of an instruction (its offset in bytes)."""
    positions = list(code.co_positions())
    index = instruction // 2
    if index and code.co_code[instruction] in _BRANCHES:
        index -= 1  # a branch has the span of its whole statement, what it tests has its own
    line, end_line, column, end_column = (
        positions[index] if 0 <= index < len(positions) else (None, None, None, None)
    )
    if line is None:
        return Location(code.co_filename, code.co_firstlineno, function=code.co_name, code=code)
    end_line = None if end_line == line else end_line
    return Location(code.co_filename, line, column, end_column, code.co_name, end_line, code)


class CallSites:
    """Reads call paths, remembering what it has seen of each instruction.

    Args:
        entry: The code object of the function that calls the user's model; frames above are cut.
    """

    def __init__(self, entry: CodeType) -> None:
        self._entry = entry
        self._sites: dict[tuple[int, int], int] = {}
        self._heres: dict[Path, Here] = {}
        self._locations: dict[tuple[int, int], Location] = {}
        self._alive: list[CodeType] = []  # keeps the ids of code objects from being reused
        self.code: dict[CodeType, dict[str, Any]] = {}  # of the user, with its globals

    def here(self, frame: FrameType | None = None) -> Here:
        """Return the call path and the innermost line of the user's code, with its callers.

        Args:
            frame: A frame at or below that line; by default that of the caller.
        """
        path = []
        sites, entry = self._sites, self._entry
        start = frame = frame or sys._getframe(1)
        while frame is not None and frame.f_code is not entry:
            key = (id(frame.f_code), frame.f_lasti)
            site = sites.get(key)
            if site is None:
                site = self._remember(key, frame)
            if site:
                path.append(site)
            frame = frame.f_back
        full = tuple(path)
        here = self._heres.get(full)
        if here is None:
            here = self._heres[full] = full[::-1], self._chain(start)
        return here

    def _chain(self, frame: FrameType | None) -> Location | None:
        """Return the innermost location at or above a frame, with its callers."""
        keys: list[tuple[int, int]] = []
        while frame is not None and frame.f_code is not self._entry:
            keys.append((id(frame.f_code), frame.f_lasti))
            frame = frame.f_back
        where: Location | None = None
        for key in reversed(keys):
            if key in self._locations:
                where = replace(self._locations[key], caller=where)
        return where

    def _remember(self, key: tuple[int, int], frame: FrameType) -> int:
        code = frame.f_code
        self._alive.append(code)
        hidden = is_hidden(code.co_filename)
        self._sites[key] = 0 if hidden else site_of(code, key[1])
        if not hidden:
            # Where the source is not a file, the module's loader may have it.
            linecache.lazycache(code.co_filename, frame.f_globals)
            self._locations[key] = location_of(code, key[1])
            self.code[code] = frame.f_globals
        return self._sites[key]
