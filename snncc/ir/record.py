"""The nodes of a recorded run, and the structure of their arguments.

The nodes of an unrolled run are many and alike, so they are plain and share what is equal: their
meta, and the structure of their arguments, in which a node's own arguments are only the *leaves*.

Every node carries in ``node.meta``, which is shared and never changed:

=============  ====================================================================================
``where``      `snncc.errors.Location` of the user's line, or None
``path``       tuple of ints that identifies the call path: equal for two runs of the same statement
               reached through the same calls, whatever the iteration
``shape``      tuple of ints as seen in the run; absent for values that are not tensors
``dtype``      torch dtype as seen; absent for values that are not tensors
``value``      the integer as seen, for values that are integers
``grad``       False where the run was under ``torch.no_grad``; True otherwise
``orders``     how the positional arguments of an operator that rounds by it lay in memory
               (`snncc.ir.layouts`); absent where all of them lay in order
``impure``     True for operators that draw random numbers or change a buffer behind the scenes
=============  ====================================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.fx

DEPENDENT = 1  # the value depends on inputs, parameters, buffers or attributes
DIFFERENTIABLE = 2  # a gradient may flow through it
GUARDED = 4  # the value depends on single numbers that the model holds as tensors

Leaves: TypeAlias = tuple[Any, ...] | list[Any]
LEAF = "*"  # stands for a node or a number in the structure of arguments


class Node:
    """A value: a placeholder (``target`` is None), or a call of a function.

    Attributes:
        number: Its place in the order of creation.
        target: The function, or None.
        args: Positional arguments; operands are nodes.
        kwargs: Keyword arguments.
        structure: The arguments with `LEAF` in the place of nodes and numbers (see `split`).
        leaves: The nodes and numbers among the arguments, in order.
        meta: See above.
        facts: DEPENDENT, DIFFERENTIABLE, GUARDED.
        name: Name of a placeholder.
    """

    __slots__ = (
        *("number", "target", "args", "kwargs", "structure", "leaves", "meta", "facts", "name"),
    )

    def __init__(
        self,
        number: int,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        meta: Mapping[str, Any],
    ) -> None:
        self.number = number
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.structure: Hashable = None
        self.leaves: Leaves = ()
        self.meta = meta
        self.facts = 0
        self.name = ""

    def __repr__(self) -> str:
        return f"%{self.number}"

    @property
    def operands(self) -> list[Node]:
        """The nodes among the arguments."""
        return [leaf for leaf in self.leaves if type(leaf) is Node]

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


def split(
    args: tuple[Any, ...], kwargs: dict[str, Any], kinds: frozenset[type]
) -> tuple[Hashable, Leaves]:
    """Return the structure of arguments and their leaves, which are of the given kinds."""
    if not kwargs:
        for value in args:
            if type(value) not in kinds:
                break
        else:
            return _flat(len(args)), args
    leaves: list[Any] = []
    return (tuple, _split(args, kinds, leaves), _split(kwargs, kinds, leaves)), leaves


@functools.cache
def _flat(count: int) -> Hashable:
    return tuple, (tuple, *[LEAF] * count), (dict,)


def _split(value: Any, kinds: frozenset[type], leaves: list[Any]) -> Hashable:
    kind = type(value)
    if kind in kinds:
        leaves.append(value)
        return LEAF
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, tuple | list):
        kind = list if isinstance(value, list) else tuple
        return (kind, *[_split(v, kinds, leaves) for v in value])
    if kind is dict:
        return (kind, *[(k, _split(v, kinds, leaves)) for k, v in value.items()])
    if kind is slice:
        parts = (value.start, value.stop, value.step)
        return (kind, *[_split(v, kinds, leaves) for v in parts])
    return (kind, value) if isinstance(value, Hashable) else (Opaque, Opaque(value))


class Opaque:
    """Stands in a structure for an object that has no hash; equal for the same object alone."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


_PLAIN = frozenset({type(None), bool, str, torch.dtype, torch.device})
NODE_LEAVES = frozenset({Node, int, float})


def nodes_in(value: Any) -> Iterator[Node]:
    """Yield the nodes in nested arguments."""
    leaves: list[Any] = []
    _split(value, NODE_LEAVES, leaves)
    return (leaf for leaf in leaves if type(leaf) is Node)


def map_nodes(value: Any, function: Callable[[Node], Any]) -> Any:
    """Return nested arguments with every node replaced."""
    kind = type(value)
    if kind is Node:
        return function(value)
    if kind in _LITERALS:
        return value
    if isinstance(value, tuple | list):
        return type(value)([map_nodes(v, function) for v in value])
    if isinstance(value, dict):
        return {k: map_nodes(v, function) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*[map_nodes(v, function) for v in (value.start, value.stop, value.step)])
    return value


_LITERALS = _PLAIN | {int, float}


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
