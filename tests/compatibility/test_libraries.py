"""Neurons and layers of libraries compile unmodified and equal what the library computes."""

from __future__ import annotations

import pytest

from tests.compatibility.case import Case
from tests.compatibility.check import check
from tests.compatibility.corpus import cases_of
from tests.compatibility.results import stream_of

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries warn of their own


@pytest.mark.parametrize("case", cases_of("libraries"), ids=lambda case: case.id)
def test_library(case: Case) -> None:
    """What the plan promises holds: outputs, gradients, state, random numbers, and streams."""
    record = check(case)

    assert case.expect == record.status
    assert stream_of(case) == record.stream
