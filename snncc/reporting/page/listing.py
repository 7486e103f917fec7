"""The lines of the user's source that are shown, and what became of each expression in them.

Each character of a line belongs to the smallest expression around it that became a part of the
network.  Only the functions that ran are shown.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from snncc.source import Location, is_library

# Of a function of more lines, only those around marked ones are shown.
MOST_LINES = 300
CONTEXT = 6


@dataclass(frozen=True)
class Mark:
    """An expression of the user's that became a part: the part, its kind, and what to say of it."""

    where: Location
    part: str
    kind: str
    says: str


@dataclass
class Line:
    """One line of a listing: for each character the part that it became, and its marks."""

    number: int
    text: str
    parts: list[Mark | None]
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """The lines of one file that are shown; None stands for lines left out.

    ``unknown`` are the marks whose text cannot be known; ``is_current`` says whether all functions
    are as they ran.
    """

    file: str
    lines: tuple[Line | None, ...]
    unknown: tuple[Mark, ...]
    is_current: bool

    @property
    def is_library(self) -> bool:
        """Whether the file is not the user's own."""
        return is_library(self.file)


def listings(marks: Iterable[Mark]) -> list[Listing]:
    """Return the listings of all files with marks, the user's own first."""
    by_file: dict[str, list[Mark]] = {}
    for mark in marks:
        for where in (mark.where, *mark.where.callers):
            by_file.setdefault(where.file, []).append(Mark(where, mark.part, mark.kind, mark.says))
    found = [_listing(file, list(dict.fromkeys(own))) for file, own in by_file.items()]
    return sorted(found, key=lambda listing: listing.is_library)


def _listing(file: str, marks: list[Mark]) -> Listing:
    known = [mark for mark in marks if mark.where.source_lines]
    unknown = tuple(mark for mark in marks if not mark.where.source_lines)
    texts = [line.rstrip("\r\n").expandtabs() for line in linecache.getlines(file)]
    lines: dict[int, Line] = {}
    for number in sorted(_shown(linecache.getlines(file), known)):
        text = texts[number - 1]
        lines[number] = Line(number, text, [None] * len(text))
    # The smallest expression wins: it is painted last.
    for mark in sorted(known, key=lambda m: -_extent(m.where)):
        _paint(lines, mark)
    is_current = all(mark.where.is_function_current for mark in known)
    return Listing(file, tuple(_with_gaps(lines)), unknown, is_current)


def _paint(lines: dict[int, Line], mark: Mark) -> None:
    where, raw = mark.where, linecache.getlines(mark.where.file)
    start, end = where.span or (0, 0)
    for number in range(where.line, where.last_line + 1):
        line = lines.get(number)
        if line is None:
            continue
        text = raw[number - 1].rstrip("\r\n")
        first = start if number == where.line else len(text) - len(text.lstrip())
        last = end if number == where.last_line else len(text)
        if where.span is None:
            first, last = len(text) - len(text.lstrip()), len(text)
        left, right = len(text[:first].expandtabs()), len(text[:last].expandtabs())
        line.parts[left:right] = [mark] * (min(right, len(line.text)) - left)
        if all(mark.part != other.part for other in line.marks):
            line.marks.append(mark)


def _extent(where: Location) -> int:
    if where.column is None or where.end_column is None:
        return 1 << 30
    return (where.last_line - where.line) * 10_000 + where.end_column - where.column


def _shown(raw: Sequence[str], marks: Sequence[Mark]) -> set[int]:
    """Return the numbers of the lines to show: functions that ran, and the heads of classes."""
    marked = {n for m in marks for n in range(m.where.line, m.where.last_line + 1)}
    around = {n for m in marked for n in range(m - CONTEXT, m + CONTEXT + 1)}
    shown: set[int] = set()
    rest = set(marked)
    try:
        tree: ast.AST = ast.parse("".join(raw))
    except (SyntaxError, ValueError, RecursionError):
        tree = ast.Module([], [])
    for scope in _scopes(tree):
        lines = set(range(_first(scope), (scope.end_lineno or scope.lineno) + 1))
        if not lines & marked:
            continue
        if isinstance(scope, ast.ClassDef):
            shown |= set(range(_first(scope), scope.lineno + 1))
            continue
        shown |= lines if len(lines) <= MOST_LINES else lines & around
        rest -= lines
    if rest:  # code at the top of a file, as in a cell of a notebook
        whole = set(range(1, len(raw) + 1))
        shown |= whole if len(whole) <= MOST_LINES and not shown else around & whole
    return {n for n in shown if 1 <= n <= len(raw)}


def _scopes(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def _first(scope: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return min([scope.lineno, *(d.lineno for d in scope.decorator_list)])


def _with_gaps(lines: dict[int, Line]) -> Iterator[Line | None]:
    before = None
    for number, line in lines.items():
        if before is not None and number != before + 1:
            yield None
        before = number
        yield line
