"""Why something that looks like a loop was not re-rolled: what differed, and on which lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from snncc.errors import Location
from snncc.frontend.reroll.flat import Item, Program
from snncc.frontend.reroll.repeats import Repeat, candidate_periods, find_repeats
from snncc.frontend.reroll.search import Unproven, find_loops
from snncc.frontend.reroll.symbols import Sequence, loose_symbol, sequence
from snncc.ir.tape import SourceKind

# A repeat of fewer operations is not reported: every program says some things twice.
LEAST = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """What kept a repeated part of the run from being a loop.

    Attributes:
        reason: What differs, as the end of a sentence about the operation at ``location``.
        location: The user's line in the iteration at fault.
        next_location: The user's line at the same place of the next iteration.
        operator: The operation.
        operations: How many operations of the run are concerned.
    """

    reason: str
    location: Location | None
    next_location: Location | None
    operator: str
    operations: int

    def __str__(self) -> str:
        lines = str(self.location)
        if self.location != self.next_location:
            lines += f" and {self.next_location}"
        what = f"'{self.operator}' keeps {self.operations} operations unrolled"
        return f"{lines}: {what}: {self.reason}"


def diagnose(program: Program) -> tuple[Difference, ...]:
    """Explain the largest repeats that are left, each operation at most once."""
    numbered = sequence(program)
    _, unproven = find_loops(numbered)
    found = [_explain(numbered, u) for u in unproven]
    found += [_compare(loose, r) for loose, r in _similar(program)]
    kept: list[tuple[Repeat, Difference]] = []
    for repeat, difference in sorted(found, key=lambda f: (f[0].start - f[0].stop, f[0].period)):
        apart = all(repeat.stop <= k.start or k.stop <= repeat.start for k, _ in kept)
        if apart and difference.operations >= LEAST:
            kept.append((repeat, difference))
    return tuple(difference for _, difference in sorted(kept, key=lambda k: k[0].start))


def _explain(numbered: Sequence, unproven: Unproven) -> tuple[Repeat, Difference]:
    repeat, here = unproven.repeat, unproven.position
    there = min(here + repeat.period, len(numbered.items) - 1)
    return repeat, _difference(numbered, repeat, here, there, unproven.reason)


def _similar(program: Program) -> Iterator[tuple[Sequence, Repeat]]:
    """Yield repeats of the same statements whose shapes or parameters may differ."""
    loose = sequence(program, loose_symbol)
    for period in candidate_periods(loose.symbols):
        for repeat in find_repeats(loose.symbols, period):
            yield loose, repeat


def _compare(loose: Sequence, repeat: Repeat) -> tuple[Repeat, Difference]:
    """Find the first operation that is not the same in the next iteration."""
    for here in range(repeat.start, repeat.stop - repeat.period):
        there = here + repeat.period
        reason = _differs(loose.items[here], loose.items[there])
        if reason:
            return repeat, _difference(loose, repeat, here, there, reason)
    here = repeat.start
    reason = "the order of its operands differs from iteration to iteration"
    return repeat, _difference(loose, repeat, here, here + repeat.period, reason)


def _differs(a: Item, b: Item) -> str:
    for key, name in (("shape", "shape"), ("dtype", "type"), ("grad", "gradient mode")):
        if a.meta.get(key) != b.meta.get(key):
            return f"its {name} is {a.meta.get(key)}, then {b.meta.get(key)}"
    for x, y in zip(a.split()[1], b.split()[1], strict=True):
        named = [leaf.source for leaf in (x, y) if isinstance(leaf, Item) and leaf.source]
        kinds = {source.kind for source in named}
        if x is not y and len(named) == 2 and kinds <= {SourceKind.PARAMETER, SourceKind.BUFFER}:
            return f"it reads '{named[0].name}', then '{named[1].name}'"
    return ""


def _difference(
    numbered: Sequence, repeat: Repeat, here: int, there: int, reason: str
) -> Difference:
    a, b = numbered.items[here], numbered.items[there]
    where = a.meta.get("where"), b.meta.get("where")
    return Difference(reason, *where, a.operator, repeat.stop - repeat.start)
