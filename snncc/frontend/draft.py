"""The record while it grows: lists of nodes that share their metas and structures.

A recording drops half of its nodes, and records the inside of every spike function anew, so a node
costs as little as it can.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch

from snncc.frontend.location import Here
from snncc.ir.layouts import Order
from snncc.ir.record import NODE_LEAVES, Leaves, Node, nodes_in, split


def carries_gradient(dtype: torch.dtype) -> bool:
    """Tell whether values of a type may have a gradient."""
    return dtype in _DIFFERENTIABLE


_DTYPES = {t for t in vars(torch).values() if isinstance(t, torch.dtype)}
_DIFFERENTIABLE = frozenset({t for t in _DTYPES if t.is_floating_point or t.is_complex})


class Draft:
    """A record under construction.

    Args:
        outer: The record of which this is the inside of a node; they share what is equal.

    Attributes:
        places: The placeholders.
        calls: The calls, in order.
    """

    def __init__(self, outer: Draft | None = None) -> None:
        self.places: list[Node] = []
        self.calls: list[Node] = []
        self._structures: dict[Hashable, Hashable] = {} if outer is None else outer._structures
        self._metas: dict[Hashable, dict[str, Any]] = {} if outer is None else outer._metas

    def placeholder(self, name: str, meta: Mapping[str, Any]) -> Node:
        """Add a placeholder."""
        node = Node(len(self.places) + len(self.calls), None, (), {}, meta)
        node.name = name
        self.places.append(node)
        return node

    def call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], meta: Mapping[str, Any]
    ) -> Node:
        """Add a call."""
        node = Node(len(self.places) + len(self.calls), target, args, kwargs, meta)
        node.structure, node.leaves = split(args, kwargs, NODE_LEAVES)
        if node.leaves is not args:
            node.structure = self._structures.setdefault(node.structure, node.structure)
        self.calls.append(node)
        return node

    def meta(
        self, here: Here, grad: bool, impure: bool, like: Any, orders: tuple[Order, ...] = ()
    ) -> Mapping[str, Any]:
        """Return the meta of a value, the same object for equal metas.

        Args:
            here: Where the value is computed; equal places are one object.
            grad: Whether gradients are recorded.
            impure: Whether the call is impure.
            like: What has the shape and dtype of the value; None where it is no tensor.
            orders: How the operands lie in memory, see `snncc.ir.layouts.orders_of`.
        """
        if like is None:
            shape = dtype = None
        else:
            shape, dtype = tuple(like.shape), like.dtype
        key = id(here), grad, impure, shape, dtype, orders
        meta = self._metas.get(key)
        if meta is None:
            path, where = here
            meta = {"where": where, "path": path, "grad": grad, "impure": impure}
            if like is not None:
                meta |= {"shape": shape, "dtype": dtype}
            if orders:
                meta["orders"] = orders
            self._metas[key] = meta
        return meta

    def text(self) -> tuple[Any, ...]:
        """Return a value that two drafts share if they make the same calls."""
        return tuple([(n.target, n.structure, *_spelled(n.leaves)) for n in self.calls])


def _spelled(leaves: Leaves) -> list[Any]:
    """Return nodes by their number, and numbers as text, which tells -0.0, 0 and 0.0 apart."""
    return [leaf.number if type(leaf) is Node else repr(leaf) for leaf in leaves]


def needed_for(outputs: Iterable[Any]) -> set[Node]:
    """Return the nodes that the outputs depend on."""
    stack = list(nodes_in(tuple(outputs)))
    needed: set[Node] = set()
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.operands)
    return needed
