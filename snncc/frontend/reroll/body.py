"""From the proof of a loop to its `TimeLoop`: the body as a graph, and what it reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

from snncc.frontend.operators.canonical import put_back
from snncc.frontend.reroll.item import Item, map_leaves
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
    Same,
)
from snncc.frontend.reroll.starts import Cell, Filled, Number, Operand, Starts, cell_of, step_input
from snncc.frontend.reroll.symbols import Sequence
from snncc.ir.time_loop import Carry, Fill, Invariant, Step, Table, TimeLoop, Trip


@dataclass(eq=False)
class Built:
    """A loop without results yet, the items that it is called with, and those made for them.

    ``made`` comes before the call, ``after`` behind it.
    """

    loop: TimeLoop
    operands: list[Item]
    made: list[Item]
    after: list[Item]
    nodes: dict[int, torch.fx.Node]


def build(sequence: Sequence, proof: Proof, starts: Starts, name: str) -> Built:
    """Build the loop of a proof; its results are left to the caller.

    Args:
        sequence: The sequence of the proof.
        proof: The loop.
        starts: How its carries start.
        name: The loop's name.

    Returns:
        The loop; ``nodes`` maps the places of the body to its nodes.
    """
    return _Body(sequence, proof, starts).build(name)


def changed_lists(sequence: Sequence, proof: Proof) -> list[Listed]:
    """Return the lists of buffers into which the body of a loop writes: norms' statistics."""
    start = proof.start + proof.period
    norms = [
        place
        for place, item in enumerate(sequence.items[start : start + proof.period])
        if item.impure and item.target in (F.batch_norm, F.instance_norm)
    ]
    read = [pattern for place in norms for pattern in proof.operands(place)[1:3]]
    return [pattern for pattern in read if isinstance(pattern, Listed)]


def base_name(name: str) -> str:
    """Return a name without the number that made it unique."""
    return re.sub(r"_\d+$", "", name) or "value"


@dataclass(eq=False)
class _Body:
    sequence: Sequence
    proof: Proof
    starts: Starts
    graph: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    operands: list[Item] = field(default_factory=list)
    made: list[Item] = field(default_factory=list)
    after: list[Item] = field(default_factory=list)
    cells: dict[Cell, torch.fx.Node] = field(default_factory=dict)
    inputs: dict[Pattern, torch.fx.Node] = field(default_factory=dict)
    steps: dict[PerStep, Step] = field(default_factory=dict)
    tables: dict[Numbers, Table] = field(default_factory=dict)
    invariants: dict[Outer, Invariant] = field(default_factory=dict)
    nodes: dict[int, torch.fx.Node] = field(default_factory=dict)
    pure: dict[Pure, torch.fx.Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        start, period = self.proof.start + self.proof.period, self.proof.period
        self.items = self.sequence.items[start : start + period]

    def build(self, name: str) -> Built:
        self.add_cells()
        self.add_inputs()
        for place in range(self.proof.period):
            self.emit(place)
        carries = [self.carry(cell) for cell in self.cells]
        loop = TimeLoop(
            name=name,
            body=self.graph,
            trip=self.trip(),
            operands=len(self.operands),
            carries=tuple(carries),
            steps=tuple(self.steps.values()),
            tables=tuple(self.tables.values()),
            invariants=tuple(self.invariants.values()),
            results=(),
        )
        return Built(loop, self.operands, self.made, self.after, self.nodes)

    def placeholder(self, name: str, like: Item | None) -> torch.fx.Node:
        node = self.graph.create_node("placeholder", name, name=name)
        node.target = node.name
        if like is not None:
            node.meta = {k: v for k, v in like.meta.items() if k != "path"}
        return node

    def add_cells(self) -> None:
        for cell in self.starts.cells:
            place, recent = cell
            item = self.items[place]
            name = f"{base_name(item.name)}_prev{len(recent) if len(recent) > 1 else ''}"
            self.cells[cell] = self.placeholder(name, item)

    def add_inputs(self) -> None:
        reads = [pattern for _, pattern in self.proof.reads()]
        for pattern in reads:
            if isinstance(pattern, Element | Gathered | Listed) and pattern not in self.inputs:
                self.add_step(pattern)
        for pattern in reads:
            if isinstance(pattern, Numbers) and pattern not in self.inputs:
                node = self.inputs[pattern] = self.placeholder("number_t", None)
                self.tables[pattern] = Table(node.name, pattern.values)
        for pattern in reads:
            if isinstance(pattern, Outer) and pattern not in self.inputs:
                value = self.sequence.value(pattern.code)
                if isinstance(value, Item):
                    node = self.inputs[pattern] = self.placeholder(base_name(value.name), value)
                    self.invariants[pattern] = Invariant(node.name, self.operand(value))

    def add_step(self, pattern: PerStep) -> None:
        base, dim, start, stride = self.per_step(pattern)
        seen = step_input(self.sequence, pattern)
        node = self.inputs[pattern] = self.placeholder(f"{base_name(base.name)}_t", seen)
        self.steps[pattern] = Step(node.name, self.operand(base), dim, start, stride)

    def per_step(self, pattern: PerStep) -> tuple[Item, int, int, int]:
        """Return (tensor, dim, start, stride) of a per-step input."""
        if isinstance(pattern, Listed):
            return self.listed(pattern), 0, 0, 1
        base = self.sequence.value(pattern.base)
        size = base.meta["shape"][pattern.dim]
        if isinstance(pattern, Gathered):
            shape = base.meta["shape"]
            meta = {**base.meta, "shape": (*shape[: pattern.dim], *shape[pattern.dim + 1 :])}
            chosen = {i: _chosen(base, pattern.dim, i, meta) for i in sorted(set(pattern.indices))}
            return self.stack([chosen[i] for i in pattern.indices]), 0, 0, 1
        start, stride = pattern.start, pattern.stride
        last = start + stride * (self.proof.count - 1)
        if stride == 1 and last == -1:
            start += size  # reads to the end: counted from the front, like a loop over the axis
        elif stride == -1 and last == 0:
            start -= size  # reads down to the front: counted from the end
        return base, pattern.dim, start, stride

    def listed(self, pattern: Listed) -> Item:
        """Return the tensors of a list in one; what the body writes there goes back to them."""
        tensors = [self.sequence.value(code) for code in pattern.codes]
        rows = self.stack(tensors)
        if pattern in changed_lists(self.sequence, self.proof):
            meta = {"where": rows.meta.get("where"), "impure": True}
            self.after.append(Item(put_back, (rows, *tensors), meta=meta, name="put_back"))
        return rows

    def stack(self, tensors: list[Item]) -> Item:
        meta = dict(tensors[0].meta)
        meta["shape"] = (len(tensors), *meta["shape"])
        item = Item(torch.stack, (tensors, 0), meta=meta, name="steps")
        self.made.append(item)
        return item

    def operand(self, item: Item) -> int:
        for index, present in enumerate(self.operands):
            if present is item:
                return index
        self.operands.append(item)
        return len(self.operands) - 1

    def emit(self, place: int) -> None:
        """Emit an operation; before it what gives the carry that it reads its shape."""
        if place in self.proof.selects:
            self.nodes[place] = self.inputs[self.proof.selects[place]]
        if place in self.nodes:
            return
        for needed in self.starts.early.get(place, ()):
            self.emit(needed)
        self.nodes[place] = self.call(self.items[place], self.proof.operands(place))

    def call(self, item: Item, columns: tuple[Pattern, ...]) -> torch.fx.Node:
        """Emit a call like that of an item, with these operands."""
        leaves = iter([self.leaf(pattern) for pattern in columns])
        args, kwargs = map_leaves((item.args, item.kwargs), lambda _: next(leaves))
        name = base_name(item.name or item.operator)
        node = self.graph.create_node("call_function", item.target, args, kwargs, name)
        node.meta = dict(item.meta)
        return node

    def leaf(self, pattern: Pattern) -> Any:
        """Return a body node, or a number, for an operand."""
        match pattern:
            case Same(place):
                self.emit(place)
                return self.nodes[place]
            case Back():
                return self.cells[cell_of(pattern)]
            case Outer(code) if pattern not in self.inputs:
                return self.sequence.value(code)
            case Pure(code, operands):
                if pattern not in self.pure:
                    self.pure[pattern] = self.call(self.sequence.value(code), operands)
                return self.pure[pattern]
            case _:
                return self.inputs[pattern]

    def carry(self, cell: Cell) -> Carry:
        place, recent = cell
        source = self.nodes[place] if len(recent) == 1 else self.cells[place, recent[:-1]]
        return Carry(self.cells[cell].name, self.initial(cell), source.name)

    def initial(self, cell: Cell) -> int | Fill:
        match self.starts.cells[cell]:
            case Number(value):
                return Fill(value)
            case Operand(code):
                return self.operand(self.sequence.value(code))
            case Filled(value, like):
                node = self.nodes[like] if isinstance(like, int) else self.inputs[like]
                dtype = self.items[cell[0]].meta["dtype"]
                return Fill(value, node.name, None if dtype == node.meta.get("dtype") else dtype)

    def trip(self) -> Trip:
        """Return the number of steps: the size of an axis where the loop reads one to its end.

        A loop that stops one short of the end (``for t in range(T - 1)``) counts as well; if its
        length is a constant after all, another recording will show it.
        """
        count = self.proof.count
        ends: list[tuple[int, Trip]] = []
        for pattern, step in self.steps.items():
            if isinstance(pattern, Element) and abs(step.stride) == 1:
                size = self.operands[step.operand].meta["shape"][step.dim]
                start = step.start + size if step.start < 0 else step.start
                last = start + step.stride * (count - 1)
                left = size - 1 - last if step.stride == 1 else last
                if left <= 1:
                    ends.append((left, Trip(count, step.operand, step.dim, count - size)))
        if self.tables or not ends:
            return Trip(count)
        return min(ends, key=lambda end: (end[0], -end[1].offset))[1]


def _chosen(base: Item, dim: int, index: int, meta: dict[str, Any]) -> Item:
    item = Item(torch.select, (base, dim, index), meta=meta)
    item.is_element = True
    return item
