"""The page on compatibility says what the tests check."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("matplotlib", reason="times are taken by the harness of the benchmarks")

from tests.compatibility import report
from tests.compatibility.traps import TRAPS

ROW = re.compile(r"^\| (\w+) \| [^|]+\. \| (compiled|serial part|refused) \|", re.MULTILINE)


def test_page_lists_the_cases() -> None:
    """It has a row with the status of each present case, and no other."""
    text = report.PAGE.read_text(encoding="utf-8")

    assert [(case.name, case.expect) for case in report.all_cases()] == ROW.findall(text)


def test_page_is_what_the_results_make() -> None:
    """It was written from the stored results: ``make compatibility`` writes both."""
    assert report.page() == report.PAGE.read_text(encoding="utf-8")


def test_results_are_those_of_the_cases() -> None:
    """What is stored of a case has its status; nothing is stored of cases that are gone."""
    for group, cases in report.by_group(report.all_cases()).items():
        stored = report.stored(group)["cases"]

        assert {case.name: case.expect for case in cases} == {
            name: facts["status"] for name, facts in stored.items()
        }


def test_each_trap_has_cases() -> None:
    """What is easily got wrong is held by cases that are there."""
    known = {case.id for case in report.all_cases()}

    assert len(TRAPS) == 20
    assert {name for names in TRAPS.values() for name in names} <= known
