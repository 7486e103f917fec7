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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = dict[str, Any]
Run = Callable[[], object]
Sizes = TypeVar("Sizes")

_FLUSHED_BYTES = 1 << 28  # five times the last cache of the largest GPU of this writing
_CYCLES = 2e9  # a second, for a GPU that runs as fast as any of this writing
_HEAD_START = (0.002, 0.2)  # seconds, at least and at most
_FEW = 3  # rounds that suffice for what is slow, or once measuring has taken long
_SLOW = 0.05  # seconds of a call
_LONG = 5.0  # seconds of measuring


@dataclass
class Clock:
    """Times functions on a device until a deadline.

    Attributes:
        device: Where the work runs.
        seconds: How long a part may take, from now on.
        rounds: How often each variant runs.
        tiny: Whether sizes are those of a rehearsal.
        graphs: Whether runs are measured as CUDA graphs, and not as they are.
        spoiled: Whether a capture failed: torch goes on as if it still captured, and the process is
            of no use from then on.
    """

    device: torch.device
    seconds: float
    rounds: int = 15
    tiny: bool = False
    graphs: bool = False
    spoiled: bool = False
    _start: float = field(default_factory=time.monotonic)
    _other: Tensor | None = None

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.seconds - (time.monotonic() - self._start)

    def some(self, sizes: Iterable[Sizes]) -> list[Sizes]:
        """Return what is measured: all, or the first two in a rehearsal."""
        chosen = list(sizes)
        return chosen[:2] if self.tiny else chosen

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
        """Run variants in turn, slow ones less often, and return the times of each.

        Args:
            variants: What is timed, in this order.
            warmup: How often each runs before.
        """
        warmup = 0 if self.tiny else min(warmup, self.rounds)
        launching = dict.fromkeys(variants, 0.0)
        for name, run in variants.items():
            for done in range(warmup):
                launching[name] = self._launching(run)
                if done and launching[name] > _SLOW:
                    break
        times: dict[str, list[float]] = {name: [] for name in variants}
        host: dict[str, list[float]] = {name: [] for name in variants}
        start = time.monotonic()
        for done in range(self.rounds):
            if done >= _FEW and (self.left < 0 or time.monotonic() - start > _LONG):
                break
            for name, run in variants.items():
                if done >= _FEW and min(host[name]) > _SLOW:
                    continue
                times[name].append(self._on_device(run, launching[name]))
                host[name].append(times[name][-1] if self.tiny else self.once(run))
        return {name: _summary(times[name], host[name]) for name in variants}

    def calls(self, variants: Mapping[str, Run], count: int = 50) -> dict[str, Record]:
        """Run variants in turn, each many times without a wait, and return the time of one call."""
        count = 2 if self.tiny else count
        for run in variants.values():
            for _ in range(0 if self.tiny else 10):
                run()
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(self.rounds):
            for name, run in variants.items():
                seconds = self.once(lambda run=run: [run() for _ in range(count)])
                times[name].append(seconds / count)
        return {
            name: {
                "host_us": statistics.median(seconds) * 1e6,
                "min_us": min(seconds) * 1e6,
                "rounds": len(seconds),
            }
            for name, seconds in times.items()
        }

    def _launching(self, run: Run) -> float:
        """Return the seconds until a call returns, whether the device is done or not."""
        self.wait()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def _on_device(self, run: Run, launching: float) -> float:
        if self.device.type != "cuda":
            return self.once(run)
        if self._other is None:
            self._other = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        least, most = _HEAD_START
        self.wait()
        self._other.zero_()
        torch.cuda._sleep(int(_CYCLES * min(max(1.5 * launching, least), most)))
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

    def kernels(self, run: Run) -> float | None:
        """Return the milliseconds of all kernels of a call together, without gaps between them.

        What has more launches than a queue holds has gaps on the device as on the host.  Profiling
        may slow down launches after it, so it comes last.
        """
        if self.device.type != "cuda":
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            self.wait()
        events = [event for event in profile.events() if event.device_type.name == "CUDA"]
        return sum(float(event.time_range.elapsed_us()) for event in events) / 1e3


@dataclass(frozen=True)
class Case:
    """One comparison of a part.

    Attributes:
        name: What results call it.
        seconds: What it takes, about: with less left it does not start.
        run: Yields its records.
        large: Whether it takes a good part of the memory of a device.
        graphs: Whether its variants are measured as CUDA graphs, too.
    """

    name: str
    seconds: float
    run: Callable[[Clock], Iterator[Record]]
    large: bool = False
    graphs: bool = False


def with_ratios(times: Mapping[str, Record], own: str = "snncc") -> Iterator[Record]:
    """Yield the times of variants, and those of others over our own: device, host, kernels."""
    for variant, record in times.items():
        ratios = {}
        if own in times and variant != own:
            for key, ratio in _RATIOS.items():
                if record.get(key) is not None:
                    ratios[ratio] = record[key] / times[own][key]
        yield {"variant": variant} | record | ratios


_RATIOS = {
    "kernels_ms": "kernels_over_snncc",
    "median_ms": "device_over_snncc",
    "host_ms": "host_over_snncc",
    "host_us": "host_over_snncc",
}


def captured(run: Run) -> Run:
    """Return a run as one CUDA graph, whose memory is its own.

    The current stream must not be the default one: autograd remembers the stream in which it first
    saw an input, and the default stream cannot be captured.
    """
    for _ in range(3):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        run()
    return graph.replay


def in_graphs(clock: Clock, runs: Mapping[str, Run]) -> Iterator[Record]:
    """Yield the times of runs as CUDA graphs, up to the first that cannot be one."""
    graphs: dict[str, Run] = {}
    ours_first = sorted(runs.items(), key=lambda item: not item[0].startswith("snncc"))
    for name, run in ours_first:
        try:
            graphs[f"{name}, CUDA graph"] = captured(run)
        except Exception as error:
            clock.spoiled = True
            yield {"variant": f"{name}, CUDA graph", "skipped": reason(error)}
            break
    yield from with_ratios(clock.measure(graphs), "snncc, CUDA graph")


def reason(error: Exception) -> str:
    """Return what an error says, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _summary(times: list[float], host: list[float]) -> Record:
    return {
        "median_ms": statistics.median(times) * 1e3,
        "min_ms": min(times) * 1e3,
        "max_ms": max(times) * 1e3,
        "host_ms": statistics.median(host) * 1e3,
        "rounds": len(times),
    }
