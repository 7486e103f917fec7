"""The sequence in which loops are looked for: one symbol for each operation, and its operands.

Two operations have the same symbol if they could be the same operation of two iterations: the same
operator, reached through the same calls, with arguments of the same structure and a result of the
same shape and type.  Operands are abstract: which value is read is the business of the proof.
Weights are not abstract, so that equal layers with different weights differ; the parameters that
arithmetic reads are, because one may be the initial value of a state.

Operands are numbered.  A code of zero or more is a position in the sequence; a negative code stands
for anything else (an input, a floating item, a number), equal codes for equal values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from snncc.frontend.reroll.flat import (
    ARITHMETIC,
    Item,
    Program,
    element,
    is_floating,
    may_stack,
    operands,
)
from snncc.ir.tape import SourceKind
from snncc.ir.time_loop import TimeLoop

Codes = npt.NDArray[np.int64]

# Kinds of operands that may differ from step to step without being a carry.
FIXED, NUMBER, FLOATING, ELEMENT, LISTED = range(5)


@dataclass(eq=False)
class Sequence:
    """The operations of a program that are not floating, in numbers.

    Attributes:
        items: The operations, in order.
        symbols: The symbol of each operation.
        offsets: Where the operands of each operation start in ``codes``; one entry more at the end.
        codes: The operands of all operations, one after another.
        kinds: What each operand is, as far as that decides whether it may differ between steps.
        others: The value of each negative code: ``others[-1 - code]``.
        code: Returns the code of an operand.
    """

    items: list[Item]
    symbols: Codes
    offsets: Codes
    codes: Codes
    kinds: npt.NDArray[np.int8]
    others: list[Any]
    code: Callable[[Any], int]

    def value(self, code: int) -> Any:
        """Return the item or number that a code stands for."""
        return self.items[code] if code >= 0 else self.others[-1 - code]

    def is_made_from(self, value: Any, start: int) -> bool:
        """Tell whether a floating value is made from an operation at ``start`` or later."""
        stack = [value]
        while stack:
            item = stack.pop()
            if not isinstance(item, Item) or item.target is None:
                continue
            if is_floating(item):
                stack.extend(operands(item))
            elif self.code(item) >= start:
                return True
        return False

    def operands(self, start: int, stop: int) -> Codes:
        """Return the operands of the operations from ``start`` to ``stop``."""
        return self.codes[self.offsets[start] : self.offsets[stop]]


def symbol(item: Item) -> Hashable:
    """Return the symbol of an operation."""
    if item.symbol is None:
        path = item.meta.get("path")
        if path is None or isinstance(item.target, TimeLoop):
            item.symbol = id(item)
        else:
            structure, leaves = item.split()
            meta = item.meta
            weights = item.operator not in ARITHMETIC
            fixed = tuple([id(x) for x in leaves if _is_weight(x)]) if weights else ()
            seen = (meta.get("shape"), meta.get("dtype"), meta.get("grad", True))
            item.symbol = item.target, path, structure, fixed, seen
    return item.symbol


def loose_symbol(item: Item) -> Hashable:
    """Return the symbol of an operation without the shape of its result and its weights."""
    path = item.meta.get("path")
    return id(item) if path is None else (item.target, path, item.split()[0])


def reads_weights(item: Item) -> bool:
    """Tell whether an operation other than arithmetic reads a parameter."""
    return item.operator not in ARITHMETIC and any(_is_weight(x) for x in item.split()[1])


def _is_weight(leaf: Any) -> bool:
    source = leaf.source if isinstance(leaf, Item) else None
    return source is not None and source.kind is SourceKind.PARAMETER


def live_classes(items: list[Item], outputs: tuple[Any, ...]) -> set[Item]:
    """Return the items that are needed, or stand for the same statement as one that is.

    What the last iteration computes in vain is needed in the others; dropping it would spoil the
    repetition.
    """
    members: dict[Hashable, list[Item]] = {}
    names: dict[Item, Hashable] = {}
    for item in items:
        name = item if is_floating(item) else symbol(item)
        names[item] = name
        members.setdefault(name, []).append(item)
    stack = [leaf for leaf in outputs if isinstance(leaf, Item)]
    stack += [item for item in items if item.impure]
    live: set[Item] = set()
    while stack:
        item = stack.pop()
        if item in live or item.target is None:
            continue
        for same in members.pop(names[item], ()):
            live.add(same)
            stack.extend(operands(same))
    return live


def sequence(program: Program, name: Callable[[Item], Hashable] = symbol) -> Sequence:
    """Number the operations of a program, whose symbols are given by ``name``."""
    return _Numbering(program).sequence(name)


class _Numbering:
    def __init__(self, program: Program) -> None:
        self.items = [item for item in program.items if not is_floating(item)]
        self.position = {item: i for i, item in enumerate(self.items)}
        self.others: list[Any] = []
        self.other_codes: dict[Hashable, int] = {}
        self.floating: dict[Item, int] = {}
        for item in program.items:  # in order, so that chains of floating items are not deep
            if item not in self.position:
                self.code(item)

    def sequence(self, name: Callable[[Item], Hashable]) -> Sequence:
        symbols: dict[Hashable, int] = {}
        names, offsets, codes, kinds = [], [0], [], []
        for item in self.items:
            names.append(symbols.setdefault(name(item), len(symbols)))
            for leaf in item.split()[1]:
                codes.append(self.code(leaf))
                kinds.append(self.kind(leaf))
            offsets.append(len(codes))
        return Sequence(
            self.items,
            np.array(names, dtype=np.int64),
            np.array(offsets, dtype=np.int64),
            np.array(codes, dtype=np.int64),
            np.array(kinds, dtype=np.int8),
            self.others,
            self.code,
        )

    def code(self, leaf: Any) -> int:
        """Return the code of an operand; floating items that are equal have the same code."""
        if not isinstance(leaf, Item):
            exact = leaf.hex() if type(leaf) is float else leaf
            return self.other((type(leaf), exact), leaf)
        if leaf in self.position:
            return self.position[leaf]
        if leaf.target is None:
            return self.other(leaf, leaf)
        if leaf not in self.floating:
            structure, leaves = leaf.split()
            key = (leaf.target, structure, tuple([self.code(x) for x in leaves]))
            self.floating[leaf] = self.other(key, leaf)
        return self.floating[leaf]

    def other(self, key: Hashable, value: Any) -> int:
        if key not in self.other_codes:
            self.others.append(value)
            self.other_codes[key] = -len(self.others)
        return self.other_codes[key]

    def kind(self, leaf: Any) -> int:
        if type(leaf) is not Item:
            return NUMBER
        if leaf.target is None:
            return LISTED if may_stack(leaf) else FIXED
        if leaf.target is torch.select and element(leaf) is not None:
            return ELEMENT
        return FIXED if leaf in self.position else FLOATING
