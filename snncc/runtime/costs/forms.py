"""The exact forms that a neuron may run in, and what a call probably takes in each.

`FORMS` is the list of what can be chosen: a form joins it with its work and its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from snncc.ir.nodes import ParallelReset
from snncc.ir.program import NeuronProgram
from snncc.runtime.costs.scan_work import best_cut
from snncc.runtime.costs.work import Work, fused_work, kernel_work, step_work
from snncc.runtime.forms.parallel_reset import (
    LEAST_CHUNKS,
    SHORT,
    WINDOW,
    ParallelResetNeuron,
    chunk_length,
)
from snncc.runtime.neuron import Neuron
from snncc.runtime.scans.neuron import ScanNeuron

# Operators of torch that a parallel reset calls around its kernels, in each round.
_RESET_OPERATORS, _RESET_OPERATORS_A_STATE = 10, 8


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a choice depends on.

    Attributes:
        steps: T.
        lanes: How many lanes there are.
        threads: Threads of a kernel.
        training: Whether gradients will be asked for.
        again: Which share of its chunks a parallel reset runs again,
        rounds: in how many rounds, and
        serial: which share of the steps it leaves for the serial order: what these were in the last
            call of the layer, and half, one and none before there is one.
    """

    steps: int
    lanes: int
    threads: int
    training: bool
    again: float = 0.5
    rounds: int = 1
    serial: float = 0.0

    def __str__(self) -> str:
        job = "training" if self.training else "inference"
        counts = {"step": self.steps, "lane": self.lanes, "thread": self.threads}
        steps, lanes, threads = (f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items())
        return f"{steps} of {lanes}, {threads}, {job}"


class Layer(Protocol):
    """A neuron layer in some form."""

    def run(self, arguments: Any, length: int | None) -> Any:
        """Return the outputs, then the finals."""
        ...


@dataclass(frozen=True, slots=True)
class ExactForm:
    """A form whose forward results are those of the serial code, bit for bit.

    Attributes:
        name: As in a plan.
        seconds: What a call takes at given prices; None where the form does not apply.
        layer: Makes the layer, given the program and the options of `Neuron`.
    """

    name: str
    seconds: Callable[[NeuronProgram, Sizes, Mapping[str, float]], float | None]
    layer: Callable[[NeuronProgram, Mapping[str, Any]], Layer]


def _fused(program: NeuronProgram, sizes: Sizes, prices: Mapping[str, float]) -> float:
    work = fused_work(program, sizes.steps, sizes.lanes, sizes.threads, training=sizes.training)
    return work.seconds(prices)


def _backward_scan(
    program: NeuronProgram, sizes: Sizes, prices: Mapping[str, float]
) -> float | None:
    scan = program.scan
    if not sizes.training or scan is None or scan.backward is None or scan.keeping is None:
        return None
    steps, lanes, threads = sizes.steps, sizes.lanes, sizes.threads
    cut, seconds = best_cut(scan.backward, steps, lanes, threads, prices)
    if cut is None:
        return None
    forward = kernel_work(step_work(scan.keeping), steps, 1, lanes, threads)
    return seconds + forward.seconds(prices)


def _parallel_reset(
    program: NeuronProgram, sizes: Sizes, prices: Mapping[str, float]
) -> float | None:
    work = reset_work(program, sizes)
    return None if work is None else work.seconds(prices)


def _trained_reset(
    program: NeuronProgram, sizes: Sizes, prices: Mapping[str, float]
) -> float | None:
    scan = program.scan
    if not sizes.training or scan is None or scan.backward is None:
        return None
    if program.restart is None or program.restart.keeping is None:
        return None
    ahead = reset_work(program, sizes, keeping=True)
    cut, seconds = best_cut(scan.backward, sizes.steps, sizes.lanes, sizes.threads, prices)
    return None if ahead is None or cut is None else ahead.seconds(prices) + seconds


def reset_work(program: NeuronProgram, sizes: Sizes, *, keeping: bool = False) -> Work | None:
    """Return the work of chunks that start from guesses; None where it does not apply.

    Args:
        program: The neuron.
        sizes: Those of the call.
        keeping: Whether only the forward sweep is meant, which returns states for a backward scan.
    """
    restart, steps, lanes, threads = program.restart, sizes.steps, sizes.lanes, sizes.threads
    length = chunk_length(steps, (lanes,), is_on_cpu=True)
    chunks = steps // length
    if restart is None or chunks < LEAST_CHUNKS or not lanes:
        return None
    chunk = restart.keeping if keeping else restart.chunk
    assert chunk is not None
    guess, run = step_work(restart.guess.forward), step_work(chunk.forward)
    states, dense = len(program.forward.states), lanes < SHORT
    total = Work(
        operators=(1 + sizes.rounds) * (_RESET_OPERATORS + _RESET_OPERATORS_A_STATE * states),
        copies=8.0 * run.arrays * steps * lanes,
    )
    parts = [(guess, WINDOW, chunks - 1.0), (run, length, float(chunks))]
    parts += [(run, length, sizes.again * chunks / max(sizes.rounds, 1))] * sizes.rounds
    for step, count, share in parts:
        rows, width = (1, round(share * lanes)) if dense else (round(share), lanes)
        total += kernel_work(step, count, rows, width, threads)
    if sizes.serial:
        total += kernel_work(run, round(sizes.serial * steps), 1, lanes, threads)
    if sizes.training and not keeping:
        whole = fused_work(program, steps, lanes, threads, training=True)
        total += whole - fused_work(program, steps, lanes, threads, training=False)
    return total


def sweeps_work(program: NeuronProgram, sizes: Sizes) -> Work:
    """Return the least work of sweeps until stable: the second one finds that nothing changes."""
    steps, lanes, threads = sizes.steps, sizes.lanes, sizes.threads
    once = fused_work(program, steps, lanes, threads, training=False)
    again = Work(rows=once.rows, operations=once.operations, maths=once.maths)
    return fused_work(program, steps, lanes, threads, training=sizes.training) + again


def reset_layer(
    program: NeuronProgram, options: Mapping[str, Any], *, scans: bool = False
) -> ParallelResetNeuron:
    """Return the layer of a program in parallel-reset form.

    Args:
        program: The neuron, with what its forms run.
        options: Those of `Neuron`.
        scans: Whether its backward sweep may be a scan.
    """
    forward = replace(program.forward, form=ParallelReset(backward=scans))
    scan = program.scan if scans else None
    return ParallelResetNeuron(replace(program, forward=forward, scan=scan), **options)


# In order: of forms that take equally long the first is chosen.
FORMS = (
    ExactForm("fused time", _fused, lambda program, options: Neuron(program, **options)),
    ExactForm("fused time, backward scan", _backward_scan, ScanNeuron.of),
    ExactForm("parallel reset", _parallel_reset, reset_layer),
    ExactForm("parallel reset, backward scan", _trained_reset, partial(reset_layer, scans=True)),
)


def estimates(
    program: NeuronProgram, sizes: Sizes, prices: Mapping[str, float]
) -> Iterator[tuple[ExactForm, float]]:
    """Yield the forms that apply to a call, with the seconds that it probably takes."""
    for form in FORMS:
        seconds = form.seconds(program, sizes, prices)
        if seconds is not None:
            yield form, seconds


def fastest(program: NeuronProgram, sizes: Sizes, prices: Mapping[str, float] | None) -> ExactForm:
    """Return the form that a call probably takes least in; fused time without prices."""
    if prices is None:
        return FORMS[0]
    return min(estimates(program, sizes, prices), key=lambda pair: pair[1])[0]
