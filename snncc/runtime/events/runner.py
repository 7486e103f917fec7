"""A network of events as a part of a compiled model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from snncc.ir.events.region import EventRegion
from snncc.ir.events.run import COUNTS, EventOutputs, run_events
from snncc.options import TargetName


@dataclass(eq=False)
class EventRunner:
    """Target of a node that runs a network of events, as `EventRegion` runs the reference.

    Attributes:
        region: The network, and what is between its neurons.
        target: The language of its kernels.
        num_threads: Threads of a kernel; None means ``torch.get_num_threads()``.
        counts: What happened in the last call, for each sample (`snncc.ir.events.run.COUNTS`).
    """

    region: EventRegion
    target: TargetName
    num_threads: int | None = None
    counts: Tensor | None = field(default=None, init=False)

    @property
    def __name__(self) -> str:
        return "events"

    @property
    def seen(self) -> dict[str, Tensor]:
        """The counts of the last call by name, each [B]."""
        columns = () if self.counts is None else self.counts.unbind(1)
        return dict(zip(COUNTS, columns, strict=False))

    def __call__(self, length: int, *arguments: Any) -> tuple[Tensor, ...]:
        """Run the network."""
        tensors = self.region.tensors(length, arguments)
        outputs: EventOutputs = run_events(self.region.network, tensors, self.region.seed())
        self.counts = outputs.counts
        return self.region.shaped(outputs.results)
