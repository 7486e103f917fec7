"""The part of a time loop that stays a loop: a smaller body over sequences computed before."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.fx

from snncc.ir.time_loop import Carry, Fill, Invariant, Result, Step, TimeLoop, Trip
from snncc.passes.hoisting.split import Split


class ResidualLoop:
    """Builds the smaller loop of the nodes that stay one step after another.

    Args:
        split: The loop that is taken apart.
        nodes: Nodes of its body, in order.
    """

    def __init__(self, split: Split, nodes: tuple[torch.fx.Node, ...]) -> None:
        self.split = split
        self.nodes = nodes
        self.likes = self.find_likes()
        self.body = torch.fx.Graph()
        self.copies: dict[torch.fx.Node, torch.fx.Node] = {}
        self.operands: list[Any] = []
        self.length_operand = 0
        self.steps: list[Step] = []
        self.invariants: list[Invariant] = []
        self.tables = tuple(
            t for t in split.loop.tables if any(n in split.tables for n in self.inputs())
        )

    def find_likes(self) -> dict[torch.fx.Node, torch.fx.Node]:
        """Return for each carry that starts as a number a node that has its shape in time.

        The node that the loop names may be computed from the very carry, behind this loop.
        """
        likes: dict[torch.fx.Node, torch.fx.Node] = {}
        for carry in (n for n in self.nodes if n in self.split.carries):
            start = self.split.carries[carry][0].initial
            if isinstance(start, Fill) and start.like is not None:
                named, ready = self.split.body[start.like], self.ready(carry)
                same = [n for n in ready if n.meta.get("shape") == named.meta.get("shape")]
                if named in ready or same:
                    likes[carry] = named if named in ready else same[0]
        return likes

    def ready(self, carry: torch.fx.Node) -> list[torch.fx.Node]:
        """Return the nodes that have a value before a carry is first read."""
        outside = [n for n in self.split.env if n not in self.split.tables]
        inside = itertools.takewhile(lambda n: carry not in n.all_input_nodes, self.nodes)
        return [*outside, *(n for n in inside if n.op == "call_function")]

    def inputs(self) -> list[torch.fx.Node]:
        """Return the outside nodes that the loop reads."""
        carries = self.split.carries
        inside = {n for n in self.nodes if n.op == "call_function" or n in carries}
        reads = [i for n in self.nodes for i in n.all_input_nodes]
        reads += [self.split.carries[n][1] for n in self.nodes if n in self.split.carries]
        reads += self.likes.values()
        return [n for n in dict.fromkeys(reads) if n not in inside]

    def build(self, every: list[torch.fx.Node], last: list[torch.fx.Node]) -> TimeLoop:
        """Return the loop; its operands are in `operands`."""
        split = self.split
        members = [n for n in self.nodes if n in split.carries]
        for node in (*self.inputs(), *members):
            self.copies[node] = copy = self.body.placeholder(node.name)
            copy.meta = dict(node.meta)
        for node in self.inputs():
            self.add_input(node)
        self.add_length()
        for node in self.nodes:
            if node.op == "call_function":
                self.copies[node] = self.body.node_copy(node, self.copies.__getitem__)
        carries = [self.carry(n) for n in members]
        results = [Result(self.copies[n].name, stacked=True) for n in every]
        results += [Result(self.copies[n].name, stacked=False) for n in last]
        return TimeLoop(
            name=f"{split.loop.name}_{self.copies[self.nodes[-1]].name}",
            body=self.body,
            trip=Trip(split.loop.trip.seen, self.length_operand, 0),
            operands=len(self.operands),
            carries=tuple(carries),
            steps=tuple(self.steps),
            tables=self.tables,
            invariants=tuple(self.invariants),
            results=tuple(results),
        )

    def add_input(self, node: torch.fx.Node) -> None:
        """Pass a value from outside: step by step, or as it is."""
        if node in self.split.tables:
            return
        value = self.split.env[node]
        name, position = self.copies[node].name, len(self.operands)
        if value.stacked:
            self.steps.append(Step(name, position, 0, 0, 1))
        else:
            self.invariants.append(Invariant(name, position))
        self.operands.append(value.node)

    def add_length(self) -> None:
        """Pass T as the last operand: a view that has it as its size costs nothing."""
        split = self.split
        self.length_operand = len(self.operands)
        self.operands.append(split.emit(torch.arange, split.length))

    def carry(self, node: torch.fx.Node) -> Carry:
        """Return the carry of a node."""
        carry, update = self.split.carries[node]
        initial: int | Fill
        if isinstance(carry.initial, Fill):
            initial = self.fill(node, carry.initial)
        else:
            initial = len(self.operands)
            self.operands.insert(initial, self.split.operands[carry.initial])
        return Carry(self.copies[node].name, initial, self.copies[update].name)

    def fill(self, node: torch.fx.Node, fill: Fill) -> Fill:
        """Name the copy of the node whose shape the initial value takes."""
        like = self.likes.get(node)
        return Fill(fill.value, None if like is None else self.copies[like].name, fill.dtype)
