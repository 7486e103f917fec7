"""The flat program that re-rolling rewrites: a list of operations with direct references.

Re-rolling reads the record of a run once into `Item` objects, works on the list, and writes an fx
graph at the end.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx

from snncc.frontend.reroll.item import MOVES, Item, is_floating, map_leaves, operands
from snncc.ir.tape import SourceKind

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


@dataclass(eq=False)
class Program:
    """A flat program.

    Attributes:
        inputs: Its inputs.
        items: The operations, in order of execution.
        outputs: The leaves of the output.
        symbols: The number of each symbol (`snncc.frontend.reroll.symbols`).
    """

    inputs: list[Item]
    items: list[Item]
    outputs: tuple[Any, ...]
    symbols: dict[Hashable, int] = field(default_factory=dict)


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
                node.meta = dict(item.meta)
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
