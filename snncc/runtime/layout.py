"""Fit arrays of any shape and stride to what kernels see: [steps, rows0, rows1, lanes].

The lanes of a neuron layer are the broadcast of the shapes of its inputs, without the time axis.
Lane dimensions that lie next to each other in memory in every array are seen as one, so that in
the common case there is one.  An array that does not fit is copied, never refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

Sizes: TypeAlias = tuple[int, ...]
Groups: TypeAlias = tuple[Sizes, ...]

# Kernels see at most this many lane dimensions.
_MOST_GROUPS = 3
# With fewer lanes than this in the innermost dimension it pays to copy inputs without a time axis.
_SHORT = 128


@dataclass(frozen=True, slots=True)
class Array:
    """An array that a kernel reads.

    Attributes:
        time: Stride of the time axis; None where the array has none.
        lanes: Strides of the lane dimensions; 0 where it is broadcast.
    """

    time: int | None
    lanes: Sizes


@dataclass(frozen=True, slots=True)
class Placed:
    """An array as a kernel sees it.

    Attributes:
        copy: None where the array fits as it is; otherwise the lane sizes of a copy of it, 1 where
            the copy is broadcast, contiguous in the order of the layout with time outermost.
        strides: Strides of time (where there is one), rows0 and rows1.
        uniform: Whether the innermost lane dimension has stride 0 instead of 1.
    """

    copy: Sizes | None
    strides: Sizes
    uniform: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """How the lanes of a call are seen by its kernel.

    Attributes:
        steps: T.
        lanes: The lane dimensions as the user sees them.
        order: All dimensions from outermost to innermost in memory, 0 being time.
        groups: Lane dimensions, outermost first, that are seen as one; at most three groups.
        among: Of a call for a block of the lanes the layout of all of them; [T, *lanes] arrays that
            it writes are parts of theirs.
    """

    steps: int
    lanes: Sizes
    order: Sizes
    groups: Groups = ()
    among: Layout | None = None

    @property
    def extents(self) -> Sizes:
        """The sizes rows0, rows1 and lanes that the kernel sees."""
        sizes = [math.prod(self.lanes[dim] for dim in group) for group in self.groups]
        return (*[1] * (_MOST_GROUPS - len(sizes)), *sizes)

    @property
    def lane_order(self) -> Sizes:
        """The lane dimensions from outermost to innermost in memory."""
        return tuple(dim - 1 for dim in self.order if dim > 0)

    @property
    def step_strides(self) -> Sizes:
        """Strides of a [T, *lanes] array that a kernel writes."""
        if self.among is not None:
            return self.among.step_strides
        return dense_strides((self.steps, *self.lanes), self.order)

    @property
    def lane_strides(self) -> Sizes:
        """Strides of a [*lanes] array that a kernel writes."""
        return dense_strides(self.lanes, self.lane_order)

    def place_step(self) -> Sizes:
        """Return the strides that a kernel sees of a [T, *lanes] array that it writes."""
        time, *lanes = self.step_strides
        return _seen(Array(time, tuple(lanes)), self.groups)

    def place_lane(self) -> Sizes:
        """Return the strides that a kernel sees of a [*lanes] array that it writes."""
        return _seen(Array(None, self.lane_strides), self.groups)


def dense_strides(sizes: Sizes, order: Sequence[int]) -> Sizes:
    """Return the strides of an array without gaps whose dimensions lie in a given order."""
    strides, stride = [0] * len(sizes), 1
    for dim in reversed(order):
        strides[dim] = stride
        stride *= sizes[dim] or 1
    return tuple(strides)


def memory_order(sizes: Sizes, strides: Sizes) -> Sizes:
    """Return the order of the dimensions of a [T, *lanes] array in memory, outermost first.

    Where the array has gaps or is broadcast, or time is innermost, it is the plain order.
    """
    plain = tuple(range(len(sizes)))
    order = sorted((d for d in plain if sizes[d] != 1), key=lambda d: -strides[d])
    dense = dense_strides(sizes, order)
    if any(strides[d] != dense[d] for d in order) or (order and order[-1] == 0):
        return plain
    return (*(d for d in plain if sizes[d] == 1), *order)


def place(layout: Layout, arrays: Sequence[Array]) -> tuple[Placed, ...]:
    """Say how a kernel sees arrays, and which of them must be copied to fit the layout."""
    return tuple(_place(array, layout) for array in arrays)


def place_whole(layout: Layout, array: Array) -> Placed:
    """Say how a kernel sees a copy of an array that has a number of its own for each lane."""
    _, copied = _copied(array, frozenset(range(len(layout.lanes))), layout)
    return Placed(layout.lanes, _seen(copied, layout.groups), uniform=False)


def choose_groups(layout: Layout, arrays: Sequence[Array]) -> Layout:
    """Choose the lane dimensions that are seen as one, so that little has to be copied.

    Args:
        layout: A layout whose groups do not matter.
        arrays: What the kernel reads.
    """
    written = [layout.step_strides[1:], layout.lane_strides]
    best = join_dims(layout, written)
    chosen = None
    for candidate in _candidates(layout, arrays, written):
        if len(candidate) <= _MOST_GROUPS:
            chosen = chosen or candidate
            if _innermost(layout, candidate) >= min(_SHORT, _innermost(layout, best)):
                chosen = candidate
                break
    return replace(layout, groups=chosen or best)


def _candidates(
    layout: Layout, arrays: Sequence[Array], written: Sequence[Sizes]
) -> Iterator[Groups]:
    """Yield groups that ask for more and more copies."""
    steps = [_without_gaps(a, layout)[1].lanes for a in arrays if a.time is not None]
    lanes = [_without_gaps(a, layout)[1].lanes for a in arrays if a.time is None]
    yield join_dims(layout, [*written, *steps, *lanes])
    # Inputs without time, copied so that they fill the innermost dimensions.
    inner = _inner_dims(layout)
    yield join_dims(layout, [*written, *steps, *(_filled(a, inner, layout) for a in lanes)])
    yield join_dims(layout, [*written, *steps])


def _innermost(layout: Layout, groups: Groups) -> int:
    return math.prod(layout.lanes[dim] for dim in groups[-1]) if groups else 1


def _inner_dims(layout: Layout) -> frozenset[int]:
    """Return the fewest innermost lane dimensions that make a row long enough."""
    dims: list[int] = []
    for dim in reversed(layout.lane_order):
        if math.prod(layout.lanes[d] for d in dims) >= _SHORT:
            break
        dims.append(dim)
    return frozenset(dims)


def _filled(strides: Sizes, full: frozenset[int], layout: Layout) -> Sizes:
    own = _own_sizes(strides, full, layout)
    dense = dense_strides(own, layout.lane_order)
    return tuple(s if size != 1 else 0 for s, size in zip(dense, own, strict=True))


def _own_sizes(strides: Sizes, full: frozenset[int], layout: Layout) -> Sizes:
    """Return the lane sizes of a copy: all lanes where it is not broadcast, and of ``full``."""
    return tuple(
        size if strides[dim] or dim in full else 1 for dim, size in enumerate(layout.lanes)
    )


def join_dims(layout: Layout, arrays: Sequence[Sizes]) -> Groups:
    """Join dimensions that are one in every array; a dimension of size 1 belongs to no group."""
    groups: list[Sizes] = []
    for dim in layout.lane_order:
        if layout.lanes[dim] == 1:
            continue
        if groups and all(_are_one(layout.lanes, groups[-1][-1], dim, a) for a in arrays):
            groups[-1] += (dim,)
        else:
            groups.append((dim,))
    return tuple(groups)


def _are_one(lanes: Sizes, outer: int, inner: int, strides: Sizes) -> bool:
    return strides[outer] == strides[inner] * lanes[inner]


def _without_gaps(array: Array, layout: Layout) -> tuple[Sizes | None, Array]:
    """Return an array whose innermost lane dimension has stride 0 or 1, and its copy if needed."""
    dims = [dim for dim in layout.lane_order if layout.lanes[dim] != 1]
    if not dims or array.lanes[dims[-1]] in (0, 1):
        return None, array
    return _copied(array, frozenset(), layout)


def _copied(array: Array, full: frozenset[int], layout: Layout) -> tuple[Sizes, Array]:
    own = _own_sizes(array.lanes, full, layout)
    time = array.time and math.prod(own)
    return own, Array(time, _filled(array.lanes, full, layout))


def _place(array: Array, layout: Layout) -> Placed:
    copy, placed = _without_gaps(array, layout)
    full = frozenset(
        dim
        for group in layout.groups
        for outer, inner in itertools.pairwise(group)
        if not _are_one(layout.lanes, outer, inner, placed.lanes)
        for dim in group
    )
    if full:
        copy, placed = _copied(array, full, layout)
    innermost = layout.groups[-1][-1] if layout.groups else None
    # A single lane has no innermost stride; kernels for stride 1 serve it.
    uniform = innermost is not None and placed.lanes[innermost] == 0
    return Placed(copy, _seen(placed, layout.groups), uniform)


def _seen(array: Array, groups: Groups) -> Sizes:
    outer = [array.lanes[group[-1]] for group in groups[:-1]]
    time = () if array.time is None else (array.time,)
    return (*time, *[0] * (_MOST_GROUPS - 1 - len(outer)), *outer)
