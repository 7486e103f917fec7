"""Neuron layers in scan form: chunks of time side by side, forward, backward or both.

Forward in training returns the states before each step that the adjoint reads, so the adjoint is a
recurrence like any other, in reverse time, and is run by chunks like the neuron itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from snncc.ir.chunked_scan import ScanPrograms
from snncc.ir.once import once
from snncc.ir.program import Adjoint, NeuronProgram
from snncc.runtime.backward import sum_lanes
from snncc.runtime.costs.scan_work import best_cut
from snncc.runtime.costs.work import MOST_CHOICES, prices_of
from snncc.runtime.neuron import Neuron, NeuronTarget
from snncc.runtime.scans.chunked import Chunked, Found, Part, Values, lanes_of
from snncc.runtime.scans.cut import Cut, choose_cut, cut_into
from snncc.runtime.tracing import is_traced, refuse_batches

FLOATS = ({torch.float32}, {torch.float64})


class Ahead(Protocol):
    """The neuron with the states before each step among its outputs, run in some way."""

    def run(self, values: Values, steps: int) -> Found:
        """Run over time."""
        ...


class ScanNeuron:
    """A neuron layer whose time is cut into chunks.

    Args:
        program: The neuron, with what its scan form runs.
        target: The language of the kernels, as for `Neuron`.
        num_threads: Threads of a kernel; None means ``torch.get_num_threads()`` at each call.
        chunk: Steps of a chunk; None chooses for each call, and leaves it whole where that is best.
        ahead: What runs forward in training and returns states too, in place of one kernel.
    """

    def __init__(
        self,
        program: NeuronProgram,
        *,
        target: NeuronTarget = "c",
        num_threads: int | None = None,
        chunk: int | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        assert program.scan is not None
        self.program = program
        self.scan: ScanPrograms = program.scan
        self.target = target
        self._threads = num_threads
        self.chunk = chunk
        self._cuts: dict[tuple[int, ...], Cut | None] = {}
        self.options: dict[str, Any] = {"target": target, "num_threads": num_threads}
        options = self.options
        self.serial = Neuron(replace(program, scan=None), **options)
        scan = self.scan
        self._forward = None if scan.forward is None else Chunked(scan.forward, options)
        self._training = None if scan.training is None else Chunked(scan.training, options)
        self._keeping = ahead
        if ahead is None and scan.keeping is not None:
            self._keeping = Part(scan.keeping, options)
        self._backward = None if scan.backward is None else Chunked(scan.backward, options)

    @classmethod
    def of(cls, program: NeuronProgram, options: Mapping[str, Any]) -> ScanNeuron:
        """Return the layer of a program, with the options of `Neuron`."""
        return cls(program, **options)

    def run(self, arguments: Sequence[Tensor], length: int | None) -> list[Tensor]:
        """Run the layer over time.

        Args:
            arguments: The STEP inputs, then the LANE inputs.
            length: T.

        Returns:
            The outputs [T, *lanes], then the finals [*lanes].
        """
        tensors = tuple(arguments)
        self.serial.check_steps(tensors, length)
        needs = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        # The ends of chunks are looked at, which a traced program cannot do; states are not halves.
        if is_traced(tensors) or {t.dtype for t in tensors} not in FLOATS:
            return list(self.serial.run(tensors, length))
        steps = self._length(tensors, length)
        if needs and self.program.adjoint is not None and self._backward is not None:
            apply: Any = _Scanned.apply
            return list(apply(self, steps, *tensors))
        if needs or self._forward is None:
            return list(self.serial.run(tensors, length))
        values = self._values(tensors)
        return self._results(
            self._forward.run(values, steps, self.cut(self._forward, values, steps))
        )

    def _length(self, tensors: Sequence[Tensor], length: int | None) -> int:
        steps = tensors[: len(self.program.forward.step_inputs)]
        return max((int(x.shape[0]) for x in steps), default=0) if length is None else int(length)

    def _values(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        forward = self.program.forward
        return dict(zip((*forward.step_inputs, *forward.lane_inputs), tensors, strict=True))

    def cut(self, chunked: Chunked, values: Values, steps: int) -> Cut | None:
        """Return how a sweep of this size is cut."""
        lanes = math.prod(lanes_of(chunked.scan.whole, values))
        return self._cut(chunked, lanes, steps, on_cpu=next(iter(values.values())).is_cpu)

    def backward_cut(self, tensors: Sequence[Tensor], length: int | None) -> Cut | None:
        """Return how the backward sweep of a call is cut; None where it is left whole."""
        chunked, steps = self._backward, self._length(tensors, length)
        if chunked is None:
            return None
        lanes = math.prod(lanes_of(self.program.forward, self._values(tensors)))
        return self._cut(chunked, lanes, steps, on_cpu=tensors[0].is_cpu)

    def _cut(self, chunked: Chunked, lanes: int, steps: int, *, on_cpu: bool) -> Cut | None:
        least = chunked.scan.least
        if self.chunk is not None:
            return cut_into(steps, max(self.chunk, least))
        threads = self._threads or torch.get_num_threads()
        prices = prices_of("c") if on_cpu else None
        if prices is None:
            return choose_cut(steps, lanes, least)
        key = id(chunked), steps, lanes, threads
        if key not in self._cuts:
            if len(self._cuts) >= MOST_CHOICES:
                self._cuts.clear()
            self._cuts[key], _ = best_cut(chunked.scan, steps, lanes, threads, prices)
        return self._cuts[key]

    def _results(self, found: Found) -> list[Tensor]:
        forward = self.program.forward
        outputs = [found.outputs[name] for name in forward.outputs]
        return outputs + [found.states[name] for name in forward.finals]

    def train(self, tensors: Sequence[Tensor], steps: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the results, and the states before each step that backward reads."""
        values = self._values(tensors)
        if self._training is not None:
            found = self._training.run(values, steps, self.cut(self._training, values, steps))
        else:
            assert self._keeping is not None
            found = self._keeping.run(values, steps)
        return self._results(found), [found.outputs[name] for name in self.scan.kept]

    def gradients(
        self,
        tensors: Sequence[Tensor],
        kept: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        steps: int,
    ) -> list[Tensor | None]:
        """Return the gradient of each input; None where it is not computed."""
        adjoint, backward = self.program.adjoint, self._backward
        assert adjoint is not None
        assert backward is not None
        values = self._values(tensors)
        given = values | dict(zip(self.scan.kept, kept, strict=True))
        lanes = lanes_of(self.program.forward, values)
        given |= self._cotangents(adjoint, cotangents, (steps, *lanes), tensors[0])
        read = (*backward.scan.whole.step_inputs, *backward.scan.whole.lane_inputs)
        inputs = {name: given[name] for name in read}
        found = backward.run(inputs, steps, self.cut(backward, inputs, steps))
        parts = [[found.outputs[n]] if n else [] for n in adjoint.step_gradients]
        parts += [[found.states[name] for name in names] for names in adjoint.lane_gradients]
        return [
            _total(each, x, i < len(adjoint.step_gradients))
            for i, (each, x) in enumerate(zip(parts, tensors, strict=True))
        ]

    def _cotangents(
        self,
        adjoint: Adjoint,
        cotangents: Sequence[Tensor | None],
        sizes: tuple[int, ...],
        like: Tensor,
    ) -> dict[str, Tensor]:
        """Return the cotangents by name; zeros that take no memory stand for those not there."""
        zero, count = like.new_zeros(()), len(adjoint.output_cotangents)
        names = (*adjoint.output_cotangents, *adjoint.final_cotangents)
        return {
            name: zero.expand(sizes if i < count else sizes[1:]) if g is None else g
            for i, (name, g) in enumerate(zip(names, cotangents, strict=True))
        }


def _total(parts: Sequence[Tensor], like: Tensor, has_time: bool) -> Tensor | None:
    """Add up the parts of a gradient and sum it over the dimensions its input is broadcast in."""
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return sum_lanes(total, tuple(like.shape), has_time=has_time)


class _Scanned(torch.autograd.Function):
    """The layer by chunks, and its adjoint by chunks."""

    @staticmethod
    def forward(ctx: Any, layer: ScanNeuron, steps: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.layer, ctx.steps, ctx.count = layer, steps, len(tensors)
        ctx.set_materialize_grads(False)
        results, kept = layer.train(tensors, steps)
        ctx.save_for_backward(*tensors, *kept)
        ctx.mark_non_differentiable(*(results[i] for i in layer.program.without_gradient))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        refuse_batches(cotangents)
        layer, steps, count, given = ctx.layer, ctx.steps, ctx.count, len(cotangents)
        needs = ctx.needs_input_grad[2:]

        def run(*values: Tensor) -> list[Tensor | None]:
            tensors, kept = values[given : given + count], values[given + count :]
            found = layer.gradients(tensors, kept, values[:given], steps)
            return [g if needed else None for g, needed in zip(found, needs, strict=True)]

        return (None, None, *once(run, (*cotangents, *ctx.saved_tensors)))
