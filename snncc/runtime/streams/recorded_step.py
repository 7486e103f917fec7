"""One step with its gradient, recorded once: two lists of calls on memory of its own.

What the gradient of the step needs stays in that memory until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.runtime.streams.recording import Recorder, Replay, computes_alike, memory_of


@dataclass(frozen=True, slots=True)
class StepProgram:
    """What a step computes.

    Attributes:
        run: Takes the number of steps, the states and the leaves; returns the outputs and states.
        input_axes: For each leaf its time axis.
        output_axes: For each output its time axis.
        own: For each leaf whether it is an input of the step.
    """

    run: Callable[..., tuple[Any, ...]]
    input_axes: tuple[int | None, ...]
    output_axes: tuple[int | None, ...]
    own: tuple[bool, ...]

    def __call__(self, states: Sequence[Any], leaves: Sequence[Tensor]) -> tuple[list[Any], Any]:
        """Return the outputs of one step, without their time axes, and its states."""
        results = self.run(1, *states, *leaves)
        count = len(self.output_axes)
        parts = zip(results[:count], self.output_axes, strict=True)
        return [x if axis is None else _last(x, axis) for x, axis in parts], results[count:]


def _last(x: Tensor, axis: int) -> Tensor:
    """Return the last row; if it is the only one, its gradient is no copy into zeros."""
    return x.squeeze(axis) if x.shape[axis] == 1 else x.select(axis, -1)


class RecordedStep:
    """A step on memory of its own.

    Args:
        program: The step.
        states: The states before it, which are copied.
        leaves: The leaves; those of the step's own input are copied.

    Attributes:
        ends: The states after it, until it is taken again.
        kept: Which of the leaves that are trained its gradient reads.
        constant: Which of its outputs that are tensors have no gradient.
        can_replay: Whether nothing but what was recorded decides what a step does.
        size: How many bytes it keeps, besides the parameters.
    """

    def __init__(
        self, program: StepProgram, states: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> None:
        own_states = [x.detach().clone() for x in states]
        # Written with counts of versions of their own: the recorded gradient stays valid.
        self._states = [x.data for x in own_states]
        self._leaves = [
            (x.detach().clone() if is_own else x.data).requires_grad_(x.requires_grad)
            for x, is_own in zip(leaves, program.own, strict=True)
        ]
        axes = zip(self._leaves, program.input_axes, program.own, strict=True)
        self._inputs = [
            (i, x.data, x.data if axis is None else x.data.squeeze(axis))
            for i, (x, axis, is_own) in enumerate(axes)
            if is_own
        ]
        given = {memory_of(x) for x in (*self._states, *(x for _, x, _ in self._inputs))}
        with torch.enable_grad(), Recorder() as recorder:
            outputs, ends = program(own_states, self._leaves)
            self.ends = [x.detach().clone() if memory_of(x) in given else x.detach() for x in ends]
        self._outputs = [x for x in outputs if isinstance(x, Tensor)]
        self._forward = Replay(recorder.calls, self._outputs, is_last=False)
        self._backward: dict[object, Replay] = {}
        self._trained = [x for x in self._leaves if x.requires_grad]
        self._results = [x for x in self._outputs if x.requires_grad]
        self._cotangents = [torch.zeros_like(x) for x in self._results]
        whole = self._gradient([True] * len(self._results), [True] * len(self._trained))
        self.kept = [i for i, x in enumerate(self._trained) if memory_of(x) in whole.read]
        self.constant = [i for i, x in enumerate(self._outputs) if not x.requires_grad]
        is_fixed = recorder.is_fixed and len(self._backward) > 0
        self.can_replay = is_fixed and computes_alike(self._results)
        own = zip(self._leaves, program.own, strict=True)
        others = {memory_of(x) for x, is_own in own if not is_own}
        sizes = self._forward.sizes | whole.sizes
        self.size = sum(size for place, size in sizes.items() if place not in others)

    def forward(self, states: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Any]:
        """Take the step and return its outputs that are tensors."""
        for place, value in zip(self._states, states, strict=True):
            place.copy_(value)
        for i, whole, row in self._inputs:
            value = leaves[i]
            (whole if value.dim() == whole.dim() else row).copy_(value)
        try:
            return self._forward()
        except BaseException:  # an index out of range, or the user: the step is not taken
            if states is self.ends:
                for end, place in zip(self.ends, self._states, strict=True):
                    end.copy_(place)
            raise

    def backward(
        self, cotangents: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of the leaves that are trained, None where none is needed.

        Args:
            cotangents: One for each output that has a gradient, or None.
            needs: For each leaf that is trained whether its gradient is asked for.
        """
        for place, value in zip(self._cotangents, cotangents, strict=True):
            if value is not None:
                place.copy_(value)
        return self._gradient([x is not None for x in cotangents], needs)()

    def _gradient(self, given: Sequence[bool], needs: Sequence[bool]) -> Replay:
        """Return what computes gradients; it is recorded when it is needed for the first time.

        Where a value decides what runs, it is recorded each time.
        """
        key = (*given, *needs)
        if key in self._backward:
            return self._backward[key]
        results, cotangents = (
            [x for x, is_given in zip(values, given, strict=True) if is_given]
            for values in (self._results, self._cotangents)
        )
        trained = [x for x, is_needed in zip(self._trained, needs, strict=True) if is_needed]
        with torch.enable_grad(), Recorder() as recorder:
            found = torch.autograd.grad(
                results, trained, cotangents, retain_graph=True, allow_unused=True
            )
        each = iter(found)
        wanted = [next(each) if is_needed else None for is_needed in needs]
        replay = Replay(recorder.calls, wanted, is_last=True)
        if recorder.is_fixed:
            self._backward[key] = replay
        return replay
