"""The parallel modes give the serial results of every kind of case, or refuse with a code."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib", reason="times are taken by the harness of the benchmarks")

from tests.compatibility.forms import FORMS, ParallelForm, check_form, compiling
from tests.compatibility.report import all_cases
from tests.compatibility.results import stored_forms

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries warn of their own
# Each form is tried on other cases, one in so many: all of them are checked for the page.
SHARE = 24


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.title)
def test_form(form: ParallelForm) -> None:
    """What is refused is what the page counts; what is not has the results that are promised."""
    cases = [case for case in compiling(all_cases()) if case.id in stored_forms()["cases"]]
    for case in cases[FORMS.index(form) :: SHARE]:
        assert stored_forms()["refused"][form.title].get(case.id, "") == check_form(case, form)
