"""The operators that torch lacks as pure functions, and the names of those it has.

A tape calls one function per meaning, whatever the user's spelling
(`snncc.frontend.operators.spellings`): ``torch.add`` for ``a + b``, ``a.add(b)``, ``a += b`` and
``torch.Tensor.add(a, b)``.  Where torch has a pure function with the right meaning, that function
is canonical.  The rest is here.

Integers read off shapes are computed with `size`, `numel` and the functions of the standard
``operator`` module (``add sub mul floordiv mod neg``), which never see a tensor in a tape.
``operator.getitem`` takes an element of a tuple, or indexes a tensor in a way that is not made of
``torch.select`` and ``torch.unsqueeze``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
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


def draw(
    method: str,
    like: Tensor | tuple[int, ...],
    order: tuple[int, ...],
    *args: Any,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return random numbers in a tensor of the sizes of ``like``.

    Args:
        method: The in-place method of tensors that draws: ``"uniform_"``, ``"bernoulli_"``.
        like: A tensor, or its sizes.
        order: The dims in the order in which they lie in memory, the outermost first: numbers are
            drawn in the order of memory.
        args: Arguments of the method.
        dtype: Type of the result.
        device: Where it is.
    """
    sizes = like.shape if isinstance(like, Tensor) else like
    result = torch.empty_permuted(sizes, order, dtype=dtype, device=device)
    getattr(result, method)(*args)
    return result


@torch.fx.has_side_effect
def put_back(rows: Tensor, *tensors: Tensor) -> None:
    """Write the rows of a tensor into the memory of tensors, one row into each."""
    with torch.no_grad():
        torch._foreach_copy_(tensors, rows.unbind(0))


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
