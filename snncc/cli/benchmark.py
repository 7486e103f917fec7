"""Time a model and its compiled twin: in turn, so that a disturbance hits both; medians.

Each run starts from the same state of the model and of the random numbers, which is put back
outside of the measured time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.frontend.state.sources import preserved
from snncc.model.module import CompiledModule

WARMUP = 2
LEAST_ROUNDS = 5
MOST_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the runs of one kind, serial and compiled.

    Attributes:
        what: ``inference``, or ``training`` for forward and backward.
        serial: Seconds of each run of the model.
        compiled: Seconds of each run of the compiled model.
    """

    what: str
    serial: tuple[float, ...]
    compiled: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times faster the compiled model is, by medians."""
        return statistics.median(self.serial) / statistics.median(self.compiled)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was measured: ``print(benchmark.table())``.

    Attributes:
        timings: Inference, and training where something requires gradients.
        compile_seconds: Seconds of the first call of the compiled model.
        difference: Largest difference of the outputs, relative to the largest output.
        threads: Threads of torch.
    """

    timings: tuple[Timing, ...]
    compile_seconds: float
    difference: float
    threads: int

    def table(self) -> Table:
        """Return the medians, their spread and their ratio."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("")
        for title in ("serial ms", "compiled ms", "ratio", "rounds"):
            table.add_column(title, justify="right")
        for timing in self.timings:
            table.add_row(
                timing.what,
                _milliseconds(timing.serial),
                _milliseconds(timing.compiled),
                f"{timing.ratio:.1f}",
                str(len(timing.serial)),
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as plain values, for JSON."""
        return {
            "timings": [
                {
                    "what": t.what,
                    "serial_ms": 1e3 * statistics.median(t.serial),
                    "compiled_ms": 1e3 * statistics.median(t.compiled),
                    "ratio": t.ratio,
                    "rounds": len(t.serial),
                }
                for t in self.timings
            ],
            "first_call_s": self.compile_seconds,
            "difference": self.difference,
            "threads": self.threads,
        }


def benchmark(
    fast: CompiledModule, args: tuple[Any, ...], seconds: float, *, gradients: bool = True
) -> Benchmark:
    """Time a compiled model against the model that it was compiled from.

    Args:
        fast: The compiled model, not called yet.
        args: Its inputs.
        seconds: Time after which no new round starts, for each kind of run.
        gradients: Whether training is timed, where something requires gradients.
    """
    start = time.perf_counter()
    with preserved(fast.program, args):
        fast(*args)
    compile_seconds = time.perf_counter() - start
    kinds: list[tuple[str, Callable[..., Any]]] = [("inference", _infer)]
    if gradients and _trains(fast.program, args):
        kinds.append(("training", _train))
    timings = tuple(_interleaved(what, run, fast, args, seconds) for what, run in kinds)
    return Benchmark(timings, compile_seconds, _difference(fast, args), torch.get_num_threads())


def _interleaved(
    what: str, run: Callable[..., Any], fast: CompiledModule, args: tuple[Any, ...], seconds: float
) -> Timing:
    found: tuple[list[float], list[float]] = ([], [])
    deadline = None
    for done in range(WARMUP + MOST_ROUNDS):
        if done == WARMUP:
            deadline = time.perf_counter() + seconds
        enough = len(found[0]) >= LEAST_ROUNDS
        if deadline is not None and enough and time.perf_counter() > deadline:
            break
        for times, model in zip(found, (fast.program, fast), strict=True):
            with preserved(fast.program, args):
                start = time.perf_counter()
                run(model, args)
                taken = time.perf_counter() - start
            if done >= WARMUP:
                times.append(taken)
    return Timing(what, tuple(found[0]), tuple(found[1]))


def _infer(model: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    with torch.no_grad():
        return model(*args)


def _train(model: Callable[..., Any], args: tuple[Any, ...]) -> None:
    for leaf in _leaves(model, args):
        leaf.grad = None
    sum(y.sum() for y in _tensors(model(*args)) if y.requires_grad).backward()  # type: ignore[union-attr]


def _trains(model: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    with preserved(model, args):
        return any(y.requires_grad for y in _tensors(model(*args)))


def _difference(fast: CompiledModule, args: tuple[Any, ...]) -> float:
    with preserved(fast.program, args):
        expected = _tensors(_infer(fast.program, args))
    with preserved(fast.program, args):
        actual = _tensors(_infer(fast, args))
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        scale = float(a.double().abs().max()) if a.numel() else 0.0
        gap = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        worst = max(worst, gap / scale if scale else gap)
    return worst


def _tensors(result: Any) -> list[Tensor]:
    leaves = (x for x in pytree.tree_leaves(result) if isinstance(x, Tensor))
    return [x for x in leaves if x.is_floating_point()]


def _leaves(model: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    return [*parameters, *(x for x in _tensors(args) if x.requires_grad)]


def _milliseconds(seconds: tuple[float, ...]) -> str:
    if len(seconds) < 4:
        return f"{1e3 * statistics.median(seconds):.3g}"
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"{1e3 * middle:.3g} ({1e3 * low:.3g} to {1e3 * high:.3g})"
