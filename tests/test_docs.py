"""The documents: their code runs, their links lead somewhere, the README keeps its form."""

import doctest
import importlib
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"`((?:\w+/)+\w+\.py)`")
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|#)(?P<target>[^)#\s]+)(?:#[^)]*)?\)")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    return [match for match in BLOCK.finditer(path.read_text()) if match["language"] == language]


def modules_with_doctests():
    sources = sorted((ROOT / "snncc").rglob("*.py"))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sources
        if ">>> " in path.read_text()
    ]


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if blocks(path, "python")], ids=name_of
)
def test_code_blocks_run(path, tmp_path, monkeypatch, capsys):
    """The Python blocks of a document run as one program; what the README shows is printed."""
    text = path.read_text()
    program = ""
    for match in blocks(path, "python"):
        # Blank lines, so that a line of the program has the number it has in the document.
        missing = text[: match.start("code")].count("\n") - program.count("\n")
        program += "\n" * missing + match["code"]
    script = tmp_path / "net.py"
    script.write_text(program)
    monkeypatch.chdir(tmp_path)

    runpy.run_path(str(script))

    printed = capsys.readouterr().out
    shown = blocks(path, "text") if path.name == "README.md" else []
    assert [block["code"] for block in shown if block["code"] not in printed] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_modules_that_are_named_exist(path):
    """A path of a module in a document, with or without the package's name, is that of a file."""
    missing = [
        name
        for name in MODULE.findall(path.read_text())
        if not ((ROOT / name).exists() or (ROOT / "snncc" / name).exists())
    ]

    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files(path):
    """A relative link names a file of the repository."""
    missing = [
        match["target"]
        for match in LINK.finditer(path.read_text())
        if not (path.parent / match["target"]).exists()
    ]

    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(path):
    """A file of the repository that a document names, from its root, is there."""
    named = re.findall(r"`((?:snncc|tests|docs|examples|benchmarks)/[\w./-]+)`", path.read_text())

    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", modules_with_doctests())
def test_doctests(name):
    """The examples in the docstrings give the output they show."""
    result = doctest.testmod(importlib.import_module(name))

    assert result.attempted > 0
    assert result.failed == 0


def test_readme_starts_with_the_two_commands():
    """The first code block is how to see it work and how to test it."""
    first = BLOCK.search((ROOT / "README.md").read_text())

    assert first["language"] == "sh"
    assert [line.split("#")[0].strip() for line in first["code"].splitlines()] == [
        "make demo",
        "make test",
    ]


def test_readme_is_short():
    """The README stays within 60 to 80 lines."""
    assert 60 <= len((ROOT / "README.md").read_text().splitlines()) <= 80


def test_decisions_are_numbered_without_gaps():
    """Decision records are numbered from 0001 on, and each title repeats its number."""
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))

    assert [path.name[:4] for path in records] == [f"{n + 1:04d}" for n in range(len(records))]
    assert all(path.read_text().startswith(f"# {path.name[:4]}: ") for path in records)


@pytest.mark.parametrize("target", ["demo", "test", "setup", "fmt", "lint", "types", "check"])
def test_makefile_lists_its_targets(target):
    """``make`` alone explains every command."""
    assert re.search(rf"^{target}:.*## \S", (ROOT / "Makefile").read_text(), re.MULTILINE)
