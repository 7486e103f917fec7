"""Run a recurrence by chunks of time: all chunks at once, twice, with a short sweep in between.

A chunk is a lane: arrays [T, *lanes] are seen as [steps of a chunk, chunks, *lanes], which for
most arrays is a view.  Where few lanes lie next to each other they are copied into that order, so
that neighbouring chunks fill the vector units.

A product of decays, or what a chunk leads to from zero, can overflow or underflow where the serial
code does not, and zero times infinity is NaN where a reset to zero is not.  So what each chunk
ended with is compared with what the next one started from.  Where they differ by more than
roundings, the whole sequence is run again, from the first step to the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from snncc.ir.chunked_scan import ChunkedScan
from snncc.ir.nodes import Const, Recurrence, Var
from snncc.ir.program import NeuronProgram
from snncc.runtime.launch import broadcast_sizes, with_lanes
from snncc.runtime.layout import Sizes
from snncc.runtime.neuron import Neuron
from snncc.runtime.scans.cut import FEW_LANES, Cut

Values: TypeAlias = Mapping[str, Tensor]

# Roundings by which the end of a chunk and the start of the next may differ, and more a step.
ROUNDINGS, ROUNDINGS_A_STEP = 16, 4


class Found(NamedTuple):
    """The outputs [T, *lanes] and the states after the last step [*lanes], by name."""

    outputs: dict[str, Tensor]
    states: dict[str, Tensor]


class Chunked:
    """A recurrence that can be run by chunks.

    Args:
        scan: Its parts.
        options: Those of `Neuron`: the target and the number of threads.

    Attributes:
        fell_back: Whether the chunks of the last call did not fit one another.
    """

    def __init__(self, scan: ChunkedScan, options: Mapping[str, Any]) -> None:
        self.scan = scan
        self._apply = Part(scan.apply, options)
        self._summary = None if scan.summary is None else Part(scan.summary, options)
        self._carry = None if scan.carry is None else Part(scan.carry, options)
        self._lookback = None if scan.lookback is None else Part(scan.lookback, options)
        self._initials = {s.name: s.initial for s in scan.whole.states}
        self._step_names = scan.whole.step_inputs
        self._numbers: dict[object, Tensor] = {}
        self._on_gpu = options["target"] in ("triton", "cuda")
        self.fell_back = False

    def run(self, values: Values, steps: int, cut: Cut | None) -> Found:
        """Run over time.

        Args:
            values: The inputs of the whole recurrence by name.
            steps: T.
            cut: The chunks; None runs from the first step to the last.
        """
        lanes = lanes_of(self.scan.whole, values)
        starts = {name: self._initial(name, values).expand(lanes) for name, _ in self.scan.starts}
        self.fell_back = False
        chunked = None if cut is None else self._chunked(values, starts, lanes, cut)
        self.fell_back = cut is not None and chunked is None
        if chunked is None:
            chunked = self._from(starts, values, steps, lanes)
        return chunked

    def _initial(self, name: str, values: Values) -> Tensor:
        initial, like = self._initials[name], next(iter(values.values()))
        if isinstance(initial, Var):
            return values[initial.name]
        key = initial, like.dtype, like.device
        if key not in self._numbers:
            value = float(initial.value)
            self._numbers[key] = torch.tensor(value, dtype=like.dtype, device=like.device)
        return self._numbers[key]

    def _from(self, starts: Values, values: Values, steps: int, lanes: Sizes) -> Found:
        """Run all steps one after another, from given states."""
        named = {own: starts[name] for name, own in self.scan.starts}
        anchor = next(iter(values.values())).new_zeros(()).expand(lanes)
        return self._apply.run({**values, **named, self.scan.anchor: anchor}, steps)

    def _chunked(self, values: Values, starts: Values, lanes: Sizes, cut: Cut) -> Found | None:
        """Run by chunks; return None where they do not fit one another."""
        scan, covered = self.scan, cut.chunks * cut.length
        first, rest = self._halves(values, covered, cut.rest)
        chunks = {
            name: by_chunks(x, cut, lanes, dense=not self._on_gpu)
            if name in self._step_names
            else x
            for name, x in first.items()
        }
        anchor = next(iter(values.values())).new_zeros(()).expand(cut.chunks, *lanes)
        found = self._chunk_starts({**chunks, scan.anchor: anchor}, starts, cut)
        named = {own: found[name] for name, own in scan.starts}
        applied = self._apply.run({**chunks, **named, scan.anchor: anchor}, cut.length)
        if not self._fit(found, applied.states, cut):
            return None
        outputs = {
            name: y.transpose(0, 1).reshape(covered, *lanes) for name, y in applied.outputs.items()
        }
        last = 0 if scan.whole.reverse else -1
        states = {
            name: x.sum(0) if name in scan.sums else x[last] for name, x in applied.states.items()
        }
        if not cut.rest:
            return Found(outputs, states)
        ended = self._from(states, rest, cut.rest, lanes)
        for name, y in ended.outputs.items():
            both = (y, outputs[name]) if scan.whole.reverse else (outputs[name], y)
            outputs[name] = torch.cat(both)
        return Found(outputs, ended.states)

    def _halves(
        self, values: Values, covered: int, rest: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the inputs for the chunks, and those for the steps that are left over."""
        steps = self._step_names
        chunks, ends = dict(values), dict(values)
        start, end = (rest, 0) if self.scan.whole.reverse else (0, covered)
        for name in steps:
            x = values[name]
            if x.shape[0] == covered + rest:
                chunks[name] = x.narrow(0, start, covered)
                ends[name] = x.narrow(0, end, rest)
        return chunks, ends

    def _chunk_starts(self, values: Values, starts: Values, cut: Cut) -> dict[str, Tensor]:
        """Return what each chunk starts from, [chunks, *lanes]."""
        scan, reverse = self.scan, self.scan.whole.reverse
        # The summary of the chunk that runs last is not needed.
        before = {
            name: x.narrow(1, int(reverse), cut.chunks - 1) if name in self._step_names else x
            for name, x in values.items()
        }
        before[scan.anchor] = values[scan.anchor][1:]
        found = {name: self._sum_starts(name, starts[name], values) for name in scan.sums}
        own = dict(scan.starts)
        if self._lookback is not None:
            count = len(scan.delays)
            last = 0 if reverse else cut.length - count
            seen = before | {n: before[n].narrow(0, last, count) for n in self._step_names}
            ended = self._lookback.run(seen, count).states
            found |= {name: self._in_order(starts[name], ended[name]) for name in ended}
        if self._summary is None or self._carry is None:
            return found
        # A delay in the summary starts from what the chunk before left behind.
        kept = slice(1, None) if reverse else slice(None, -1)
        named = {own[name]: found[name][kept] for name in scan.delays}
        summary = self._summary.run(before | named, cut.length).states
        maps = dict(zip(scan.carry_inputs, summary.values(), strict=True))
        carried = self._carry.run(maps | {own[n]: starts[n] for n in scan.linear}, cut.chunks - 1)
        pairs = zip(scan.linear, carried.outputs.values(), strict=True)
        return found | {name: self._in_order(starts[name], after) for name, after in pairs}

    def _sum_starts(self, name: str, start: Tensor, values: Values) -> Tensor:
        """Return what the parts of a sum start from: the first from its start, others from zero."""
        zeros = values[self.scan.anchor]
        is_zero = self._initials[name] == Const(0.0)
        return zeros if is_zero else self._in_order(start, zeros[1:])

    def _fit(self, starts: Values, ends: Values, cut: Cut) -> bool:
        """Tell whether chunks start from what those before them ended with, within rounding.

        A rounding is relative to the largest value that the state had in the chunk.
        """
        scan = self.scan
        early, late = slice(None, -1), slice(1, None)
        before, after = (late, early) if scan.whole.reverse else (early, late)
        roundings = ROUNDINGS + ROUNDINGS_A_STEP * cut.length
        fits = []
        for name, peak in zip(scan.linear, scan.peaks, strict=True):
            most = torch.maximum(starts[name][before].abs(), ends[peak][before])
            gaps = (ends[name][before] - starts[name][after]).abs()
            fits.append((gaps <= most * (roundings * torch.finfo(most.dtype).eps)).all())
        # A GPU is waited for once, not once a state.
        return not fits or bool(fits[0] if len(fits) == 1 else torch.stack(fits).all())

    def _in_order(self, start: Tensor, after: Tensor) -> Tensor:
        """Return what all chunks start from: the first from the start, the others from the rest."""
        first = start[None]
        return torch.cat((after, first) if self.scan.whole.reverse else (first, after))


class Part:
    """One recurrence of a scan, called by names.

    Args:
        recurrence: The recurrence.
        options: Those of `Neuron`.
    """

    def __init__(self, recurrence: Recurrence, options: Mapping[str, Any]) -> None:
        self.neuron = Neuron(NeuronProgram(recurrence), **options)
        self._names = (*recurrence.step_inputs, *recurrence.lane_inputs)
        self._results = recurrence.outputs, recurrence.finals

    def run(self, values: Values, steps: int) -> Found:
        """Run over time."""
        results = self.neuron.run(tuple(values[name] for name in self._names), steps)
        outputs, finals = self._results
        count = len(outputs)
        return Found(
            dict(zip(outputs, results[:count], strict=True)),
            dict(zip(finals, results[count:], strict=True)),
        )


def lanes_of(recurrence: Recurrence, values: Values) -> Sizes:
    """Return the lanes that the inputs of a recurrence have together."""
    names = (*recurrence.step_inputs, *recurrence.lane_inputs)
    given = [values[name] for name in names]
    length = max([x.shape[0] for x in given[: len(recurrence.step_inputs)]], default=0)
    return broadcast_sizes(names, given, len(recurrence.step_inputs), length)[1]


def by_chunks(x: Tensor, cut: Cut, lanes: Sizes, *, dense: bool) -> Tensor:
    """Return a [T, ...] tensor as [steps of a chunk, chunks, ...], with all dimensions of lanes."""
    full = with_lanes(x, len(lanes))
    if full.shape[0] == 1:
        return full[:, None].expand(cut.length, cut.chunks, *full.shape[1:])
    sizes = (cut.chunks, cut.length, *full.shape[1:])
    chunks = full.reshape(sizes).transpose(0, 1)
    return chunks.contiguous() if dense and math.prod(full.shape[1:]) < FEW_LANES else chunks
