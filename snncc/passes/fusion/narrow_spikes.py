"""Let a neuron write its spikes in the type in which they are read, under autocast a half type.

Before, with a state in float32::

    s = neuron(x)          y = linear(s.to(bfloat16), w)

After, the kernel writes bfloat16, and reads the cotangent in it.

Preconditions: everything that reads the spikes converts them to one half type first; they are 0 or
1, which every type holds.

Numerics: bitwise.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import cast, size
from snncc.ir import sequence_ops
from snncc.ir.interpret import HALVES
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.numerics import Numerics
from snncc.passes.fusion.fuse_readouts import is_spike
from snncc.passes.neurons import copy_graph, neuron_nodes

_VIEWS = frozenset({torch.flatten, torch.unflatten, torch.reshape})


@dataclass(frozen=True, slots=True)
class NarrowSpikes:
    """Drop conversions of spikes to a half type, where kernels write such types."""

    name = "narrow-spikes"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with neurons that write half types; the same where there is nothing."""
        if not any(_narrow(node) for node in neuron_nodes(graph)):
            return graph
        result = copy_graph(graph)
        for node in neuron_nodes(result):
            narrow = _narrow(node)
            for position, dtype in narrow.items():
                for value in _values(node, position):
                    value.meta["dtype"] = dtype
                    if value.target is cast:
                        value.replace_all_uses_with(value.args[0])  # type: ignore[arg-type]
                        result.erase_node(value)
            program = node.target.program  # type: ignore[union-attr]
            types = tuple((program.forward.outputs[p], dtype) for p, dtype in narrow.items())
            node.target = NeuronCall(replace(program, narrow=types))
        result.lint()
        return result


def _narrow(node: torch.fx.Node) -> dict[int, torch.dtype]:
    """Return for each output that is only read in a half type that type."""
    forward = node.target.program.forward  # type: ignore[union-attr]
    if node.meta.get("dtype") is not torch.float32:
        return {}
    spikes = {let.name for let in forward.lets if is_spike(let)}
    found = {}
    for position, name in enumerate(forward.outputs):
        if name in spikes:
            types = set(_types(node, position))
            if len(types) == 1 and types <= set(HALVES):
                found[position] = types.pop()
    return found


def _values(node: torch.fx.Node, position: int) -> list[torch.fx.Node]:
    """Return an output of a neuron, views of it, and conversions of those, in order."""
    values = [u for u in node.users if u.target is operator.getitem and u.args[1] == position]
    for value in values:  # which grows
        if value.target is not cast:
            values += [user for user in value.users if user.target in {*_VIEWS, cast}]
    return values


def _types(node: torch.fx.Node, position: int) -> Iterator[Any]:
    """Yield the types in which an output is read; None for what reads it as it is."""
    for value in _values(node, position):
        if value.target is cast:
            yield value.args[1]
            continue
        for user in value.users:
            counts = user.target is size or isinstance(user.target, sequence_ops.TripLength)
            if user.target not in {*_VIEWS, cast} and not counts:
                yield None
