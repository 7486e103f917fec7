"""Which components of a loop are one neuron, where neurons are to stay apart from each other.

A neuron is a state fed back, with the spikes that are made of it alone, and with what leads to it
and to nothing else.  What is made of the spikes of several neurons, or is read by several, belongs
to none: it stays an operator between them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import graft
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.time_loop import TimeLoop


def keep_apart(
    parts: Any, order: Sequence[int], mergeable: Set[tuple[int, int]], loop: TimeLoop
) -> set[tuple[int, int]]:
    """Return pairs of components that belong together, each with the state of its neuron.

    Args:
        parts: The components of the body, a graph in the direction of the data.
        order: They, in an order in which they can run.
        mergeable: The pairs that one kernel may hold.
        loop: The loop.
    """
    neurons = _Neurons(parts, order, mergeable, {result.node for result in loop.results})
    neurons.add_spikes()
    neurons.add_inputs()
    return {(part, state) for part, state in neurons.home.items() if part != state}


class _Neurons:
    """Finds to which state components belong; ``home`` has those that belong to one."""

    def __init__(
        self, parts: Any, order: Sequence[int], mergeable: Set[tuple[int, int]], shown: Set[str]
    ) -> None:
        self.order, self.mergeable, self.shown = order, mergeable, shown
        self.members: dict[int, set[torch.fx.Node]] = {p: parts.nodes[p]["members"] for p in order}
        self.readers: Mapping[int, Collection[int]] = parts.succ
        self.home = {part: part for part in order if _is_state(self.members[part])}

    def near(self, part: int) -> list[int]:
        """Return the readers of a component that one kernel may hold with it."""
        return [reader for reader in self.readers[part] if (part, reader) in self.mergeable]

    def add_spikes(self) -> None:
        """Add what is made of one state alone, and decides or leads to what does."""
        states = frozenset(self.home)
        origins: dict[int, set[int]] = {part: set() for part in self.order}
        for part in self.order:
            for reader in self.near(part):
                origins[reader] |= {part} if part in states else origins[part]
        leads: set[int] = set()
        for part in reversed(self.order):
            behind = set(self.near(part)) - states
            if any(map(_is_decided, self.members[part])) or not leads.isdisjoint(behind):
                leads.add(part)
        for part in self.order:
            is_kept = all(node.op == "placeholder" for node in self.members[part])
            if part not in states and len(origins[part]) == 1 and (part in leads or is_kept):
                (self.home[part],) = origins[part]

    def add_inputs(self) -> None:
        """Add what nothing but one neuron reads."""
        for part in reversed(self.order):
            readers = self.readers[part]
            is_hidden = self.shown.isdisjoint(node.name for node in self.members[part])
            if part in self.home or not is_hidden or len(self.near(part)) < len(readers):
                continue
            homes = {self.home.get(reader, -1) for reader in readers}
            if len(homes) == 1 and -1 not in homes:
                self.home[part] = homes.pop()


def _is_state(nodes: Set[torch.fx.Node]) -> bool:
    """Tell whether a component is fed back: a carry, and what becomes of it."""
    return {"placeholder", "call_function"} <= {node.op for node in nodes}


def _is_decided(node: torch.fx.Node) -> bool:
    """Tell whether a node is a spike, or makes a number of one that is true or false."""
    given = (n.meta.get("dtype") for n in node.all_input_nodes)
    return is_spike(node) or torch.bool in given


def is_spike(node: torch.fx.Node) -> bool:
    """Tell whether what a node of a body gives is decided in it, as a spike is."""
    decides = isinstance(node.target, CustomGradient) or node.target is graft
    return decides or node.meta.get("dtype") is torch.bool
