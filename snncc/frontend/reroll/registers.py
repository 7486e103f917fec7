"""Elements of tensors that are kept like shift registers: written, rolled, concatenated, sliced.

A delay line is often one tensor of its last values, shifted at each step::

    buffer = torch.roll(buffer, 1, 0); buffer[0] = s            or
    buffer = torch.cat([buffer[1:], s.unsqueeze(0)])

An element of it is a value that was put in some steps before, or an element of what it began with;
`trace` follows it back to there.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch

from snncc.frontend.reroll.flat import axis, listed
from snncc.frontend.reroll.item import Item


def is_register(item: Item) -> bool:
    """Tell whether an item writes to a buffer or shifts it.

    A list of results, stacked or concatenated, is none: its elements say what a layer gave at each
    step, and the next layer's loop is over them.
    """
    if item.target in (torch.select_scatter, torch.roll):
        return True
    given = listed(item) if item.target is torch.cat else None
    return given is not None and any(part.target is operator.getitem for part in given[0])


class Element(NamedTuple):
    """``select(base, dim, at)``, both counted from the front."""

    base: Item
    dim: int
    at: int


def trace(element: Element) -> Element | Item:
    """Return the value that an element is, or the oldest tensor of which it is an element."""
    while True:
        found = _before(element)
        if not isinstance(found, Element):
            return element if found is None else found
        element = found


def _before(element: Element) -> Element | Item | None:
    """Follow an element through the operator that made its tensor; None where it ends there."""
    target = element.base.target
    if target is torch.cat and not is_register(element.base):
        return None
    if target is torch.select_scatter:
        return _written(element)
    if target is torch.roll:
        return _rolled(element)
    if target is torch.cat:
        return _joined(element)
    if target is operator.getitem:
        return _sliced(element)
    if target is torch.unsqueeze and len(element.base.args) == 2:
        base, dim = element.base.args
        return base if type(dim) is int and axis(element.base, dim) == element.dim else None
    return None


def _written(element: Element) -> Element | Item | None:
    item, dim, index = element
    if len(item.args) != 4 or type(item.args[2]) is not int or type(item.args[3]) is not int:
        return None
    buffer, value, at_dim, at = item.args
    if axis(buffer, at_dim) != dim:
        return None
    if at % buffer.meta["shape"][dim] != index:
        return Element(buffer, dim, index)
    shape = buffer.meta["shape"]
    fits = value.meta.get("shape") == (*shape[:dim], *shape[dim + 1 :])
    return value if fits and value.meta.get("dtype") == buffer.meta["dtype"] else None


def _rolled(element: Element) -> Element | None:
    item, dim, index = element
    if len(item.args) != 3 or item.kwargs:
        return None
    base, shifts, dims = item.args
    shift, rolled = _single(shifts), _single(dims)
    if type(shift) is not int or type(rolled) is not int:
        return None
    size = base.meta["shape"][dim]
    return Element(base, dim, (index - shift) % size if axis(base, rolled) == dim else index)


def _joined(element: Element) -> Element | Item | None:
    item, dim, index = element
    given = listed(item)
    if given is None or given[1] != dim:
        return None
    tensors, _ = given
    if any(x.meta["dtype"] != item.meta["dtype"] for x in tensors):
        return None
    for part in tensors:
        if len(part.meta["shape"]) != len(item.meta["shape"]):
            return None
        size = part.meta["shape"][dim]
        if index < size:
            return Element(part, dim, index)
        index -= size
    return None


def _sliced(element: Element) -> Element | None:
    """Follow an element through slices of literal bounds."""
    item, dim, index = element
    base, parts = item.args
    parts = parts if isinstance(parts, tuple | list) else (parts,)
    if not isinstance(base, Item) or "shape" not in base.meta:
        return None
    if not all(isinstance(p, slice) and _is_literal(p) for p in parts):
        return None
    if dim >= len(parts):
        return Element(base, dim, index)
    steps = range(*parts[dim].indices(base.meta["shape"][dim]))
    return Element(base, dim, steps[index]) if index < len(steps) else None


def _is_literal(part: slice) -> bool:
    return all(x is None or type(x) is int for x in (part.start, part.stop, part.step))


def _single(value: Any) -> Any:
    """Return the one element of a tuple; anything else as it is."""
    return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value
