"""Turn stacks and concatenations of consecutive elements of one tensor into views of it.

After re-rolling, the values that the user's code collected in a list are elements of a loop's
stacked result; this turns the list back into that result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from snncc.frontend.reroll.flat import Program, axis, element, listed, replace
from snncc.frontend.reroll.item import Item


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
    item.become(torch.cat, (pieces, dim))
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
        # Counted from the end where that is near, so that it means the same for another length;
        # if it is a constant after all, another recording will show it.
        stop = start + length
        left = whole[source] - stop
        ends = (start or None, None if left == 0 else -1 if left == 1 else stop)
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
