"""The cheapest set of values from which others can be computed again.

Some values are *wanted*.  Each value is either kept, at a price, or computed again from its
operands, at another price, and then its operands are needed in turn.  The cheapest choice is a
minimum cut: with a node pair for each value, keeping it cuts the edge between the pair, and
computing it again cuts an edge to the sink.

Source: Ford and Fulkerson 1956; as used for rematerialization, each value split into two nodes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

Name = tuple[str, str]
_SOURCE, _SINK = ("source", ""), ("sink", "")


def cheapest_basis(
    wanted: Iterable[str],
    operands: Mapping[str, Iterable[str]],
    keeping: Mapping[str, float],
    computing: Mapping[str, float],
) -> frozenset[str]:
    """Return which values to keep.

    Args:
        wanted: Names of the values that have to be there.
        operands: For each value what it is computed from.
        keeping: For each value the price of keeping it.
        computing: The price of computing a value again; those that are absent cannot be.
    """
    flow = _Network()
    for name in wanted:
        flow.add(_SOURCE, ("needed", name), math.inf)
    for name, price in keeping.items():
        flow.add(("needed", name), ("computed", name), price)
        flow.add(("computed", name), _SINK, computing.get(name, math.inf))
        for operand in operands.get(name, ()):
            flow.add(("computed", name), ("needed", operand), math.inf)
    reached = flow.reached_after_saturation()
    return frozenset(
        name
        for name in keeping
        if ("needed", name) in reached and ("computed", name) not in reached
    )


class _Network:
    """A flow network with its residual capacities."""

    def __init__(self) -> None:
        self.capacity: dict[Name, dict[Name, float]] = {_SOURCE: {}, _SINK: {}}

    def add(self, a: Name, b: Name, capacity: float) -> None:
        self.capacity.setdefault(a, {})
        self.capacity.setdefault(b, {}).setdefault(a, 0.0)
        self.capacity[a][b] = self.capacity[a].get(b, 0.0) + capacity

    def reached_after_saturation(self) -> set[Name]:
        """Push flow until no path is left; return the source's side of the cut."""
        while True:
            before = self._search()
            if _SINK not in before:
                return set(before)
            path = [_SINK]
            while path[-1] != _SOURCE:
                path.append(before[path[-1]])
            edges = list(zip(path[1:], path[:-1], strict=True))
            amount = min(self.capacity[a][b] for a, b in edges)
            for a, b in edges:
                self.capacity[a][b] -= amount
                self.capacity[b][a] += amount

    def _search(self) -> dict[Name, Name]:
        """Return for each node that residual capacity reaches the node before it, breadth first."""
        before = {_SOURCE: _SOURCE}
        queue = deque([_SOURCE])
        while queue:
            node = queue.popleft()
            for other, capacity in self.capacity[node].items():
                if capacity > 0 and other not in before:
                    before[other] = node
                    queue.append(other)
        return before
