"""A network of events as a part of a compiled model."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from snncc.ir.events.network import EventTensors
from snncc.ir.events.region import EventRegion
from snncc.ir.events.run import COUNTS, EventOutputs, run_events
from snncc.ir.events.steps import EventQueue
from snncc.options import TargetName
from snncc.runtime.events.kernel import EventKernel
from snncc.runtime.events.operators import run_kernel, run_on


class EventRunner:
    """Target of a node that runs a network of events, as `EventRegion` runs the reference.

    ``counts`` says what happened in the last call, [B, 5] (`snncc.ir.events.run.COUNTS`).

    Args:
        region: The network, and what is between its neurons.
        target: The language of its kernels.
        num_threads: Threads of a kernel; None means ``torch.get_num_threads()``.
    """

    def __init__(
        self, region: EventRegion, target: TargetName, num_threads: int | None = None
    ) -> None:
        self.region, self.target, self.num_threads = region, target, num_threads
        self.counts: Tensor | None = None

    @property
    def __name__(self) -> str:
        return "events"

    @property
    def seen(self) -> dict[str, Tensor]:
        """The counts of the last call by name, each [B]."""
        return _by_name(self.counts)

    def __call__(self, length: int, *arguments: Any) -> tuple[Tensor, ...]:
        """Run the network."""
        outputs = self.run(self.region.tensors(length, arguments), self.region.seed())
        self.counts = outputs.counts
        return self.region.shaped(outputs.results)

    def run(self, tensors: EventTensors, seed: int) -> EventOutputs:
        """Run the network on what it runs on."""
        if self.target == "torch" or not tensors.standing[0].numel():
            return run_events(self.region.network, tensors, seed)
        return run_kernel(self.kernel, tensors, seed)

    @cached_property
    def kernel(self) -> EventKernel:
        """The kernels of the network."""
        return EventKernel(self.region.network, self.num_threads)


class QueueRunner:
    """Target of a node that runs some steps of a network, as `EventQueue` runs the reference.

    Args:
        queue: The network, for some steps.
        target: The language of its kernels.
        num_threads: Threads of a kernel; None means ``torch.get_num_threads()``.
    """

    def __init__(
        self, queue: EventQueue, target: TargetName, num_threads: int | None = None
    ) -> None:
        self.queue, self.target, self.num_threads = queue, target, num_threads
        self.counts: Tensor | None = None

    @property
    def __name__(self) -> str:
        return "queue"

    @property
    def seen(self) -> dict[str, Tensor]:
        """The counts of the last steps by name, each [B]."""
        return _by_name(self.counts)

    def __call__(self, elapsed: int, seed: Any, *given: Any) -> tuple[Tensor, ...]:
        """Run the steps."""
        queue = self.queue
        tensors = queue.tensors(*given)
        outputs = self._run(tensors, int(seed), queue.before(elapsed, tensors))
        self.counts = outputs.counts
        return queue.shaped(outputs, tensors, given[1])

    def _run(self, tensors: EventTensors, seed: int, before: int) -> EventOutputs:
        if self.target == "torch" or not tensors.standing[0].numel():
            return run_events(self.queue.network, tensors, seed, before)
        return run_on(self._kernel, tensors, seed, before)

    @cached_property
    def _kernel(self) -> EventKernel:
        return EventKernel(self.queue.network, self.num_threads)


def _by_name(counts: Tensor | None) -> dict[str, Tensor]:
    columns = () if counts is None else counts.unbind(1)
    return dict(zip(COUNTS, columns, strict=False))
