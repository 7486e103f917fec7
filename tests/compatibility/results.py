"""What came of each case when the page on compatibility was written."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tests.compatibility.case import Case

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "compatibility"


FORMS_FILE = RESULTS / "parallel_modes.json"
EXPORTS_FILE = RESULTS / "exports.json"


@functools.cache
def stored_forms() -> dict[str, Any]:
    """Return which cases the parallel modes were tried on, and the codes of what they refused."""
    result: dict[str, Any] = json.loads(FORMS_FILE.read_text(encoding="utf-8"))
    return result


@functools.cache
def stored_exports() -> dict[str, Any]:
    """Return which cases were exported to each format, and the codes of what was refused."""
    result: dict[str, Any] = json.loads(EXPORTS_FILE.read_text(encoding="utf-8"))
    return result


@functools.cache
def stored(group: str) -> dict[str, Any]:
    """Return what is stored of a group."""
    file = RESULTS / f"{group}.json"
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return result


def stream_of(case: Case) -> str:
    """Return how the stream of a case related to its sequence, or why there is none."""
    facts: dict[str, Any] = stored(case.group)["cases"][case.name]
    return str(facts["stream"])
