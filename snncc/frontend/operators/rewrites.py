"""Spellings that mean a canonical call with other arguments, or a nest of two calls.

``1 / x`` is ``mul(reciprocal(x), 1)`` because that is what torch computes; ``x.clamp_min(0)`` is
``clamp(x, 0, None)``.  On a GPU ``x / 3.0`` is ``mul(x, 1 / 3.0)``, for the same reason.  Every
rewrite is exact: same operations, same rounding.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from snncc.frontend.operators.canonical import cast
from snncc.frontend.operators.invocation import Call, SizesOf
from snncc.frontend.operators.spellings import operators

Rewrite = Callable[..., Call]


def _table(name: str, *args: Any, **kwargs: Any) -> Call:
    bound = operators()[name].bind(args, kwargs)
    assert bound is not None
    return Call(operators()[name].target, *bound)


def _reflected(name: str) -> Rewrite:
    def rewrite(x: Tensor, other: Any) -> Call:
        return _table(name, other, x)

    return rewrite


def _reversed_subtraction(x: Tensor, other: Any, *, alpha: float = 1) -> Call:
    return _table("sub", other, x, alpha=alpha)


def _reversed_division(x: Tensor, other: Any) -> Call:
    return Call(torch.mul, (Call(torch.reciprocal, (x,)), other))


def quotient(call: Call) -> Call:
    """Return what torch computes for a canonical division.

    On a GPU it multiplies by the reciprocal of a divisor that is a Python number, rounded to the
    type in which it computes.  That is the quotient for powers of two, and may miss it elsewhere.
    """
    x, divisor = call.args
    if type(divisor) not in (int, float) or not isinstance(x, Tensor) or call.kwargs:
        return call
    if x.device.type != "cuda" or x.is_complex():
        return call
    real = ctypes.c_double if x.dtype == torch.float64 else ctypes.c_float
    rounded = real(divisor).value
    inverse = real(1.0 / rounded if rounded else math.copysign(math.inf, rounded)).value
    is_exact = math.isfinite(inverse) and abs(math.frexp(rounded)[0]) == 0.5
    return call if is_exact else Call(torch.mul, (x, inverse))


def _floor_divide(x: Any, other: Any) -> Call:
    return Call(torch.div, (x, other), {"rounding_mode": "floor"})


def _reversed_floor_divide(x: Tensor, other: Any) -> Call:
    return _floor_divide(other, x)


def _clamp_min(x: Tensor, min: Any) -> Call:
    return Call(torch.clamp, (x, min, None))


def _clamp_max(x: Tensor, max: Any) -> Call:
    return Call(torch.clamp, (x, None, max))


def masked_fill(x: Tensor, mask: Tensor, value: Any) -> Call:
    """Return the call that means ``x.masked_fill(mask, value)``."""
    call = Call(torch.where, (mask, value, x))
    same = torch.result_type(value, x) == x.dtype
    return call if same else Call(cast, (call, x.dtype))


def _method_where(x: Any, condition: Tensor, other: Any) -> Call:
    return Call(torch.where, (condition, x, other))


def _bitwise(logical: Callable[..., Tensor], integer: Callable[..., Tensor]) -> Rewrite:
    def rewrite(*operands: Any) -> Call:
        bools = all(isinstance(x, Tensor) and x.dtype == torch.bool for x in operands)
        return Call(logical if bools else integer, operands)

    return rewrite


def _extremum(name: str, of_two: Callable[..., Tensor]) -> Rewrite:
    def rewrite(x: Tensor, *args: Any, **kwargs: Any) -> Call:
        other = kwargs.get("other", args[0] if args else None)
        if isinstance(other, Tensor):
            return Call(of_two, (x, other))
        return _table(name, x, *args, **kwargs)

    return rewrite


def _matrix_transpose(x: Tensor) -> Call:
    if x.dim() < 2:
        return Call(torch.reshape, (x, SizesOf(x)))
    return Call(torch.transpose, (x, x.dim() - 2, x.dim() - 1))


def _reverse_dims(x: Tensor) -> Call:
    if x.dim() == 2:
        return Call(torch.transpose, (x, 0, 1))
    return Call(torch.permute, (x, tuple(reversed(range(x.dim())))))


def _move_dims(x: Tensor, source: Any, destination: Any) -> Call:
    sources = source if isinstance(source, tuple | list) else (source,)
    targets = destination if isinstance(destination, tuple | list) else (destination,)
    moved = {t % x.dim(): s % x.dim() for s, t in zip(sources, targets, strict=True)}
    others = iter(d for d in range(x.dim()) if d not in moved.values())
    dims = tuple(moved[d] if d in moved else next(others) for d in range(x.dim()))
    return Call(torch.permute, (x, dims))


def _view(x: Tensor, *shape: Any, **kwargs: Any) -> Call:
    if kwargs or isinstance(shape[0], torch.dtype):
        return Call(torch.Tensor.view, (x, *shape), kwargs)
    return _table("reshape", x, *shape)


def _view_as(x: Tensor, other: Tensor) -> Call:
    return Call(torch.reshape, (x, SizesOf(other)))


def _expand_as(x: Tensor, other: Tensor) -> Call:
    return Call(torch.Tensor.expand, (x, SizesOf(other)))


def _broadcast_to(x: Tensor, size: Any) -> Call:
    return Call(torch.Tensor.expand, (x, tuple(size)))


def _part(function: Callable[[Tensor], Tensor]) -> Rewrite:
    def rewrite(x: Tensor) -> Call:
        return Call(function, (x,))

    return rewrite


def _ravel(x: Tensor) -> Call:
    return Call(torch.reshape, (x, (-1,)))


REWRITES: Mapping[str, Rewrite] = {
    "rsub": _reversed_subtraction,
    "__rsub__": _reversed_subtraction,
    "__rdiv__": _reversed_division,
    "__rtruediv__": _reversed_division,
    "floor_divide": _floor_divide,
    "__floordiv__": _floor_divide,
    "__rfloordiv__": _reversed_floor_divide,
    "__rmod__": _reflected("remainder"),
    "__rpow__": _reflected("pow"),
    "__rmatmul__": _reflected("matmul"),
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "masked_fill": masked_fill,
    "__and__": _bitwise(torch.logical_and, torch.bitwise_and),
    "__rand__": _bitwise(torch.logical_and, torch.bitwise_and),
    "__or__": _bitwise(torch.logical_or, torch.bitwise_or),
    "__ror__": _bitwise(torch.logical_or, torch.bitwise_or),
    "__xor__": _bitwise(torch.logical_xor, torch.bitwise_xor),
    "__rxor__": _bitwise(torch.logical_xor, torch.bitwise_xor),
    "__invert__": _bitwise(torch.logical_not, torch.bitwise_not),
    "bitwise_and": _bitwise(torch.logical_and, torch.bitwise_and),
    "bitwise_or": _bitwise(torch.logical_or, torch.bitwise_or),
    "bitwise_xor": _bitwise(torch.logical_xor, torch.bitwise_xor),
    "bitwise_not": _bitwise(torch.logical_not, torch.bitwise_not),
    "max": _extremum("max", torch.maximum),
    "min": _extremum("min", torch.minimum),
    "t": _reverse_dims,
    "get:T": _reverse_dims,
    "get:real": _part(torch.real),
    "get:imag": _part(torch.imag),
    "get:H": _reverse_dims,
    "get:mT": _matrix_transpose,
    "get:mH": _matrix_transpose,
    "movedim": _move_dims,
    "moveaxis": _move_dims,
    "ravel": _ravel,
    "view": _view,
    "view_as": _view_as,
    "reshape_as": _view_as,
    "expand_as": _expand_as,
    "broadcast_to": _broadcast_to,
    "Tensor.where": _method_where,
}
