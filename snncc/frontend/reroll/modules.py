"""Loops whose iterations have modules of their own: ``self.norms[t](x[t])``.

Their operations read other weights in every iteration, which otherwise tells equal layers apart.
The weights of all iterations are stacked, and an iteration reads a row; gradients go back to each.
What a norm writes into the rows of its running statistics is put back into the buffers.
"""

from __future__ import annotations

from typing import Any

from snncc.frontend.reroll.body import changed_lists
from snncc.frontend.reroll.flat import Program
from snncc.frontend.reroll.item import Item, operands
from snncc.frontend.reroll.patterns import Element, Gathered, Listed, Outer, Pattern, Proof
from snncc.frontend.reroll.search import Loop, find_loops
from snncc.frontend.reroll.symbols import Sequence, sequence, symbol_of_any_weights
from snncc.ir.tape import SourceKind


def find_loops_over_modules(program: Program) -> tuple[Sequence, list[Loop]]:
    """Return the program in numbers, and the loops over time whose iterations differ in weights."""
    numbered = sequence(program, symbol_of_any_weights, may_list=_is_input)
    loops, _ = find_loops(numbered)
    return numbered, [
        x for x in loops if _is_over_time(numbered, x.proof) and _is_apart(numbered, x.proof)
    ]


def _is_input(item: Item) -> bool:
    return item.source is not None


def _is_over_time(sequence: Sequence, proof: Proof) -> bool:
    """Tell steps of time from layers that look the same.

    Both carry something.  A step reads an input besides, at every step the same or another.
    """
    read = [p for _, p in proof.reads() if isinstance(p, Outer | Element | Gathered)]
    roots = [sequence.value(p.code if isinstance(p, Outer) else p.base) for p in read]
    return proof.is_carried and _reads_input(roots)


def _reads_input(roots: list[Any]) -> bool:
    stack = [root for root in roots if isinstance(root, Item)]
    seen: set[Item] = set()
    while stack:
        item = stack.pop()
        if item.source is not None and item.source.kind is SourceKind.INPUT:
            return True
        if item not in seen and item.target is not None:
            seen.add(item)
            stack.extend(operands(item))
    return False


def _is_apart(sequence: Sequence, proof: Proof) -> bool:
    """Tell whether each buffer that the loop changes is that of one iteration alone."""
    changed = changed_lists(sequence, proof)
    codes = [code for each in changed for code in each.codes]
    read = {code for _, p in proof.reads() if p not in changed for code in _codes(p)}
    return len(set(codes)) == len(codes) and read.isdisjoint(codes)


def _codes(pattern: Pattern) -> tuple[int, ...]:
    if isinstance(pattern, Outer):
        return (pattern.code,)
    return pattern.codes if isinstance(pattern, Listed) else ()
