"""The name that the user's code gives to a value: ``v`` in ``v = 0.5 * v + x[t]``."""

from __future__ import annotations

import ast
import functools
import linecache

from snncc.errors import Location

Span = tuple[int, int, int]


def variable_of(where: Location | None) -> str | None:
    """Return the variable or attribute that an expression is assigned to, or None.

    Args:
        where: The span of the expression; it has to be the whole right-hand side.
    """
    if where is None or where.column is None or where.end_column is None:
        return None
    return _assignments(where.file).get((where.line, where.column, where.end_column))


@functools.lru_cache(maxsize=256)
def _assignments(file: str) -> dict[Span, str]:
    """Return the target of each assignment in a file, by the span of its value."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return {}
    found: dict[Span, str] = {}
    for node in ast.walk(tree):
        value = getattr(node, "value", None)
        if isinstance(node, ast.AugAssign):
            value = node  # the operation is the whole statement
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and value is not None:
            name = _name(target)
            if name is not None and value.lineno == value.end_lineno:
                found[value.lineno, value.col_offset, value.end_col_offset or 0] = name
    return found


def _name(target: ast.AST | None) -> str | None:
    if isinstance(target, ast.Name):
        return target.id
    return target.attr if isinstance(target, ast.Attribute) else None
