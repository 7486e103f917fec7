"""The graph while it is recorded: plain lists of nodes, turned into an fx graph at the end.

An fx graph keeps names, users and lookup tables up to date with every node; a recording that drops
half of its nodes, and records the inside of every spike function anew, needs none of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch.fx

DEPENDENT = 1  # the value depends on inputs, parameters, buffers or attributes
DIFFERENTIABLE = 2  # a gradient may flow through it
GUARDED = 4  # the value depends on single numbers that the model holds as tensors


def carries_gradient(dtype: torch.dtype) -> bool:
    """Tell whether values of a type may have a gradient."""
    return dtype.is_floating_point or dtype.is_complex


class Node:
    """A value: a placeholder (``target`` is None), or a call of a function.

    Attributes:
        number: Its place in the order of creation.
        target: The function, or None.
        args: Positional arguments; operands are nodes.
        kwargs: Keyword arguments.
        meta: As in `snncc.ir.tape`.
        operands: The nodes among the arguments.
        facts: DEPENDENT, DIFFERENTIABLE, GUARDED.
        name: Name of a placeholder.
    """

    __slots__ = ("args", "facts", "kwargs", "meta", "name", "number", "operands", "target")

    def __init__(
        self, number: int, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.number = number
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.operands = list(nodes_in((args, kwargs) if kwargs else args))
        self.meta: dict[str, Any] = {}
        self.facts = 0
        self.name = ""

    def __repr__(self) -> str:
        return f"%{self.number}"

    @property
    def is_dependent(self) -> bool:
        """Whether the value depends on inputs, parameters, buffers or attributes."""
        return bool(self.facts & DEPENDENT)

    @property
    def is_guarded(self) -> bool:
        """Whether the value depends on single numbers that the model holds as tensors."""
        return bool(self.facts & GUARDED)

    @property
    def is_differentiable(self) -> bool:
        """Whether a gradient may flow through the value."""
        return bool(self.facts & DIFFERENTIABLE)


def nodes_in(value: Any) -> Iterator[Node]:
    """Yield the nodes in nested arguments."""
    if type(value) is Node:
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from nodes_in(item)
    elif isinstance(value, dict):
        yield from nodes_in(tuple(value.values()))
    elif isinstance(value, slice):
        yield from nodes_in((value.start, value.stop, value.step))


def map_nodes(value: Any, function: Callable[[Node], Any]) -> Any:
    """Return nested arguments with every node replaced."""
    if type(value) is Node:
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)([map_nodes(v, function) for v in value])
    if isinstance(value, dict):
        return {k: map_nodes(v, function) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*[map_nodes(v, function) for v in (value.start, value.stop, value.step)])
    return value


class Draft:
    """A graph under construction.

    Attributes:
        places: The placeholders.
        calls: The calls, in order.
    """

    def __init__(self) -> None:
        self.places: list[Node] = []
        self.calls: list[Node] = []

    def placeholder(self, name: str) -> Node:
        """Add a placeholder."""
        node = Node(len(self.places) + len(self.calls), None, (), {})
        node.name = name
        self.places.append(node)
        return node

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        """Add a call."""
        node = Node(len(self.places) + len(self.calls), target, args, kwargs)
        self.calls.append(node)
        return node

    def text(self) -> tuple[Any, ...]:
        """Return a value that two drafts share if they make the same calls."""
        return tuple((n.target, repr(n.args), repr(n.kwargs)) for n in self.calls)


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


def to_fx(places: Sequence[Node], calls: Iterable[Node], output: Any) -> torch.fx.Graph:
    """Return the fx graph of some placeholders and of calls that read nothing else.

    Args:
        places: The placeholders, in order.
        calls: The calls, in order.
        output: What the graph returns: nested nodes and literals.
    """
    graph = torch.fx.Graph()
    copies: dict[Node, torch.fx.Node] = {}
    for place in places:
        copies[place] = graph.placeholder(place.name)
        copies[place].meta.update(place.meta)
    for node in calls:
        args = map_nodes(node.args, copies.__getitem__)
        kwargs = map_nodes(node.kwargs, copies.__getitem__) if node.kwargs else {}
        copies[node] = graph.create_node("call_function", node.target, args, kwargs)
        copies[node].meta.update(node.meta)
    graph.output(map_nodes(output, copies.__getitem__))
    return graph
