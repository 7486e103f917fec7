"""Where something stands in the user's Python: the text is right, or there is none."""

from __future__ import annotations

import linecache
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from types import FunctionType
from typing import Any

import pytest
import torch

from snncc.errors import SnnccError
from snncc.frontend.capture import capture
from snncc.source import Location, excerpt, is_library

# Refused on its only line, so that the location of the refusal can be looked at.
STEP = "def step(x):\n    return x if x.sum() > 0 else -x\n"


def load(path: Path, text: str, encoding: str = "utf-8") -> dict[str, Any]:
    """Write a module and run it, as an import does."""
    path.write_bytes(text.encode(encoding))
    namespace: dict[str, Any] = {"__name__": path.stem}
    exec(compile(path.read_bytes(), str(path), "exec"), namespace)
    return namespace


def refused(function: Callable[..., Any]) -> Location:
    """Return where a function is refused."""
    with pytest.raises(SnnccError) as caught:
        capture(function, (torch.ones(2, 3),), {})

    assert caught.value.location is not None
    return caught.value.location


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (STEP, ["    2 | return x if x.sum() > 0 else -x", "      |             ^^^^^^^^^^^"]),
        (
            "def step(x):\n\tif True:\n\t\treturn\tx\tif x.sum() > 0 else 0\n",
            [
                "    3 | return  x       if x.sum() > 0 else 0",
                "      |                    ^^^^^^^^^^^",
            ],
        ),
        (
            'def step(größe):\n    return "漢字é", größe if größe.sum() > 0 else -größe\n',
            [
                '    2 | return "漢字é", größe if größe.sum() > 0 else -größe',
                "      |                          ^^^^^^^^^^^^^^^",
            ],
        ),
        (
            "def step(x):\n    if (\n        x.sum()\n        > 0\n    ):\n        return x\n",
            ["    3 | x.sum()", "      | ^^^^^^^", "    4 | > 0", "      | ^^^"],
        ),
        (
            "step = lambda x: x if x.sum() > 0 else -x\n",
            [
                "    1 | step = lambda x: x if x.sum() > 0 else -x",
                "      |                       ^^^^^^^^^^^",
            ],
        ),
        (
            f"import functools\n\n\n@functools.cache\n{STEP}",
            ["    6 | return x if x.sum() > 0 else -x", "      |             ^^^^^^^^^^^"],
        ),
    ],
    ids=["plain", "tabs", "unicode", "lines", "lambda", "decorator"],
)
def test_excerpt(source: str, shown: list[str], tmp_path: Path) -> None:
    """The excerpt shows the expression with carets exactly below it."""
    where = refused(load(tmp_path / "model.py", source)["step"])

    assert excerpt(where) == shown


def test_long_line(tmp_path: Path) -> None:
    """Of a line that is too long the part with the expression is shown."""
    source = f"def step(x):\n    return {'1 * ' * 90}(x if x.sum() > 0 else {'-' * 80}x)\n"
    line, carets = excerpt(refused(load(tmp_path / "model.py", source)["step"]))

    assert line.startswith("    2 | ...")
    assert line.endswith("...")
    assert len(line) < 120
    assert line[carets.index("^") : carets.rindex("^") + 1] == "x.sum() > 0"


def test_expression_of_many_lines(tmp_path: Path) -> None:
    """Of a long expression the first two lines and the last are shown."""
    source = """def step(x):
    if x.sum(
        0,
    ).sum(
        0,
    ) > 0:
        return x
"""
    where = refused(load(tmp_path / "model.py", source)["step"])

    assert [line for line in excerpt(where) if "^" not in line] == [
        "    2 | if x.sum(",
        "    3 |     0,",
        "      | ...",
        "    6 | ) > 0:",
    ]
    assert where.text == "x.sum( 0, ).sum( 0, ) > 0"


def test_code_without_a_file() -> None:
    """Code that was executed from a string has a line number and no text."""
    namespace: dict[str, Any] = {}
    exec(STEP, namespace)
    where = refused(namespace["step"])

    assert (where.file, where.line, where.source, excerpt(where)) == ("<string>", 2, "", [])


def test_cell_of_a_notebook() -> None:
    """A notebook keeps the text of its cells for tracebacks, and so for us."""
    name = "<ipython-input-7-snncc>"
    linecache.cache[name] = (len(STEP), None, STEP.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {}
    exec(compile(STEP, name, "exec"), namespace)

    assert refused(namespace["step"]).text == "x.sum() > 0"


@pytest.mark.parametrize(
    "edit",
    [
        "\n" + STEP,
        STEP.replace("> 0", "> 1"),
        STEP.replace("x.sum() > 0", "x.any() > 0"),
        "not Python",
        "",
    ],
    ids=["moved", "number", "name", "broken", "empty"],
)
def test_file_that_was_edited_after_its_import(edit: str, tmp_path: Path) -> None:
    """A text that is not the one that ran is not shown."""
    function = load(tmp_path / "model.py", STEP)["step"]
    (tmp_path / "model.py").write_text(edit)
    linecache.checkcache(str(tmp_path / "model.py"))
    where = refused(function)

    assert not where.is_current
    assert (where.line, where.source, where.text, excerpt(where)) == (2, "", "", [])


def test_edits_elsewhere_do_no_harm(tmp_path: Path) -> None:
    """A line below that was edited does not hide a line that was not."""
    function = load(tmp_path / "model.py", STEP)["step"]
    (tmp_path / "model.py").write_text(STEP + "\nOTHER = 1\n")
    linecache.checkcache(str(tmp_path / "model.py"))

    assert refused(function).text == "x.sum() > 0"


def test_file_that_is_gone(tmp_path: Path) -> None:
    """Without the file there is no text, and the error still renders."""
    function = load(tmp_path / "model.py", STEP)["step"]
    (tmp_path / "model.py").unlink()
    with pytest.raises(SnnccError, match=r"line 2, in step\n    \(the file is gone\)\n"):
        capture(function, (torch.ones(2),), {})


def test_other_encodings(tmp_path: Path) -> None:
    """Columns count UTF-8 bytes whatever the file is encoded in."""
    source = f"# -*- coding: latin-1 -*-\n{STEP.replace('return', 'é = 1; return')}"
    where = refused(load(tmp_path / "model.py", source, "latin-1")["step"])

    assert where.text == "x.sum() > 0"


def test_undecodable_file(tmp_path: Path) -> None:
    """A file that cannot be decoded any more has no text."""
    function = load(tmp_path / "model.py", STEP)["step"]
    (tmp_path / "model.py").write_bytes(b"\xff\xfe\x00 = 1\n")
    linecache.checkcache(str(tmp_path / "model.py"))

    assert excerpt(refused(function)) == []


def test_calls_that_led_there(tmp_path: Path) -> None:
    """A location knows its callers in the user's code, the nearest first."""
    source = STEP + dedent("""
        def layer(x):
            return step(x)

        def model(x):
            return layer(x)
        """)
    where = refused(load(tmp_path / "model.py", source)["model"])

    assert [c.text for c in where.callers] == ["step(x)", "layer(x)"]
    assert [c.function for c in where.callers] == ["layer", "model"]


def test_error_inside_a_library_shows_the_call(tmp_path: Path) -> None:
    """Where a library is at fault, the user's own call is shown as well."""
    path = Path(torch.__file__).parents[1] / "some_library.py"
    assert is_library(str(path))
    code = compile(STEP, str(path), "exec")
    linecache.cache[str(path)] = (len(STEP), None, STEP.splitlines(keepends=True), str(path))
    library: dict[str, Any] = {}
    exec(code, library)
    caller = load(tmp_path / "model.py", "def model(x):\n    return step(x)\n")
    caller["step"] = library["step"]
    with pytest.raises(SnnccError) as caught:
        capture(caller["model"], (torch.ones(2),), {})

    lines = str(caught.value).splitlines()
    assert f'  Called from "{tmp_path / "model.py"}", line 2, in model' in lines
    assert lines[lines.index("    2 | return step(x)") + 1] == "      |        ^^^^^^^"
    assert not is_library(str(tmp_path / "model.py"))


def test_locations_are_values(tmp_path: Path) -> None:
    """Locations are compared by their span, and survive pickling without their code object."""
    function = load(tmp_path / "model.py", STEP)["step"]
    assert isinstance(function, FunctionType)
    where = refused(function)
    copy = pickle.loads(pickle.dumps(where))

    assert copy == where
    assert hash(copy) == hash(where)
    assert copy.code is None
    assert copy.text == "x.sum() > 0"
    assert Location("model.py", 3) == Location("model.py", 3, code=sys._getframe().f_code)
