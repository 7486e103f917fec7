"""The name that the user's code gives to a value: ``v`` in ``v = 0.5 * v + x[t]``.

A value that a function returns has the name that its caller gives to it: ``s`` for what is computed
in ``self.spike``, called by ``s = self.spike(h - 1.0)``.
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from snncc.errors import Location

# First line, column, last line, column after the end; columns in bytes, as everywhere in Python.
Span = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Use:
    """What becomes of a value: it gets a name, or is returned at once, or both."""

    name: str | None
    is_returned: bool


def variable_of(where: Location | None) -> str | None:
    """Return the variable or attribute that an expression is assigned to, or None.

    Args:
        where: The span of the expression; it has to be the whole right-hand side.
    """
    if where is None or where.column is None or where.end_column is None:
        return None
    use = _uses(where.file).get((where.line, where.column, where.last_line, where.end_column))
    if use is None:
        return None
    return (variable_of(where.caller) if use.is_returned else None) or use.name


@functools.lru_cache(maxsize=256)
def _uses(file: str) -> dict[Span, _Use]:
    """Return what becomes of each value in a file that is assigned or returned, by its span."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError, RecursionError):
        return {}
    found: dict[Span, _Use] = {}
    for node in ast.walk(tree):
        for value, use in _in_node(node):
            end = value.end_lineno or value.lineno
            found[value.lineno, value.col_offset, end, value.end_col_offset or 0] = use
    return found


def _in_node(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, _Use]]:
    """Yield the values that the statements directly in a node assign or return."""
    if isinstance(node, ast.Lambda):
        yield node.body, _Use(None, is_returned=True)
        return
    for block in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
        for statement, after in pairwise([*block, None] if isinstance(block, list) else ()):
            returned = after.value if isinstance(after, ast.Return) else None
            match statement:
                case ast.Return(value=ast.expr() as value):
                    yield value, _Use(None, is_returned=True)
                case ast.Assign(targets=[target, *_], value=value):
                    yield value, _used(target, returned)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    yield value, _used(target, returned)
                case ast.AugAssign(target=target):  # the operation is the whole statement
                    yield statement, _used(target, returned)


def _used(target: ast.expr, returned: ast.expr | None) -> _Use:
    name = _name(target)
    return _Use(name, name is not None and returned is not None and _name(returned) == name)


def _name(target: ast.expr) -> str | None:
    if isinstance(target, ast.Name):
        return target.id
    return target.attr if isinstance(target, ast.Attribute) else None
