"""Lines of Python."""

from __future__ import annotations

from collections.abc import Iterable


def indent(lines: Iterable[str]) -> list[str]:
    """Return lines that belong to a block."""
    return [f"    {line}" for line in lines]
