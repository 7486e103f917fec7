"""Whether torch runs an operator, records it, or transforms it; and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from snncc.errors import UnsupportedError

_PLAIN = frozenset({Tensor, torch.nn.Parameter})


def is_traced(tensors: Sequence[Tensor]) -> bool:
    """Tell whether operators are recorded or transformed rather than run."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    transform = torch._C._functorch.peek_interpreter_stack()
    if transform is not None or forward_ad._current_level >= 0:
        _refuse_transforms(tensors, is_transformed=transform is not None)
    return any(type(tensor) not in _PLAIN or tensor.is_meta for tensor in tensors)


def _refuse_transforms(tensors: Sequence[Tensor], *, is_transformed: bool) -> None:
    """Refuse what would otherwise fail deep inside torch, or give zero derivatives silently."""
    unpack: Any = forward_ad.unpack_dual
    if is_transformed or any(unpack(tensor).tangent is not None for tensor in tensors):
        raise UnsupportedError(
            "A compiled neuron cannot be transformed by torch.func or forward-mode derivatives.",
            code="unsupported.function-transform",
            hints=["Use 'backward()' or 'torch.autograd.grad'; give batches as a dimension."],
        )


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
