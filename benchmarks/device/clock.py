"""Time on a device: events around queued work, a flushed cache, and a deadline.

A neuron kernel takes microseconds, and Python takes longer than that to launch it.  Before each
timed run the device gets something else to do, so that the launches of the run are in its queue
before the first of them starts: what the events enclose is the time of the device alone.  The cache
is filled with other bytes meanwhile, because a layer of a network finds none of its inputs there.
``host_ms`` is the other time: what a caller waits for, launches included, with nothing in the way.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = dict[str, Any]
Run = Callable[[], object]
Case = TypeVar("Case")

_FLUSHED_BYTES = 1 << 28  # five times the last cache of the largest GPU of this writing
_HEAD_START_CYCLES = 4_000_000  # two milliseconds at two gigahertz


class OutOfTimeError(Exception):
    """The part has no time left for another case."""


@dataclass
class Clock:
    """Times functions on a device until a deadline.

    Attributes:
        device: Where the work runs.
        seconds: How long a part may take, from now on.
        rounds: How often each variant runs.
        tiny: Whether sizes are those of a rehearsal.
    """

    device: torch.device
    seconds: float
    rounds: int = 15
    tiny: bool = False
    _start: float = field(default_factory=time.monotonic)
    _other: Tensor | None = None

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.seconds - (time.monotonic() - self._start)

    def some(self, cases: Iterable[Case]) -> list[Case]:
        """Return the cases that are measured: all, or the first two in a rehearsal."""
        chosen = list(cases)
        return chosen[:2] if self.tiny else chosen

    def require(self, seconds: float) -> None:
        """Check that so much time is left.

        Raises:
            OutOfTimeError: It is not.
        """
        if self.left < seconds:
            raise OutOfTimeError(f"no time: {max(self.left, 0):.0f} s left, {seconds:.0f} s needed")

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, run: Run) -> float:
        """Return the seconds that a call takes, until the device is idle again."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def measure(self, variants: Mapping[str, Run], warmup: int = 3) -> dict[str, Record]:
        """Run variants in turn and return the times of each.

        Args:
            variants: What is timed, in this order.
            warmup: How often each runs before.
        """
        for run in variants.values():
            for _ in range(0 if self.tiny else warmup):
                run()
        times: dict[str, list[float]] = {name: [] for name in variants}
        host: dict[str, list[float]] = {name: [] for name in variants}
        for done in range(self.rounds):
            if done >= 3 and self.left < 0:
                break
            for name, run in variants.items():
                times[name].append(self._on_device(run))
                host[name].append(times[name][-1] if self.tiny else self.once(run))
        return {name: _summary(times[name], host[name]) for name in variants}

    def _on_device(self, run: Run) -> float:
        if self.device.type != "cuda":
            return self.once(run)
        if self._other is None:
            self._other = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.wait()
        self._other.zero_()
        torch.cuda._sleep(_HEAD_START_CYCLES)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def memory(self, run: Run) -> float | None:
        """Return the MiB that a call allocates at most beyond what is held before it."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        held = torch.cuda.memory_allocated(self.device)
        run()
        self.wait()
        return float(torch.cuda.max_memory_allocated(self.device) - held) / 2**20


def _summary(times: list[float], host: list[float]) -> Record:
    return {
        "median_ms": statistics.median(times) * 1e3,
        "min_ms": min(times) * 1e3,
        "max_ms": max(times) * 1e3,
        "host_ms": statistics.median(host) * 1e3,
        "rounds": len(times),
    }
