"""The walkthrough prints what it says that it prints.

``python -m tests.test_walkthrough`` writes what the blocks print to the page.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "walkthrough.md"
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n^```text\n(?P<said>.*?)^```\n)?", re.M | re.S
)


def run(folder: Path) -> list[tuple[str, str]]:
    """Run the blocks as one program; return for each what is below it and what it printed."""
    page = PAGE.read_text(encoding="utf-8")
    path = folder / "walkthrough.py"
    # Every block at its line of the page, so that the model has a source to be shown.
    program = ""
    blocks = list(BLOCK.finditer(page))
    for block in blocks:
        program += "\n" * (page[: block.start("code")].count("\n") - program.count("\n"))
        program += block["code"]
    path.write_text(program, encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "walkthrough"}
    found = []
    for block in blocks:
        before = "\n" * page[: block.start("code")].count("\n")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(before + block["code"], str(path), "exec"), namespace)
        found.append((block["said"] or "", out.getvalue()))
    return found


def test_walkthrough(tmp_path: Path) -> None:
    """Each block prints the text below it."""
    found = run(tmp_path)

    assert len(found) > 8
    for said, printed in found:
        assert printed == said


def write() -> None:
    """Write what the blocks print to the page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = iter(run(Path(folder)))

    def filled(block: re.Match[str]) -> str:
        _, printed = next(found)
        below = f"\n```text\n{printed}```\n" if printed else ""
        return f"```python\n{block['code']}```\n{below}"

    PAGE.write_text(BLOCK.sub(filled, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
