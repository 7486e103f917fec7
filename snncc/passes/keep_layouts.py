"""Give operators outside of loops their operands in the memory order that the serial code has.

    y = stack(spikes, 1)          y = movedim(neuron, 0, 1)
    r = mean(y, 1)          →     r = mean(y in the order of its axes, 1)

A neuron holds time outermost, `stack` writes it where it was told to, and a copy that only changes
the order of elements is left out of the program.  The values are equal, but a sum takes its terms
in the order of memory.

Precondition: the operator rounds by layout (`snncc.ir.layouts`) and is called once, as in the code;
its operand comes from a loop, or from a view that changes the order of axes.
Numerics: bitwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx

from snncc.frontend.operators.canonical import size
from snncc.ir.layouts import TURNING, Order, rounds_by_layout
from snncc.ir.loop_call import LoopCall
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import TimeLoop
from snncc.passes.neurons import copy_graph


@dataclass(frozen=True, slots=True)
class KeepLayouts:
    """Note of operators how operands lie that may lie in another way than in the serial code."""

    name = "keep-layouts"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with ``layouts`` in the meta of such operators."""
        result = copy_graph(graph)
        moved: set[torch.fx.Node] = set()
        found = {node: _layouts(node, moved) for node in result.nodes if not _spreads(node, moved)}
        for node, layouts in found.items():
            if layouts:
                node.meta["layouts"] = layouts
        return result if any(found.values()) else graph


def _spreads(node: torch.fx.Node, moved: set[torch.fx.Node]) -> bool:
    """Tell whether a value lies as its operands do; note it where that may be in another order."""
    if rounds_by_layout(node.target) and "loop" not in node.meta:  # not one of a loop's
        return False
    comes_from_loop = isinstance(node.target, NeuronCall | LoopCall | TimeLoop)
    follows = node.target is not size and not moved.isdisjoint(node.all_input_nodes)
    if comes_from_loop or node.target in TURNING or follows:
        moved.add(node)
    return True


def _layouts(node: torch.fx.Node, moved: set[torch.fx.Node]) -> dict[int, Order]:
    """Return for the arguments that may lie in another order the one that they had in the run."""
    orders = node.meta.get("orders") or (None,) * len(node.args)
    return {
        place: order
        for place, (x, order) in enumerate(zip(node.args, orders, strict=False))
        if isinstance(x, torch.fx.Node) and x in moved
    }
