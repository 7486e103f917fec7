"""The starts of a loop's carries: a number, an operand, or a fill with one number.

A constant start is kept as a constant wherever its shape and type are those of the carried value:
kernels start from constants for free.  Such a carry takes its shape from another value of the body,
which has to be there before the carry is read; the body is reordered for that where it may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from snncc.frontend.reroll.flat import ELEMENTWISE, alike, fill_value
from snncc.frontend.reroll.item import Item, is_number
from snncc.frontend.reroll.patterns import Back, Listed, PerStep, Proof, Pure, Refuted, Same
from snncc.frontend.reroll.symbols import Sequence

_MADE_INSIDE = "its initial value is made from a value of the loop"

# A carry: the place of its update in the body, and the codes of the values that it holds before
# the first step, the most recent first; more than one make it the end of a shift register.
Cell = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Number:
    """The carry starts as a Python number."""

    value: float


@dataclass(frozen=True, slots=True)
class Operand:
    """The carry starts as an outside value, by its code."""

    code: int


@dataclass(frozen=True, slots=True)
class Filled:
    """The carry starts as one number with the shape of a per-step input, or of a place."""

    value: float
    like: PerStep | int


Start: TypeAlias = Number | Operand | Filled


@dataclass(eq=False)
class Starts:
    """How each carry starts, in the order in which the body reads them.

    Attributes:
        cells: The start of each carry.
        early: For a place of the body, the places that have to come before it, in order.
    """

    cells: dict[Cell, Start] = field(default_factory=dict)
    early: dict[int, list[int]] = field(default_factory=dict)


def cell_of(pattern: Back) -> Cell:
    """Return the carry that a pattern reads."""
    return pattern.place, pattern.initial[::-1]


def step_input(sequence: Sequence, pattern: PerStep) -> Item:
    """Return an item with the meta of what a per-step input is at one step."""
    if isinstance(pattern, Listed):
        item: Item = sequence.value(pattern.codes[0])
        return item
    base = sequence.value(pattern.base)
    shape = base.meta["shape"]
    seen = (*shape[: pattern.dim], *shape[pattern.dim + 1 :])
    return Item(None, meta={**base.meta, "shape": seen})


def find_starts(sequence: Sequence, proof: Proof) -> Starts | Refuted:
    """Decide how the carries of a loop start; refuse a start that is made inside of the loop."""
    return _Planner(sequence, proof).plan()


class _Planner:
    def __init__(self, sequence: Sequence, proof: Proof) -> None:
        self.sequence, self.proof = sequence, proof
        start = proof.start + proof.period
        self.items = sequence.items[start : start + proof.period]
        self.readers: dict[Cell, int] = {}
        self.readings: dict[Cell, list[int]] = {}
        self.steps: dict[Cell, int] = {}
        self.inputs: dict[PerStep, None] = {}
        for place, pattern in proof.reads():
            if isinstance(pattern, PerStep):
                self.inputs[pattern] = None
            if isinstance(pattern, Back):
                self.add(pattern, place)

    def add(self, pattern: Back, place: int) -> None:
        """Note the cells of a shift register; only its end is read."""
        self.readings.setdefault(cell_of(pattern), []).append(place)
        source, recent = cell_of(pattern)
        for depth in range(1, pattern.depth + 1):
            cell = source, recent[:depth]
            reader = place if depth == pattern.depth else self.proof.period
            self.readers[cell] = min(reader, self.readers.get(cell, reader))
            self.steps[cell] = max(pattern.depth - depth, self.steps.get(cell, 0))

    def plan(self) -> Starts | Refuted:
        starts = Starts()
        for cell, reader in sorted(self.readers.items(), key=lambda entry: entry[1]):
            start = self.start(cell, reader, starts.cells)
            if isinstance(start, str):
                return Refuted(self.steps[cell], min(reader, self.proof.period - 1), start)
            starts.cells[cell] = start
            if isinstance(start, Filled) and isinstance(start.like, int):
                needed = self.closure(start.like, reader, starts.cells)
                starts.early.setdefault(reader, []).extend(needed or [start.like])
        return starts

    def start(self, cell: Cell, reader: int, ready: Mapping[Cell, Start]) -> Start | str:
        """Return how a carry starts, or why it cannot."""
        code = cell[1][-1]
        value = self.sequence.value(code)
        carried = self.items[cell[0]]
        if is_number(value):
            fill = value if self.may_be_tensor(cell, value) else None
        else:
            fill = fill_value(value) if alike(value, carried) else None
        like = None if fill is None else self.find_like(carried, reader, ready)
        if fill is not None and like is not None:
            return Filled(fill, like)
        if is_number(value):
            return _MADE_INSIDE if self.is_turned(cell) else Number(value)
        if not _grows_into(value, carried):
            return "its initial value has another shape"
        return (
            _MADE_INSIDE if self.sequence.is_made_from(value, self.proof.start) else Operand(code)
        )

    def may_be_tensor(self, cell: Cell, number: float) -> bool:
        """Tell whether a tensor of zeros can stand for the number that a carry starts from."""
        readers = [self.items[place] for place in self.readings.get(cell, ())]
        return number == 0 and all(r.target in ELEMENTWISE and not r.kwargs for r in readers)

    def is_turned(self, cell: Cell) -> bool:
        """Tell whether a carry is read where the first iteration had its number on the right."""
        firsts = [self.sequence.items[self.proof.start + p] for p in self.readings.get(cell, ())]
        patterns = [self.proof.operands(p) for p in self.readings.get(cell, ())]
        return any(
            isinstance(pattern, Back) and cell_of(pattern) == cell and not is_number(leaf)
            for first, columns in zip(firsts, patterns, strict=True)
            for leaf, pattern in zip(first.split()[1], columns, strict=True)
        )

    def find_like(
        self, carried: Item, reader: int, ready: Mapping[Cell, Start]
    ) -> PerStep | int | None:
        """Return a per-step input or the place of an operation with the shape of a carry."""
        for pattern in self.inputs:
            if _same_shape(step_input(self.sequence, pattern), carried):
                return pattern
        places = [
            place
            for place, item in enumerate(self.items)
            if place not in self.proof.selects and _same_shape(item, carried)
        ]
        if places and places[0] < reader:
            return places[0]
        return next((p for p in places if self.closure(p, reader, ready) is not None), None)

    def closure(self, place: int, reader: int, ready: Mapping[Cell, Start]) -> list[int] | None:
        """Return what has to come before the reader to have one place there, in order.

        None if there are effects among it, or carries whose start is not decided yet.
        """
        needed: set[int] = set()
        stack = [place]
        while stack:
            here = stack.pop()
            if here < reader or here in needed or here in self.proof.selects:
                continue
            needed.add(here)
            if self.items[here].impure:
                return None
            patterns = list(self.proof.operands(here))
            while patterns:
                pattern = patterns.pop()
                if isinstance(pattern, Back):
                    start = ready.get(cell_of(pattern))
                    if start is None:
                        return None
                    if isinstance(start, Filled) and isinstance(start.like, int):
                        stack.append(start.like)
                elif isinstance(pattern, Same):
                    stack.append(pattern.place)
                elif isinstance(pattern, Pure):
                    patterns.extend(pattern.operands)
        return sorted(needed)


def _grows_into(initial: Item, carried: Item) -> bool:
    """Tell whether a value could become one of the shape of a carry by broadcasting."""
    given, shape = initial.meta.get("shape"), carried.meta.get("shape")
    if given is None or shape is None or len(given) > len(shape):
        return given is None or shape is None
    pairs = zip(reversed(given), reversed(shape), strict=False)
    return all(a in (1, b) for a, b in pairs)


def _same_shape(a: Item, b: Item) -> bool:
    return "shape" in a.meta and bool(a.meta["shape"] == b.meta.get("shape"))
