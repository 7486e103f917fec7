"""From the record of a run to the flat program that re-rolling rewrites."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import torch

from snncc.frontend.operators.canonical import graft
from snncc.frontend.reroll.flat import ARITHMETIC, Program
from snncc.frontend.reroll.item import Item
from snncc.frontend.reroll.symbols import symbol
from snncc.ir.record import Node, map_nodes
from snncc.ir.tape import SourceKind, Tape


class _Form(NamedTuple):
    """What calls share that differ in their operands alone; ``symbol`` if they read no weights."""

    name: str
    sort: int
    symbol: int
    may_read_weights: bool


# What returns a value of its first operand and matters to gradients alone.
_OF_GRADIENTS = frozenset({torch.detach, graft})


def from_tape(tape: Tape, *, values_only: bool = False) -> Program:
    """Read a tape into a flat program.

    Args:
        tape: The tape.
        values_only: Whether to leave out what matters to gradients alone.
    """
    return _Reader(tape, _OF_GRADIENTS if values_only else frozenset()).read()


class _Reader:
    def __init__(self, tape: Tape, left_out: frozenset[Any]) -> None:
        self.tape = tape
        self.left_out = left_out
        self.program = Program([], [], ())
        self.items: dict[Node, Item] = {}
        self.weights: set[Item] = set()
        # Nodes share equal structures and metas, and the tape keeps them alive: ids will do.
        self.forms: dict[tuple[int, int, int], _Form] = {}
        self.symbols: dict[Hashable, int] = {}
        self.metas: dict[int, Mapping[str, Any]] = {}

    def read(self) -> Program:
        for node, source in zip(self.tape.places, self.tape.sources, strict=True):
            item = self.items[node] = Item(None, meta=node.meta, name=node.name)
            item.source = source
            if source.kind is SourceKind.PARAMETER:
                self.weights.add(item)
        self.program.inputs = list(self.items.values())
        read = [self.item(node) for node in self.tape.calls]
        self.program.items = list(dict.fromkeys(x for x in read if x.target is not None))
        self.program.outputs = map_nodes(self.tape.outputs, self.items.__getitem__)
        return self.program

    def item(self, node: Node) -> Item:
        items = self.items
        if node.target in self.left_out:
            items[node] = items[node.leaves[0]]
            return items[node]
        leaves = [items[leaf] if type(leaf) is Node else leaf for leaf in node.leaves]
        meta = self.meta(node.meta) if self.left_out else node.meta
        item = items[node] = Item.of_leaves(node.target, node.structure, leaves, meta)
        key = id(node.target), id(node.structure), id(node.meta)
        form = self.forms.get(key)
        if form is None:
            form = self.forms[key] = self.form(item)
        item.name, item.sort = form.name, form.sort
        fixed = [x for x in leaves if x in self.weights] if form.may_read_weights else ()
        item.symbol = form.symbol if not fixed else self.weighted(item, (form.symbol, *fixed))
        return item

    def meta(self, recorded: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what was recorded of a call, but for whether gradients were on."""
        found = self.metas.get(id(recorded))
        if found is None:
            found = {key: value for key, value in recorded.items() if key != "grad"}
            self.metas[id(recorded)] = found
        return found

    def form(self, item: Item) -> _Form:
        name = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", item.operator).lower()
        without = Item.of_leaves(item.target, item.split()[0], (), item.meta)
        may_read_weights = item.operator not in ARITHMETIC
        return _Form(name, item.sort, symbol(self.program, without), may_read_weights)

    def weighted(self, item: Item, key: Hashable) -> int:
        """Return the symbol of an operation that reads weights."""
        found = self.symbols.get(key)
        if found is None:
            item.symbol = None
            found = self.symbols[key] = symbol(self.program, item)
        return found
