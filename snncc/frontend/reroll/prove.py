"""Proof that K consecutive ranges of a sequence are K iterations of one loop body.

The ranges have equal symbols; what is proven here is that their operands agree: each operand of the
body, followed over the iterations, fits one of the patterns of `snncc.frontend.reroll.patterns`.
Anything else refutes the iterations up to the last one at which it shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from snncc.frontend.reroll.flat import ARITHMETIC, COMMUTATIVE, alike, element
from snncc.frontend.reroll.item import Item, is_floating, is_number
from snncc.frontend.reroll.patterns import (
    Back,
    Element,
    Gathered,
    Listed,
    Numbers,
    Outer,
    Pattern,
    PerStep,
    Proof,
    Pure,
    Refuted,
    Same,
)
from snncc.frontend.reroll.symbols import Codes, Sequence


def prove(sequence: Sequence, start: int, period: int, count: int) -> Proof | list[Refuted]:
    """Prove that ``count`` ranges of ``period`` operations from ``start`` are one loop.

    The symbols of the ranges must be equal already.

    Returns:
        The proof, or what refutes it.
    """
    return _Prover(sequence, start, period, count).prove()


class _Prover:
    def __init__(self, sequence: Sequence, start: int, period: int, count: int) -> None:
        self.sequence = sequence
        self.start, self.period, self.count = start, period, count
        stop = start + period * count
        self.table: Codes = sequence.operands(start, stop).reshape(count, -1).copy()
        self.offsets = sequence.offsets[start : start + period + 1] - sequence.offsets[start]
        self.last_body = sequence.items[stop - period : stop]
        for place, item in enumerate(self.last_body):
            if item.target in COMMUTATIVE and not item.kwargs:
                self.turn(int(self.offsets[place]))

    def turn(self, column: int) -> None:
        """Read ``x + 0`` as ``0 + x`` in the first iteration, where the others add a carry to x.

        Python turns a sum around that begins with its own number.
        """
        x, number = self.sequence.value(int(self.table[0, column])), self.table[0, column + 1]
        number = self.sequence.value(int(number))
        carried = self.start <= self.table[-1, column] < self.stop_of_last
        carried = carried and self.table[-1, column + 1] != self.table[0, column + 1]
        if carried and isinstance(x, Item) and is_number(number) and number == 0:
            self.table[0, column : column + 2] = self.table[0, column : column + 2][::-1].copy()

    def prove(self) -> Proof | list[Refuted]:
        columns: list[Any] = [None] * self.table.shape[1]
        self.fill_constant(columns)
        selects: dict[int, PerStep] = {}
        refuted: list[Refuted] = []
        for place in range(self.period):
            first, last = self.offsets[place], self.offsets[place + 1]
            open_columns = [c for c in range(first, last) if columns[c] is None]
            if not open_columns:
                continue
            taken = self.select(place, columns, open_columns)
            if isinstance(taken, Refuted):
                refuted.append(taken)
            elif taken is not None:
                selects[place] = taken
            else:
                for c in open_columns:
                    columns[c] = self.column(self.table[:, c], place)
                    if isinstance(columns[c], Refuted):
                        refuted.append(columns[c])
        if refuted:
            return refuted
        offsets = tuple(self.offsets.tolist())
        return Proof(self.start, self.period, self.count, tuple(columns), offsets, selects)

    def fill_constant(self, columns: list[Any]) -> None:
        """Fill in, all at once, the columns that read the same value in every iteration."""
        last = self.table[-1]
        same = (self.table == last).all(axis=0)
        steps = np.arange(self.count)[:, None] - (self.count - 1)
        inner = (last >= self.stop_of_last) & (self.table == last + steps * self.period).all(axis=0)
        for c in np.flatnonzero(same & (last < 0)).tolist():
            code = int(last[c])
            if not self.reads_region(code):
                columns[c] = Outer(code)
        for c in np.flatnonzero(same & (last >= 0) & (last < self.start)).tolist():
            columns[c] = Outer(int(last[c]))
        for c in np.flatnonzero(inner).tolist():
            columns[c] = Same(int(last[c] - self.stop_of_last))

    @property
    def stop_of_last(self) -> int:
        return self.start + (self.count - 1) * self.period

    def select(
        self, place: int, columns: list[Any], open_columns: list[int]
    ) -> PerStep | Refuted | None:
        """Return the per-step input that an operation of the body takes, if it only does that."""
        item = self.last_body[place]
        first = int(self.offsets[place])
        if item.target is not torch.select or open_columns != [first + 2]:
            return None
        base, dim = columns[first], self.sequence.value(int(self.table[-1, first + 1]))
        if not isinstance(base, Outer):
            return Refuted(self.count - 1, place, "it indexes a value of the loop by the step")
        tensor = self.sequence.value(base.code)
        indices = [self.index(int(code), tensor, dim) for code in self.table[:, first + 2]]
        return self.indexed(base.code, dim, indices, place)

    def index(self, code: int, tensor: Item, dim: int) -> int | None:
        """Return an index as a number: computed from the axis' size, it counts from the end."""
        value = self.sequence.value(code)
        if type(value) is int:
            return value
        if not isinstance(value, Item) or not value.is_integer:
            return None
        seen = int(value.meta["value"])
        from_end = _offset_from_size(value, tensor, dim)
        return seen if from_end is None or from_end >= 0 else from_end

    def indexed(
        self, base: int, dim: int, indices: list[int | None], place: int
    ) -> PerStep | Refuted:
        """Return the per-step input that reads these indices of a tensor."""
        unknown = _last(indices, lambda i: i is None)
        if unknown is not None:
            return Refuted(unknown, place, "its index is not a number")
        numbers = [i for i in indices if i is not None]
        stride = numbers[-1] - numbers[-2]
        fault = _last(
            list(zip(numbers, [*numbers[1:], numbers[-1] + stride], strict=True)),
            lambda pair: pair[1] - pair[0] != stride or (pair[0] < 0) != (numbers[-1] < 0),
        )
        if fault is None:
            return Element(base, dim, numbers[0], stride)
        if fault > 1:
            return Gathered(base, dim, tuple(numbers))
        return Refuted(fault, place, f"it reads index {numbers[fault]} out of turn")

    def column(self, codes: Codes, place: int) -> Pattern | Refuted:
        """Return what one operand is, over all iterations."""
        last = int(codes[-1])
        if last >= self.start:
            return self.inner(codes, place)
        inside = np.flatnonzero(codes >= self.start)
        if len(inside):
            return Refuted(int(inside[-1]), place, "it reads a value of the loop only at times")
        if (codes == last).all():
            return self.hoisted(last, place) if self.reads_region(last) else Outer(last)
        values = [self.sequence.value(int(code)) for code in codes]
        if is_number(values[-1]):
            return self.numbers(values, place)
        if element(values[-1]) is not None:
            return self.elements(values, place)
        if self.may_list(values[-1]):
            return self.listed(codes, values, place)
        if is_floating(values[-1]):
            return self.pure(values, place)
        return self.differs(codes, values, place)

    def inner(self, codes: Codes, place: int) -> Same | Back | Refuted:
        """Return the value of the loop that an operand reads."""
        last = int(codes[-1])
        source = (last - self.start) % self.period
        depth = self.count - 1 - (last - self.start) // self.period
        expected = last - np.arange(self.count - 1, -1, -1) * self.period
        early = np.arange(self.count) < depth
        faults = np.flatnonzero(np.where(early, codes >= self.start, codes != expected))
        if len(faults):
            return Refuted(int(faults[-1]), place, "it reads another value than in the next step")
        if depth == 0:
            return Same(source)
        if "shape" not in self.last_body[source].meta:
            return Refuted(self.count - 1, place, "a value that is no tensor crosses iterations")
        return Back(source, depth, tuple(int(code) for code in codes[:depth]))

    def reads_region(self, code: int) -> bool:
        """Tell whether a value is made from the shape of a value of the loop."""
        if code >= 0:
            return code >= self.start
        return self.sequence.is_made_from(self.sequence.value(code), self.start)

    def hoisted(self, code: int, place: int) -> Pattern | Refuted:
        """Return a value that one iteration made for all, from shapes: it may be made in each."""
        if code >= 0:
            source = (code - self.start) % self.period
            if source < place:
                return Same(source)
            return Refuted(self.count - 1, place, "it needs the shape of a later value")
        if not self.reads_region(code):
            return Outer(code)
        made = [
            self.hoisted(self.sequence.code(leaf), place)
            for leaf in self.sequence.value(code).split()[1]
        ]
        return self.joined(code, made)

    def joined(self, code: int, made: list[Pattern | Refuted]) -> Pure | Refuted:
        parts: list[Pattern] = []
        for part in made:
            if isinstance(part, Refuted):
                return part
            parts.append(part)
        return Pure(code, tuple(parts))

    def numbers(self, values: list[Any], place: int) -> Numbers | Refuted:
        other = _last(values, lambda v: not is_number(v))
        if other is not None:
            return Refuted(other, place, f"it reads a tensor where others read {values[-1]}")
        item = self.last_body[place]
        if item.operator in ARITHMETIC or all(type(v) is float for v in values):
            return Numbers(tuple(values))
        fault = _last(values, lambda v: v != values[-1])
        assert fault is not None
        return Refuted(
            fault, place, f"an integer argument is {values[fault]}, then {values[fault + 1]}"
        )

    def elements(self, values: list[Any], place: int) -> PerStep | Refuted:
        found = [element(v) for v in values]
        base, dim, _ = found[-1] or (values[-1], 0, 0)
        other = _last(found, lambda e: e is None or e[0] is not base or e[1] != dim)
        if other is not None:
            return Refuted(other, place, "it reads a value that is not an element of one tensor")
        return self.indexed(self.sequence.code(base), dim, [e and e[2] for e in found], place)

    def may_list(self, value: Any) -> bool:
        return isinstance(value, Item) and self.sequence.may_list(value)

    def listed(self, codes: Codes, values: list[Any], place: int) -> Listed | Refuted:
        other = _last(
            values,
            lambda v: not (self.may_list(v) and alike(v, values[-1])),
        )
        if other is not None:
            return Refuted(other, place, "it reads an input of another shape or kind")
        return Listed(tuple(int(code) for code in codes))

    def pure(self, values: list[Any], place: int) -> Pure | Refuted:
        """Return a floating value that each iteration makes anew."""
        last = values[-1]
        other = _last(
            values,
            lambda v: (
                not isinstance(v, Item)
                or v.target != last.target
                or v.split()[0] != last.split()[0]
            ),
        )
        if other is not None:
            return Refuted(other, place, "it reads a value that is made in another way")
        rows = [[self.sequence.code(leaf) for leaf in v.split()[1]] for v in values]
        table = np.array(rows, dtype=np.int64)
        made = [self.column(table[:, c], place) for c in range(table.shape[1])]
        for part in made:
            chosen = isinstance(part, Numbers) and any(type(v) is int for v in part.values)
            if chosen and not last.is_integer:
                return Refuted(self.count - 2, place, "it reads a value that is made differently")
        return self.joined(self.sequence.code(last), made)

    def differs(self, codes: Codes, values: list[Any], place: int) -> Refuted:
        fault = int(np.flatnonzero(codes != codes[-1])[-1])
        return Refuted(fault, place, f"it reads '{values[fault]}', then '{values[fault + 1]}'")


def _last(values: list[Any], condition: Any) -> int | None:
    """Return the last index whose value meets a condition."""
    return next((i for i in range(len(values) - 1, -1, -1) if condition(values[i])), None)


def _offset_from_size(value: Any, tensor: Item, dim: int) -> int | None:
    """Return c where an integer was computed as ``tensor.shape[dim] + c``."""
    if not isinstance(value, Item):
        return None
    if value.operator == "size" and value.args[:1] == (tensor,) and value.args[1:] == (dim,):
        return 0
    if value.operator not in ("add", "sub") or len(value.args) != 2:
        return None
    left, right = value.args
    offset = _offset_from_size(left, tensor, dim)
    if offset is None or type(right) is not int:
        return None
    return offset + right if value.operator == "add" else offset - right
