"""Where the user's iteration begins, in a part of the run that repeats.

A repeat can be cut anywhere.  Cut where the user's ``for`` begins a new round, the body says what
the user's code says: its carries are the user's states, not what was computed from them in between.
"""

from __future__ import annotations

from snncc.frontend.reroll.repeats import Repeat
from snncc.frontend.reroll.symbols import Sequence

Path = tuple[int, ...]


def first_place(sequence: Sequence, repeat: Repeat) -> int:
    """Return the position, in the last period of a repeat, at which the user's iteration begins.

    The call paths of a body have a common beginning, the way to the loop; what comes next tells the
    statements of the loop apart.  For operations that the loop's own text calls, the first line of
    the text comes first.  Operations further inside, in the calls of a statement, come before it if
    the program reached that statement earlier.
    """
    body = list(range(repeat.stop - repeat.period, repeat.stop))
    paths = [_path(sequence, i) for i in body]
    shortest = min(len(path) for path in paths)
    depth = next((d for d in range(shortest) if len({path[d] for path in paths}) > 1), None)
    if depth is None:
        return body[0]
    statements = [path[: depth + 1] for path in paths]
    reached = _reached(sequence, set(statements), depth + 1)
    lines = [
        _line(sequence, i) if len(path) == depth + 1 else None
        for i, path in zip(body, paths, strict=True)
    ]
    turns = [k for k in range(len(body)) if statements[k - 1] != statements[k]]
    places = _first_line(lines) or turns
    return body[min(places, key=lambda k: reached[statements[k]])]


def _first_line(lines: list[int | None]) -> list[int]:
    """Return where the first line of the text may begin: at itself or at a call in front of it."""
    known = [line for line in lines if line is not None]
    begins = [k for k, line in enumerate(lines) if known and line == min(known)]
    begins = [k for k in begins if lines[k - 1] != min(known)]
    places: list[int] = []
    for begin in begins:
        place = begin
        while lines[place - 1] is None:
            place = (place - 1) % len(lines)
        length = (begin - place) % len(lines) + 1
        places += [(place + k) % len(lines) for k in range(length)]
    return places


def _path(sequence: Sequence, position: int) -> Path:
    path: Path = sequence.items[position].meta.get("path", ())
    return path


def _line(sequence: Sequence, position: int) -> int | None:
    where = sequence.items[position].meta.get("where")
    return None if where is None else where.line


def _reached(sequence: Sequence, statements: set[Path], length: int) -> dict[Path, int]:
    """Return when the program reached each of these statements first."""
    reached: dict[Path, int] = {}
    for position in range(len(sequence.items)):
        statement = _path(sequence, position)[:length]
        if statement in statements and statement not in reached:
            reached[statement] = position
            if len(reached) == len(statements):
                break
    return reached
