"""Search for the loops of a sequence: which repeats are loops, and where an iteration begins.

Repeats nest: a loop over equal layers, each with its own loop over time, repeats as well as the
loops inside of it.  The period is preferred whose loops cover more operations, and twice over those
of loops whose iterations read different inputs *and* one another: that is what time looks like.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from snncc.frontend.reroll.alignment import first_place
from snncc.frontend.reroll.patterns import Proof, Refuted
from snncc.frontend.reroll.prove import prove
from snncc.frontend.reroll.repeats import Repeat, find_repeats, finest_first, longest_steady
from snncc.frontend.reroll.starts import Starts, find_starts
from snncc.frontend.reroll.symbols import Codes, Sequence

# How many places to begin the iteration at are tried, and how often the start is moved on.
ROTATIONS = 3
ATTEMPTS = 6
# How many periods are tried in one round, and up to which multiple of one that led to nothing.
CANDIDATES = 64
MULTIPLES = 8


@dataclass(frozen=True, slots=True)
class Unproven:
    """A repeat that is not a loop: at ``position`` the program differs from one period later."""

    repeat: Repeat
    position: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """A proven loop and how its carries start.

    Attributes:
        proof: The loop.
        starts: How its carries start.
        aligned: The same loop from where the user's iteration begins.  Where ``proof`` begins
            elsewhere, it has an iteration less: the first or last one is not complete.
    """

    proof: Proof
    starts: Starts
    aligned: Proof

    @property
    def score(self) -> int:
        """How good a loop it is."""
        proof = self.proof
        covered = proof.count * (proof.period - len(proof.selects))
        return 2 * covered if proof.is_carried and proof.is_indexed else covered


@dataclass(slots=True, eq=False)
class _Candidate:
    """A repeat, and its loop as soon as it is proven; ``score`` may be that of its like."""

    repeat: Repeat
    score: int
    loop: Loop | None = None

    def prove(self, sequence: Sequence) -> Loop | None:
        """Return its loop, if it is one, and set the score to that of the loop."""
        if self.loop is None:
            found = prove_repeat(sequence, self.repeat)
            self.loop = found if isinstance(found, Loop) else None
            self.score = 0 if self.loop is None else self.loop.score
        return self.loop

    @property
    def start(self) -> int:
        return self.repeat.start if self.loop is None else self.loop.proof.start

    @property
    def stop(self) -> int:
        return self.repeat.stop if self.loop is None else self.loop.proof.stop


@dataclass(slots=True, eq=False)
class _Group:
    """The loops of one period, in order."""

    period: int
    candidates: list[_Candidate]

    @property
    def total(self) -> int:
        return sum(c.score for c in self.candidates)

    def around(self, repeat: Repeat) -> _Candidate | None:
        """Return the first loop that ends behind the start of a repeat."""
        at = bisect_right(self.candidates, repeat.start, key=_stop)
        return self.candidates[at] if at < len(self.candidates) else None


def _stop(candidate: _Candidate) -> int:
    return candidate.stop


def find_loops(sequence: Sequence) -> tuple[list[Loop], list[Unproven]]:
    """Return loops that do not overlap, the best ones first, and the repeats that are none.

    Loops that are much smaller than the best are left for another round: they may be parts of a
    loop that can be proven only after the best one is rolled up.
    """
    groups: list[_Group] = []
    unproven: list[Unproven] = []
    in_vain: list[Repeat] = []
    best, tries = 0, CANDIDATES
    for period in finest_first(sequence.symbols):
        repeats = [
            repeat
            for repeat in find_repeats(sequence.symbols, period)
            if not any(_is_multiple(repeat, group) for group in groups)
            and not any(_is_within(repeat, vain) for vain in in_vain)
        ]
        if not repeats or 2 * sum(r.stop - r.start for r in repeats) < best // 2:
            continue
        group = _Group(period, [])
        for alike in _alike(repeats, groups):
            found = prove_repeat(sequence, alike[len(alike) // 2])
            if isinstance(found, Unproven):
                unproven.append(found)
                continue
            made = [_Candidate(repeat, found.score) for repeat in alike]
            made[len(alike) // 2].loop = found
            group.candidates += made
        if group.total >= best:  # where it may be the best, no score is taken from another's
            group.candidates = [c for c in group.candidates if c.prove(sequence) is not None]
        group.candidates.sort(key=_stop)
        if group.candidates:
            groups.append(group)
            best = max(best, group.total)
        else:
            in_vain += repeats
        tries -= 1
        if not tries:
            break
    return _choose(sequence, groups, best), unproven


def _is_within(repeat: Repeat, vain: Repeat) -> bool:
    """Tell whether a repeat is one that led to nothing, taken many iterations at a time."""
    same = repeat.period % vain.period == 0 and repeat.period > MULTIPLES * vain.period
    return same and vain.start <= repeat.start and repeat.stop <= vain.stop


def _is_multiple(repeat: Repeat, group: _Group) -> bool:
    """Tell whether a repeat is a loop of a group, taken several iterations at a time."""
    candidate = group.around(repeat) if repeat.period % group.period == 0 else None
    if candidate is None:
        return False
    covered = min(repeat.stop, candidate.stop) - max(repeat.start, candidate.start)
    return covered + 2 * group.period >= repeat.stop - repeat.start


def _alike(repeats: list[Repeat], groups: list[_Group]) -> list[list[Repeat]]:
    """Collect the repeats that are parts of the iterations of one loop: what one is, all are."""
    found: dict[Hashable, list[Repeat]] = {}
    for repeat in repeats:
        key: Hashable = repeat
        for group in groups:
            around = group.around(repeat)
            if around is not None and around.start <= repeat.start and repeat.stop <= around.stop:
                place = (repeat.start - around.start) % group.period
                key = around, place, repeat.stop - repeat.start
                break
        found.setdefault(key, []).append(repeat)
    return list(found.values())


def _choose(sequence: Sequence, groups: list[_Group], best: int) -> list[Loop]:
    """Return the loops of the best periods that do not overlap."""
    groups.sort(key=lambda group: (-group.total, len(group.candidates), group.period))
    chosen: list[Loop] = []
    for group in groups:
        for candidate in group.candidates if 2 * group.total >= best else ():
            loop = None if _overlaps(candidate, chosen) else candidate.prove(sequence)
            if loop is not None and not _overlaps(candidate, chosen):
                chosen.append(loop)
    return chosen


def _overlaps(candidate: _Candidate, chosen: list[Loop]) -> bool:
    return any(candidate.start < c.proof.stop and c.proof.start < candidate.stop for c in chosen)


def prove_repeat(sequence: Sequence, repeat: Repeat) -> Loop | Unproven:
    """Return the best loop in a repeat.

    Iterations are dropped at the front while that helps; where the last one is at fault, the repeat
    is cut there.
    """
    steady = longest_steady(sequence, repeat)
    found = [_prove_ending(sequence, repeat)]
    if steady is not None and steady.stop < repeat.stop:
        found.append(_prove_ending(sequence, Repeat(repeat.period, repeat.start, steady.stop)))
    cut = min((f.position for f in found if isinstance(f, Unproven)), default=repeat.stop)
    if all(isinstance(f, Unproven) for f in found) and cut - repeat.start >= repeat.period:
        end = min(cut + repeat.period, repeat.stop - 1)
        found.append(_prove_ending(sequence, Repeat(repeat.period, repeat.start, end)))
    loops = [f for f in found if isinstance(f, Loop)]
    if loops:
        return max(loops, key=lambda loop: loop.score)
    return next(f for f in found if isinstance(f, Unproven))


def _prove_ending(sequence: Sequence, repeat: Repeat) -> Loop | Unproven:
    """Return the longest loop that ends where the repeat ends."""
    low, failure = repeat.start, None
    for _ in range(ATTEMPTS):
        count = (repeat.stop - low) // repeat.period
        if count < 2:
            break
        faults = []
        for start in _beginnings(sequence, Repeat(repeat.period, low, repeat.stop)):
            found = _prove_at(sequence, Repeat(repeat.period, start, repeat.stop))
            if isinstance(found, Loop):
                return _accept(repeat, found)
            faults.append(max(_failures(start, repeat, found), key=lambda f: f.position))
        first = min(faults, key=lambda f: f.position)
        failure = failure or first
        low = first.position + 1
    return failure or Unproven(repeat, repeat.start, "it is too short")


def _prove_at(sequence: Sequence, repeat: Repeat) -> Loop | list[Refuted]:
    """Prove the loop that begins where a repeat does."""
    proof = prove(sequence, repeat.start, repeat.period, repeat.count)
    if not isinstance(proof, Proof):
        return proof
    starts = find_starts(sequence, proof)
    if not isinstance(starts, Starts):
        return [starts]
    return Loop(proof, starts, _aligned(sequence, repeat, proof))


def _aligned(sequence: Sequence, repeat: Repeat, proof: Proof) -> Proof:
    """Return the loop from where the user's iteration begins, if that can be proven."""
    start = (first_place(sequence, repeat) - repeat.start) % repeat.period + repeat.start
    count = (repeat.stop - start) // repeat.period
    if start == proof.start or count < 2:
        return proof
    aligned = prove(sequence, start, proof.period, count)
    return aligned if isinstance(aligned, Proof) else proof


def _failures(start: int, repeat: Repeat, refuted: list[Refuted]) -> list[Unproven]:
    return [Unproven(repeat, start + r.step * repeat.period + r.place, r.reason) for r in refuted]


def _accept(repeat: Repeat, loop: Loop) -> Loop | Unproven:
    """Refuse what is proven but no loop worth the name."""
    proof = loop.proof
    if not (proof.is_carried or proof.is_indexed):
        return Unproven(repeat, proof.start, "its iterations are equal and independent")
    if len(proof.selects) == proof.period:
        return Unproven(repeat, proof.start, "its iterations only take elements of a tensor")
    return loop


def _beginnings(sequence: Sequence, repeat: Repeat) -> list[int]:
    """Return the starts that leave room for the most iterations, the best first.

    The best is the one where the user's iteration begins; else the one where the fewest values
    cross from one iteration to the next; among equals the earliest.
    """
    span = repeat.stop - repeat.start
    starts = np.arange(repeat.start, repeat.start + span % repeat.period + 1)
    if len(starts) == 1:
        return [int(starts[0])]
    first = (first_place(sequence, repeat) - repeat.start) % repeat.period + repeat.start
    ranked = np.lexsort((starts, _crossing(sequence, repeat, starts), starts != first))
    return [int(starts[i]) for i in ranked[:ROTATIONS]]


def _crossing(sequence: Sequence, repeat: Repeat, starts: Codes) -> Codes:
    """Return for each start how many values cross the border between the last two iterations."""
    p, low = repeat.period, repeat.stop - repeat.period
    codes = sequence.operands(low, repeat.stop)
    lengths = np.diff(sequence.offsets[low : repeat.stop + 1])
    readers = np.repeat(np.arange(low, repeat.stop), lengths)
    inner = codes >= repeat.start
    source, reach = codes[inner], (readers - codes)[inner]
    longest = np.zeros(p, dtype=np.int64)
    np.maximum.at(longest, (source - low) % p, reach)
    places = np.flatnonzero(longest)
    behind = (starts[:, None] - low) % p - places[None, :]
    crossings = (longest[places][None, :] - behind) // p - (-behind) // p
    total: Codes = crossings.sum(axis=1)
    return total
