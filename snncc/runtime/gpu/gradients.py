"""Gradients of inputs without a time axis: sums over the lanes that share an element.

A kernel adds up its own lanes where neighbours share an element, and writes one number for each
run of them; torch adds up those.  No step of it uses an atomic, so that equal calls give equal
bits.
"""

from __future__ import annotations

import math

from torch import Tensor

from snncc.codegen.base import Access
from snncc.runtime.gpu.layout import Seen, extents
from snncc.runtime.layout import Layout, Sizes


def fold_lanes(seen: Seen, layout: Layout, block: int) -> int:
    """Return how many neighbouring lanes a kernel adds up for the gradient of an input.

    Args:
        seen: How the kernel sees the input.
        layout: The sizes.
        block: Lanes of one program, a power of two.
    """
    if seen.access is Access.UNIFORM:
        return block
    if seen.access is Access.REPEATED:
        innermost = extents(layout)[-1]
        return min(innermost & -innermost, block)
    return 1


def folded_size(layout: Layout, fold: int) -> int:
    """Return how many sums a kernel writes."""
    return -(-math.prod(extents(layout)) // fold)


def reduce_folded(sums: Tensor, sizes: Sizes, seen: Seen, layout: Layout) -> Tensor:
    """Return the gradient of an input of which a kernel has summed neighbouring lanes.

    Args:
        sums: What the kernel wrote: one number for each run of lanes.
        sizes: The sizes of the input.
        seen: How the kernel sees the input.
        layout: The sizes of the lanes.
    """
    if seen.access is Access.UNIFORM:
        return sums.sum().reshape(sizes)
    groups = sums.view(*extents(layout)[:-1], -1)
    shared = [index for index, stride in enumerate(seen.strides) if stride == 0]
    own = [group for group, stride in zip(layout.groups, seen.strides, strict=True) if stride]
    dims = [dim for group in own for dim in group]
    total = groups.sum(shared).reshape([layout.lanes[dim] for dim in dims])
    return total.permute(sorted(range(len(dims)), key=dims.__getitem__)).reshape(sizes)
