"""The flat program that re-rolling rewrites: a list of operations with direct references.

An fx graph is slow to edit at the length of an unrolled run, so re-rolling reads it once into
`Item` objects, works on the list, and writes a new graph at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx

from snncc.ir.tape import Source, SourceKind, Tape

LEAF = "*"  # stands for a node or a number in the structure of arguments

# Operators that depend on data only through shapes.
FACTORIES = frozenset(
    (
        *("full", "full_like", "arange", "linspace", "logspace", "eye"),
        *("tril_indices", "triu_indices", "hann_window", "hamming_window"),
    )
)
# Operators that take a Python number, or a state, in place of any operand.
ARITHMETIC = frozenset(
    (
        *("add", "sub", "mul", "div", "pow", "fmod", "remainder", "lerp"),
        *("lt", "le", "gt", "ge", "eq", "ne", "where", "maximum", "minimum", "clamp"),
        *("addcmul", "addcdiv", "masked_fill", "heaviside"),
    )
)
COMMUTATIVE = (torch.add, torch.mul)
# For these it makes no difference at all if a zero is Python's or a tensor of zeros.
ELEMENTWISE = (
    *(torch.add, torch.sub, torch.mul),
    *(torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne),
)
# Operators that only move or copy values: what they make of a constant is constant.
MOVES = frozenset(
    (
        *("expand", "repeat", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("select", "narrow", "getitem", "transpose", "permute", "movedim", "flip", "diagonal"),
        *("cast", "clone", "detach", "contiguous"),
    )
)


@dataclass(eq=False, slots=True, repr=False)
class Item:
    """One operation of the flat program, or one of its inputs (``target`` None).

    Attributes:
        target: The operator.
        args: Positional arguments; operands are items.
        kwargs: Keyword arguments.
        meta: The meta of the node (`snncc.ir.tape`).
        name: Name of the node.
        source: For an input, where its tensor comes from.
        parts: Cached structure and leaves of the arguments.
        symbol: Cached symbol (`snncc.frontend.reroll.symbols`).
    """

    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    source: Source | None = None
    parts: tuple[Hashable, list[Any]] | None = None
    symbol: Hashable = None

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

    def split(self) -> tuple[Hashable, list[Any]]:
        """Return the structure of the arguments and their leaves: items and numbers."""
        if self.parts is None:
            leaves: list[Any] = []
            structure = _split((self.args, self.kwargs), leaves)
            self.parts = structure, leaves
        return self.parts

    def rewrite(self, function: Callable[[Any], Any]) -> None:
        """Replace every leaf of the arguments by ``function(leaf)``."""
        kwargs = map_leaves(self.kwargs, function) if self.kwargs else self.kwargs
        self.become(self.target, map_leaves(self.args, function), kwargs)

    def become(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        """Change what the operation is."""
        self.target, self.args, self.kwargs = target, args, kwargs or {}
        self.forget()

    def forget(self) -> None:
        """Drop what was computed from the arguments and the meta."""
        self.parts = self.symbol = None


@dataclass(eq=False)
class Program:
    """A flat program: inputs, operations in order of execution, and the leaves of the output."""

    inputs: list[Item]
    items: list[Item]
    outputs: tuple[Any, ...]


def is_number(value: Any) -> bool:
    """Tell whether a leaf is a Python number that may differ from step to step."""
    return type(value) is int or type(value) is float


def _split(value: Any, leaves: list[Any]) -> Hashable:
    kind = type(value)
    if kind is Item or kind is int or kind is float:
        leaves.append(value)
        return LEAF
    if kind is tuple or kind is list:
        return (kind, *[_split(v, leaves) for v in value])
    if kind is dict:
        return (kind, *[(k, _split(v, leaves)) for k, v in value.items()])
    if kind is slice:
        return (kind, *[_split(v, leaves) for v in (value.start, value.stop, value.step)])
    return (kind, value if isinstance(value, Hashable) else id(value))


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


def element(item: Any) -> tuple[Item, int, int] | None:
    """Return (tensor, dim, index) where an item is ``select`` with a literal index."""
    if isinstance(item, Item) and item.target is torch.select and len(item.args) == 3:
        base, dim, index = item.args
        if isinstance(base, Item) and type(dim) is int and type(index) is int:
            return base, dim, index
    return None


def fill_value(item: Any) -> float | int | None:
    """Return the number that a tensor consists of, where it is a constant fill."""
    if not isinstance(item, Item) or item.target is None or item.impure:
        return None
    name = item.operator
    if name in ("full", "full_like") and len(item.args) > 1:
        given = item.args[1]
        return given if isinstance(given, int | float) else None
    value = fill_value(item.args[0]) if name in MOVES and item.args else None
    if value is not None and name == "cast":
        # A number that the first type had to round is another number in the second.
        seen = torch.tensor(value, dtype=item.args[0].meta["dtype"]).item()
        return value if seen == value else None
    return value


def is_floating(item: Item) -> bool:
    """Tell whether the place of an item in the run means nothing.

    Integers, factories that depend on data only through shapes, views of these, and elements of a
    loop's results: they are not part of the sequence in which loops are looked for, because the
    first iteration of a loop often makes them and the others do not.
    """
    if item.target is None or item.impure:
        return False
    if item.is_integer or item.meta.get("floating"):
        return True
    name = item.operator
    if name in FACTORIES:
        return True
    first = item.args[0] if item.args else None
    return name in MOVES and isinstance(first, Item) and is_floating(first)


def from_tape(tape: Tape) -> Program:
    """Read a tape into a flat program."""
    items: dict[torch.fx.Node, Item] = {}

    def convert(value: Any) -> Any:
        """Return arguments with items for nodes, and with Python's own containers."""
        if isinstance(value, torch.fx.Node):
            return items[value]
        if isinstance(value, tuple):
            return tuple([convert(v) for v in value])
        if isinstance(value, list):
            return [convert(v) for v in value]
        if isinstance(value, dict):
            return {k: convert(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(convert(value.start), convert(value.stop), convert(value.step))
        return value

    sources = iter(tape.sources)
    program = Program([], [], ())
    for node in tape.graph.nodes:
        if node.op == "placeholder":
            items[node] = Item(None, meta=dict(node.meta), name=node.name, source=next(sources))
            program.inputs.append(items[node])
        elif node.op == "output":
            program.outputs = convert(node.args[0])
        else:
            kwargs = convert(node.kwargs) if node.kwargs else {}
            items[node] = Item(node.target, convert(node.args), kwargs, dict(node.meta), node.name)
            program.items.append(items[node])
    return program


def to_graph(program: Program) -> torch.fx.Graph:
    """Write a flat program as an fx graph; floating items come right before their first use."""
    writer = _Writer()
    for item in program.inputs:
        writer.nodes[item] = writer.graph.placeholder(item.name)
        writer.nodes[item].meta = dict(item.meta)
    for item in program.items:
        if not is_floating(item):
            writer.emit(item)
    for leaf in program.outputs:
        if isinstance(leaf, Item):
            writer.emit(leaf)
    writer.graph.output(map_leaves(program.outputs, writer.place))
    return writer.graph


class _Writer:
    def __init__(self) -> None:
        self.graph = torch.fx.Graph()
        self.nodes: dict[Item, torch.fx.Node] = {}

    def place(self, leaf: Any) -> Any:
        return self.nodes[leaf] if isinstance(leaf, Item) else leaf

    def emit(self, root: Item) -> None:
        """Emit an item after everything that it reads."""
        stack = [root]
        while stack:
            item = stack[-1]
            missing = [x for x in operands(item) if x not in self.nodes]
            if item not in self.nodes and missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            if item not in self.nodes:
                args, kwargs = map_leaves((item.args, item.kwargs), self.place)
                name = item.name or item.operator
                node = self.graph.create_node("call_function", item.target, args, kwargs, name)
                node.meta = {k: v for k, v in item.meta.items() if k != "floating"}
                self.nodes[item] = node


def live_items(program: Program) -> set[Item]:
    """Return the items that the outputs need, and the impure ones with what they need."""
    stack = [leaf for leaf in program.outputs if isinstance(leaf, Item)]
    stack += [item for item in program.items if item.impure]
    live: set[Item] = set()
    while stack:
        item = stack.pop()
        if item not in live:
            live.add(item)
            stack.extend(operands(item))
    return live


def may_stack(item: Item) -> bool:
    """Tell whether an input may be one of a Python list of tensors, one for each step."""
    listed = (SourceKind.INPUT, SourceKind.CONSTANT)
    return item.source is not None and item.source.kind in listed


def alike(a: Item, b: Item) -> bool:
    """Tell whether two items are tensors of one shape and type."""
    if "shape" not in a.meta:
        return False
    return bool(a.meta["shape"] == b.meta.get("shape") and a.meta["dtype"] == b.meta.get("dtype"))


def replace(program: Program, replaced: dict[Item, Any]) -> None:
    """Replace items by others wherever they are read."""

    def current(leaf: Any) -> Any:
        while isinstance(leaf, Item) and leaf in replaced:
            leaf = replaced[leaf]
        return leaf

    if not replaced:
        return
    for item in program.items:
        if any(x in replaced for x in operands(item)):
            item.rewrite(current)
    program.outputs = tuple([current(leaf) for leaf in program.outputs])


def axis(item: Item, dim: int) -> int:
    """Return a dim of a tensor counted from the front."""
    return dim % len(item.meta["shape"]) if item.meta["shape"] else 0


def listed(item: Any) -> tuple[list[Item], int] | None:
    """Return (tensors, dim) where an item is ``cat`` or ``stack`` of a list."""
    if not isinstance(item, Item) or item.target not in (torch.cat, torch.stack):
        return None
    if not item.args or not isinstance(item.args[0], tuple | list):
        return None
    tensors = list(item.args[0])
    dim = item.args[1] if len(item.args) > 1 else item.kwargs.get("dim", 0)
    ranked = all(isinstance(x, Item) and "shape" in x.meta for x in tensors)
    return (tensors, axis(item, dim)) if ranked and type(dim) is int else None
