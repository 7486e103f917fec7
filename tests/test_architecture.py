"""The structure that the documents promise: import directions, sizes, settings."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "snncc"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part of the package must not import.
FORBIDDEN = {
    "source": {"snncc"},
    "errors": {
        *("snncc.options", "snncc.ir", "snncc.reporting", "snncc.frontend", "snncc.passes"),
        *("snncc.codegen", "snncc.runtime", "snncc.compilation"),
    },
    "arguments": {"snncc.options", "snncc.ir", "snncc.frontend", "snncc.passes", "snncc.runtime"},
    "options": {"snncc.ir", "snncc.frontend", "snncc.passes", "snncc.codegen", "snncc.runtime"},
    "ir": {
        "snncc.frontend",
        "snncc.passes",
        "snncc.codegen",
        "snncc.runtime",
        "snncc.compilation",
    },
    "frontend": {"snncc.passes", "snncc.codegen", "snncc.runtime", "snncc.compilation"},
    "passes": {"snncc.codegen", "snncc.runtime", "snncc.compilation"},
    "codegen": {"snncc.frontend", "snncc.passes", "snncc.runtime", "snncc.compilation"},
    "runtime": {
        "snncc.frontend",
        "snncc.passes",
        "snncc.compilation",
        "sympy",
        "networkx",
    },
    "export": {"snncc.compilation", "snncc.model", "snncc.export.entry", "sympy", "networkx"},
    "export/entry": {"sympy", "networkx"},
    "nir": {"snncc.codegen", "snncc.runtime", "snncc.export", "sympy", "networkx"},
    "nn": {
        "snncc.frontend",
        "snncc.passes",
        "snncc.codegen",
        "snncc.runtime",
        "snncc.compilation",
    },
}
# Libraries that one module alone may import.
ONLY_IN = {
    "networkx": {"snncc/passes/hoisting/find_recurrences.py"},
    "sympy": {"snncc/ir/symbolic.py"},
    "typer": {"snncc/cli/commands.py"},
}
FILE_LINES = 400


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    """Return the name of every module that a file imports, wherever in the file."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return tuple(found)


def part_of(path: Path) -> str:
    """Return the part of the package that a file belongs to."""
    folders = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return max((p for p in FORBIDDEN if f"{folders}/".startswith(f"{p}/")), key=len, default="")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    """No module imports a part of the package that comes after it."""
    forbidden = FORBIDDEN.get(part_of(path), set())

    wrong = [
        name for name in imports(path) for f in forbidden if name == f or name.startswith(f + ".")
    ]

    assert wrong == []


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_library_is_imported_in_one_place(library: str) -> None:
    """A library that answers one question is imported by one module."""
    users = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if any(name == library or name.startswith(library + ".") for name in imports(path))
    }

    assert users <= ONLY_IN[library]


def test_environment_is_read_in_one_place() -> None:
    """Only the options module reads the environment."""
    readers = {
        path.name
        for path in MODULES
        if re.search(r"os\.environ|os\.getenv", path.read_text(encoding="utf-8"))
    }

    assert readers == {"options.py"}


def test_documented_variables_are_those_that_are_read() -> None:
    """The table of environment variables lists what the options module reads."""
    source = (PACKAGE / "options.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")

    expected = set(re.findall(r'"(SNNCC_[A-Z_]+)"', source))

    assert set(re.findall(r"`(SNNCC_[A-Z_]+)`", page)) == expected


def test_documented_invariants_are_those_that_are_checked() -> None:
    """The table of invariants lists what the validator raises."""
    source = (PACKAGE / "ir" / "validate.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "ir.md").read_text(encoding="utf-8")

    expected = set(re.findall(r'"(V\d+)"', source))

    assert set(re.findall(r"\| (V\d+) \|", page)) == expected


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_file_is_small(path: Path) -> None:
    """No file outgrows what a reader takes in at once."""
    assert path.read_text(encoding="utf-8").count("\n") <= FILE_LINES


def test_every_error_code_is_documented() -> None:
    """``docs/errors.md`` has a section for each code that is raised, and for no other."""
    raised = {
        code
        for path in MODULES
        for code in re.findall(r'code="([a-z]+\.[a-z-]+)"', path.read_text(encoding="utf-8"))
    }
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")

    assert set(re.findall(r"^### `([a-z]+\.[a-z-]+)`", page, re.MULTILINE)) == raised
