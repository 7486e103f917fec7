"""Exports of every kind of case compute what the model does, or are refused with a code."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="times are taken by the harness of the benchmarks")
pytest.importorskip("onnxruntime", reason="what was exported is run")
pytest.importorskip("nir", reason="what was exported is run")

from tests.compatibility.exports import FORMATS, check_export
from tests.compatibility.forms import compiling
from tests.compatibility.report import all_cases
from tests.compatibility.results import stored_exports

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries warn of their own
# Each format is tried on other cases, one in so many: all of them are checked for the page.
SHARE = 150


@pytest.mark.parametrize("format", FORMATS)
def test_export(format: str, tmp_path: Path) -> None:
    """What the page counts is exported, and computes what the model does."""
    known = stored_exports()
    cases = [case for case in compiling(all_cases()) if case.id in known["cases"]]
    for case in cases[FORMATS.index(format) :: SHARE]:
        found = check_export(case, format, tmp_path / "bundle")
        assert found in ("", known["refused"][format].get(case.id, "")), case.id
