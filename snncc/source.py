"""A place in the user's Python, and the text that stands there, if it still does.

A `Location` is a span of code that ran.  Its text is shown only where it is the text that ran: the
source is compiled again, and the instructions of its lines are compared with those of the code
object.  A file that was edited after its import, a deleted file and code without a file therefore
show no text rather than a wrong one.
"""

from __future__ import annotations
import __future__

import ast
import dis
import functools
import linecache
import os
import sysconfig
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

# An expression of more lines is shown by its first two and its last.
_MOST_LINES = 4
_MOST_COLUMNS = 96

# Compiler flags that a code object remembers, and await at top level, as notebooks allow it.
_FEATURES = functools.reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


@dataclass(frozen=True, slots=True)
class Location:
    """A span in the user's source.

    Attributes:
        file: Name of the file, as Python knows it (``<stdin>`` and the like included).
        line: First line, from 1.
        column: Where it starts in that line, from 0, in bytes of UTF-8, as Python counts.
        end_column: Where it ends in its last line.
        function: Name of the enclosing function.
        end_line: Last line; None means ``line``.
        code: The code object that ran, to tell whether the text is still the one that ran.
        caller: Where the enclosing function was called from, if that is the user's code too.
    """

    file: str
    line: int
    column: int | None = None
    end_column: int | None = None
    function: str = ""
    end_line: int | None = None
    code: CodeType | None = field(default=None, compare=False, repr=False)
    caller: Location | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Code objects cannot be pickled; without one, the text is taken as it stands.
        span = (self.line, self.column, self.end_column, self.function, self.end_line)
        return (Location, (self.file, *span, None, self.caller))

    @property
    def last_line(self) -> int:
        """The last line of the span."""
        return self.line if self.end_line is None else self.end_line

    @property
    def source(self) -> str:
        """The text of the first line, or an empty string where it cannot be known."""
        lines = self.source_lines
        return lines[0] if lines else ""

    @property
    def source_lines(self) -> tuple[str, ...]:
        """The text of all lines of the span; empty where it cannot be known."""
        if not self.is_current:
            return ()
        lines = linecache.getlines(self.file)[self.line - 1 : self.last_line]
        return tuple(line.rstrip("\r\n") for line in lines)

    @property
    def is_current(self) -> bool:
        """Whether the file still has the text that ran."""
        if self.code is None:
            return True
        text = "".join(linecache.getlines(self.file))
        return bool(text) and _runs(self.code, self.line, self.last_line, text)

    @property
    def is_function_current(self) -> bool:
        """Whether the file still has the text of the whole function that ran."""
        if self.code is None:
            return True
        text = "".join(linecache.getlines(self.file))
        lines = [n for _, _, n in self.code.co_lines() if n is not None]
        return bool(text) and _runs(self.code, min(lines), max(lines), text)

    @property
    def span(self) -> tuple[int, int] | None:
        """Start in the first line and end in the last line of `source_lines`, in characters."""
        lines = self.source_lines
        if not lines or self.column is None or self.end_column is None:
            return None
        return _characters(lines[0], self.column), _characters(lines[-1], self.end_column)

    @property
    def text(self) -> str:
        """The expression itself, on one line; empty where it cannot be known."""
        if self.span is None:
            return ""
        start, end = self.span
        lines = list(self.source_lines)
        lines[-1] = lines[-1][:end]
        lines[0] = lines[0][start:]
        return " ".join(line.strip() for line in lines)

    @property
    def own(self) -> Location:
        """The nearest location outside of libraries: the user's own line, where there is one."""
        if not is_library(self.file):
            return self
        return next((c for c in self.callers if not is_library(c.file)), self)

    @property
    def callers(self) -> Iterator[Location]:
        """The calls that led here, the nearest first."""
        caller = self.caller
        while caller is not None:
            yield caller
            caller = caller.caller


@functools.cache
def is_library(file: str) -> bool:
    """Tell whether a file belongs to Python, to an installed package or to snncc itself."""
    folders = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    folders.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    own = tuple(os.path.join(folder, "") for folder in folders)  # noqa: PTH118
    return file.startswith(("<frozen ", *own))


def excerpt(location: Location) -> list[str]:
    """Return the lines of a span with their numbers, carets below; nothing where there is no text.

    Tabs are shown as spaces, and wide characters count as two columns, so that carets are right in
    a terminal.
    """
    lines = [line.rstrip() for line in location.source_lines]
    if not any(lines):
        return []
    margin = min(len(_indent(line)) for line in lines if line)
    digits = len(str(location.last_line))
    shown: list[str] = []
    for index, line in enumerate(lines):
        if len(lines) > _MOST_LINES and 2 <= index < len(lines) - 1:
            shown += [f"    {'':{digits}} | ..."] if index == 2 else []
            continue
        text, carets = _marked(line, margin, _part(location, index, line))
        shown.append(f"    {location.line + index:{digits}} | {text}".rstrip())
        shown += [f"    {'':{digits}} | {carets}"] if carets else []
    return shown


def _part(location: Location, index: int, line: str) -> tuple[int, int] | None:
    """Return the part of one line of a span that belongs to it, in characters."""
    if location.span is None or not line:
        return None
    start, end = location.span
    is_last = location.line + index == location.last_line
    return start if index == 0 else len(_indent(line)), min(
        end if is_last else len(line), len(line)
    )


def _marked(line: str, margin: int, part: tuple[int, int] | None) -> tuple[str, str]:
    """Return the text of a line as it is shown, and the carets below it."""
    text = line[margin:].expandtabs()
    start, end = (0, 0) if part is None else (len(line[margin:at].expandtabs()) for at in part)
    if len(text) > _MOST_COLUMNS:
        left = max(0, min(start - 8, len(text) - _MOST_COLUMNS))
        right = left + _MOST_COLUMNS
        head, tail = "..." if left else "", "..." if right < len(text) else ""
        start, end = start - left + len(head), min(end, right) - left + len(head)
        text = head + text[left:right] + tail
    carets = "" if part is None else "^" * max(_width(text[start:end]), 1)
    return text, " " * _width(text[:start]) + carets if carets else ""


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _characters(line: str, column: int) -> int:
    """Return a column in characters; Python counts the bytes of UTF-8."""
    return len(line.encode("utf-8", "surrogatepass")[:column].decode("utf-8", "ignore"))


@functools.lru_cache(maxsize=4096)
def _runs(code: CodeType, first: int, last: int, text: str) -> bool:
    """Tell whether a text, compiled, has the instructions of a code object on some lines."""
    ran = _instructions(code, first, last)
    return any(
        other.co_qualname == code.co_qualname
        and other.co_firstlineno == code.co_firstlineno
        and _instructions(other, first, last) == ran
        for other in _codes(text, code.co_flags & _FEATURES)
    )


@functools.lru_cache(maxsize=64)
def _codes(text: str, features: int) -> tuple[CodeType, ...]:
    """Return every code object of a source text; none where it cannot be compiled."""
    flags = features | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        module = compile(text, "<source>", "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    return tuple(_nested(module))


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _instructions(code: CodeType, first: int, last: int) -> list[tuple[Any, ...]]:
    """Return the instructions of some lines with what they read; where they jump to is left out."""
    return [
        (i.opname, None if i.opcode in _JUMPS else _named(i.argval), *i.positions)
        for i in dis.get_instructions(code)
        if i.positions is not None
        and i.positions.lineno is not None
        and first <= i.positions.lineno <= last
    ]


_JUMPS = frozenset({*dis.hasjrel, *dis.hasjabs})


def _named(value: Any) -> str:
    return value.co_name if isinstance(value, CodeType) else repr(value)
