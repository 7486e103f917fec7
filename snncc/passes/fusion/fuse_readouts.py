"""Take the sum or mean of spikes over time into the neuron that fires them.

Before::

    s = neuron(x)          rate = s.mean(0)

After, the neuron counts its spikes in a state and returns the count, and no array [T, B, *] of
spikes exists, nor of their cotangents::

    count = neuron(x)      rate = count / T

Preconditions: nothing else reads the spikes; they are 0 or 1, so that their sum is exact in any
order; the type is float32 or float64.

Numerics: bitwise.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx

from snncc.ir import sequence_ops
from snncc.ir.names import fresh_name, names_in
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Binary, Const, Let, Op, Recurrence, State, Unary, Var
from snncc.ir.numerics import Numerics
from snncc.passes.neurons import copy_graph, neuron_nodes

# Up to this count float32 holds every integer.
MOST_STEPS = 2**24


@dataclass(frozen=True, slots=True)
class FuseReadouts:
    """Let neurons count their spikes where nothing but the count is used.

    ``on_gpu`` tells where means are taken: on a CPU torch divides by the number of steps, on a GPU
    it multiplies (`mean_of`).
    """

    on_gpu: bool = False
    name = "fuse-readouts"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with neurons that count; the same where there is nothing."""
        if not any(_readouts(node) for node in neuron_nodes(graph)):
            return graph
        result = copy_graph(graph)
        for node in list(neuron_nodes(result)):
            while found := _readouts(node):
                self.count(result, node, found[0])
        result.lint()
        return result

    def count(self, graph: torch.fx.Graph, node: torch.fx.Node, position: int) -> None:
        """Replace an output of a neuron by the count of its spikes, and what reads it."""
        program = node.target.program  # type: ignore[union-attr]
        forward: Recurrence = program.forward
        spike, taken = forward.outputs[position], names_in(forward)
        count, total = fresh_name(f"{spike}_count", taken), fresh_name(f"{spike}_total", taken)
        let = Let(total, Binary(Op.ADD, Var(count), Var(spike)))
        counting = replace(
            forward,
            states=(*forward.states, State(count, Const(0.0), total)),
            lets=(*forward.lets, let),
            outputs=tuple(o for p, o in enumerate(forward.outputs) if p != position),
            finals=(*forward.finals, count),
        )
        most = min(program.most_steps or MOST_STEPS, MOST_STEPS)
        parts = list(_parts(node, position))
        last = len(counting.outputs) + len(forward.finals)
        node.target = NeuronCall(replace(program, forward=counting, most_steps=most))
        for user in list(node.users):
            if user not in parts and int(user.args[1]) > position:  # type: ignore[arg-type]
                user.args = (node, int(user.args[1]) - 1)  # type: ignore[arg-type]
        for part in parts:
            part.args = (node, last)
            part.meta.pop("shape", None)
            for reader in list(part.users):
                value = part
                if reader.target is torch.mean:
                    with graph.inserting_before(reader):
                        divide = sequence_ops.mean_of if self.on_gpu else torch.div
                        value = graph.call_function(divide, (part, node.args[0]))
                    value.meta.update(reader.meta)
                reader.replace_all_uses_with(value)
                graph.erase_node(reader)


def _readouts(node: torch.fx.Node) -> list[int]:
    """Return the positions of the outputs of which only sums over time are used."""
    program = node.target.program  # type: ignore[union-attr]
    if node.meta.get("dtype") not in (torch.float32, torch.float64):
        return []
    spikes = {let.name for let in program.forward.lets if is_spike(let)}
    return [
        position
        for position, name in enumerate(program.forward.outputs)
        if name in spikes and _is_summed(node, position)
    ]


def is_spike(let: Let) -> bool:
    """Tell whether a value is 0 or 1."""
    return isinstance(let.expr, Unary) and let.expr.op is Op.FLOAT


def _is_summed(node: torch.fx.Node, position: int) -> bool:
    readers = [user for part in _parts(node, position) for user in part.users]
    return bool(readers) and all(map(_sums_over_time, readers))


def _parts(node: torch.fx.Node, position: int) -> Iterator[torch.fx.Node]:
    for user in node.users:
        if user.target is operator.getitem and user.args[1] == position:
            yield user


def _sums_over_time(node: torch.fx.Node) -> bool:
    """Tell whether a node is a sum or mean over the first axis alone, which it removes."""
    if node.target not in (torch.sum, torch.mean) or not set(node.kwargs) <= {"dim", "keepdim"}:
        return False
    given: dict[str, Any] = dict(zip(("input", "dim", "keepdim"), node.args, strict=False))
    given |= node.kwargs
    return given.get("dim") in (0, (0,), [0]) and not given.get("keepdim", False)
