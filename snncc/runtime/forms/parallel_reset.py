"""Neuron layers in parallel-reset form: chunks of time are lanes of the fused kernel.

An input [T, N] is seen as [L, N, C]: C chunks of L steps, each with lanes of its own.  All chunks
run at once from states that are guessed; a chunk whose states are not those in which the chunk
before it ends, bit for bit, runs again from these.  A chunk whose predecessors are right is right
for good, so each round leaves at least one chunk fewer, and what comes out is the serial result.
How many rounds are worth it is bounded: what is wrong after them runs in serial order, once.

In training forward also returns the states that the adjoint reads, where the call is one whose
backward sweep is worth being cut into chunks as well; else the gradient is the serial neuron's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.ir.nodes import Const, ParallelReset, Recurrence
from snncc.ir.program import NeuronProgram
from snncc.runtime import memory
from snncc.runtime.forms.solved import solved
from snncc.runtime.launch import broadcast_sizes, with_lanes
from snncc.runtime.layout import Sizes, dense_strides
from snncc.runtime.neuron import Neuron, NeuronTarget
from snncc.runtime.scans.chunked import Found, Values
from snncc.runtime.scans.neuron import FLOATS, ScanNeuron
from snncc.runtime.tracing import is_traced

# Steps between the restart that a guess assumes and the chunk that starts from it.
WINDOW = 64
# Chunks are few where there are so many times more of them.
_MANY = 8
# Fewer chunks than this do not pay for the guesses.
LEAST_CHUNKS = 4
# Lanes, those of all chunks together, that keep a GPU busy.
_GPU_LANES = 1 << 16
# With fewer lanes than this in a chunk, the lanes of all chunks are laid side by side in memory.
SHORT = 32


@dataclass(frozen=True, slots=True)
class Chunks:
    """How a call was cut into chunks of time, and how good the guesses were.

    Attributes:
        count: How many chunks ran at once; one where the sequence is too short to be cut.
        length: Steps of one of them.
        rounds: How often some chunks ran again at once, from better states.
        again: How many chunks that was, all rounds together.
        serial: Steps that ran in serial order at last: a remainder, or what rounds left wrong.
    """

    count: int
    length: int
    rounds: int = 0
    again: int = 0
    serial: int = 0

    def __str__(self) -> str:
        return (
            f"{self.count} chunks of {self.length} steps; {self.again} ran again, in"
            f" {self.rounds} rounds; {self.serial} steps in serial order"
        )


@dataclass(frozen=True, slots=True)
class Sweep:
    """What runs forward: the neuron, or the neuron with some of its states among its outputs.

    Attributes:
        forward: Its recurrence.
        chunk: The same from any states, which it also returns.
        serial: The same from the first step to the last.
    """

    forward: Recurrence
    chunk: Neuron
    serial: Neuron


class ParallelResetNeuron:
    """A neuron layer with hard reset that runs chunks of time at once.

    Args:
        program: The neuron, with the programs of its chunks.
        target: The language of the kernels, as for `Neuron`.
        num_threads: Threads of a kernel; None means ``torch.get_num_threads()`` at each call.
        chunk: Steps of a chunk; None leaves it to the sizes of the call.

    Attributes:
        window: Steps that lead to a guess.
        chunks: How the last call was cut; None before the first.
    """

    def __init__(
        self,
        program: NeuronProgram,
        *,
        target: NeuronTarget = "c",
        num_threads: int | None = None,
        chunk: int | None = None,
    ) -> None:
        assert isinstance(program.forward.form, ParallelReset)
        assert program.restart is not None
        self.program = program
        options: dict[str, Any] = {"target": target, "num_threads": num_threads}
        self.serial = Neuron(replace(program, restart=None, scan=None), **options)
        self._guess = Neuron(program.restart.guess, **options)
        self.chunk_neuron = Neuron(program.restart.chunk, **options)
        self._sweep = Sweep(program.forward, self.chunk_neuron, self.serial)
        self._scan: ScanNeuron | None = None
        scan, keeping = program.scan, program.restart.keeping
        if scan is not None and scan.keeping is not None and keeping is not None:
            whole = Neuron(NeuronProgram(scan.keeping), **options)
            ahead = _Ahead(self, Sweep(scan.keeping, Neuron(keeping, **options), whole))
            self._scan = ScanNeuron(replace(program, restart=None), **options, ahead=ahead)
        self.chunk = chunk
        self.window = WINDOW
        self.chunks: Chunks | None = None

    def run(self, arguments: Sequence[Tensor], length: int | None) -> list[Tensor]:
        """Run the layer over time.

        Args:
            arguments: The STEP inputs, then the LANE inputs.
            length: T.

        Returns:
            The outputs [T, *lanes], then the finals [*lanes].
        """
        if is_traced(arguments):
            raise UnsupportedError(
                "Which chunks of time run again depends on values and cannot be traced.",
                code="unsupported.traced-reset",
                location=self.program.forward.where,
                hints=["Compile with mode='fused'."],
            )
        if self._scan is not None and self.is_scanned(arguments, length):
            return self._scan.run(arguments, length)
        return solved(self, arguments, length)

    def is_scanned(self, arguments: Sequence[Tensor], length: int | None) -> bool:
        """Tell whether a call will have a backward sweep that is worth being cut."""
        needs = torch.is_grad_enabled() and any(x.requires_grad for x in arguments)
        if self._scan is None or not needs or {x.dtype for x in arguments} not in FLOATS:
            return False
        self._scan.chunk = self.chunk
        return self._scan.backward_cut(arguments, length) is not None

    def solve(self, arguments: Sequence[Tensor], length: int | None) -> list[Tensor]:
        """Run chunks until each starts from the states in which the one before it ends."""
        return self.solve_sweep(self._sweep, arguments, length)

    def solve_sweep(
        self, sweep: Sweep, arguments: Sequence[Tensor], length: int | None
    ) -> list[Tensor]:
        """Do so with a neuron that has the outputs which are asked for."""
        forward = sweep.forward
        names = (*forward.step_inputs, *forward.lane_inputs)
        count = len(forward.step_inputs)
        steps, lanes = broadcast_sizes(names, arguments, count, length)
        chunk = self.chunk or chunk_length(steps, lanes, is_on_cpu=arguments[0].is_cpu)
        if steps < LEAST_CHUNKS * chunk or not count or 0 in lanes:
            self.chunks = Chunks(1, steps)
            return list(sweep.serial.run(tuple(arguments), length))
        call = _Call(sweep, arguments, lanes, chunk, steps)
        call.guess(self._guess, min(self.window, chunk))
        call.correct()
        results = call.finish()
        self.chunks = call.report
        return results


class _Ahead:
    """Runs forward for a backward scan, which reads states."""

    def __init__(self, layer: ParallelResetNeuron, sweep: Sweep) -> None:
        self._layer, self._sweep = layer, sweep

    def run(self, values: Values, steps: int) -> Found:
        """Run over time."""
        forward = self._sweep.forward
        names, count = (*forward.step_inputs, *forward.lane_inputs), len(forward.outputs)
        results = self._layer.solve_sweep(self._sweep, [values[name] for name in names], steps)
        return Found(
            dict(zip(forward.outputs, results[:count], strict=True)),
            dict(zip(forward.finals, results[count:], strict=True)),
        )


class _Call:
    """One call: its inputs cut into chunks, the states around each chunk, and its outputs.

    Args:
        sweep: What runs forward.
        arguments: The STEP inputs, then the LANE inputs.
        lanes: The lanes that they have together.
        chunk: Steps of a chunk.
        steps: T.
    """

    def __init__(
        self,
        sweep: Sweep,
        arguments: Sequence[Tensor],
        lanes: Sizes,
        chunk: int,
        steps: int,
    ) -> None:
        self._forward, self._neuron = sweep.forward, sweep.chunk
        inputs, count = len(self._forward.step_inputs), steps // chunk
        self._steps = [_with_all_steps(x, steps, len(lanes)) for x in arguments[:inputs]]
        self._lanes = [x.unsqueeze(-1) for x in arguments[inputs:]]
        self._cut = [_cut(x, count, chunk) for x in self._steps]
        self._entries = [arguments[0].new_empty((*lanes, count)) for _ in self._forward.states]
        given = dict(zip(self._forward.lane_inputs, arguments[inputs:], strict=True))
        for entry, state in zip(self._entries, self._forward.states, strict=True):
            start = state.initial
            entry[..., 0] = float(start.value) if isinstance(start, Const) else given[start.name]
        self._outputs: list[Tensor] = []
        self._ends: list[Tensor] = []
        self._right = count
        self.report = Chunks(count, chunk, serial=steps - count * chunk)

    def guess(self, neuron: Neuron, window: int) -> None:
        """Guess in which states the chunks start, and run them all."""
        guesses = neuron.run((*(x[-window:] for x in self._cut), *self._lanes), None)
        for entry, guess in zip(self._entries, guesses, strict=True):
            entry[..., 1:] = guess[..., :-1]
        self._outputs, self._ends = self._run(self._cut, self._entries)

    def correct(self) -> None:
        """Run chunks again that started from other states than those before them end in.

        What runs again is at most twice the whole, in rounds that are at most half of it deep; and
        rounds end where one leaves more than half as many chunks wrong, unless these are few.
        """
        count, left = self.report.count, 2 * self.report.count
        again = rounds = 0
        wrong, before = self._wrong(), 2 * count
        while (
            wrong
            and (size := _rounded(len(wrong), count)) <= left
            and 2 * rounds < count
            and (2 * len(wrong) <= before or _MANY * len(wrong) <= count)
        ):
            self._run_again([*wrong, *[wrong[-1]] * (size - len(wrong))])
            left, again, rounds = left - size, again + len(wrong), rounds + 1
            wrong, before = self._wrong(), len(wrong)
        self._right = wrong[0] if wrong else count
        serial = self.report.serial + (count - self._right) * self.report.length
        self.report = replace(self.report, again=again, rounds=rounds, serial=serial)

    def finish(self) -> list[Tensor]:
        """Return the outputs and the finals, after whatever is left to run in serial order."""
        done, last = self._right * self.report.length, self._right - 1
        ends = [x[..., last : last + 1] for x in self._ends]
        rests: Sequence[Tensor | None] = [None] * len(self._outputs)
        if self.report.serial:
            rests, ends = self._run([x[done:].unsqueeze(-1) for x in self._steps], ends)
        outputs = [self._whole(x, rest) for x, rest in zip(self._outputs, rests, strict=True)]
        names = [state.name for state in self._forward.states]
        return outputs + [ends[names.index(name)][..., 0] for name in self._forward.finals]

    def _whole(self, output: Tensor, rest: Tensor | None) -> Tensor:
        """Return an output [T, *lanes] from that of all chunks and of the steps after them."""
        chunks = output.movedim(-1, 0)[: self._right]
        if rest is None and chunks.is_contiguous():
            return chunks.flatten(0, 1)
        whole = _empty(output, (len(self._steps[0]), *output.shape[1:-1]))
        done = self._right * self.report.length
        # As a matrix: torch transposes it block by block.
        whole[:done].view(self._right, -1).copy_(chunks.flatten(1))
        if rest is not None:
            whole[done:] = rest[..., 0]
        return whole

    def _run(
        self, steps: Sequence[Tensor], entries: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs of chunks, and the states in which they end."""
        values = self._neuron.run((*steps, *self._lanes, *entries), None)
        if self._neuron.target == "torch":  # the interpreter returns views of what it is given
            values = [value.clone() for value in values]
        outputs = len(self._forward.outputs)
        return list(values[:outputs]), list(values[outputs:])

    def _run_again(self, chunks: Sequence[int]) -> None:
        rows = torch.tensor(chunks, device=self._ends[0].device)
        entries = [end[..., rows - 1] for end in self._ends]
        outputs, ends = self._run([_chosen(x, rows) for x in self._cut], entries)
        old = (*self._entries, *self._ends, *self._outputs)
        for whole, part in zip(old, (*entries, *ends, *outputs), strict=True):
            whole.movedim(-1, 0)[rows] = part.movedim(-1, 0)

    def _wrong(self) -> list[int]:
        """Return the chunks whose states differ from those in which the one before ends."""
        pairs = [
            (_bits(entry[..., 1:]), _bits(end[..., :-1]))
            for entry, end in zip(self._entries, self._ends, strict=True)
        ]
        if all(torch.equal(entry, end) for entry, end in pairs):
            return []
        differs = torch.stack([(a != b).reshape(-1, a.shape[-1]).any(0) for a, b in pairs]).any(0)
        return [row + 1 for row in differs.nonzero().flatten().tolist()]


def _rounded(chunks: int, most: int) -> int:
    """Return how many chunks to run for some: each number of them has a plan of its own."""
    return min(1 << (chunks - 1).bit_length(), most)


def chunk_length(steps: int, lanes: Sizes, *, is_on_cpu: bool) -> int:
    """Return how long chunks are: few enough guesses, enough lanes side by side."""
    count = math.prod(lanes)
    best = math.isqrt(2 * steps * count) if is_on_cpu else steps * count // _GPU_LANES
    longest = max(best, 2 * WINDOW)
    return steps // max(steps // longest, 1)


def _with_all_steps(step: Tensor, steps: int, lanes: int) -> Tensor:
    """Return a step input that has a value for each step, and all lane dimensions."""
    return with_lanes(step, lanes).expand(steps, *[-1] * lanes)


def _cut(step: Tensor, count: int, chunk: int) -> Tensor:
    """Return a step input [T, *lanes] as [chunk, *lanes, count]."""
    own, whole = step.shape[1:], step[: count * chunk]
    if math.prod(own) < SHORT:
        turned = _empty(step, (chunk * math.prod(own), count))
        return turned.copy_(whole.reshape(count, -1).t()).view(chunk, *own, count)
    return whole.view(count, chunk, *own).movedim(0, -1)


def _chosen(cut: Tensor, rows: Tensor) -> Tensor:
    """Return some chunks, in the order in memory of all of them."""
    return cut[..., rows] if cut.stride(-1) == 1 else cut.movedim(-1, 0)[rows].movedim(0, -1)


def _empty(like: Tensor, sizes: Sizes) -> Tensor:
    if not like.is_cpu:
        return like.new_empty(sizes)
    return memory.empty_strided(sizes, dense_strides(sizes, range(len(sizes))), like.dtype)


def _bits(values: Tensor) -> Tensor:
    """Return floats as integers: equal where no operation can tell them apart."""
    return values.view(torch.int64 if values.dtype is torch.float64 else torch.int32)
