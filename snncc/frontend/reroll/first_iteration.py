"""Make a first iteration that computes with Python zeros say what the other iterations say.

Where a state starts as a Python number (``mem = 0.``), Python itself does part of the first
iteration: ``decay * mem + x`` is recorded as ``x + 0.0``.  Before a loop is rolled up, the
iteration in front of it is rewritten to read a tensor of zeros instead, if it then computes the
same floats:

* an operand ``0`` of a sum, difference, product or comparison becomes a tensor of zeros;
* the operands of a sum or product change places;
* a product, sum, difference or quotient that Python computed from zeros to the number that was
  recorded is computed by torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from snncc.frontend.operators.canonical import full_like
from snncc.frontend.reroll.flat import COMMUTATIVE, ELEMENTWISE, Program, alike
from snncc.frontend.reroll.item import Item, is_number, map_leaves, operands
from snncc.frontend.reroll.patterns import Back, Numbers, Outer, Pattern, Proof, Same
from snncc.frontend.reroll.symbols import Sequence, loose_symbol
from snncc.ir.record import Leaves

# What Python computes from numbers and torch from tensors of these numbers, equal to the bit where
# the operands are zeros.
PYTHON: Mapping[Any, Callable[[Any, Any], Any]] = {
    torch.mul: operator.mul,
    torch.add: operator.add,
    torch.sub: operator.sub,
    torch.div: operator.truediv,
}


def complete_first(program: Program, sequence: Sequence, proof: Proof) -> bool:
    """Rewrite the iteration in front of a loop in place; tell whether it was possible."""
    return _First(sequence, proof).complete(program)


@dataclass(eq=False)
class _First:
    """The iteration in front of a loop, place by place of the body."""

    sequence: Sequence
    proof: Proof
    items: dict[int, Item] = field(default_factory=dict)
    numbers: dict[int, float] = field(default_factory=dict)
    zeros: dict[int, Item] = field(default_factory=dict)
    rewritten: dict[Item, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        start, period = self.proof.start, self.proof.period
        self.body = self.sequence.items[start + period : start + 2 * period]

    def complete(self, program: Program) -> bool:
        self.align()
        for place in range(self.proof.period):
            done = self.check(place) if place in self.items else self.compute(place)
            if not done:
                return False
        if not self.rewritten or not self.are_private(program):
            return False
        self.apply(program)
        return True

    def are_private(self, program: Program) -> bool:
        """Tell whether nobody else reads the values whose shape changes."""
        grown = {
            item
            for place, item in self.items.items()
            if item.meta.get("shape") != self.body[place].meta.get("shape")
        }
        own = set(self.items.values())
        read = {x for item in program.items if item not in own for x in operands(item)}
        read.update(leaf for leaf in program.outputs if isinstance(leaf, Item))
        return not grown or not grown & read

    def align(self) -> None:
        """Find the operation of each place, from the last one backwards."""
        position = self.proof.start - 1
        for place in reversed(range(self.proof.period)):
            same = loose_symbol(self.body[place])
            if position >= 0 and loose_symbol(self.sequence.items[position]) == same:
                self.items[place] = self.sequence.items[position]
                position -= 1

    def compute(self, place: int) -> bool:
        """Compute in Python what has no operation, from zeros for the carries."""
        function = PYTHON.get(self.body[place].target)
        columns = self.proof.operands(place)
        if function is None or len(columns) != 2 or self.body[place].kwargs:
            return False
        values = [self.number(pattern) for pattern in columns]
        if any(v is None for v in values) or not any(isinstance(p, Back) for p in columns):
            return False
        try:
            self.numbers[place] = function(*values)
        except ZeroDivisionError:
            return False
        return True

    def number(self, pattern: Pattern) -> float | None:
        match pattern:
            case Back(_, 1, _):
                return 0.0
            case Same(place):
                return self.numbers.get(place)
            case Outer(code):
                value = self.sequence.value(code)
                return value if is_number(value) else None
            case _:
                return None

    def check(self, place: int) -> bool:
        """Check an operation against its place; note how it has to be rewritten."""
        item, columns = self.items[place], self.proof.operands(place)
        if place in self.proof.selects:
            return True
        leaves = item.split()[1]
        plain = item.target in ELEMENTWISE and len(leaves) == 2 and not item.kwargs
        if self.agree(leaves, columns):
            same = item.meta.get("shape") == self.body[place].meta.get("shape")
            return same or (plain and self.fits(place, leaves))
        if not plain or item.meta.get("dtype") != self.body[place].meta.get("dtype"):
            return False
        orders = [leaves, leaves[::-1]] if item.target in COMMUTATIVE else [leaves]
        for order in orders:
            made = [self.tensor(x, p) for x, p in zip(order, columns, strict=True)]
            if all(m is not None for m in made) and self.fits(place, made):
                self.rewritten[item] = made
                return True
        return False

    def fits(self, place: int, leaves: Leaves) -> bool:
        """Tell whether these operands give a result of the shape that the body has."""
        places = {item: p for p, item in self.items.items()}
        shapes = [
            (self.body[places[x]] if x in places else x).meta.get("shape", ())
            for x in leaves
            if isinstance(x, Item)
        ]
        try:
            shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
            return tuple(shape) == self.body[place].meta.get("shape")
        except RuntimeError:
            return False

    def agree(self, leaves: Leaves, columns: tuple[Pattern, ...]) -> bool:
        return all(
            self.operand(x, p) is not None and not (is_number(x) and isinstance(p, Back))
            for x, p in zip(leaves, columns, strict=True)
        )

    def operand(self, leaf: Any, pattern: Pattern) -> Any:
        """Return a leaf if it is what the pattern reads in this iteration."""
        match pattern:
            case Same(place):
                return leaf if self.items.get(place) is leaf else None
            case Outer(code):
                return leaf if self.sequence.code(leaf) == code else None
            case Back():
                return leaf
            case Numbers():
                return leaf if is_number(leaf) else None
            case _:
                return None if is_number(leaf) else leaf

    def tensor(self, leaf: Any, pattern: Pattern) -> Any:
        """Return the operand with which a rewritten operation reads the same number."""
        if not is_number(leaf) or isinstance(pattern, Outer):
            return self.operand(leaf, pattern)
        if isinstance(pattern, Back) and pattern.depth == 1 and leaf == 0:
            return self.zero(pattern.place)
        if isinstance(pattern, Same) and pattern.place in self.numbers:
            same = float(leaf).hex() == float(self.numbers[pattern.place]).hex()
            return self.made(pattern.place) if same else None
        return None

    def zero(self, place: int) -> Item | None:
        """Return the tensor of zeros that a carry starts from."""
        if place not in self.zeros:
            like = self.body[place]
            meta = {k: like.meta[k] for k in ("shape", "dtype", "where")}
            base = next((x for x in self.bases() if alike(x, like)), None)
            if base is None:
                return None
            kwargs = {"dtype": meta["dtype"]}
            self.zeros[place] = Item(full_like, (base, 0.0), kwargs, meta, "zeros")
        return self.zeros[place]

    def bases(self) -> Iterator[Item]:
        """Yield the values of the iteration that need no zeros, and those that it reads."""
        for place in sorted(self.items):
            if self.is_free(place):
                yield self.items[place]
        own = set(self.items.values())
        for item in self.items.values():
            yield from (x for x in operands(item) if x not in own)

    def is_free(self, place: int) -> bool:
        """Tell whether an operation reads no Python zero, directly or through others."""
        stack, seen = [place], set()
        while stack:
            here = stack.pop()
            if here in seen or here in self.proof.selects:
                continue
            seen.add(here)
            item = self.items.get(here)
            if item is None:
                return False
            leaves = self.rewritten.get(item, item.split()[1])
            for leaf, pattern in zip(leaves, self.proof.operands(here), strict=True):
                if is_number(leaf) and not self.is_constant(leaf, pattern):
                    return False
                if isinstance(pattern, Same):
                    stack.append(pattern.place)
        return True

    def is_constant(self, number: float, pattern: Pattern) -> bool:
        """Tell whether the loop has a number in this place as well."""
        if isinstance(pattern, Outer):
            return self.sequence.code(number) == pattern.code
        return isinstance(pattern, Numbers)

    def made(self, place: int) -> Item | None:
        """Return the operation that computes with torch what Python computed."""
        if place not in self.items:
            like = self.body[place]
            leaves = [self.made_operand(pattern) for pattern in self.proof.operands(place)]
            if any(leaf is None for leaf in leaves):
                return None
            args = map_leaves(like.args, _in_turn(leaves))
            self.items[place] = Item(like.target, args, {}, like.meta, like.name)
        return self.items[place]

    def made_operand(self, pattern: Pattern) -> Any:
        match pattern:
            case Back(source, _, _):
                return self.zero(source)
            case Same(source):
                return self.made(source)
            case _:
                return self.number(pattern)

    def apply(self, program: Program) -> None:
        """Rewrite the program; what was added stands where its place in the body is."""
        for item, leaves in self.rewritten.items():
            item.rewrite(_in_turn(leaves))
        for place, item in self.items.items():
            meta = self.body[place].meta
            item.see(**{key: meta[key] for key in ("shape", "dtype") if key in meta})
        present = set(program.items)
        before: dict[Item, list[Item]] = {}
        waiting: list[Item] = list(self.zeros.values())
        for place in sorted(self.items):
            item = self.items[place]
            if item in present:
                before[item], waiting = waiting, []
            else:
                waiting.append(item)
        program.items = [x for item in program.items for x in (*before.get(item, ()), item)]


def _in_turn(values: list[Any]) -> Callable[[Any], Any]:
    """Return a function that ignores its argument and returns one value after another."""
    given = iter(values)
    return lambda _: next(given)
