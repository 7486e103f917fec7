"""Find where the user's iteration begins, in a part of the run that repeats.

A repeat can be cut anywhere.  Cut where the user's ``for`` begins a new round, the body says what
the user's code says: its carries are the user's states, not what was computed from them in between.
"""

from __future__ import annotations

from snncc.frontend.location import place_in_code
from snncc.frontend.reroll.repeats import Repeat
from snncc.frontend.reroll.symbols import Sequence

Path = tuple[int, ...]


def first_place(sequence: Sequence, repeat: Repeat) -> int:
    """Return the position, in the last period of a repeat, at which the user's iteration begins.

    The call paths of a body have a common beginning, the way to the loop; what comes next tells the
    statements of the loop apart.  The one that stands first in the code comes first, or, where they
    are of several functions, the one that the program reached first; where an inner loop says it
    several times, the one behind the last statement.  What else is on its line comes with it:
    Python may have computed that itself in the first iteration.
    """
    body = list(range(repeat.stop - repeat.period, repeat.stop))
    paths = [_path(sequence, i) for i in body]
    shortest = min(len(path) for path in paths)
    depth = next((d for d in range(shortest) if len({path[d] for path in paths}) > 1), None)
    if depth is None:
        return body[0]
    statements = [path[: depth + 1] for path in paths]
    order = _order(sequence, set(statements), depth + 1)
    turns = [k for k in range(len(body)) if statements[k - 1] != statements[k]]
    first = min(turns, key=lambda k: (order[statements[k]], -order[statements[k - 1]]))
    lines = [
        _line(sequence, i) if len(path) == depth + 1 else None
        for i, path in zip(body, paths, strict=True)
    ]
    if len(set(lines) - {None}) > 1:
        while lines[first] is not None and lines[first - 1] == lines[first]:
            first = (first - 1) % len(body)
    return body[first]


def _path(sequence: Sequence, position: int) -> Path:
    path: Path = sequence.items[position].meta.get("path", ())
    return path


def _line(sequence: Sequence, position: int) -> int | None:
    where = sequence.items[position].meta.get("where")
    return None if where is None else where.line


def _order(sequence: Sequence, statements: set[Path], length: int) -> dict[Path, int]:
    """Return in which order these statements are written, or else were reached first.

    A first iteration may come to later statements before it comes to those of a branch.
    """
    places = {statement: place_in_code(statement[-1]) for statement in statements}
    if len({code for code, _ in places.values()}) == 1:
        return {statement: at for statement, (_, at) in places.items()}
    return _reached(sequence, statements, length)


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
