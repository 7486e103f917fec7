"""Records of benchmarks as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

_SHARES = ("of_copy", "products_share", "spike_rate")


def table(records: Sequence[Record], known: Mapping[str, str]) -> str:
    """Return the records as a table.

    Args:
        records: What was measured.
        known: The names of columns, by their keys; one that no record has is left out.
    """
    columns = [key for key in known if any(key in record for record in records)]
    rows = [[cell(record, key) for key in columns] for record in records]
    return lines([known[key] for key in columns], rows)


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of given cells."""
    text = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    text.insert(1, "|" + "---|" * len(head))
    return "\n".join(text) + "\n"


def cell(record: Record, column: str) -> str:
    """Return one cell."""
    value = record.get(column)
    if value is None:
        return ""
    if column in _SHARES:
        return f"{100 * value:.0f} %"
    if column.startswith("wrong"):
        return f"{100 * value:.1f} %"
    if column == "gradient_difference":
        return f"{value:.1e}"
    if column == "events_per_second":
        return f"{value:.2g}"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
