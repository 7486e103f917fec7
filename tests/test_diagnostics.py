"""Every error: its example raises it, and its text is the documented one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.errors_page import PAGE, Section, is_as_documented, message_of, sections

SECTIONS = sections()


@pytest.mark.parametrize("section", SECTIONS, ids=[section.code for section in SECTIONS])
def test_example(section: Section, tmp_path: Path) -> None:
    """A section has cause, example, message and remedy; the example gives the message.

    To write the message of a new or changed error to the page: ``python -m tests.errors_page``.
    """
    assert re.match(r"\n`\w+Error`\. \S", section.body), "no class and cause"
    assert section.example, "no example"
    assert "*Remedy:* " in section.body, "no remedy"

    message = message_of(section, tmp_path)

    assert is_as_documented(section, message), message


@pytest.mark.parametrize("section", SECTIONS, ids=[section.code for section in SECTIONS])
def test_form_of_a_message(section: Section) -> None:
    """A headline that is a sentence, notes, hints, and at last the code; nothing of the machine."""
    lines = section.message.splitlines()

    assert re.match(r"[A-Z]\w+Error: .*\.$", lines[0]), lines[0]
    assert lines[-1] == f"  Code: {section.code}"
    assert all(line.startswith(" ") or line == "..." for line in lines[1:])
    assert "/tmp" not in section.message
    assert "/home" not in section.message


def test_sections_are_in_order() -> None:
    """Codes are found in the order of the alphabet, below the heading of their family."""
    page = PAGE.read_text(encoding="utf-8")
    families = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    codes = [section.code for section in SECTIONS]

    assert codes == sorted(codes)
    assert families == sorted({code.partition(".")[0] for code in codes})
