"""Gradients of inputs without a time axis: sums over the lanes that share an element.

A kernel adds up lanes of each of its programs and writes few numbers; torch adds up those, once for
all inputs of equal sizes.  Where neighbouring lanes share an element, a program has one piece of
neighbours.  Where lanes share an element that lie a row apart, as the samples of one channel do if
channels are innermost, a program has pieces of several rows, one below the other.  No step of it
uses an atomic, so that equal calls give equal bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snncc.codegen.base import Access
from snncc.runtime.gpu.layout import Seen, extents
from snncc.runtime.layout import Layout, Sizes

# Lanes of a program that lie in one row: in float32 a line of memory.
_WIDTH = 32
# A program has rows only where there are this many times as many: few are left over at the end.
_LEAST = 4


@dataclass(frozen=True, slots=True)
class Folds:
    """Which lanes of a program are added up.

    Attributes:
        runs: For each result that is added up, how many neighbouring lanes share an element.
        width: Lanes of a program that lie in one row; 0 where all of them are one piece.
        across: Programs that share a row.
    """

    runs: Mapping[str, int]
    width: int = 0
    across: int = 1

    def shape(self, lanes: int, block: int) -> tuple[int, int]:
        """Return of how many columns the programs write sums, and how many of each.

        Where a program has rows, sums of one column lie side by side, as torch adds up fastest.
        """
        down = -(-lanes // (self.across * block))
        return (self.across * self.width, down) if self.width else (down * block, 1)


NO_FOLDS = Folds({})


def choose_folds(seen: Mapping[str, Seen], layout: Layout, block: int) -> Folds:
    """Choose which lanes of a program are added up.

    Args:
        seen: For each gradient how the kernel sees its input.
        layout: The sizes.
        block: Lanes of one program, a power of two.
    """
    runs = {name: min(_run(one, layout, block), block) for name, one in seen.items()}
    rows, lanes = block // _WIDTH, math.prod(extents(layout))
    periods = {
        name: math.lcm(_period(seen[name], layout), _WIDTH)
        for name, run in runs.items()
        if run < rows
    }
    period = max((p for p in periods.values() if p * rows * _LEAST <= lanes), default=0)
    if not period:
        return Folds({name: run for name, run in runs.items() if run > 1})
    shared = {
        name: min(run, _WIDTH)
        for name, run in runs.items()
        if period % _period(seen[name], layout) == 0
    }
    return Folds(shared, _WIDTH, period // _WIDTH)


def _run(seen: Seen, layout: Layout, block: int) -> int:
    """Return how many neighbouring lanes share an element, a power of two, wherever they start."""
    if seen.access is Access.UNIFORM:
        return block
    innermost = extents(layout)[-1]
    return innermost & -innermost if seen.access is Access.REPEATED else 1


def _shared(seen: Seen) -> int:
    """Return along how many of the outermost groups of lanes an input has one element."""
    return sum(1 for _ in itertools.takewhile(lambda stride: stride == 0, seen.strides))


def _period(seen: Seen, layout: Layout) -> int:
    """Return after how many lanes the elements of an input come again."""
    return math.prod(extents(layout)[_shared(seen) :])


@dataclass(frozen=True, slots=True)
class Owner:
    """An input without a time axis, of which a gradient is asked for.

    Attributes:
        seen: How the kernel sees it.
        sizes: Its sizes.
    """

    seen: Seen
    sizes: Sizes


class Sums:
    """The results that a kernel adds up, those of inputs that are alike in one array.

    Args:
        folds: Which lanes are added up.
        owners: For each of these results the input that it is a gradient of.
        layout: The sizes of the lanes.
        block: Lanes of one program.

    Attributes:
        names: The results in order.
    """

    def __init__(
        self, folds: Folds, owners: Mapping[str, Owner], layout: Layout, block: int
    ) -> None:
        alike: dict[Owner, list[str]] = {}
        for name in folds.runs:
            alike.setdefault(owners[name], []).append(name)
        self.names = tuple(itertools.chain.from_iterable(alike.values()))
        columns, down = folds.shape(math.prod(extents(layout)), block)
        self._parts = [
            _Sum(owner, layout, folds.runs[names[0]], (len(names), columns, down))
            for owner, names in alike.items()
        ]

    def allocate(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Return an array for all results of alike inputs: [results, numbers], or [numbers]."""
        return [torch.empty(part.sizes, dtype=dtype, device=device) for part in self._parts]

    def rows(self, written: Sequence[Tensor]) -> list[Tensor]:
        """Return the array of each result."""
        return [
            row
            for part, array in zip(self._parts, written, strict=True)
            for row in (array.unbind() if part.together else (array,))
        ]

    def add_up(self, written: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the gradients by name of the result, each a tensor that may be written to."""
        gradients: list[Tensor] = []
        for part, array in zip(self._parts, written, strict=True):
            gradients += part(array)
        return dict(zip(self.names, gradients, strict=True))


class _Sum:
    """Adds up the numbers of each result.

    Args:
        owner: The inputs.
        layout: The sizes of the lanes.
        run: How many neighbouring lanes the kernel has added up.
        shape: How many results there are, columns of each, and sums of each column.

    Attributes:
        together: Whether there are several results.
        sizes: Sizes of the array that the kernel writes.
    """

    def __init__(self, owner: Owner, layout: Layout, run: int, shape: tuple[int, int, int]) -> None:
        count, columns, down = shape
        self.together = count > 1
        results, numbers = (count,) if self.together else (), columns // run * down
        self.sizes = (*results, numbers)
        start = _shared(owner.seen)
        inner, strides = [*extents(layout)[start:]], owner.seen.strides[start:]
        # The last program may have written zeros behind the last row; they are in no one's way
        # where the sum is of all numbers.
        most = math.prod(extents(layout)) // run if inner else numbers
        self._most = most if most < numbers else None
        if inner:
            inner[-1] //= run
        self._view = (*results, -1, *inner, down)
        first = len(results)
        self._dims = [first, *(i for i, stride in enumerate(strides, first + 1) if stride == 0), -1]
        own = [g for g, stride in zip(layout.groups[start:], strides, strict=True) if stride]
        dims = [dim for group in own for dim in group]
        order = sorted(range(len(dims)), key=dims.__getitem__)
        self._order = [*range(first), *(first + i for i in order)]
        self._found = (*results, *(layout.lanes[dim] for dim in dims))
        self._permutes = order != sorted(order)
        summed = (*results, *(math.prod(layout.lanes[dim] for dim in group) for group in own))
        self._wanted = (*results, *owner.sizes)
        self._reshapes = self._permutes or summed != self._wanted

    def __call__(self, written: Tensor) -> tuple[Tensor, ...]:
        if self._most is not None:
            written = written[..., : self._most]
        total = written.view(self._view).sum(self._dims)
        if self._permutes:
            total = total.view(self._found).permute(self._order)
        if self._reshapes:
            total = total.reshape(self._wanted)
        if self.together:
            # Torch refuses to change a view that was made where it records no gradients.
            return tuple(gradient.detach() for gradient in total.unbind())
        return (total.detach() if self._reshapes else total,)
