"""Gradients that are not to be differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snncc.errors import UnsupportedError


class _Once(torch.autograd.Function):
    """A gradient whose own gradient is refused."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], *values: Tensor | None) -> Any:
        return tuple(run(*values))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        raise no_second_derivative()


def once(run: Callable[..., Any], values: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return what a backward call computes of values, as something that has no gradient itself."""
    if not torch.is_grad_enabled():
        return tuple(run(*values))
    apply: Any = _Once.apply
    return tuple(apply(run, *values))


def no_second_derivative() -> UnsupportedError:
    """Return the error that refuses a gradient of a gradient."""
    return UnsupportedError(
        "The gradient of a compiled neuron cannot be differentiated again.",
        code="unsupported.double-backward",
        notes=["Surrogate gradients have no second derivative."],
        hints=["Leave out 'create_graph=True'."],
    )
