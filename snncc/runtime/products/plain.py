"""Products of torch that keep spikes as bits, or nothing where no gradient reads them.

Numerics: bitwise; forward and backward are torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from snncc.runtime.products.saved_input import SavedInput
from snncc.runtime.products.spikes import Packed, Spikes
from snncc.runtime.tracing import is_traced


@dataclass(frozen=True, slots=True)
class Convolution:
    """One of the convolutions of `torch.nn.functional`, of so many dimensions."""

    function: Callable[..., Tensor]
    rank: int

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(  # noqa: PLR0913 - the signature of torch
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        spikes: Spikes | None = None,
    ) -> Tensor:
        """Apply it; ``spikes`` says that x is 0 or 1."""
        is_usual = x.dim() == self.rank + 2 and not isinstance(padding, str)
        kept = _kept(x, weight, bias, spikes) if is_usual else _ALL
        if kept is _ALL:
            return self.function(x, weight, bias, stride, padding, dilation, groups)
        options = [*(self._each(value) for value in (stride, padding, dilation)), groups]
        return _Convolution.apply(x, weight, bias, self.function, options, kept)  # type: ignore[no-any-return, no-untyped-call]

    def _each(self, value: Any) -> list[int]:
        values = value if isinstance(value, tuple | list | torch.Size) else [value]
        return [*values] * (1 if len(values) > 1 else self.rank)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, spikes: Spikes | None = None
) -> Tensor:
    """Apply `torch.nn.functional.linear`; ``spikes`` says that x is 0 or 1."""
    kept = _kept(x, weight, bias, spikes) if x.dim() > 1 else _ALL
    if kept is _ALL:
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, kept)  # type: ignore[no-any-return, no-untyped-call]


# Autograd of torch is to keep what it wants.
_ALL: Final = "all"


def _kept(
    x: Tensor, weight: Tensor, bias: Tensor | None, spikes: Spikes | None
) -> Packed | Literal["all"] | None:
    """Return the bits that a product keeps; None where it keeps nothing of its input."""
    tensors = [t for t in (x, weight, bias) if t is not None]
    is_differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if spikes is None or not is_differentiated:
        return _ALL
    if is_traced(tensors) or torch._C._is_any_autocast_enabled():
        return _ALL
    kept = spikes.keep(x, weight)
    return _ALL if kept is None and weight.requires_grad else kept


conv1d, conv2d, conv3d = (
    Convolution(function, rank + 1) for rank, function in enumerate((F.conv1d, F.conv2d, F.conv3d))
)
_BY_FUNCTION: dict[Any, Callable[..., Tensor]] = {
    F.linear: linear,
    F.conv1d: conv1d,
    F.conv2d: conv2d,
    F.conv3d: conv3d,
    torch.conv1d: conv1d,
    torch.conv2d: conv2d,
    torch.conv3d: conv3d,
}


def keeping(function: Any) -> Any:
    """Return what runs a function of torch and may keep spikes as bits; None if there is none."""
    return _BY_FUNCTION.get(function)


class _Linear(torch.autograd.Function):
    """The product and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed | None
    ) -> Tensor:
        ctx.input = SavedInput.of(ctx, x, weight, packed)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        (weight, saved), for_bias = ctx.saved_tensors, ctx.needs_input_grad[2]
        flat, x = cotangent.flatten(0, -2), ctx.input.values(saved)
        of_weight = None if x is None else flat.t() @ x.flatten(0, -2)
        x = None  # the gradient of the input takes its place in memory
        of_x = (flat @ weight).view(ctx.input.shape) if ctx.needs_input_grad[0] else None
        return of_x, of_weight, flat.sum(0) if for_bias else None, None


class _Convolution(torch.autograd.Function):
    """The convolution and its gradients."""

    @staticmethod
    def forward(  # noqa: PLR0913 - what autograd is given
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        function: Callable[..., Tensor],
        options: list[Any],
        packed: Packed | None,
    ) -> Tensor:
        ctx.input, ctx.options = SavedInput.of(ctx, x, weight, packed), options
        ctx.has_bias = bias is not None
        return function(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        weight, saved = ctx.saved_tensors
        for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
        *options, groups = ctx.options
        x = ctx.input.values(saved)
        grads: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
            cotangent,
            ctx.input.like(weight) if x is None else x,
            weight,
            [weight.shape[0]] if ctx.has_bias else None,
            *options,
            False,
            [0] * len(options[0]),
            groups,
            [for_x, for_weight, for_bias],
        )
        return *grads, None, None, None
