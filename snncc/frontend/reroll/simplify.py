"""Rewrites of the flat program that bring the ways to collect values over time to one form.

Before loops are looked for; all of them copy values exactly:

* ``unbind(x, dim)[i]``                                    becomes ``select(x, dim, i)``
* ``x[i:i + 1]``, read or written,                          becomes ``select`` and ``unsqueeze``
* ``select(select_scatter(b, v, dim, i), dim, i)``         becomes ``v``, also through ``roll``,
                                                           ``cat`` and slices (`registers`)
* ``select_scatter(select_scatter(b, v, ...), w, ...)``... becomes ``stack([v, w, ...], dim)``
* ``cat([cat([a, b]), c])``                                becomes ``cat([a, b, c])``
* ``cat([unsqueeze(a, d), unsqueeze(b, d)], d)``           becomes ``stack([a, b], d)``

"""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch

from snncc.frontend.operators.canonical import setitem
from snncc.frontend.reroll.flat import Program, axis, element, listed, replace
from snncc.frontend.reroll.item import Item, operands
from snncc.frontend.reroll.registers import Element, is_register, trace


def simplify(program: Program) -> None:
    """Rewrite a program in place, before loops are looked for."""
    _unify_elements(program)
    _forward_reads(program)
    _merge_writes(program)
    _merge_concatenations(program)


def _unify_elements(program: Program) -> None:
    items: list[Item] = []
    for item in program.items:
        if item.target is operator.getitem and type(item.args[1]) is int:
            _unify_element(item, *item.args)
        elif item.target is operator.getitem:
            items += _unify_slice(item)
        elif item.target is setitem:
            items += _unify_write(item)
        items.append(item)
    program.items = items


def _unify_element(item: Item, base: Item, index: int) -> None:
    if base.operator == "unbind" and base.args:
        dim = base.args[1] if len(base.args) > 1 else base.kwargs.get("dim", 0)
        item.become(torch.select, (base.args[0], dim, index))
    elif "shape" in base.meta:
        item.become(torch.select, (base, 0, index))


def _unify_slice(item: Item) -> list[Item]:
    """Rewrite a read of one element as a slice; return the item to insert before it."""
    base, index = item.args
    place = _single(base, index)
    if place is None:
        return []
    element = _select(base, *place, item)
    item.become(torch.unsqueeze, (element, place[0]))
    return [element]


def _unify_write(item: Item) -> list[Item]:
    """Rewrite a write of one element as a slice; return the item to insert before it."""
    base, index, value = item.args
    place = _single(base, index)
    if place is None or not isinstance(value, Item) or "shape" not in value.meta:
        return []
    dim = place[0]
    shape = base.meta["shape"]
    if value.meta["shape"] != (*shape[:dim], 1, *shape[dim + 1 :]):
        return []
    if value.meta["dtype"] != base.meta["dtype"]:
        return []
    element = _select(value, dim, 0, item)
    item.become(torch.select_scatter, (base, element, *place))
    return [element]


def _single(base: Any, index: Any) -> tuple[int, int] | None:
    """Return (dim, i) of an index that is ``i:i + 1`` in one dim and everything in the others."""
    parts = index if isinstance(index, tuple | list) else (index,)
    if not isinstance(base, Item) or "shape" not in base.meta:
        return None
    if not all(isinstance(p, slice) and p.step in (None, 1) for p in parts):
        return None
    taken = [(d, p) for d, p in enumerate(parts) if (p.start or 0, p.stop) != (0, None)]
    if len(taken) != 1 or len(parts) > len(base.meta["shape"]):
        return None
    dim, part = taken[0]
    if type(part.start) is not int or type(part.stop) is not int:
        return None
    inside = 0 <= part.start < base.meta["shape"][dim] and part.stop == part.start + 1
    return (dim, part.start) if inside else None


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
    if not any(map(is_register, program.items)):
        return
    replaced: dict[Item, Any] = {}
    for item in program.items:
        if any(x in replaced for x in operands(item)):
            item.rewrite(lambda leaf: replaced.get(leaf, leaf) if isinstance(leaf, Item) else leaf)
        read = element(item)
        if read is None or not is_register(read[0]):
            continue
        base, dim, index = read
        dim = axis(base, dim)
        found = trace(Element(base, dim, index % base.meta["shape"][dim]))
        if isinstance(found, Item):
            replaced[item] = found
        elif found.base is not base:
            item.become(torch.select, tuple(found))
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
                item.become(torch.stack, (parts, _dim_of(item)))
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
            item.become(torch.stack, (plain, dim))
        else:
            item.become(torch.cat, (tensors, dim))
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
