"""What the kernels of an event network leave: which tensors, of which sizes, and which are results.

Forward gives one list of tensors: spikes and membranes of the groups, counts, and what backward
needs besides, the extents and the tape.  All sizes follow from those of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snncc.codegen.c.events.structures import EXTENTS
from snncc.ir.events.network import EventNetwork, Shown
from snncc.ir.events.run import COUNTS

# Makes a tensor of a size and a type.
Make = Callable[[tuple[int, ...], torch.dtype], Tensor]


@dataclass(frozen=True, slots=True)
class Kept:
    """What a forward call leaves.

    Attributes:
        spikes: Of each group [T, B, n], or [B, n] where only the last time step is kept, or None.
        membranes: The same; None for an input.
        lasts: [B, n] of each result that is the last membrane of a group whose others are kept.
        counts: [B, 5]: see `snncc.ir.events.run.COUNTS`.
        extents: [B, 4]: how many entries the tape takes, and what a time step takes at most.
        tape: [B, entries].
    """

    spikes: tuple[Tensor | None, ...]
    membranes: tuple[Tensor | None, ...]
    lasts: tuple[Tensor, ...]
    counts: Tensor
    extents: Tensor
    tape: Tensor

    def flatten(self) -> list[Tensor]:
        """Return the tensors that are there, in one order."""
        of_groups = [x for x in (*self.spikes, *self.membranes) if x is not None]
        return [*of_groups, *self.lasts, self.counts, self.extents, self.tape]


@dataclass(frozen=True, slots=True)
class EventLayout:
    """The sizes of one call.

    Attributes:
        network: The network.
        steps: T.
        samples: B.
        sizes: Of the groups.
        training: Whether what backward needs is kept.
    """

    network: EventNetwork
    steps: int
    samples: int
    sizes: tuple[int, ...]
    training: bool

    @property
    def neurons(self) -> int:
        """The neurons of all groups."""
        return sum(self.sizes)

    @property
    def capacity(self) -> int:
        """For how many entries of each sample the tape has room; a sample may need more."""
        usual = self.steps * (self.neurons + len(self.sizes) + 2)
        return usual if self.training else 0

    @property
    def copied(self) -> tuple[int, ...]:
        """The groups whose last membranes are results of their own, beside all membranes."""
        lasts = [r.group for r in self.network.results if r.shown is Shown.LAST]
        return tuple(g for g in lasts if self._has_all_membranes(g))

    def make(self, dtype: torch.dtype, make: Make) -> Kept:
        """Return tensors for a forward call."""
        groups = range(len(self.sizes))
        spikes, membranes = (
            tuple(None if s is None else make(s, dtype) for s in map(sizes_of, groups))
            for sizes_of in (self._spikes, self._membranes)
        )
        return Kept(
            spikes,
            membranes,
            tuple(make((self.samples, self.sizes[g]), dtype) for g in self.copied),
            make((self.samples, len(COUNTS)), torch.int64),
            make((self.samples, len(EXTENTS)), torch.int64),
            make((self.samples, self.capacity), torch.int32),
        )

    def unflatten(self, flat: Sequence[Tensor]) -> Kept:
        """Return what a list from `Kept.flatten` holds."""
        rest = iter(flat)
        groups = range(len(self.sizes))
        spikes = tuple(None if self._spikes(g) is None else next(rest) for g in groups)
        membranes = tuple(None if self._membranes(g) is None else next(rest) for g in groups)
        *lasts, counts, extents, tape = rest
        return Kept(spikes, membranes, tuple(lasts), counts, extents, tape)

    def places(self) -> list[int]:
        """Return where the results are in a list from `Kept.flatten`."""
        groups = range(len(self.sizes))
        kept = [(g, Shown.SPIKES) for g in groups if self._spikes(g) is not None]
        kept += [(g, Shown.MEMBRANES) for g in groups if self._membranes(g) is not None]
        place = {what: n for n, what in enumerate(kept)}
        places, copies = [], len(kept)
        for result in self.network.results:
            if result.shown is Shown.LAST and self._has_all_membranes(result.group):
                places.append(copies)
                copies += 1
            else:
                shown = Shown.SPIKES if result.shown is Shown.SPIKES else Shown.MEMBRANES
                places.append(place[result.group, shown])
        return places

    def _is_seen(self, group: int, shown: Shown) -> bool:
        return any((r.group, r.shown) == (group, shown) for r in self.network.results)

    def _spikes(self, group: int) -> tuple[int, ...] | None:
        last, recalled = (self.samples, self.sizes[group]), self.network.is_recalled(group)
        if self._is_seen(group, Shown.SPIKES) or (recalled and self.training):
            return (self.steps, *last)
        return last if recalled else None

    def _membranes(self, group: int) -> tuple[int, ...] | None:
        if self.network.groups[group].fire is None:
            return None
        last = (self.samples, self.sizes[group])
        return (self.steps, *last) if self._has_all_membranes(group) else last

    def _has_all_membranes(self, group: int) -> bool:
        return self.training or self._is_seen(group, Shown.MEMBRANES)


def layout_of(network: EventNetwork, standing: Sequence[Tensor], *, training: bool) -> EventLayout:
    """Return the layout of a call, given the standing currents of all groups."""
    steps, samples = standing[0].shape[:2]
    return EventLayout(network, steps, samples, tuple(x.shape[2] for x in standing), training)
