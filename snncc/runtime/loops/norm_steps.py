"""A norm in training as a step of a recurrent loop, written into rows that are there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from snncc.ir.norm_ops import normalized
from snncc.runtime.loops.storage import Read


def norm_into(reads: Sequence[Read], rows: Sequence[list[Tensor] | None]) -> Callable[[int], None]:
    """Return a norm of step k.

    Args:
        reads: How its arguments are read, in the order of `normalized`.
        rows: Where results, means and deviations are written; None for what nothing reads.
    """
    read, *others = reads
    places = [tensors for tensors in rows if tensors is not None]
    is_whole = len(places) == len(rows)

    def run(k: int) -> None:
        x = read(k)
        given = [other(k) for other in others]
        if is_whole and x.is_cpu and x.is_contiguous() and x.numel() > x.shape[1]:
            # What torch runs on the CPU, without a copy.
            mean, var, weight, bias, *options = given
            y, means, deviations = places
            out = (y[k], means[k], deviations[k])
            torch.native_batch_norm(x, weight, bias, mean, var, *options, out=out)
            return
        for tensors, value in zip(rows, normalized(x, *given), strict=True):
            if tensors is not None:
                tensors[k].copy_(value)

    return run
