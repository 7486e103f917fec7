"""Tandem repeats of a sequence of symbols: where does it say the same thing twice in a row?

A repeat of period p is a maximal range in which ``s[i] == s[i + p]``.  The candidates for p are the
distances between occurrences of one symbol; each costs one comparison of the sequence with itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snncc.frontend.reroll.symbols import FIXED, Codes, Sequence

# How many occurrences of a symbol to look ahead.  A statement that a loop inside of the time loop
# repeats comes back at the distance of the inner loop first, at that of the time loop later.
LOOK_AHEAD = 24


@dataclass(frozen=True, slots=True)
class Repeat:
    """A range of a sequence that repeats with a period; ``stop`` is exclusive."""

    period: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """How many whole periods the range holds."""
        return (self.stop - self.start) // self.period


def candidate_periods(symbols: Codes) -> list[int]:
    """Return the distances at which symbols come back, the most frequent first."""
    order = np.argsort(symbols, kind="stable")
    ordered = symbols[order]
    counts = np.zeros(len(symbols) + 1, dtype=np.int64)
    for ahead in range(1, min(LOOK_AHEAD, len(symbols) - 1) + 1):
        same = ordered[ahead:] == ordered[:-ahead]
        if not same.any():
            break
        counts += np.bincount((order[ahead:] - order[:-ahead])[same], minlength=len(counts))
    periods = np.flatnonzero(counts >= np.maximum(np.arange(len(counts)), 1))
    ranked = periods[np.lexsort((periods, -counts[periods]))]
    found: list[int] = ranked.tolist()
    return found


def finest_first(symbols: Codes) -> Iterator[int]:
    """Yield the candidate periods, each behind the smaller ones that make up one of its repeats.

    A period of one loop may be a multiple of another's, whose iterations it would take several at
    a time.
    """
    done: set[int] = set()
    for period in candidate_periods(symbols):
        yield from _behind_parts(symbols, period, done)


def _behind_parts(symbols: Codes, period: int, done: set[int]) -> Iterator[int]:
    """Yield a period behind the periods that make up its repeats, and those behind theirs."""
    if period in done:
        return
    done.add(period)
    parts = {_part(symbols, repeat) for repeat in find_repeats(symbols, period)}
    for part in sorted(parts - {period}):
        yield from _behind_parts(symbols, part, done)
    yield period


def _part(symbols: Codes, repeat: Repeat) -> int:
    """Return the smallest period of a repeat."""
    seen = symbols[repeat.start : repeat.stop]
    same = np.flatnonzero(seen[1 : repeat.period // 2 + 1] == seen[0]) + 1
    divisors = same[repeat.period % same == 0].tolist()
    parts = (part for part in divisors if (seen[:-part] == seen[part:]).all())
    return next(parts, repeat.period)


def find_repeats(symbols: Codes, period: int) -> Iterator[Repeat]:
    """Yield the maximal ranges that hold at least two periods."""
    for start, stop in _runs(symbols[:-period] == symbols[period:]):
        if stop - start >= period:
            yield Repeat(period, start, stop + period)


def longest_steady(sequence: Sequence, repeat: Repeat) -> Repeat | None:
    """Return the longest part of a repeat whose operands agree with those of the next period.

    Operands agree if they are the same value, or values at the same distance, or may differ from
    step to step.  Only the first iteration reads initial values, so this is the steady state.
    """
    p, a, b = repeat.period, repeat.start, repeat.stop - repeat.period
    here, there = sequence.operands(a, b), sequence.operands(a + p, b + p)
    lengths = np.diff(sequence.offsets[a : b + 1])
    positions = np.repeat(np.arange(a, b), lengths)
    kinds = sequence.kinds[sequence.offsets[a] : sequence.offsets[b]]
    later_kinds = sequence.kinds[sequence.offsets[a + p] : sequence.offsets[b + p]]
    agree = here == there
    agree |= (here >= 0) & (there - here == p)
    agree |= (kinds == later_kinds) & (kinds != FIXED)
    steady = np.ones(b - a, dtype=bool)
    np.logical_and.at(steady, positions - a, agree)
    runs = [(stop - start, start, stop) for start, stop in _runs(steady) if stop - start >= p]
    if not runs:
        return None
    _, start, stop = max(runs, key=lambda run: (run[0], -run[1]))
    return Repeat(p, a + start, a + stop + p)


def _runs(flags: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each maximal range of true flags."""
    edges = np.diff(np.concatenate(([0], flags.astype(np.int8), [0])))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    yield from zip(starts.tolist(), stops.tolist(), strict=True)
