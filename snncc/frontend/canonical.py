"""The operators that torch lacks as pure functions, and the names of those it has.

A tape calls one function per meaning, whatever the user's spelling (`snncc.frontend.spellings`):
``torch.add`` for ``a + b``, ``a.add(b)``, ``a += b`` and ``torch.Tensor.add(a, b)``.  Where torch
has a pure function with the right meaning, that function is canonical.  The rest is here.

Integers read off shapes are computed with `size`, `numel` and the functions of the standard
``operator`` module (``add sub mul floordiv mod neg``), which never see a tensor in a tape.
``operator.getitem`` takes an element of a tuple, or indexes a tensor in a way that is not made of
``torch.select`` and ``torch.unsqueeze``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` converted to ``dtype``; gradients flow between floating types."""
    return x.to(dtype)


def full(
    size: tuple[int, ...], value: float, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return a tensor of ``size`` that holds ``value`` everywhere."""
    return torch.full(size, value, dtype=dtype, device=device)


def full_like(x: Tensor, value: float, *, dtype: torch.dtype) -> Tensor:
    """Return a tensor shaped like ``x`` that holds ``value`` everywhere."""
    return torch.full_like(x, value, dtype=dtype)


def size(x: Tensor, dim: int) -> int:
    """Return the length of ``x`` along ``dim``."""
    return x.shape[dim]


def numel(x: Tensor) -> int:
    """Return the number of elements of ``x``."""
    return x.numel()


def setitem(base: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of ``base`` in which ``base[index]`` is ``value``."""
    result = base.clone()
    result[index] = value
    return result


def draw(method: str, like: Tensor, *args: Any) -> Tensor:
    """Return a tensor like ``like`` that is filled by the random in-place ``method``."""
    result = torch.empty_like(like)
    getattr(result, method)(*args)
    return result


class _Graft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, grads[0]


def graft(value: Tensor, carrier: Tensor) -> Tensor:
    """Return ``value``, with the gradient of ``carrier``.

    This is what a change of a tensor's memory behind autograd's back means (``x.data.mul_(2)``, or
    any in-place operator under ``torch.no_grad``): the value is new, the history is the old one.
    """
    apply: Any = _Graft.apply
    result: Tensor = apply(value, carrier)
    return result
