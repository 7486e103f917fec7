"""Steps with gradients, one after another: each is one node of autograd, on recorded calls.

A step that waits for its backward pass keeps its memory; the next one takes that of a step whose
backward pass is over, or whose result is gone.

Numerics: bitwise, the operators and kernels of the program.  Before the first step a replay is
compared with the program, results and gradients; where a bit differs no step is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from snncc.ir.once import once
from snncc.runtime.streams.recorded_step import RecordedStep, StepProgram
from snncc.runtime.streams.recording import is_same
from snncc.runtime.tracing import is_traced

# Steps that wait for their backward pass, and their bytes; where there are more, they run without
# a record.
_MOST_WAITING = 8
_MOST_BYTES = 256 * 2**20

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
        self._axes = program.input_axes
        self._own = [i for i, is_own in enumerate(program.own) if is_own]
        self._others = [i for i, is_own in enumerate(program.own) if not is_own]
        self._trained = [i for i, x in enumerate(leaves) if x.requires_grad]
        self._known = self._signatures(leaves)
        self._shapes = [(self._row_shape(leaves[i], i), leaves[i].shape) for i in self._own]
        self._threads = torch.get_num_threads()
        self._free: list[RecordedStep] = []
        self._made, self._most = 0, 1
        self._numbers: list[tuple[int, Any]] = []  # outputs that are no tensors, and their places
        on_cpu = all(x.is_cpu for x in leaves) and len(self._trained) > 0
        self._is_usable = on_cpu and self._is_plain(leaves) and self._is_right(leaves)

    def __call__(self, _elapsed: int, leaves: Sequence[Tensor]) -> list[Any]:
        """Take a step."""
        step = self._free.pop() if self._free else self._record(leaves)
        waiting = _Waiting(step, [leaves[i] for i in self._trained], self._free)
        if torch.is_grad_enabled():
            apply: Any = _StepFunction.apply
            outputs = list(apply(waiting, self.states, leaves, *waiting.trained))
        else:
            outputs = step.forward(self.states, leaves)
        self.states = step.ends
        for position, value in self._numbers:
            outputs.insert(position, value)
        return outputs

    def accepts(self, leaves: Sequence[Tensor]) -> bool:
        """Tell whether leaves, their inputs without time axes, can take a recorded step now."""
        rows = zip(self._own, self._shapes, strict=True)
        return (
            all(leaves[i].shape == row for i, (row, _) in rows)
            and self._signatures(leaves) == self._known
            and self.is_ready(leaves)
        )

    def is_ready(self, leaves: Sequence[Tensor]) -> bool:
        """Tell whether a recorded step is free, and torch does nothing that a replay would lack."""
        return (
            self._is_usable
            and (bool(self._free) or self._made < self._most)
            and self._is_plain(leaves)
        )

    def fits(self, states: Sequence[Tensor], leaves: Sequence[Tensor]) -> bool:
        """Tell whether states and leaves, with their time axes, are like those of these steps."""
        same = (a.shape == b.shape for a, b in zip(self.states, states, strict=True))
        inputs = zip(self._own, self._shapes, strict=True)
        return (
            all(same)
            and all(leaves[i].shape == whole for i, (_, whole) in inputs)
            and self._signatures(leaves) == self._known
        )

    def move_to(self, states: Sequence[Tensor]) -> None:
        """Go on from other states."""
        self.states = list(states)

    def _signatures(self, leaves: Sequence[Tensor]) -> list[Any]:
        """Return what must not change, besides the sizes of inputs."""
        others = [leaves[i] for i in self._others]
        places = [(x.data_ptr(), x.stride(), x.shape, x.requires_grad) for x in others]
        return [*places, *[leaves[i].requires_grad for i in self._own]]

    def _row_shape(self, x: Tensor, position: int) -> torch.Size:
        axis = self._axes[position]
        return x.shape if axis is None else x.squeeze(axis).shape

    def _whole(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return leaves with their time axes."""
        result = list(leaves)
        for i, (row, whole) in zip(self._own, self._shapes, strict=True):
            axis = self._axes[i]
            if axis is not None and leaves[i].dim() == len(row) < len(whole):
                result[i] = leaves[i].unsqueeze(axis)
        return result

    def _is_plain(self, leaves: Sequence[Tensor]) -> bool:
        """Tell whether torch does nothing to a step that a replay of its calls would lack."""
        return not (
            torch.is_autocast_enabled("cpu")
            or torch.is_inference_mode_enabled()
            or torch.get_num_threads() != self._threads
            or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
            or is_traced([leaves[i] for i in self._own])
        )

    def _record(self, leaves: Sequence[Tensor]) -> RecordedStep:
        self._made += 1
        whole = self._whole(leaves)
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
        with self._trial(others), torch.enable_grad():
            every, ends = self._program(states, others)
            self._numbers = [(i, x) for i, x in enumerate(every) if not isinstance(x, Tensor)]
            outputs = [x for x in every if isinstance(x, Tensor)]
            results = [x for x in outputs if x.requires_grad]
            cotangents = [torch.randn_like(x) for x in results]
            gradients = torch.autograd.grad(results, trained, cotangents, allow_unused=True)
        step = self._record(leaves)  # after the program, whose plans and kernels are there now
        if not step.can_replay or step.size > _MOST_BYTES:
            return False
        self._most = min(_MOST_WAITING, _MOST_BYTES // max(step.size, 1))
        with self._trial(others), torch.no_grad():
            found = step.forward(states, others), step.ends
            found_gradients = step.backward(cotangents, [True] * len(trained))
        if not (is_same((outputs, list(ends)), found) and is_same(gradients, found_gradients)):
            return False
        self._free.append(step)
        return True


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
            found = step.backward(values[: len(given)], needs)
            pairs = zip(found, ctx.waiting.trained, strict=True)  # an input may have no time axis
            return [None if x is None else x.view_as(leaf) for x, leaf in pairs]

        gradients = once(run, (*given, *ctx.waiting.trained))
        if not _keeps_graph():
            del ctx.waiting
        return None, None, None, *gradients
