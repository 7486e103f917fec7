"""Build a time loop piece by piece: its body, and the operands that it is called with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.fx

from snncc.ir.time_loop import Carry, Fill, Invariant, Result, Step, Table, TimeLoop, Trip

Node = torch.fx.Node


class LoopBuilder:
    """A loop under construction.  Operands are nodes of the graph that will call it."""

    def __init__(self) -> None:
        self.body = torch.fx.Graph()
        self.operands: list[Node] = []
        self.results: list[Result] = []
        self._first_call: Node | None = None
        self._steps: dict[tuple[Node, int, int, int], tuple[Node, Step]] = {}
        self._invariants: dict[Node, tuple[Node, Invariant]] = {}
        self._tables: dict[str, tuple[Node, Table]] = {}
        self._carries: list[tuple[Node, int | Fill]] = []
        self._updates: dict[Node, Node] = {}

    def step(self, name: str, operand: Node, dim: int = 0, start: int = 0, stride: int = 1) -> Node:
        """Return the body node of a per-step input."""
        key = (operand, dim, start, stride)
        if key not in self._steps:
            node = self._placeholder(name)
            self._steps[key] = (
                node,
                Step(node.name, self.operand(operand), dim, start, stride),
            )
        return self._steps[key][0]

    def invariant(self, name: str, operand: Node) -> Node:
        """Return the body node of an operand that is the same at every step."""
        if operand not in self._invariants:
            node = self._placeholder(name)
            self._invariants[operand] = (node, Invariant(node.name, self.operand(operand)))
        return self._invariants[operand][0]

    def table(self, table: Table) -> Node:
        """Return the body node of a number that differs from step to step."""
        if table.name not in self._tables:
            node = self._placeholder(table.name)
            self._tables[table.name] = (node, Table(node.name, table.values))
        return self._tables[table.name][0]

    def carry(self, name: str, initial: Node | Fill) -> Node:
        """Return the body node of a carry; `set_update` completes it."""
        node = self._placeholder(name)
        start = initial if isinstance(initial, Fill) else self.operand(initial)
        self._carries.append((node, start))
        return node

    def set_update(self, carry: Node, update: Node) -> None:
        """Say what a carry becomes in the next step."""
        self._updates[carry] = update

    def emit(self, target: Any, *args: Any) -> Node:
        """Add a call to the body."""
        node = self.body.call_function(target, args)
        self._first_call = self._first_call or node
        return node

    def result(self, node: Node, *, stacked: bool) -> int:
        """Make a value of the body a result and return its position."""
        result = Result(node.name, stacked)
        if result not in self.results:
            self.results.append(result)
        return self.results.index(result)

    def operand(self, node: Node) -> int:
        """Return the position of an operand."""
        if node not in self.operands:
            self.operands.append(node)
        return self.operands.index(node)

    def build(self, name: str, trip: Trip, *, reverse: bool) -> TimeLoop:
        """Return the loop."""
        return TimeLoop(
            name=name,
            body=self.body,
            trip=trip,
            operands=len(self.operands),
            carries=tuple(Carry(n.name, i, self._updates[n].name) for n, i in self._carries),
            steps=tuple(step for _, step in self._steps.values()),
            tables=tuple(table for _, table in self._tables.values()),
            invariants=tuple(invariant for _, invariant in self._invariants.values()),
            results=tuple(self.results),
            reverse=reverse,
        )

    def _placeholder(self, name: str) -> Node:
        if self._first_call is None:
            return self.body.placeholder(name)
        with self.body.inserting_before(self._first_call):
            return self.body.placeholder(name)


def of_type(value: Node, like: Node) -> Node:
    """Return a value of a reverse body, marked with the type of a forward value."""
    value.meta.setdefault("dtype", like.meta.get("dtype"))
    return value


def renamed(loop: TimeLoop, body: torch.fx.Graph, name: dict[str, str]) -> TimeLoop:
    """Return a loop with another body.

    Args:
        loop: The loop.
        body: The new body.
        name: For each name of the old body that is still there, the name in the new one.
    """
    carries = [
        Carry(name[c.name], _renamed_fill(c.initial, name), name[c.update]) for c in loop.carries
    ]
    return replace(
        loop,
        body=body,
        carries=tuple(carries),
        steps=tuple(replace(s, name=name[s.name]) for s in loop.steps),
        tables=tuple(replace(t, name=name[t.name]) for t in loop.tables),
        invariants=tuple(replace(i, name=name[i.name]) for i in loop.invariants),
        results=tuple(replace(r, node=name[r.node]) for r in loop.results),
    )


def _renamed_fill(initial: int | Fill, name: dict[str, str]) -> int | Fill:
    if isinstance(initial, Fill) and initial.like is not None:
        return replace(initial, like=name.get(initial.like))
    return initial
