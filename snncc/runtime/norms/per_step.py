"""Batch norms that take statistics of each step, without autograd between the steps.

As a loop, each step is a node of autograd: the gradient of a step is a sequence of zeros with one
step filled in, T of which are added up, and the results are copied once more to be stacked.  Here
forward and backward are one node each, whose steps read and write their places in the sequence, or
one kernel each.  A norm over all steps is a sequence of one step.

Numerics: bitwise; the calls of torch that the loop makes, in its order, on the same operands, or a
kernel that was seen to compute the same bits.  The kernel of the gradient is reassociated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.nn.functional import batch_norm

from snncc.ir.time_loop import TimeLoop
from snncc.runtime import memory
from snncc.runtime.launch import DTYPES
from snncc.runtime.norms import kernels as norm_kernels
from snncc.runtime.tracing import is_traced, refuse_batches

_DEFAULTS = {
    "weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5,
}  # fmt: skip
_NAMES = ("input", "running_mean", "running_var", *_DEFAULTS)


def steps_of_norm(loop: TimeLoop) -> TimeLoop | NormSteps:
    """Return what runs a loop: at once, where it is one norm in training, or the loop."""
    calls = [node for node in loop.body.nodes if node.op == "call_function"]
    is_norm = len(calls) == 1 and calls[0].target is batch_norm
    if not is_norm or [r.stacked for r in loop.results] != [True] or loop.carries or loop.tables:
        return loop
    given = dict(zip(_NAMES, calls[0].args, strict=False)) | calls[0].kwargs
    x = given.get("input")
    step = next((s for s in loop.steps if isinstance(x, torch.fx.Node) and s.name == x.name), None)
    whole = step is not None and (step.dim, step.start, step.stride) == (0, 0, 1)
    if not whole or len(loop.steps) != 1 or loop.reverse or loop.trip.offset:
        return loop
    return NormSteps(loop, {**_DEFAULTS, **given})


@dataclass(frozen=True, eq=False)
class NormSteps:
    """Runs a loop over one norm.

    Attributes:
        loop: The loop, which runs what this does not.
        given: The arguments of the norm by name, nodes of the body among them.
    """

    loop: TimeLoop
    given: Mapping[str, Any]

    @property
    def __name__(self) -> str:
        return self.loop.name

    def __call__(self, *operands: Any) -> tuple[Any, ...]:
        """Normalise each step of a sequence."""
        places = dict(self.loop.inputs)
        values = {
            name: operands[places[value.name]] if isinstance(value, torch.fx.Node) else value
            for name, value in self.given.items()
        }
        x = values["input"]
        if not _is_served(values) or self.loop.length(operands) != x.shape[0]:
            return self.loop(*operands)
        y: Tensor = _Norm.apply(*(values[name] for name in _NAMES))  # type: ignore[no-untyped-call]
        return (y,)


def norm(*args: Any, **kwargs: Any) -> Tensor:
    """Apply `torch.nn.functional.batch_norm`, by a kernel if there is one."""
    values = _DEFAULTS | dict(zip(_NAMES, args, strict=False)) | kwargs
    steps = values | {"input": values["input"].unsqueeze(0)}
    if not (_is_served(steps) and _has_kernel(*(steps[name] for name in _NAMES[:5]))):
        return batch_norm(*args, **kwargs)
    y: Tensor = _Norm.apply(*(steps[name] for name in _NAMES))  # type: ignore[no-untyped-call]
    return y.squeeze(0)


def _has_kernel(x: Tensor, *channels: Tensor | None) -> bool:
    """Tell whether a kernel computes such a norm, with vectors of one number for each channel."""
    # Of one channel or pixel torch may say that its memory has channels last, and adds otherwise.
    is_plane = x.dim() > 3 and x.shape[2] > 1 and x.shape[3:].numel() > 1
    return (
        is_plane
        and all(t is None or (t.is_contiguous() and t.numel() == x.shape[2]) for t in channels)
        and not any(t is not None and t.is_neg() for t in (x, *channels))
        and norm_kernels.agrees(x.dtype)
    )


def _is_served(values: Mapping[str, Any]) -> bool:
    """Tell whether torch runs such a norm by `torch.native_batch_norm`, without further checks."""
    x = values["input"]
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    if values["training"] is not True or not isinstance(values["momentum"], float):
        return False
    if x.dim() < 3 or x.dtype not in DTYPES or not all(t.is_cpu for t in tensors):
        return False
    # With strided steps torch was seen to take other statistics when the result has a place.
    if not x.is_contiguous():
        return False
    # Torch refuses to take statistics of one value, and treats a step without values apart.
    values_of_channel = x.numel() // max(x.shape[0] * x.shape[2], 1)
    return (
        values_of_channel > 1
        and {t.dtype for t in tensors} == {x.dtype}
        and not is_traced(tensors)
        and not torch.is_autocast_enabled("cpu")
    )


class _Norm(torch.autograd.Function):
    """The norms of all steps, and their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        running_mean, running_var, weight, bias, _, momentum, eps = rest
        ctx.eps = eps
        ctx.has_kernel = _has_kernel(x, *rest[:4])
        if ctx.has_kernel:
            own = norm_kernels.Norm(weight, bias, running_mean, running_var, momentum, eps)
            y, mean, deviation = own.forward(x)
        else:
            y = memory.empty(x.shape, x.dtype)
            mean, deviation = x.new_empty((2, x.shape[0], x.shape[2]))
            options = (weight, bias, running_mean, running_var, True, momentum, eps)
            for t in range(x.shape[0]):
                torch.native_batch_norm(x[t], *options, out=(y[t], mean[t], deviation[t]))
        ctx.save_for_backward(x, weight, mean, deviation)
        return y

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batches((cotangent,))
        x, weight, mean, deviation = ctx.saved_tensors
        needs = ctx.needs_input_grad
        mask = [needs[0], needs[3], needs[4]]
        if ctx.has_kernel and not (torch.is_grad_enabled() or is_traced((cotangent, x))):
            statistics = (mean, deviation)
            grads = norm_kernels.backward(
                cotangent.contiguous(), x, weight, statistics, wanted=needs[0]
            )
            own, *of_parameters = grads
            kept = [g if m else None for g, m in zip(of_parameters, mask[1:], strict=True)]
            return (own, None, None, *kept, None, None, None)
        place = None
        # What may be differentiated again is collected, anything else is written to its place.
        if needs[0] and not torch.is_grad_enabled():
            place = memory.empty(x.shape, x.dtype)
        collected: list[Tensor] = []
        totals: list[Tensor | None] = [None, None]
        for t in reversed(range(x.shape[0])):
            own, *of_parameters = torch.ops.aten.native_batch_norm_backward(
                cotangent[t], x[t], weight, None, None, mean[t], deviation[t], True, ctx.eps, mask
            )
            if place is not None:
                place[t] = own
            elif needs[0]:
                collected.append(own)
            # The terms in autograd's order, which goes back in time.
            for n, term in enumerate(of_parameters):
                if mask[n + 1]:
                    before = totals[n]
                    totals[n] = term if before is None else before + term
        if collected:
            place = torch.stack(collected[::-1])
        return (place, None, None, *totals, None, None, None)
