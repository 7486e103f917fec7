"""Why something that looks like a loop was not re-rolled: what differed, and on which lines."""

from __future__ import annotations

from dataclasses import dataclass

from snncc.errors import Location
from snncc.frontend.reroll.flat import Program
from snncc.frontend.reroll.item import Item
from snncc.frontend.reroll.repeats import Repeat, candidate_periods, find_repeats
from snncc.frontend.reroll.search import Unproven
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


def diagnose(
    program: Program, numbered: Sequence, unproven: list[Unproven]
) -> tuple[Difference, ...]:
    """Explain the largest repeats that are left, each operation at most once.

    Args:
        program: The program after re-rolling.
        numbered: Its operations in numbers, before what nobody reads was dropped.
        unproven: The repeats of ``numbered`` that are no loops.
    """
    present = set(program.items)
    alive = [u for u in unproven if numbered.items[u.position] in present]
    found = [(u.repeat, _Case(numbered, u)) for u in alive]
    loose = sequence(program, loose_symbol)
    for period in candidate_periods(loose.symbols):
        found += [(r, _Case(loose)) for r in find_repeats(loose.symbols, period)]
    kept: list[tuple[Repeat, Difference]] = []
    taken: set[Item] = set()
    for repeat, case in sorted(found, key=lambda f: (f[0].start - f[0].stop, f[0].period)):
        items = case.numbered.items[repeat.start : repeat.stop]
        if len(items) >= LEAST and taken.isdisjoint(items):
            taken.update(items)
            kept.append((repeat, case.difference(repeat)))
    return tuple(difference for _, difference in sorted(kept, key=lambda k: k[0].start))


@dataclass(frozen=True, slots=True)
class _Case:
    """A repeat of equal symbols that was refuted, or (``unproven`` None) of similar ones."""

    numbered: Sequence
    unproven: Unproven | None = None

    def difference(self, repeat: Repeat) -> Difference:
        if self.unproven is None:
            here, reason = self.first_difference(repeat)
        else:
            here, reason = self.unproven.position, self.unproven.reason
        there = min(here + repeat.period, len(self.numbered.items) - 1)
        a, b = self.numbered.items[here], self.numbered.items[there]
        where = a.meta.get("where"), b.meta.get("where")
        return Difference(reason, *where, a.operator, repeat.stop - repeat.start)

    def first_difference(self, repeat: Repeat) -> tuple[int, str]:
        """Find the first operation that is not the same in the next iteration."""
        for here in range(repeat.start, repeat.stop - repeat.period):
            a, b = self.numbered.items[here], self.numbered.items[here + repeat.period]
            reason = _differs(a, b)
            if reason:
                return here, reason
        return repeat.start, "the order of its operands differs from iteration to iteration"


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
