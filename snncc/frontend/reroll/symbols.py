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

from snncc.frontend.reroll.flat import ARITHMETIC, Program, element, may_stack
from snncc.frontend.reroll.item import COPIES, FOLLOWING, PLACED, Item, is_floating, operands
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
        may_list: Tells of an input whether it may be one of a list, of which each iteration reads
            another.
    """

    items: list[Item]
    symbols: Codes
    offsets: Codes
    codes: Codes
    kinds: npt.NDArray[np.int8]
    others: list[Any]
    code: Callable[[Any], int]
    may_list: Callable[[Item], bool]

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


def symbol(program: Program, item: Item) -> int:
    """Return the symbol of an operation, as a number."""
    if item.symbol is None:
        key = item if _path(item) is None else _statement(item, _weights(item))
        item.symbol = program.symbols.setdefault(key, len(program.symbols))
    return item.symbol


def _path(item: Item) -> Any:
    return None if isinstance(item.target, TimeLoop) else item.meta.get("path")


def _statement(item: Item, weights: tuple[int, ...]) -> Hashable:
    meta = item.meta
    seen = (meta.get("shape"), meta.get("dtype"), meta.get("grad", True))
    return item.target, meta.get("path"), item.split()[0], weights, seen


def _weights(item: Item) -> tuple[int, ...]:
    if item.operator in ARITHMETIC:
        return ()
    return tuple([id(leaf) for leaf in item.split()[1] if _is_weight(leaf)])


def symbol_of_any_weights(item: Item) -> Hashable:
    """Return the symbol of an operation with weights as abstract as its other operands."""
    return item if _path(item) is None else _statement(item, ())


def loose_symbol(item: Item) -> Hashable:
    """Return the symbol of an operation without the shape of its result and its weights."""
    path = item.meta.get("path")
    return item if path is None else (item.target, path, item.split()[0])


def reads_weights(item: Item) -> bool:
    """Tell whether an operation other than arithmetic reads a parameter."""
    return bool(_weights(item))


def _is_weight(leaf: Any) -> bool:
    source = leaf.source if isinstance(leaf, Item) else None
    return source is not None and source.kind is SourceKind.PARAMETER


def place_moves(program: Program) -> None:
    """Give a copy of a constant a place where the same statement copies something else, too.

    The first iteration of ``v = v.detach()`` copies the zeros that ``v`` starts as.
    """
    statements: dict[int, list[Item]] = {}
    for item in program.items:
        if item.operator in COPIES and item.sort == FOLLOWING:
            statements.setdefault(symbol(program, item), []).append(item)
    for same in statements.values():
        floating = [item for item in same if is_floating(item)]
        if len(floating) < len(same):
            for item in floating:
                item.sort = PLACED


def live_classes(program: Program) -> set[Item]:
    """Return the items that are needed, or stand for the same statement as one that is.

    What the last iteration computes in vain is needed in the others; dropping it would spoil the
    repetition.
    """
    members: dict[Any, list[Item]] = {}
    for item in program.items:
        name = item if is_floating(item) else symbol(program, item)
        members.setdefault(name, []).append(item)
    stack = [leaf for leaf in program.outputs if isinstance(leaf, Item)]
    stack += [item for item in program.items if item.impure]
    live: set[Item] = set()
    while stack:
        item = stack.pop()
        if item in live or item.target is None:
            continue
        for same in members.pop(item if is_floating(item) else symbol(program, item), ()):
            live.add(same)
            stack.extend([x for x in same.split()[1] if type(x) is Item and x not in live])
    return live


def sequence(
    program: Program,
    name: Callable[[Item], Hashable] | None = None,
    may_list: Callable[[Item], bool] = may_stack,
) -> Sequence:
    """Number the operations of a program.

    Args:
        program: The program.
        name: The symbol of an operation; by default `symbol`.
        may_list: As in `Sequence`.
    """
    numbering = _Numbering(program, may_list)
    items = numbering.items
    if name is None:
        symbols = [symbol(program, item) for item in items]
    else:
        numbers: dict[Hashable, int] = {}
        symbols = [numbers.setdefault(name(item), len(numbers)) for item in items]
    return numbering.sequence(symbols)


class _Numbering:
    def __init__(self, program: Program, may_list: Callable[[Item], bool]) -> None:
        self.may_list = may_list
        self.items = [item for item in program.items if not is_floating(item)]
        self.position = {item: i for i, item in enumerate(self.items)}
        self.others: list[Any] = []
        self.other_codes: dict[Hashable, int] = {}
        for item in program.items:  # in order, so that chains of floating items are not deep
            if item not in self.position:
                self.code(item)

    def sequence(self, symbols: list[int]) -> Sequence:
        offsets, codes, kinds = [0], [], []
        positions, known = self.position, self.other_codes
        for item in self.items:
            for leaf in item.split()[1]:
                if type(leaf) is Item:
                    code = positions.get(leaf) if leaf.target is not None else known.get(leaf)
                    codes.append(self.code(leaf) if code is None else code)
                    kinds.append(self.kind(leaf))
                else:
                    codes.append(self.code(leaf))
                    kinds.append(NUMBER)
            offsets.append(len(codes))
        return Sequence(
            self.items,
            np.array(symbols, dtype=np.int64),
            np.array(offsets, dtype=np.int64),
            np.array(codes, dtype=np.int64),
            np.array(kinds, dtype=np.int8),
            self.others,
            self.code,
            self.may_list,
        )

    def code(self, leaf: Any) -> int:
        """Return the code of an operand; floating items that are equal have the same code."""
        if type(leaf) is not Item:
            return self.other(leaf.hex() if type(leaf) is float else leaf, leaf)
        known = self.position.get(leaf)
        if known is None:
            known = self.other_codes.get(leaf)
        if known is not None:
            return known
        if leaf.target is None:
            return self.other(leaf, leaf)
        structure, leaves = leaf.split()
        made = self.other((leaf.target, structure, tuple([self.code(x) for x in leaves])), leaf)
        self.other_codes[leaf] = made
        return made

    def other(self, key: Hashable, value: Any) -> int:
        code = self.other_codes.get(key)
        if code is None:
            self.others.append(value)
            code = self.other_codes[key] = -len(self.others)
        return code

    def kind(self, leaf: Item) -> int:
        if leaf.target is None:
            return LISTED if self.may_list(leaf) else FIXED
        if leaf.target is torch.select and element(leaf) is not None:
            return ELEMENT
        return FIXED if leaf in self.position else FLOATING
