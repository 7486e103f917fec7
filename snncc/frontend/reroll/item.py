"""One operation of the flat program that re-rolling rewrites."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from snncc.ir.record import LEAF, Leaves, Opaque, split
from snncc.ir.tape import Source

# Operators that depend on data only through shapes.
FACTORIES = frozenset(
    (
        *("full", "full_like", "arange", "linspace", "logspace", "eye"),
        *("tril_indices", "triu_indices", "hann_window", "hamming_window"),
    )
)
# Operators that copy every element of a tensor to its place.
COPIES = frozenset(("cast", "clone", "detach", "contiguous"))
# Operators that only move or copy values: what they make of a constant is constant.
MOVES = frozenset(
    (
        *("expand", "repeat", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("select", "narrow", "getitem", "transpose", "permute", "movedim", "flip", "diagonal"),
        *COPIES,
    )
)

# Whether the place of an operation means something: see `is_floating`.
PLACED, FLOATING, FOLLOWING = range(3)


class Item:
    """One operation of the flat program, or one of its inputs (``target`` None).

    Attributes:
        target: The operator.
        meta: The meta of the node (`snncc.ir.record`), shared with others and never changed.
        name: Name of the node, or of its operator.
        source: For an input, where its tensor comes from.
        is_element: Whether it is an element of a loop's result.
        symbol: Cached symbol (`snncc.frontend.reroll.symbols`).
    """

    __slots__ = (
        *("target", "meta", "name", "source", "is_element", "symbol"),
        *("_args", "_kwargs", "_structure", "_leaves", "_sort"),
    )

    def __init__(
        self,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        self.target = target
        self.meta = {} if meta is None else meta
        self.name = name
        self.source: Source | None = None
        self.is_element = False
        self.symbol: int | None = None
        self._args: tuple[Any, ...] | None = args
        self._kwargs: dict[str, Any] = kwargs or {}
        self._structure: Hashable = None
        self._leaves: Leaves | None = None
        self._sort: int | None = None

    @classmethod
    def of_leaves(
        cls, target: Any, structure: Hashable, leaves: Leaves, meta: Mapping[str, Any]
    ) -> Item:
        """Return an operation whose arguments are given by structure and leaves."""
        item = cls(target, (), None, meta)
        item._args, item._structure, item._leaves = None, structure, leaves
        return item

    def __repr__(self) -> str:
        return self.name or self.operator

    @property
    def operator(self) -> str:
        """The name of the operator."""
        return str(getattr(self.target, "__name__", self.target))

    @property
    def impure(self) -> bool:
        """Whether it must run, in its place, even if nobody reads it."""
        return bool(self.meta.get("impure"))

    @property
    def is_integer(self) -> bool:
        """Whether its value is a Python integer."""
        return self.target is not None and "shape" not in self.meta and "value" in self.meta

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments; operands are items."""
        if self._args is None:
            assert self._leaves is not None
            self._args, self._kwargs = _joined(self._structure, iter(self._leaves))
        return self._args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        return self._kwargs if self.args is not None else {}

    def split(self) -> tuple[Hashable, Leaves]:
        """Return the structure of the arguments and their leaves: items and numbers."""
        if self._leaves is None:
            self._structure, self._leaves = split(self.args, self.kwargs, LEAVES)
        return self._structure, self._leaves

    def rewrite(self, function: Callable[[Any], Any]) -> None:
        """Replace every leaf of the arguments by ``function(leaf)``, a leaf as well."""
        _, leaves = self.split()
        self._leaves = [function(leaf) for leaf in leaves]
        self._args = self._sort = self.symbol = None

    def become(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        """Change what the operation is."""
        self.target, self._args, self._kwargs = target, args, kwargs or {}
        self._structure = self._leaves = self._sort = self.symbol = None

    def see(self, **meta: Any) -> None:
        """Change what is known of the value."""
        self.meta = {**self.meta, **meta}
        self._sort = self.symbol = None

    @property
    def sort(self) -> int:
        """Whether the place means something, as far as operator and meta decide it."""
        if self._sort is None:
            self._sort = _sort_of(self)
        return self._sort

    @sort.setter
    def sort(self, sort: int) -> None:
        self._sort = sort


LEAVES = frozenset({Item, int, float})


def _joined(structure: Any, leaves: Iterator[Any]) -> Any:
    """Return the arguments of which these are the structure and the leaves."""
    if structure is LEAF:
        return next(leaves)
    kind, *parts = structure
    if kind is tuple or kind is list:
        return kind([_joined(part, leaves) for part in parts])
    if kind is dict:
        return {key: _joined(part, leaves) for key, part in parts}
    if kind is slice:
        return slice(*[_joined(part, leaves) for part in parts])
    return parts[0].value if kind is Opaque else parts[0]


def _sort_of(item: Item) -> int:
    if item.target is None or item.impure:
        return PLACED
    if item.is_integer or item.operator in FACTORIES:
        return FLOATING
    return FOLLOWING if item.operator in MOVES else PLACED


def is_floating(item: Item) -> bool:
    """Tell whether the place of an item in the run means nothing.

    Integers, factories that depend on data only through shapes, views of these, and elements of a
    loop's results: they are not part of the sequence in which loops are looked for, because the
    first iteration of a loop often makes them and the others do not.
    """
    sort = item.sort
    if sort == PLACED or item.is_element:
        return item.is_element
    if sort == FLOATING:
        return True
    first = item.args[0] if item.args else None
    return type(first) is Item and is_floating(first)


def is_number(value: Any) -> bool:
    """Tell whether a leaf is a Python number that may differ from step to step."""
    return type(value) is int or type(value) is float


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return arguments of the same structure with every item and number replaced."""
    kind = type(value)
    if kind is Item or kind is int or kind is float:
        return function(value)
    if kind is tuple:
        return tuple([map_leaves(v, function) for v in value])
    if kind is list:
        return [map_leaves(v, function) for v in value]
    if kind is dict:
        return {k: map_leaves(v, function) for k, v in value.items()}
    if kind is slice:
        return slice(*[map_leaves(v, function) for v in (value.start, value.stop, value.step)])
    return value


def operands(item: Item) -> Iterator[Item]:
    """Yield the items that an item reads."""
    return (leaf for leaf in item.split()[1] if isinstance(leaf, Item))
