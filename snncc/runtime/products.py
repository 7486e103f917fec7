"""Linear layers over whole sequences, with results in the pool of large buffers.

The product over all steps is as large as a neuron's input and lives as long; from the general
allocator it would be new memory, page by page, at every call.

Numerics: the same library calls as ``torch.nn.functional.linear`` on the same rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snncc.ir import sequence_ops
from snncc.runtime import memory
from snncc.runtime.neuron import is_traced


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer to [T, *, in], in the memory order that x has."""
    swapped = x.dim() == 3 and not x.is_contiguous() and x.transpose(0, 1).is_contiguous()
    rows = x.transpose(0, 1) if swapped else x
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not rows.is_contiguous() or is_traced(tensors) or torch.is_autocast_enabled("cpu"):
        return sequence_ops.linear(x, weight, bias)
    result: Tensor
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        result = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    else:
        result = _product(rows, weight, bias)
    return result.transpose(0, 1) if swapped else result


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result = memory.empty((*rows.shape[:-1], weight.shape[0]), rows.dtype)
    flat, out = rows.flatten(0, -2), result.view(-1, weight.shape[0])
    if bias is None:
        torch.mm(flat, weight.t(), out=out)
    else:
        torch.addmm(bias, flat, weight.t(), out=out)
    return result


class _Linear(torch.autograd.Function):
    """The product and its gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        flat = cotangent.reshape(-1, weight.shape[0])
        gradients: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            back = memory.empty(rows.shape, rows.dtype)
            torch.mm(flat, weight, out=back.view(-1, weight.shape[1]))
            gradients[0] = back
        if ctx.needs_input_grad[1]:
            gradients[1] = flat.t() @ rows.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            gradients[2] = flat.sum(0)
        return tuple(gradients)
