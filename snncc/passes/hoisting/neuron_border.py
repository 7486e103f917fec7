"""The call of a neuron inside a sequence graph: what goes in and out of lanes of floats.

Inside, a value is a float for each lane, or a bool.  At the border bools and small integers are
converted, complex numbers are two inputs, and numbers of Python become tensors.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import cast
from snncc.ir import sequence_ops
from snncc.ir.interpret import HALVES
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.program import NeuronProgram
from snncc.ir.time_loop import Carry
from snncc.passes.hoisting.find_recurrences import Group
from snncc.passes.hoisting.split import Split
from snncc.passes.scalars.scalarize import Neuron, Port, scalarize
from snncc.passes.scalars.small_integers import INITIAL, INTEGERS

COMPLEX_PRODUCTS = "torch rounds complex products in one of two ways, by their place in memory"


@dataclass(frozen=True)
class NeuronBorder:
    """Emits the call of one neuron.

    Args:
        split: The loop that is taken apart.
        group: The nodes of the neuron.
    """

    split: Split
    group: Group

    def emit_call(self, name: str) -> None:
        """Emit the call and bind its results."""
        split, nodes = self.split, self.group.nodes
        carries = {n: split.carries[n] for n in nodes if n in split.carries}
        lanes_shape = tuple(next(iter(carries.values()))[1].meta["shape"])
        rank = len(lanes_shape)
        neuron = scalarize(name, nodes, carries, split.is_stacked, split.needed(nodes))
        program = NeuronProgram(
            neuron.recurrence,
            inexact=self.inexact(neuron),
            most_steps=self.group.most_steps,
            result=self.result(neuron),
        )
        steps = [self.step(port, rank) for port in neuron.steps]
        lanes = [self.lane(port) for port in neuron.lanes]
        call = split.emit(NeuronCall(program), split.length, *steps, *lanes)
        call.meta["dtype"] = self.group.dtype
        call.meta["lanes"] = lanes_shape
        call.meta["folded"] = next((n.meta["folded"] for n in nodes if "folded" in n.meta), "")
        self.bind_results(call, neuron)

    def inexact(self, neuron: Neuron) -> str:
        """Return why a kernel cannot round as the serial code does; nothing where it can."""
        if self.group.dtype in HALVES:
            name = str(self.group.dtype).removeprefix("torch.")
            return f"its state is float32, where the serial code rounds each operation to {name}"
        return COMPLEX_PRODUCTS if neuron.has_products else ""

    def result(self, neuron: Neuron) -> torch.dtype | None:
        """Return the type of the results, where it is not that of all inputs."""
        values = [port.value for port in (*neuron.steps, *neuron.lanes)]
        seen = {v.meta.get("dtype") for v in values if isinstance(v, torch.fx.Node)}
        is_half = self.split.halves and not {self.group.dtype, *seen}.isdisjoint(HALVES)
        return self.group.dtype if is_half else None

    def bind_results(self, call: torch.fx.Node, neuron: Neuron) -> None:
        """Bind what the call returns, in the types that the values have outside."""
        parts: dict[tuple[Any, bool], list[torch.fx.Node]] = {}
        for position, port in enumerate((*neuron.outputs, *neuron.finals)):
            value = self.split.emit(operator.getitem, call, position)
            value.meta["dtype"] = self.group.dtype
            parts.setdefault((port.value, position < len(neuron.outputs)), []).append(value)
        for (node, is_output), values in parts.items():
            value = self.outside(node, values)
            if is_output:
                self.split.bind(node, value, stacked=True)
            else:
                self.split.lasts[node] = value

    def outside(self, node: torch.fx.Node, values: list[torch.fx.Node]) -> torch.fx.Node:
        """Return the value of a body node from the floats that hold it."""
        dtype = node.meta.get("dtype")
        if len(values) > 1:
            value = self.split.emit(torch.complex, *values)
        elif dtype is torch.bool or dtype in INTEGERS:
            value = self.split.emit(cast, values[0], dtype)
        else:
            return values[0]
        value.meta["dtype"] = dtype
        return value

    def step(self, port: Port, rank: int) -> Any:
        """Return the sequence of a per-step input, aligned to the lanes."""
        split, node = self.split, port.value
        assert isinstance(node, torch.fx.Node)
        if node in split.tables:
            return split.numbers(node, rank, self.group.dtype).node
        value = split.env[node]
        result = self.inside(value.node, node.meta.get("dtype"), port.part)
        return split.emit(sequence_ops.align, result, rank) if value.rank < rank else result

    def lane(self, port: Port) -> Any:
        """Return a value that is the same at all steps, or a state before the first."""
        split, node = self.split, port.value
        if isinstance(node, Carry):
            assert isinstance(node.initial, int)
            operand = split.operands[node.initial]
            dtype = operand.meta.get("dtype") if isinstance(operand, torch.fx.Node) else None
            if dtype in INTEGERS:
                return split.emit(sequence_ops.small, operand, INITIAL, self.group.dtype)
            return self.inside(operand, dtype, port.part)
        value = split.env[node].node
        if "shape" not in node.meta:  # an integer that was computed from sizes
            return split.emit(sequence_ops.number, value, split.any_sequence(), self.group.dtype)
        return self.inside(value, node.meta.get("dtype"), port.part)

    def inside(self, value: Any, dtype: torch.dtype | None, part: str) -> Any:
        """Return a tensor as floats: what torch would have promoted, or a part of it."""
        target = self.group.dtype
        if part == "real" and dtype is not None and dtype.is_complex:
            return self.split.emit(torch.real, value)
        if part == "imag" and dtype is not None and dtype.is_complex:
            return self.split.emit(torch.imag, value)
        if part == "imag":
            value = self.split.emit(torch.zeros_like, value)
        # A kernel that computes in float32 reads half types, and those numbers of either type.
        read = self.split.halves and target is torch.float32
        as_it_is = (None, target, *(HALVES if read else ()))
        if dtype in as_it_is or (target in HALVES and dtype is torch.float32):
            return value
        return self.split.emit(cast, value, target)
