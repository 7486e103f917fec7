"""A recurrent loop before its sizes are known: what each step does, and who reads which value when.

The calls of the body are of three kinds: fused steps, operators that can write into buffers of ours
(`OUT`, `SEVERAL`), and operators that return a new tensor.  A carry is no value of its own: reading
it at step k is reading its update at step k - 1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from snncc.ir.local_gradient import Noted
from snncc.ir.norm_ops import norm_gradient, normalized
from snncc.ir.step_call import StepCall, output_name
from snncc.ir.time_loop import TimeLoop

Node = torch.fx.Node


def _linear_into(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


# The same library call as the operator makes for operands of two dimensions, into a buffer.
OUT: dict[Any, Callable[..., Any]] = {
    F.linear: _linear_into,
    torch.mm: torch.mm,
    torch.matmul: torch.mm,
}


# Operators with several results, each of which is written into a buffer.
SEVERAL = (normalized, norm_gradient)


@dataclass(frozen=True, slots=True)
class Reading:
    """A node as it is read: the value ``base`` of ``delay`` steps before, or what carries start as.

    ``carries`` are the carries on the way, the one that is read first.
    """

    base: Node
    delay: int
    carries: tuple[Node, ...]


class LoopSketch:
    """The static part of running a loop.

    Attributes:
        loop: The loop.
        fixed: Nodes that have the same value at all steps.
        calls: What runs at each step, in order; several results belong to their call.
    """

    def __init__(self, loop: TimeLoop) -> None:
        self.loop = loop
        self.by_name = {n.name: n for n in loop.body.nodes}
        self.carries = {self.by_name[c.name]: c for c in loop.carries}
        self.updates = {self.by_name[c.name]: self.by_name[c.update] for c in loop.carries}
        self.given = {self.by_name[s.name]: s for s in loop.steps}
        self.tables = {self.by_name[t.name]: t for t in loop.tables}
        self.invariants = {self.by_name[i.name]: i.operand for i in loop.invariants}
        self.fixed = self._find_fixed()
        self.calls = [
            n
            for n in loop.body.nodes
            if n.op == "call_function" and n not in self.fixed and not self.is_output(n)
        ]
        self.place = {node: i for i, node in enumerate(self.calls)}

    def _find_fixed(self) -> set[Node]:
        found = set(self.invariants)
        for node in self.loop.body.nodes:
            inputs = node.all_input_nodes
            is_call = node.op == "call_function" and not is_impure(node)
            if is_call and inputs and all(n in found for n in inputs):
                found.add(node)
        return found

    def is_output(self, node: Node) -> bool:
        """Tell whether a node is a result of a fused step, or of another call with several."""
        source = node.args[0] if node.target is operator.getitem else None
        return isinstance(source, Node) and has_several(source)

    def outputs(self, call: Node) -> dict[str, Node]:
        """Return the outputs of a fused step that exist, by their names in the step."""
        return {output_name(output): output for output in call.users}

    def values(self, call: Node) -> list[Node]:
        """Return what a call computes."""
        return list(call.users) if has_several(call) else [call]

    def producer(self, value: Node) -> Node:
        """Return the call that computes a value."""
        return value.args[0] if self.is_output(value) else value  # type: ignore[return-value]

    def reading(self, node: Node) -> Reading:
        """Return what reading a node means."""
        carries = []
        while node in self.updates:
            carries.append(node)
            node = self.updates[node]
        return Reading(node, len(carries), tuple(carries))

    @cached_property
    def readers(self) -> dict[Node, list[tuple[Node, int]]]:
        """For each value the calls that read it, and with what delay."""
        found: dict[Node, list[tuple[Node, int]]] = {}
        for call in self.calls:
            for node in call.all_input_nodes:
                reading = self.reading(node)
                found.setdefault(reading.base, []).append((call, reading.delay))
        return found

    def is_stacked(self, value: Node) -> bool:
        """Tell whether the value of every step is a result, as it is or some steps later."""
        readings = [self.reading(self.by_name[r.node]) for r in self.loop.results if r.stacked]
        return any(r.base is value for r in readings)

    def longest_delay(self, value: Node) -> int:
        """Return how many steps a value has to live after its own."""
        delays = [delay for _, delay in self.readers.get(value, [])]
        for result in self.loop.results:
            reading = self.reading(self.by_name[result.node])
            delays += [reading.delay] if reading.base is value else []
        return max(delays, default=0)

    def buffers(self, value: Node, *, in_place: bool) -> int:
        """Return how many buffers a value needs that is not kept for every step.

        A value may be overwritten by that of d steps later where all that read it with delay d
        have run by then, or are the step that overwrites it: a step reads each lane before it
        writes it.

        Args:
            value: The value.
            in_place: Whether a step may write where it reads.
        """
        delay = self.longest_delay(value)
        producer = self.producer(value)
        shown = {self.reading(self.by_name[r.node]) for r in self.loop.results}
        late = [call for call, d in self.readers.get(value, []) if d == delay]
        in_time = all(
            self.place[call] < self.place[producer]
            or (in_place and call is producer and isinstance(call.target, StepCall))
            for call in late
        )
        needed_after = any(r.base is value and r.delay == delay for r in shown)
        return delay if delay and in_time and not needed_after else delay + 1

    def is_impure(self) -> bool:
        """Tell whether a step draws random numbers or changes a buffer."""
        return any(is_impure(n) for n in self.loop.body.nodes)


def has_several(call: Node) -> bool:
    """Tell whether a call has several results that lie in buffers."""
    return isinstance(call.target, StepCall) or call.target in SEVERAL


def is_impure(node: Node) -> bool:
    """Tell whether an operator, or one inside of it, has an effect besides its value."""
    if isinstance(node.target, Noted):
        return any(n.meta.get("impure") for n in node.target.graph.nodes)
    return bool(node.meta.get("impure"))
