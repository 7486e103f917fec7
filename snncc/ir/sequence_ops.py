"""Operators of the sequence graph (L2) that exist only because time became an axis.

They are plain functions on tensors with views wherever torch allows one.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.errors import LaunchError, Location, UnsupportedError


def time_view(x: Tensor, dim: int, start: int, stride: int, length: int) -> Tensor:
    """Return the per-step slices ``x.select(dim, start + stride * k)`` as one [T, *] tensor.

    Args:
        x: The tensor that the loop indexes.
        dim: Its time axis.
        start: Index at step 0; negative counts from the end.
        stride: Change of the index from step to step; may be negative.
        length: T.
    """
    size = x.shape[dim]
    first = start + size if start < 0 else start
    last = first + stride * (length - 1)
    if length and not (0 <= first < size and 0 <= last < size):
        raise IndexError(
            f"step {length - 1} of the loop reads index {last} of an axis of size {size}"
        )
    # A view of all of it is no slice: the gradient of a slice is a copy into zeros.
    moved = x.movedim(dim, 0) if dim else x
    if stride == 1:
        return moved if length == size else moved[first : first + length]
    if stride > 1:
        return moved[first : last + 1 : stride]
    indices = torch.arange(length, device=x.device) * stride + first
    return moved.index_select(0, indices)


def align(x: Tensor, rank: int) -> Tensor:
    """Insert axes of size 1 after time, so that [T, *] broadcasts against lanes of ``rank``."""
    missing = rank + 1 - x.dim()
    return x.reshape(x.shape[:1] + (1,) * missing + x.shape[1:]) if missing > 0 else x


@dataclass(frozen=True, slots=True)
class Folded:
    """An operator on batches, applied to all steps at once: time is folded into the batch.

    The first ``count`` arguments are sequences.
    """

    operator: Callable[..., Tensor]
    count: int = 1

    @property
    def __name__(self) -> str:
        return f"{self.operator.__name__}_over_time"

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the operator to [T, B, *] as to [T * B, *]."""
        folded = [x.flatten(0, 1) for x in args[: self.count]]
        y = self.operator(*folded, *args[self.count :], **kwargs)
        return y.reshape(*args[0].shape[:2], *y.shape[1:])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer to [T, *, in], in the memory order that x has.

    A sequence that is a view of batch-first memory is multiplied in that order: rows are
    independent, and a copy would cost as much as the neuron.
    """
    if x.dim() == 3 and not x.is_contiguous() and x.transpose(0, 1).is_contiguous():
        return torch.nn.functional.linear(x.transpose(0, 1), weight, bias).transpose(0, 1)
    return torch.nn.functional.linear(x, weight, bias)


def repeat_time(x: Tensor, length: int) -> Tensor:
    """Repeat a value that is the same at all steps: [*] to [T, *], as a view."""
    return x.expand(length, *x.shape)


def mean_of(total: Tensor, length: int) -> Tensor:
    """Return the mean over time of what sums up to ``total``, rounded as ``torch.mean`` does.

    It divides on a CPU; on a GPU it multiplies by `mean_factor`.
    """
    if total.device.type == "cpu":
        return total / length
    return total * mean_factor(total.numel(), length, total.dtype)


def mean_factor(lanes: int, length: int, dtype: torch.dtype) -> float:
    """Return what ``torch.mean`` over time multiplies sums with on a GPU.

    It is the number of sums over that of terms, each rounded to the working type.  Where there are
    more terms than the type counts exactly, that is not quite one over the number of steps.

    Source: PyTorch, ``aten/src/ATen/native/cuda/ReduceMomentKernel.cu``, ``mean_kernel_impl``.
    """
    if lanes * length == 0:
        return math.inf if length == 0 else 1.0
    real = ctypes.c_double if dtype is torch.float64 else ctypes.c_float
    # A quotient of two float32 is the same, rounded at once or by way of a double.
    return real(real(lanes).value / real(lanes * length).value).value


def number(value: float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a Python number as a tensor on the device of ``like``."""
    # A fill: a copy to a GPU would wait for the CPU, and no CUDA graph could hold it.
    return torch.full((), value, dtype=dtype, device=like.device)


def small(x: Tensor, bound: float, dtype: torch.dtype) -> Tensor:
    """Return integers as floats that are exact.

    Raises:
        LaunchError: One of them is too large for that.
    """
    if x.numel() and int(x.abs().max()) > bound:
        raise LaunchError(
            "An integer state is too large for a kernel that counts in floats.",
            code="launch.integer-state",
            notes=[f"it holds {int(x.abs().max())}; up to {int(bound)} can be counted on exactly"],
            hints=["Reset it between sequences, or keep it a float."],
        )
    return x.to(dtype)


def step_numbers(values: Sequence[float], rank: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Python numbers, one a step, as [T, 1, ...] on the device of ``like``."""
    if type(like) is Tensor and torch._C._len_torch_dispatch_stack() == 0:
        numbers = _numbers(tuple(values), dtype, like.device).clone()
    else:
        numbers = torch.tensor(values, dtype=dtype, device=like.device)
    return numbers.reshape(-1, *(1,) * rank)


@functools.lru_cache(maxsize=64)
def _numbers(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor, once: a copy to a GPU waits for the CPU."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def numbers_until(
    values: Sequence[float], rank: int, like: Tensor, dtype: torch.dtype, elapsed: int
) -> Tensor:
    """Return the numbers of the steps of a chunk that ends after ``elapsed`` steps.

    Args:
        values: One number for each step of the whole sequence.
        rank: Axes at one step.
        like: A value of the chunk, [steps, *].
        dtype: Type of the result.
        elapsed: Steps from the beginning to the end of the chunk.
    """
    _require_known(elapsed, len(values))
    return step_numbers(values[elapsed - like.shape[0] : elapsed], rank, like, dtype)


def steps_until(x: Tensor, dim: int, length: int, elapsed: int) -> Tensor:
    """Return the parameters of the steps of a chunk: slices of a parameter that has a time axis.

    Args:
        x: The parameter.
        dim: Its time axis.
        length: Steps of the chunk.
        elapsed: Steps from the beginning to the end of the chunk.
    """
    _require_known(elapsed, x.shape[dim])
    return x.movedim(dim, 0)[elapsed - length : elapsed]


def _require_known(elapsed: int, steps: int) -> None:
    """Refuse a step for which the model has no numbers.

    Raises:
        UnsupportedError: A stream has gone on for too long.
    """
    if elapsed > steps:
        raise UnsupportedError(
            f"The stream has reached step {elapsed}; the model has numbers for {steps}.",
            code="unsupported.stream-length",
            notes=["It has a number or a parameter of its own for each step, as in 'decay ** t'."],
            hints=["Call 'reset()' after the last step that the model knows."],
        )


def shift_time(x: Tensor, initial: Tensor | float) -> Tensor:
    """Return the values of the step before: ``initial``, x[0], ..., x[T-2]."""
    if isinstance(initial, Tensor):
        first = initial.to(x.dtype).expand(x.shape[1:])
    else:
        first = torch.full_like(x[0], initial)
    return torch.cat([first.unsqueeze(0), x[:-1]])


@dataclass(frozen=True, slots=True)
class GoOn:
    """Running values, as ``torch.cumsum`` gives them, that begin with the last one before."""

    scan: Callable[..., Tensor]

    @property
    def __name__(self) -> str:
        return f"go_on_with_{self.scan.__name__}"

    def __call__(self, x: Tensor, dim: int, last: Tensor) -> Tensor:
        """Return the running values of the steps at hand.

        Args:
            x: The steps at hand.
            dim: Their time axis.
            last: The last running value before, without that axis, or one number for all.
        """
        first = last.expand(x.select(dim, 0).shape).unsqueeze(dim)
        return self.scan(torch.cat([first, x], dim), dim).narrow(dim, 1, x.shape[dim])


def channels(x: Tensor, rank: int, dtype: torch.dtype) -> Tensor:
    """Return one value for each channel, [C], so that it broadcasts against lanes [B, C, *]."""
    return x.to(dtype).reshape(-1, *(1,) * (rank - 2))


def uniforms(length: int, steps: int, *arguments: Tensor) -> Tensor:
    """Return random numbers of 0 to 1 for each step and lane of a neuron, [T, *lanes].

    Args:
        length: T.
        steps: How many of the arguments have a time axis.
        arguments: What the neuron reads, [T, ...], then [...]; they broadcast to its lanes.
    """
    shapes = [x.shape[1:] if i < steps else x.shape for i, x in enumerate(arguments)]
    lanes = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return torch.rand((length, *lanes), dtype=arguments[0].dtype, device=arguments[0].device)


def last_step(x: Tensor) -> Tensor:
    """Return the value of the last step of [T, *]."""
    return x[-1]


@dataclass(frozen=True, slots=True)
class StepCount:
    """A number that Python computed from the number of steps: ``slope * steps + offset``.

    ``seen`` is what it was when the model was recorded; ``is_inverse`` says that it is one over it.
    """

    seen: float
    slope: int
    offset: int
    is_inverse: bool = False

    @property
    def __name__(self) -> str:
        return "step_count"

    def __call__(self, steps: int | None = None) -> float:
        """Return the number for some steps; without, what it was."""
        if steps is None:
            return self.seen
        count = self.slope * steps + self.offset
        return 1 / count if self.is_inverse else type(self.seen)(count)


@dataclass(frozen=True, slots=True)
class TripLength:
    """The number of steps of a loop over axis ``dim`` of a tensor, plus ``offset``."""

    dim: int
    offset: int
    where: Location | None = None

    @property
    def __name__(self) -> str:
        return "trip_length"

    def __call__(self, x: Tensor) -> int:
        """Return the number of steps.

        Raises:
            UnsupportedError: There is no step at all.
        """
        length = x.shape[self.dim] + self.offset
        if length < 1:
            raise UnsupportedError(
                "The time axis of the input has no step.",
                code="unsupported.empty-sequence",
                location=self.where,
                notes=[f"the loop runs over axis {self.dim} of a tensor of {tuple(x.shape)}"],
                hints=["Pass at least one time step."],
            )
        return length
