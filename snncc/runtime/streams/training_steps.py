"""Steps with gradients, one after another: each is one node of autograd, on recorded calls.

A step that waits for its backward pass keeps its memory; the next one takes that of a step whose
backward pass is over, or whose result is gone.

Numerics: bitwise, the operators and kernels of the program.  Before the first step a replay is
compared with the program, results and gradients; where a bit differs no step is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.ir.once import once
from snncc.runtime.streams.recorded_step import RecordedStep, StepProgram
from snncc.runtime.streams.recording import is_same
from snncc.runtime.tracing import is_traced

# Steps that wait for their backward pass; where there are more, they run without a record.
_MOST_WAITING = 8

_keeps_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph


class TrainingSteps:
    """The steps of a stream that trains.

    Args:
        program: What a step computes.
        states: The states before a step.
        leaves: Its leaves, with their time axes.
        trial: A context in which a step may be taken without a trace.

    Attributes:
        states: The states after the last step.
    """

    def __init__(
        self,
        program: StepProgram,
        states: Sequence[Tensor],
        leaves: Sequence[Tensor],
        trial: Callable[[Sequence[Tensor]], AbstractContextManager[None]],
    ) -> None:
        self._program, self._trial = program, trial
        self.states: list[Any] = list(states)
        self._leaves = [
            _leaf(x, axis, is_own=is_own)
            for x, axis, is_own in zip(leaves, program.input_axes, program.own, strict=True)
        ]
        self._trained = [i for i, leaf in enumerate(self._leaves) if leaf.is_trained]
        self._threads = torch.get_num_threads()
        self._free: list[RecordedStep] = []
        self._made = 0
        self._others: list[tuple[int, Any]] = []  # outputs that are no tensors, and their places
        self._is_usable = self._can_record(leaves) and self._is_right(leaves)

    def __call__(self, _elapsed: int, leaves: Sequence[Tensor]) -> list[Any]:
        """Take a step."""
        step = self._free.pop() if self._free else self._record(leaves)
        waiting = _Waiting(step, [leaves[i] for i in self._trained], self._free)
        apply: Any = _StepFunction.apply
        outputs = list(apply(waiting, self.states, leaves, *waiting.trained))
        self.states = step.ends
        for position, value in self._others:
            outputs.insert(position, value)
        return outputs

    def accepts(self, leaves: Sequence[Tensor]) -> bool:
        """Tell whether leaves, their inputs with time axes or without, can take a recorded step."""
        return (
            self._is_usable
            and (bool(self._free) or self._made < _MOST_WAITING)
            and self._can_record(leaves)
            and all(known.is_like(x) for known, x in zip(self._leaves, leaves, strict=True))
        )

    def fits(self, states: Sequence[Tensor], leaves: Sequence[Tensor]) -> bool:
        """Tell whether steps of these sizes were tried already."""
        same = (a.shape == b.shape for a, b in zip(self.states, states, strict=True))
        return all(same) and all(
            known.is_like(x) for known, x in zip(self._leaves, leaves, strict=True)
        )

    def move_to(self, states: Sequence[Tensor]) -> None:
        """Go on from other states."""
        self.states = list(states)

    def refresh(self) -> None:
        """Read nothing anew: parameters are looked at before each step."""

    def _can_record(self, leaves: Sequence[Tensor]) -> bool:
        """Tell whether torch does nothing to a step that a replay of its calls would lack."""
        return (
            torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
            and torch.get_num_threads() == self._threads
            and len(self._trained) > 0
            and all(x.is_cpu for x in leaves)
            and not is_traced(leaves)
        )

    def _record(self, leaves: Sequence[Tensor]) -> RecordedStep:
        self._made += 1
        whole = [known.whole(x) for known, x in zip(self._leaves, leaves, strict=True)]
        with self._trial(whole):
            return RecordedStep(self._program, self.states, whole)

    def _is_right(self, leaves: Sequence[Tensor]) -> bool:
        """Record a step, and compare a replay on other values with what the program computes."""
        states = [_another(x) for x in self.states]
        others = [
            (_another(x) if is_own else x.data).requires_grad_(x.requires_grad)  # without hooks
            for x, is_own in zip(leaves, self._program.own, strict=True)
        ]
        trained = [others[i] for i in self._trained]
        with self._trial(others):
            every, ends = self._program(states, others)
            self._others = [(i, x) for i, x in enumerate(every) if not isinstance(x, Tensor)]
            outputs = [x for x in every if isinstance(x, Tensor)]
            results = [x for x in outputs if x.requires_grad]
            cotangents = [torch.randn_like(x) for x in results]
            gradients = torch.autograd.grad(results, trained, cotangents, allow_unused=True)
        step = self._record(leaves)  # after the program, whose plans and kernels are there now
        if not step.can_replay:
            return False
        self._free.append(step)
        with self._trial(others), torch.no_grad():
            found = step.forward(states, others), step.ends
            found_gradients = step.backward(cotangents, [True] * len(trained))
        return is_same((outputs, list(ends)), found) and is_same(gradients, found_gradients)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """What is known of a leaf.

    Attributes:
        place: Of a parameter or a buffer where it lies; None of an input of the step.
        shape: Its shape, without the time axis.
        axis: Its time axis.
        is_trained: Whether it has a gradient.
    """

    place: tuple[int, tuple[int, ...]] | None
    shape: torch.Size
    axis: int | None
    is_trained: bool

    def is_like(self, x: Tensor) -> bool:
        """Tell whether a leaf, with its time axis or without, is as it was."""
        if self.place is not None and self.place != (x.data_ptr(), x.stride()):
            return False
        if self.axis is not None and x.dim() > len(self.shape):
            x = x.squeeze(self.axis)
        return x.requires_grad == self.is_trained and x.shape == self.shape

    def whole(self, x: Tensor) -> Tensor:
        """Return a leaf with its time axis."""
        return x if self.axis is None or x.dim() > len(self.shape) else x.unsqueeze(self.axis)


def _leaf(x: Tensor, axis: int | None, *, is_own: bool) -> _Leaf:
    shape = x.shape if axis is None else x.squeeze(axis).shape
    place = None if is_own else (x.data_ptr(), x.stride())
    return _Leaf(place, shape, axis, x.requires_grad)


def _another(x: Tensor) -> Tensor:
    """Return the values of a tensor in another order."""
    return x.detach().flip([*range(x.dim())])


class _Waiting:
    """A step, and what it trains, whose gradient may still be asked for; it is free afterwards."""

    __slots__ = ("_free", "step", "trained")

    def __init__(
        self, step: RecordedStep, trained: Sequence[Tensor], free: list[RecordedStep]
    ) -> None:
        self.step, self.trained, self._free = step, trained, free

    def __del__(self) -> None:
        self._free.append(self.step)


class _StepFunction(torch.autograd.Function):
    """A recorded step as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        waiting: _Waiting,
        states: Sequence[Tensor],
        leaves: Sequence[Tensor],
        *trained: Tensor,
    ) -> Any:
        step = waiting.step
        outputs = step.forward(states, leaves)
        ctx.set_materialize_grads(False)
        ctx.waiting = waiting
        # One at least, so that a second backward pass is torch's own error.
        ctx.save_for_backward(*([trained[i] for i in step.kept] or trained[:1]))
        ctx.mark_non_differentiable(*[outputs[i] for i in step.constant])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        ctx.saved_tensors  # noqa: B018 - torch refuses parameters that have changed in between
        step: RecordedStep = ctx.waiting.step
        needs = ctx.needs_input_grad[3:]
        given = [c for i, c in enumerate(cotangents) if i not in step.constant]

        def run(*values: Tensor | None) -> list[Tensor | None]:
            return step.backward(values[: len(given)], needs)

        gradients = once(run, (*given, *ctx.waiting.trained))
        if not _keeps_graph():
            del ctx.waiting
        return None, None, None, *gradients
