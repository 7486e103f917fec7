"""Rules that apply a stateless operator to a whole sequence at once.

One rule for each operator that knows the time axis: from the call at one step to the call on
[T, *].  A rule answers with a node, or with a `Rejection`; the operator is then mapped over time,
one call a step, which is always exact.

Numerics: a rule that changes how many rows a matrix product has is listed in ``REASSOCIATED``,
because the library may then sum in another order; `is_inexact` tells as well of maths functions
that torch rounds in one way in the middle of a tensor and in another at its end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

from snncc.frontend.operators.canonical import size
from snncc.ir import norm_ops, sequence_ops
from snncc.passes.base import Rejection


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the body, as it exists outside of the loop.

    ``rank`` is the number of axes at one step; ``stacked`` tells whether time is in front of them.
    """

    node: Any
    rank: int
    stacked: bool


Emit = Callable[..., torch.fx.Node]
Rule = Callable[[Emit, torch.fx.Node, list[Any], dict[str, Any]], torch.fx.Node | Rejection]

_WHOLE = frozenset({torch.int8, torch.int16, torch.int32, torch.int64})  # uint8 is a mask
MAPPED = Rejection("mapped", "no rule applies it to all steps at once")


def elementwise_rule(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node:
    """Broadcast: align what has time, leave what has not."""
    rank = len(node.meta["shape"])

    def aligned(value: Any) -> Any:
        if not isinstance(value, Value):
            return value
        if value.stacked and value.rank < rank:
            return emit(sequence_ops.align, value.node, rank)
        return value.node

    target: Any = node.target
    return emit(target, *map(aligned, args), **{k: aligned(v) for k, v in kwargs.items()})


def _linear(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    if _stacked(args[1:]) or kwargs:
        return MAPPED
    return emit(sequence_ops.linear, *plain(args))


def _folded(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    """Fold time into the batch around the operator."""
    x = args[0]
    batched = len(node.meta["shape"]) == x.rank and x.rank >= _batched_rank(node.target)
    if not batched or _stacked(args[1:]) or _stacked(list(kwargs.values())):
        return MAPPED
    target: Any = node.target
    return emit(sequence_ops.Folded(target), x.node, *plain(args[1:]), **kwargs)


def _batched_rank(target: Any) -> int:
    name = getattr(target, "__name__", "")
    return next((d + 2 for d in (1, 2, 3) if f"{d}d" in name), 2)


def _batch_norm(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    training = args[5] if len(args) > 5 else kwargs.get("training", False)
    if training:
        return Rejection("train-norm", "each step has its own batch statistics")
    return _folded(emit, node, args, kwargs)


def _dropout(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    training = args[2] if len(args) > 2 else kwargs.get("training", True)
    result: torch.fx.Node | Rejection = MAPPED if training else args[0].node
    return result


def _shift_dims(*positions: int) -> Rule:
    """Move the dims at these argument positions behind time; absent ones are not touched."""

    def rule(
        emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> torch.fx.Node | Rejection:
        if _stacked(args[1:]) or "dim" in kwargs or not set(positions) & set(range(len(args))):
            return MAPPED
        shifted = [_behind(a) if i in positions else a for i, a in enumerate(plain(args))]
        target: Any = node.target
        return emit(target, *shifted, **kwargs)

    return rule


def _behind(dim: Any) -> Any:
    if isinstance(dim, tuple | list):
        return tuple(_behind(d) for d in dim)
    return dim + 1 if isinstance(dim, int) and dim >= 0 else dim


def _reduce(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    """Reduce over given dims, or over all of one step."""
    x = args[0]
    dim = args[1] if len(args) > 1 else kwargs.pop("dim", None)
    if _stacked(args[1:]):
        return MAPPED
    everything = tuple(range(1, x.rank + 1))
    if dim is None and not everything:
        return MAPPED
    dims = everything if dim is None else _behind(dim)
    target: Any = node.target
    return emit(target, x.node, dims, *args[2:], **kwargs)


def _reshape(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    if kwargs:
        return MAPPED
    sizes = args[1] if isinstance(args[1], tuple | list) else args[1:]
    length = emit(size, args[0].node, 0)
    return emit(torch.reshape, args[0].node, (length, *plain(sizes)))


def _flatten(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    start = args[1] if len(args) > 1 else kwargs.get("start_dim", 0)
    end = args[2] if len(args) > 2 else kwargs.get("end_dim", -1)
    return emit(torch.flatten, args[0].node, _behind(start), _behind(end))


def _permute(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    x = args[0]
    dims = tuple(d % x.rank + 1 for d in args[1])
    return emit(torch.permute, x.node, (0, *dims))


def _getitem(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    index = args[1]
    if "shape" not in node.args[0].meta:  # type: ignore[union-attr]
        return emit(operator.getitem, args[0].node, index)  # of an operator with several results
    parts, written = (i if isinstance(i, tuple) else (i,) for i in (index, node.args[1]))
    known = [_basic_part(*pair) for pair in zip(parts, written, strict=True)]
    if any(isinstance(part, Rejection) for part in known):
        return MAPPED
    # As views: norms add in the order of the layout, which is not that of copies.
    return emit(operator.getitem, args[0].node, (slice(None), *known))


def _basic_part(part: Any, written: Any) -> Any:
    """Return a part of an index that makes a view of all steps, given how one step writes it."""
    if isinstance(part, slice):
        bounds = [part.start, part.stop, part.step]
        return MAPPED if _stacked(bounds) else slice(*plain(bounds))
    if isinstance(part, Value):  # torch takes a whole number in a tensor for the number
        is_number = part.rank == 0 and not part.stacked
        return part.node if is_number and written.meta.get("dtype") in _WHOLE else MAPPED
    return part if isinstance(part, int) or part is None or part is Ellipsis else MAPPED


def _gather(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    """Concatenate or stack; what has no time is repeated."""
    parts = args[0]
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    first = next((p for p in parts if isinstance(p, Value) and p.stacked), None)
    if first is None:
        return MAPPED
    length = emit(size, first.node, 0)
    repeated = [
        p.node if p.stacked else emit(sequence_ops.repeat_time, p.node, length) for p in parts
    ]
    target: Any = node.target
    return emit(target, repeated, _behind(dim))


def _matmul(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    a, b = args
    rows = a.stacked and not b.stacked and b.rank <= 2
    both = a.stacked and b.stacked and a.rank == b.rank >= 2
    left = b.stacked and not a.stacked and b.rank == a.rank == 2
    return emit(torch.matmul, a.node, b.node) if rows or both or left else MAPPED


def _direct(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    """Apply an operator that treats leading axes alike as it is."""
    if _stacked(args[1:]):
        return MAPPED
    target: Any = node.target
    return emit(target, *plain(args), **kwargs)


def _attention(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    """Fold time into the batch of queries, keys and values."""
    parts = args[:3]
    stacked = len(parts) == 3 and all(isinstance(p, Value) and p.stacked for p in parts)
    if not stacked or {p.rank for p in parts} > {parts[0].rank} or parts[0].rank < 3:
        return MAPPED
    if _stacked(args[3:]) or _stacked(list(kwargs.values())):
        return MAPPED
    return emit(sequence_ops.Folded(F.scaled_dot_product_attention, 3), *plain(args), **kwargs)


def _einsum(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    """Give time a letter of its own."""
    equation, operands = args[0], args[1:]
    if not all(isinstance(v, Value) for v in operands) or "->" not in equation or "." in equation:
        return MAPPED
    inputs, output = equation.replace(" ", "").split("->")
    letter = next((c for c in "tTzZ" if c not in equation), None)
    if letter is None:
        return MAPPED
    terms = [
        letter + term if value.stacked else term
        for term, value in zip(inputs.split(","), operands, strict=True)
    ]
    return emit(torch.einsum, f"{','.join(terms)}->{letter}{output}", *plain(operands))


def _expand(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    """Expand or repeat the axes behind time."""
    sizes = args[1] if isinstance(args[1], tuple | list) else args[1:]
    if _stacked(sizes) or kwargs:
        return MAPPED
    aligned = emit(sequence_ops.align, args[0].node, len(sizes))
    of_time = -1 if node.target is torch.Tensor.expand else 1
    target: Any = node.target
    return emit(target, aligned, (of_time, *plain(sizes)))


def _size(
    emit: Emit, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> torch.fx.Node | Rejection:
    return emit(size, args[0].node, _behind(args[1]))


def _stacked(values: Any) -> bool:
    return any(isinstance(v, Value) and v.stacked for v in _flat(values))


def _flat(values: Any) -> list[Any]:
    if isinstance(values, tuple | list):
        return [v for item in values for v in _flat(item)]
    return [values]


def plain(values: Any) -> list[Any]:
    """Return arguments with the nodes in place of the values."""
    return [
        tuple(plain(v)) if isinstance(v, tuple | list) else v.node if isinstance(v, Value) else v
        for v in values
    ]


FOLDED = (
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.lp_pool2d,
    torch.conv1d, torch.conv2d, torch.conv3d, F.interpolate, F.pad, F.group_norm,
)  # fmt: skip

# Elementwise for torch, though without a scalar form here.
POINTWISE = (
    F.gelu, F.silu, F.softplus, F.leaky_relu, F.elu, F.hardtanh, F.hardsigmoid, F.softsign,
    torch.erf, torch.rsqrt, torch.tan, torch.atan, torch.sinh, torch.cosh,
    torch.trunc, torch.frac, torch.remainder, torch.fmod, torch.atan2, torch.hypot, torch.copysign,
    torch.fmax, torch.fmin, torch.lerp, torch.addcmul, torch.addcdiv, torch.bitwise_and,
    torch.bitwise_or, torch.bitwise_xor, torch.bitwise_not, torch.complex, torch.real, torch.imag,
    torch.conj, torch.angle, norm_ops.norm_scale, norm_ops.norm_shift,
)  # fmt: skip

# Operators whose second argument is a dim, or several.
ALONG_A_DIM = (
    torch.unsqueeze, torch.squeeze, torch.select, torch.narrow, torch.unflatten,
    torch.Tensor.unfold, torch.softmax, torch.log_softmax, F.softmax, F.log_softmax, torch.cumsum,
    torch.cumprod, torch.flip, torch.max, torch.min, torch.argmax, torch.argmin, torch.all,
    torch.any, torch.sort,
)  # fmt: skip

RULES: Mapping[Any, Rule] = {
    F.linear: _linear,
    **dict.fromkeys(FOLDED, _folded),
    F.batch_norm: _batch_norm,
    F.dropout: _dropout,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.bmm: _matmul,
    torch.reshape: _reshape,
    torch.flatten: _flatten,
    torch.permute: _permute,
    torch.transpose: _shift_dims(1, 2),
    torch.movedim: _shift_dims(1, 2),
    torch.diagonal: _shift_dims(2, 3),
    **dict.fromkeys(ALONG_A_DIM, _shift_dims(1)),
    torch.roll: _shift_dims(2),
    torch.topk: _shift_dims(2),
    torch.Tensor.expand: _expand,
    torch.Tensor.repeat: _expand,
    torch.einsum: _einsum,
    F.scaled_dot_product_attention: _attention,
    F.embedding: _direct,
    F.one_hot: _direct,
    F.layer_norm: _direct,
    torch.clone: _direct,
    **dict.fromkeys(POINTWISE, elementwise_rule),
    torch.sum: _reduce,
    torch.mean: _reduce,
    torch.amax: _reduce,
    torch.amin: _reduce,
    torch.cat: _gather,
    torch.stack: _gather,
    operator.getitem: _getitem,
    size: _size,
}

# Operators with an effect whose rules tell whether they have it, and reject the call if so.
MAY_BE_PURE = (F.batch_norm, F.dropout)

# Operators whose sums may be taken in another order once time is folded in.
REASSOCIATED = frozenset(
    {
        F.linear,
        torch.matmul,
        torch.mm,
        torch.bmm,
        torch.sum,
        torch.mean,
        torch.cumsum,
        torch.cumprod,
        torch.einsum,
        F.scaled_dot_product_attention,
        *FOLDED[:6],
        *FOLDED[16:19],
    }
)

# Torch computes these with vectors, and with other code where less than a vector is left.
_ROUNDED_BY_PLACE = frozenset(
    {
        *(torch.sigmoid, torch.sinh, torch.cosh, torch.atan2, torch.hypot),
        *(F.gelu, F.silu, F.softplus, F.elu),
    }
)
_EXACT_POWERS = (0.5, 2, 3, -1)


def is_inexact(node: torch.fx.Node) -> bool:
    """Tell whether an operator may round in another way when all steps are one tensor."""
    dtype = node.meta.get("dtype")
    if dtype is not None and dtype.is_complex and node.target in (torch.mul, torch.div):
        return True
    if node.target is torch.pow:
        return node.args[1] not in _EXACT_POWERS
    return node.target in REASSOCIATED or node.target in _ROUNDED_BY_PLACE
