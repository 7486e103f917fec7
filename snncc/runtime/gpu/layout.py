"""Fit arrays of any shape and stride to GPU kernels, which count lanes through in memory order.

An array whose lanes lie in that order without gaps is addressed by the number of the lane.  Any
other is addressed by its strides along groups of lane dimensions, computed once for all steps, so
that nothing is copied.  The exception is an array whose neighbouring lanes are so far apart that
each would cost a whole sector of memory: it is copied, which moves fewer bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from snncc.codegen.base import Access
from snncc.runtime.layout import Array, Groups, Layout, Sizes, dense_strides, join_dims

# A copy moves three elements for each that is read, a strided read its stride, up to a sector of
# 32 bytes: for elements of 2, 4 and 8 bytes the copy wins from this stride on.
_SPARSE = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """An array as a GPU kernel sees it.

    Attributes:
        access: How the element of a lane is found.
        time: Stride of time; None where the array has no time axis.
        strides: Strides of the groups of lanes.
    """

    access: Access
    time: int | None
    strides: Sizes


def group_lanes(layout: Layout, arrays: Sequence[Array]) -> Layout:
    """Group lane dimensions that are one in every array, and in those that the kernel writes."""
    written = [layout.step_strides[1:], layout.lane_strides]
    groups = join_dims(layout, [*written, *(array.lanes for array in arrays)])
    return Layout(layout.steps, layout.lanes, layout.order, groups)


def extents(layout: Layout) -> Sizes:
    """Return the sizes of the groups of lanes, outermost first; one group at least."""
    return tuple(math.prod(layout.lanes[d] for d in group) for group in layout.groups) or (1,)


def see(array: Array, layout: Layout) -> Seen:
    """Say how a kernel sees an array."""
    strides = group_strides(array, layout.groups)
    sizes = extents(layout)
    if math.prod(sizes) == 1 or strides == dense_strides(sizes, range(len(sizes))):
        return Seen(Access.FLAT, array.time, strides)
    if not any(strides):
        return Seen(Access.UNIFORM, array.time, strides)
    innermost = {0: Access.REPEATED, 1: Access.ROWS}
    return Seen(innermost.get(strides[-1], Access.STRIDED), array.time, strides)


def group_strides(array: Array, groups: Groups) -> Sizes:
    """Return the stride of an array along each group of lanes."""
    return tuple(array.lanes[group[-1]] for group in groups) or (1,)


def is_sparse(array: Array, layout: Layout) -> bool:
    """Tell whether copying an array moves fewer bytes than reading it as it lies."""
    dims = [dim for dim in layout.lane_order if layout.lanes[dim] != 1]
    return bool(dims) and array.lanes[dims[-1]] >= _SPARSE


def densify_steps(tensor: Tensor, layout: Layout) -> Tensor:
    """Return a copy of a [T, ...] tensor without gaps, its lanes in the memory order of a layout.

    Dimensions in which the tensor is broadcast stay so.
    """
    shrunk = tensor
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            shrunk = shrunk.narrow(dim, 0, 1)
    missing = len(layout.lanes) + 1 - shrunk.dim()
    order = [0, *(dim - missing + 1 for dim in layout.lane_order if dim >= missing)]
    back = sorted(range(len(order)), key=order.__getitem__)
    return shrunk.permute(order).contiguous().permute(back).expand(tensor.shape)
