"""The search for tandem repeats in a sequence of symbols."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snncc.frontend.reroll.repeats import Repeat, candidate_periods, find_repeats, finest_first


def symbols(text: str) -> np.ndarray:
    return np.array([ord(c) for c in text], dtype=np.int64)


@pytest.mark.parametrize(
    ("text", "period", "expected"),
    [
        ("abcabcabc", 3, [(0, 9)]),
        ("xyabcabcabz", 3, [(2, 10)]),
        ("aabaab", 3, [(0, 6)]),
        ("aaaa", 1, [(0, 4)]),
        ("ababxcdcd", 2, [(0, 4), (5, 9)]),
        ("abcdef", 2, []),
        ("abxab", 3, []),
    ],
)
def test_repeats_are_maximal(text: str, period: int, expected: list[tuple[int, int]]) -> None:
    """A repeat starts and ends where the period does, in mid-iteration if need be."""
    found = list(find_repeats(symbols(text), period))

    assert found == [Repeat(period, start, stop) for start, stop in expected]


@pytest.mark.parametrize(
    ("text", "period"),
    [("abcabcabcabc", 3), ("p" + "abcde" * 4 + "q", 5), ("aabaabaab", 3), ("xy" * 9, 2)],
)
def test_period_of_a_loop_is_the_first_candidate(text: str, period: int) -> None:
    """The most frequent distance between equal symbols is the period."""
    assert candidate_periods(symbols(text))[0] == period


def test_period_around_an_inner_loop_is_a_candidate() -> None:
    """A loop whose body repeats itself is found behind the repetition inside of it."""
    periods = candidate_periods(symbols(("x" + "ab" * 3) * 5))

    assert {2, 7} <= set(periods)


@given(st.text("abc", min_size=2, max_size=40), st.integers(1, 10))
def test_repeats_repeat(text: str, period: int) -> None:
    """Within a repeat every symbol equals the one a period later; around it none does."""
    values = symbols(text)
    for repeat in find_repeats(values, period):
        a, b = repeat.start, repeat.stop

        assert (values[a : b - period] == values[a + period : b]).all()
        assert a == 0 or values[a - 1] != values[a - 1 + period]
        assert b == len(values) or values[b] != values[b - period]
        assert repeat.count >= 2


def test_a_period_comes_behind_its_parts() -> None:
    """A short loop is not taken several iterations at a time because another has that period."""
    text = "ab" * 6 + "x" + "cdefgh" * 8
    periods = list(finest_first(symbols(text)))

    assert periods.index(2) < periods.index(6)
    assert sorted(periods) == sorted(candidate_periods(symbols(text)))
    assert next(finest_first(symbols("abab" + "z" + "abcabc"))) == 3


def test_a_part_comes_behind_its_own_parts() -> None:
    """A period that two loops have a multiple of together is taken apart in both of them."""
    text = "abcdefghi" * 30 + "x" + "jklmnopqrst" * 30 + "y" + "uvw" * 30
    periods = list(finest_first(symbols(text)))

    assert candidate_periods(symbols(text))[0] == 99
    assert periods.index(3) < periods.index(9) < periods.index(99)
