"""Rewrites of the flat program that bring the ways to collect values over time to one form.

Before loops are looked for (`simplify`), all of them exact copies of values:

* ``unbind(x, dim)[i]``                                    becomes ``select(x, dim, i)``
* ``select(select_scatter(b, v, dim, i), dim, i)``         becomes ``v``
* ``select_scatter(select_scatter(b, v, ...), w, ...)``... becomes ``stack([v, w, ...], dim)``
* ``cat([cat([a, b]), c])``                                becomes ``cat([a, b, c])``
* ``cat([unsqueeze(a, d), unsqueeze(b, d)], d)``           becomes ``stack([a, b], d)``

After (`collect`): what stacks consecutive elements of one tensor becomes a view of it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from snncc.frontend.reroll.flat import Item, Program, element, operands


def simplify(program: Program) -> None:
    """Rewrite a program in place, before loops are looked for."""
    _unify_elements(program)
    _forward_reads(program)
    _merge_writes(program)
    _merge_concatenations(program)


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


def _unify_elements(program: Program) -> None:
    for item in program.items:
        if item.target is not operator.getitem or type(item.args[1]) is not int:
            continue
        base, index = item.args
        if base.operator == "unbind" and base.args:
            dim = base.args[1] if len(base.args) > 1 else base.kwargs.get("dim", 0)
            item.target, item.args = torch.select, (base.args[0], dim, index)
        elif "shape" in base.meta:
            item.target, item.args = torch.select, (base, 0, index)
        item.parts = None


def _written(item: Any) -> tuple[Item, Item, int, int] | None:
    """Return (buffer, value, dim, index) where an item writes one slice of a buffer."""
    if not isinstance(item, Item) or item.target is not torch.select_scatter:
        return None
    if len(item.args) != 4 or type(item.args[3]) is not int or type(item.args[2]) is not int:
        return None
    buffer, value, dim, index = item.args
    dim = axis(buffer, dim)
    shape = buffer.meta["shape"]
    fits = value.meta.get("shape") == (*shape[:dim], *shape[dim + 1 :])
    if not fits or value.meta.get("dtype") != buffer.meta["dtype"]:
        return None
    return buffer, value, dim, index % shape[dim]


def _forward_reads(program: Program) -> None:
    """Let a read of a slice that was written before read the value that was written."""
    replaced: dict[Item, Any] = {}
    for item in program.items:
        if any(x in replaced for x in operands(item)):
            item.rewrite(lambda leaf: replaced.get(leaf, leaf) if isinstance(leaf, Item) else leaf)
        read = element(item)
        if read is None or _written(read[0]) is None:
            continue
        base, dim, index = read
        dim, index = axis(base, dim), index % base.meta["shape"][axis(base, dim)]
        write = _written(base)
        while write is not None and write[2] == dim and write[3] != index:
            base = write[0]
            write = _written(base)
        if write is not None and write[2:] == (dim, index):
            replaced[item] = write[1]
        else:
            item.args, item.parts = (base, dim, index), None
    replace(program, replaced)


def count_readers(program: Program) -> Counter[Item]:
    """Return how often each item is read, an output being a reader too."""
    readers = Counter(x for item in program.items for x in operands(item))
    readers.update(leaf for leaf in program.outputs if isinstance(leaf, Item))
    return readers


def _merge_writes(program: Program) -> None:
    """Turn slice writes that cover a buffer into a stack of the values written."""
    scatters = [item for item in program.items if item.target is torch.select_scatter]
    if not scatters:
        return
    readers = count_readers(program)
    continued = {item.args[0] for item in scatters if readers[item.args[0]] == 1}
    before: dict[Item, list[Item]] = {}
    for item in scatters:
        if item not in continued:
            parts, made = _merged(item, continued)
            if parts is not None:
                item.target, item.args = torch.stack, (parts, _dim_of(item))
                item.parts = None
                before[item] = made
    if before:
        program.items = [x for item in program.items for x in (*before.get(item, ()), item)]
        _sink(program, set(before))


def _sink(program: Program, collected: set[Item]) -> None:
    """Move what collects values over time out of the last iteration, to its first reader."""
    items: list[Item] = []
    waiting: dict[Item, None] = {}
    for item in program.items:
        if item in collected:
            waiting[item] = None
            continue
        for operand in operands(item) if waiting else ():
            if operand in waiting:
                del waiting[operand]
                items.append(operand)
        items.append(item)
    program.items = [*items, *waiting]


def _dim_of(scatter: Item) -> int:
    return axis(scatter, scatter.args[2])


def _merged(last: Item, continued: set[Item]) -> tuple[list[Item] | None, list[Item]]:
    """Return the slices of a buffer after a chain of writes, and the items made for reading it."""
    slices: dict[int, Item] = {}
    item, write = last, _written(last)
    if write is None:
        return None, []
    dim, length = write[2], 0
    while write is not None and write[2] == dim and (item is last or item in continued):
        slices.setdefault(write[3], write[1])
        item, length = write[0], length + 1
        write = _written(item)
    size = item.meta["shape"][dim]
    if length < 2 or size > 4 * len(slices) + 16:
        return None, []
    made = {i: _select(item, dim, i, last) for i in range(size) if i not in slices}
    return [slices[i] if i in slices else made[i] for i in range(size)], list(made.values())


def _select(base: Item, dim: int, index: int, like: Item) -> Item:
    shape = base.meta["shape"]
    meta = {**like.meta, "shape": (*shape[:dim], *shape[dim + 1 :])}
    return Item(torch.select, (base, dim, index), meta=meta, name="select")


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


def _merge_concatenations(program: Program) -> None:
    """Flatten nested concatenations, and turn those of unsqueezed values into stacks."""
    cats = [item for item in program.items if item.target is torch.cat]
    if not cats:
        return
    readers = count_readers(program)
    parts: dict[Item, list[Item]] = {}
    for item in cats:
        given = listed(item)
        if given is None:
            continue
        tensors, dim = given
        tensors = [x for x in tensors if not _is_nothing(x, item)]
        first = tensors[0] if tensors else item
        inner = listed(first) if readers[first] == 1 and first in parts else None
        if inner is not None and inner[1] == dim:
            joined = parts.pop(first)
            joined += tensors[1:]
            parts[item] = joined
        elif tensors:
            parts[item] = tensors
    for item, tensors in parts.items():
        dim = listed(item)[1]  # type: ignore[index]
        plain = [_unsqueezed(x, dim) for x in tensors]
        if all(x is not None for x in plain):
            item.target, item.args = torch.stack, (plain, dim)
        else:
            item.args = (tensors, dim)
        item.kwargs, item.parts = {}, None
    _sink(program, set(parts))


def _is_nothing(part: Item, whole: Item) -> bool:
    """Tell whether a part of a concatenation is an empty start value (``torch.tensor([])``)."""
    same = part.meta.get("dtype") == whole.meta.get("dtype")
    return bool(part.meta.get("shape") == (0,) and whole.meta.get("shape") != (0,) and same)


def _unsqueezed(item: Item, dim: int) -> Item | None:
    if item.target is not torch.unsqueeze or len(item.args) != 2 or item.kwargs:
        return None
    base = item.args[0]
    return base if type(item.args[1]) is int and axis(item, item.args[1]) == dim else None


def collect(program: Program) -> None:
    """Turn stacks and concatenations of consecutive elements into views of the whole."""
    items: list[Item] = []
    replaced: dict[Item, Any] = {}
    for item in program.items:
        given = listed(item)
        if given is not None and len(given[0]) > 1:
            made, whole = _collected(item, *given)
            items += made
            if whole is not None:
                replaced[item] = whole
        items.append(item)
    program.items = items
    replace(program, replaced)


def _place(item: Item) -> tuple[Item, int, int] | None:
    """Return (tensor, dim, index) of an element, both counted from the front."""
    found = element(item)
    if found is None:
        return None
    base, dim, index = found
    dim = axis(base, dim)
    return base, dim, index % base.meta["shape"][dim]


@dataclass
class _Run:
    """Consecutive elements of one tensor, or a single value (``base`` None)."""

    tensors: list[Item]
    base: Item | None = None
    dim: int = 0
    start: int = 0
    stride: int = 1

    def extend(self, tensor: Item, place: tuple[Item, int, int] | None) -> bool:
        """Take the next value in if it continues the run."""
        if place is None or self.base is None or place[:2] != (self.base, self.dim):
            return False
        step = place[2] - self.start
        if len(self.tensors) == 1 and abs(step) == 1:
            self.stride = step
        if step != self.stride * len(self.tensors):
            return False
        self.tensors.append(tensor)
        return True


def _runs(tensors: list[Item]) -> list[_Run]:
    """Split a list into maximal runs of consecutive elements of one tensor."""
    runs: list[_Run] = []
    for tensor in tensors:
        place = _place(tensor)
        if not runs or not runs[-1].extend(tensor, place):
            runs.append(_Run([tensor], *(place or ())))
    return runs


def _collected(item: Item, tensors: list[Item], dim: int) -> tuple[list[Item], Item | None]:
    """Rewrite one stack or concatenation in place.

    Returns:
        The items to insert before it, and the tensor that it equals, if it is nothing but a view.
    """
    runs = _runs(tensors)
    if all(len(run.tensors) < 2 for run in runs):
        return [], None
    made: list[Item] = []

    def make(target: Any, args: tuple[Any, ...], shape: tuple[int, ...]) -> Item:
        meta = {**item.meta, "shape": shape}
        made.append(Item(target, args, meta=meta, name=getattr(target, "__name__", "")))
        return made[-1]

    stacking = item.target is torch.stack
    pieces = [_piece(run, dim, stacking, make) for run in runs]
    if len(pieces) == 1:
        return made, pieces[0]
    item.target, item.args, item.kwargs, item.parts = torch.cat, (pieces, dim), {}, None
    return made, None


def _piece(run: _Run, dim: int, stacking: bool, make: Callable[..., Item]) -> Item:
    """Return a run as one tensor, to be concatenated along ``dim``."""
    first, length = run.tensors[0], len(run.tensors)
    shape = first.meta["shape"]
    stacked_shape = (*shape[:dim], length, *shape[dim:])
    if length < 2 or run.base is None:
        return make(torch.unsqueeze, (first, dim), stacked_shape) if stacking else first
    base, source = run.base, run.dim
    whole = base.meta["shape"]
    if length != whole[source]:
        start = min(run.start, run.start + run.stride * (length - 1))
        # Open ends stay open, so that the slice means the same for another length.
        ends = (start or None, None if start + length == whole[source] else start + length)
        whole = (*whole[:source], length, *whole[source + 1 :])
        index = (*[slice(None)] * source, slice(*ends))
        base = make(operator.getitem, (base, index), whole)
    if run.stride < 0:
        base = make(torch.flip, (base, (source,)), whole)
    if source != dim:
        base = make(torch.movedim, (base, source, dim), stacked_shape)
    if not stacking:
        joined = (*shape[:dim], length * shape[dim], *shape[dim + 1 :])
        base = make(torch.flatten, (base, dim, dim + 1), joined)
    return base
