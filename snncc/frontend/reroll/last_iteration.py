"""Give a last iteration that stops early what the other iterations compute.

What the last iteration computes in vain, a reset of a state that nobody reads any more, is not part
of a record, or the user's code skips it.  Before a loop is rolled up, the iteration behind it gets
the operations that it lacks.  They are pure and nobody reads them, so nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from snncc.frontend.reroll.flat import Program
from snncc.frontend.reroll.item import Item, map_leaves
from snncc.frontend.reroll.patterns import (
    Back,
    Element,
    Numbers,
    Outer,
    Pattern,
    Proof,
    Pure,
    Same,
)
from snncc.frontend.reroll.symbols import Sequence, reads_weights


def complete_last(program: Program, sequence: Sequence, proof: Proof, tried: set[Item]) -> bool:
    """Add to the iteration behind a loop what it lacks, in place; tell whether anything was.

    Args:
        program: The program.
        sequence: Its operations in numbers.
        proof: A loop of it.
        tried: The operations of iterations for which this was done; more are added.
    """
    return _Last(sequence, proof).complete(program, tried)


def complete_second(program: Program, sequence: Sequence, tried: set[Item]) -> bool:
    """Do the same for the second of two iterations, where no loop is proven yet.

    Only what reads no weights is added, so that of two layers none becomes a loop over time.
    """
    pairs = [_pair(sequence, start, second) for start, second in _beginnings(sequence)]
    found = [proof for proof in pairs if proof is not None]
    found.sort(key=lambda proof: -proof.period)
    return any(complete_last(program, sequence, proof, tried) for proof in found)


def _beginnings(sequence: Sequence) -> Iterator[tuple[int, int]]:
    """Yield positions from which the operations come again, one after another."""
    later: dict[int, int] = {}
    again = [-1] * len(sequence.symbols)
    for position in reversed(range(len(again))):
        name = int(sequence.symbols[position])
        again[position] = later.get(name, -1)
        later[name] = position
    for position, second in enumerate(again):
        if second >= 0 and (position == 0 or again[position - 1] != second - 1):
            yield position, second


def _pair(sequence: Sequence, start: int, second: int) -> Proof | None:
    """Return an iteration as a loop of one step, if what comes behind is most of another."""
    period = second - start
    codes = sequence.operands(start, second)
    offsets = (sequence.offsets[start : second + 1] - sequence.offsets[start]).tolist()
    outside: dict[int, int] = {}
    position, lacking = second, []
    for place in range(period):
        same = position < len(sequence.symbols) and (
            sequence.symbols[position] == sequence.symbols[start + place]
        )
        if not same:
            lacking.append(sequence.items[start + place])
            continue
        here = codes[offsets[place] : offsets[place + 1]].tolist()
        outside.update(zip(here, sequence.operands(position, position + 1).tolist(), strict=True))
        position += 1
    if 2 * len(lacking) > period or any(reads_weights(item) for item in lacking):
        return None
    columns = [Same(c - start) if c >= start else Outer(outside.get(c, c)) for c in codes.tolist()]
    return Proof(start, period, 1, tuple(columns), tuple(offsets), {})


class _CannotCopyError(Exception):
    """An operation cannot be made for the last iteration."""


@dataclass(eq=False)
class _Last:
    sequence: Sequence
    proof: Proof
    items: dict[int, Item] = field(default_factory=dict)

    def complete(self, program: Program, tried: set[Item]) -> bool:
        self.align()
        present = set(self.items.values())
        if present <= tried or len(present) == self.proof.period:
            return False
        tried.update(present)
        try:
            for place in range(self.proof.period):
                if place not in self.items:
                    self.items[place] = self.made(place)
                elif not self.agrees(place):
                    return False
        except _CannotCopyError:
            return False
        self.insert(program, present)
        tried.update(self.items.values())  # what was added is never a reason to add more
        return True

    def align(self) -> None:
        """Find the operation of each place behind the loop."""
        symbols, position = self.sequence.symbols, self.proof.stop
        for place in range(self.proof.period):
            if position < len(symbols) and symbols[position] == symbols[self.proof.start + place]:
                self.items[place] = self.sequence.items[position]
                position += 1

    def agrees(self, place: int) -> bool:
        """Tell whether an operation that is there reads what it would read in the loop."""
        if place in self.proof.selects:
            return True
        patterns = self.proof.operands(place)
        known = Same if self.proof.count == 1 else Same | Back | Outer
        return all(
            not isinstance(pattern, known)
            or self.sequence.code(leaf) == self.sequence.code(self.leaf(pattern))
            for leaf, pattern in zip(self.items[place].split()[1], patterns, strict=True)
        )

    def made(self, place: int) -> Item:
        """Return the operation of a place, for the iteration behind the loop."""
        like = self.sequence.items[self.proof.start + place]
        if like.impure:
            raise _CannotCopyError
        if place in self.proof.selects:
            return self.selected(like, self.proof.selects[place])
        return self.copied(like, self.proof.operands(place))

    def selected(self, like: Item, pattern: Pattern) -> Item:
        if not isinstance(pattern, Element):
            raise _CannotCopyError
        base = self.sequence.value(pattern.base)
        index = pattern.start + pattern.stride * self.proof.count
        size = base.meta["shape"][pattern.dim]
        if not (0 <= index < size if pattern.start >= 0 else -size <= index < 0):
            raise _CannotCopyError
        return Item(like.target, (base, pattern.dim, index), {}, like.meta, like.name)

    def copied(self, like: Item, patterns: tuple[Pattern, ...]) -> Item:
        operands = [self.leaf(pattern) for pattern in patterns]
        if not all(_fits(x, y) for x, y in zip(operands, like.split()[1], strict=True)):
            raise _CannotCopyError
        leaves = iter(operands)
        args, kwargs = map_leaves((like.args, like.kwargs), lambda _: next(leaves))
        return Item(like.target, args, kwargs, like.meta, like.name)

    def leaf(self, pattern: Pattern) -> Any:
        match pattern:
            case Same(place):
                return self.items[place]
            case Back(place, depth, _):
                body = self.proof.count - depth
                return self.sequence.items[self.proof.start + self.proof.period * body + place]
            case Outer(code):
                return self.sequence.value(code)
            case Numbers(values):
                return values[-1]  # any number does: nobody reads the result
            case Pure(code, operands):
                return self.copied(self.sequence.value(code), operands)
            case _:
                raise _CannotCopyError

    def insert(self, program: Program, present: set[Item]) -> None:
        """Put the new operations where their places are."""
        before: dict[Item, list[Item]] = {}
        waiting: list[Item] = []
        last = None
        for place in range(self.proof.period):
            item = self.items[place]
            if item in present:
                before[item], waiting, last = waiting, [], item
            else:
                waiting.append(item)
        items: list[Item] = []
        for item in program.items:
            items += [*before.get(item, ()), item]
            if item is last:
                items += waiting
        program.items = items


def _fits(operand: Any, like: Any) -> bool:
    """Tell whether an operand is of the kind, shape and type that an operation had."""
    if not isinstance(operand, Item) or not isinstance(like, Item):
        return type(operand) is type(like)
    return all(operand.meta.get(k) == like.meta.get(k) for k in ("shape", "dtype", "value"))
