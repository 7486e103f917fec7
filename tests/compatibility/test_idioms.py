"""Every idiom compiles and equals the serial code, or is refused with a precise error."""

from __future__ import annotations

import pytest

from tests.compatibility.case import Case
from tests.compatibility.check import check
from tests.compatibility.corpus import cases_of
from tests.compatibility.results import stream_of


@pytest.mark.parametrize("case", cases_of("idioms"), ids=lambda case: case.id)
def test_idiom(case: Case) -> None:
    """What the plan promises holds: outputs, gradients, state, random numbers, and streams."""
    record = check(case)

    assert case.expect == record.status
    assert stream_of(case) == record.stream
