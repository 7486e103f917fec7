"""Operators on whole tensors in an exported library: products, pooling, norms, reductions.

A handler gets the tracer, the operator's result on tensors that stand for arrays, and its
arguments; it writes down the operation and returns what stands for the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from snncc.export.network.nodes import (
    Array,
    Border,
    Convolution,
    Home,
    Linear,
    MatMul,
    Normalize,
    Place,
    Pool,
    Reduce,
    Softmax,
)
from snncc.export.remedies import EVALUATION
from snncc.ir import sequence_ops

if TYPE_CHECKING:
    from snncc.export.network.trace import Tracer

Handler: TypeAlias = Callable[..., Any]


def _linear(
    tracer: Tracer, value: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    stand, result = tracer.make(value)
    tracer.add(
        Linear(
            x=tracer.dense(x),
            weight=_weight(tracer, weight.t()),
            bias=None if bias is None else _weight(tracer, bias),
            result=result,
        )
    )
    return stand


def _weight(tracer: Tracer, tensor: Tensor) -> Array:
    """Return a dense weight; refuse one that is computed from the input."""
    if tensor.untyped_storage().data_ptr() in tracer.buffers:
        array = tracer.array(tensor)
        if array.buffer.home is not Home.WEIGHT:
            raise tracer.refusal("its weight is computed from the input or from a state")
        return array
    dense = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    tracer.kept.append(dense)
    return tracer.array(dense)


def _convolution(rank: int) -> Handler:
    """Return the handler of convolutions over one or two dimensions."""

    def handle(  # noqa: PLR0913 - the signature of torch
        tracer: Tracer,
        value: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if x.dim() != rank + 2 or isinstance(padding, str):
            raise tracer.refusal("a convolution without a batch, or padded by name")
        if rank == 1:
            x, weight, flat = x.unsqueeze(2), weight.unsqueeze(2), value.unsqueeze(2)
            settings = [(n, *items(v, 1)) for n, v in ((1, stride), (0, padding), (1, dilation))]
        else:
            flat, settings = value, [items(v, 2) for v in (stride, padding, dilation)]
        stand, result = tracer.make(flat)
        # [out, in / groups, kh, kw] as [in, kh, kw, out / groups], group after group.
        parts = weight.chunk(groups, 0)
        ordered = torch.cat([part.permute(1, 2, 3, 0) for part in parts], 0)
        s, p, d = ((int(a), int(b)) for a, b in settings)
        tracer.add(
            Convolution(
                x=tracer.dense(x),
                weight=_weight(tracer, ordered),
                bias=None if bias is None else _weight(tracer, bias),
                result=result,
                stride=s,
                padding=p,
                dilation=d,
                groups=groups,
                kernel=(weight.shape[2], weight.shape[3]),
            )
        )
        return stand.squeeze(2) if rank == 1 else stand

    return handle


def items(value: Any, count: int) -> tuple[int, ...]:
    """Return a setting of a window for each of its axes: one number stands for all."""
    each = tuple(value) if isinstance(value, tuple | list) else (value,)
    return each * count if len(each) == 1 else each


def _pool(rank: int, *, is_max: bool) -> Handler:
    """Return the handler of pooling with windows of one size."""

    def handle(  # noqa: PLR0913 - the signature of torch
        tracer: Tracer,
        value: Tensor,
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        options = _pool_options(rest, named, is_max=is_max)
        kernel = items(kernel_size, rank)
        steps = kernel if stride in (None, (), []) else items(stride, rank)
        pads = items(padding, rank)
        sizes, outs = x.shape[-rank:], value.shape[-rank:]
        if options["dilation"] not in (1, (1,) * rank, [1] * rank) or options["indices"]:
            raise tracer.refusal("a pooling with dilation, or one that returns indices")
        spans = [
            [(o * s - p, min(o * s - p + k, n + p)) for o in range(out)]
            for k, s, p, n, out in zip(kernel, steps, pads, sizes, outs, strict=True)
        ]
        windows = [
            [(max(a, 0), min(b, n)) for a, b in span] for span, n in zip(spans, sizes, strict=True)
        ]
        counted = spans if options["padded"] else windows
        return _pooled(
            tracer, value, x, windows, counted, is_max=is_max, divisor=options["divisor"]
        )

    return handle


def _pool_options(rest: tuple[Any, ...], named: dict[str, Any], *, is_max: bool) -> dict[str, Any]:
    """Return the further settings of a pooling under names of our own."""
    order = (
        ("dilation", "ceil_mode", "return_indices")
        if is_max
        else ("ceil_mode", "count_include_pad", "divisor_override")
    )
    given = dict(zip(order, rest, strict=False)) | named
    return {
        "dilation": given.get("dilation", 1),
        "indices": given.get("return_indices", False),
        "padded": given.get("count_include_pad", True),
        "divisor": given.get("divisor_override"),
    }


def _adaptive(rank: int, *, is_max: bool) -> Handler:
    """Return the handler of pooling to a given size."""

    def handle(tracer: Tracer, value: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
        sizes, outs = x.shape[-rank:], value.shape[-rank:]
        windows = [
            [(o * n // out, -(-(o + 1) * n // out)) for o in range(out)]
            for n, out in zip(sizes, outs, strict=True)
        ]
        return _pooled(tracer, value, x, windows, windows, is_max=is_max)

    return handle


def _pooled(  # noqa: PLR0913 - what a pooling is made of
    tracer: Tracer,
    value: Tensor,
    x: Tensor,
    windows: list[list[tuple[int, int]]],
    counted: list[list[tuple[int, int]]],
    *,
    is_max: bool,
    divisor: int | None = None,
) -> Tensor:
    rank = len(windows)
    if x.dim() != rank + 2:
        raise tracer.refusal("a pooling without a batch")
    if rank == 1:
        x, flat = x.unsqueeze(2), value.unsqueeze(2)
        windows, counted = [[(0, 1)], *windows], [[(0, 1)], *counted]
    else:
        flat = value
    stand, result = tracer.make(flat)
    divisors = [divisor or (b - a) * (d - c) for a, b in counted[0] for c, d in counted[1]]
    rows, columns = (tuple(each) for each in windows)
    tracer.add(Pool(tracer.dense(x), result, (rows, columns), is_max, tuple(divisors)))
    return stand.squeeze(2) if rank == 1 else stand


def _reduction(kind: str) -> Handler:
    """Return the handler of a reduction over axes."""

    def handle(
        tracer: Tracer, value: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any
    ) -> Any:
        has_index = isinstance(value, tuple)
        if has_index:
            tracer.refuse_indices()
        result = value[0] if has_index else value
        axes = tuple(range(x.dim())) if dim in (None, (), []) else items(dim, 1)
        axes = tuple(sorted(a % x.dim() for a in axes)) if x.dim() else ()
        stand, array = tracer.make(result)
        tracer.add(Reduce(kind, tracer.array(x), axes, array))
        return (stand, None) if has_index else stand

    return handle


def _matmul(tracer: Tracer, value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if a.dim() < 2 or b.dim() < 2:
        raise tracer.refusal("a product with a vector")
    if b.dim() == 2 and b.untyped_storage().data_ptr() not in tracer.buffers:
        return _linear(tracer, value, a, b.t())
    stand, result = tracer.make(value)
    lead = value.shape[:-2]
    left = tracer.array(a.expand(*lead, *a.shape[-2:]))
    right = tracer.array(b.expand(*lead, *b.shape[-2:]))
    tracer.add(MatMul(left, right, result))
    return stand


def _softmax(*, is_log: bool) -> Handler:
    def handle(tracer: Tracer, value: Tensor, x: Tensor, dim: int, *_: Any, **__: Any) -> Tensor:
        stand, result = tracer.make(value)
        tracer.add(Softmax(tracer.array(x), dim % x.dim(), is_log, result))
        return stand

    return handle


def _layer_norm(  # noqa: PLR0913 - the signature of torch
    tracer: Tracer,
    value: Tensor,
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    groups = x.numel() // max(torch.Size(normalized_shape).numel(), 1)
    return _normalized(tracer, x, groups, eps, (weight, bias))


def _group_norm(  # noqa: PLR0913 - the signature of torch
    tracer: Tracer,
    value: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    shape = (-1, *(1,) * (x.dim() - 2))
    affine = tuple(None if p is None else p.reshape(shape) for p in (weight, bias))
    return _normalized(tracer, x, x.shape[0] * num_groups, eps, affine)


def _normalized(
    tracer: Tracer, x: Tensor, groups: int, eps: float, affine: tuple[Tensor | None, ...]
) -> Tensor:
    stand, result = tracer.make(x)
    tracer.add(Normalize(tracer.dense(x), groups, eps, result))
    for function, parameter in zip((torch.mul, torch.add), affine, strict=True):
        if parameter is not None:
            stand = tracer.apply(function, (stand, parameter))
    return stand


def _batch_norm(  # noqa: PLR0913 - the signature of torch
    tracer: Tracer,
    value: Tensor,
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Write a norm in evaluation mode as a factor and a shift for each channel."""
    if training or mean is None or var is None:
        raise tracer.refusal("a batch norm that takes the statistics of its batch", EVALUATION)
    shape = (-1, *(1,) * (x.dim() - 2))
    scale = torch.rsqrt(var + eps) if weight is None else weight / torch.sqrt(var + eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    product = tracer.apply(torch.mul, (x, scale.detach().reshape(shape)))
    result: Tensor = tracer.apply(torch.add, (product, shift.detach().reshape(shape)))
    return result


def _joined(tracer: Tracer, value: Tensor, tensors: Any, dim: int = 0) -> Tensor:
    """Write down a concatenation as one copy for each part."""
    stand, _ = tracer.make(value)
    start = 0
    for part in tensors:
        size = part.shape[dim]
        place = tracer.array(stand.narrow(dim, start, size))
        tracer.add(Place(tracer.array(part), place))
        start += size
    return stand


def _stacked(tracer: Tracer, value: Tensor, tensors: Any, dim: int = 0) -> Tensor:
    stand, _ = tracer.make(value)
    for i, part in enumerate(tensors):
        tracer.add(Place(tracer.array(part), tracer.array(stand.select(dim, i))))
    return stand


def _padded(  # noqa: PLR0913 - the signature of torch
    tracer: Tracer,
    value: Tensor,
    x: Tensor,
    pad: Any,
    mode: str = "constant",
    number: float | None = None,
) -> Tensor:
    """Write down what padding adds on both sides of each axis, then what stays between them."""
    if mode != "constant":
        raise tracer.refusal(f"padding of mode '{mode}'")
    stand, _ = tracer.make(value)
    inside, kept = stand, x
    for axis, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
        cut = max(-before, 0), max(-after, 0)
        kept = kept.narrow(-axis, cut[0], kept.shape[-axis] - sum(cut))
        for start, count in ((0, before), (inside.shape[-axis] - after, after)):
            if count > 0:
                border = tracer.array(inside.narrow(-axis, start, count))
                tracer.add(Border(float(number or 0), border))
        inside = inside.narrow(-axis, max(before, 0), kept.shape[-axis])
    tracer.add(Place(tracer.array(kept), tracer.array(inside)))
    return stand


def _shift_time(tracer: Tracer, value: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """Return the values of the step before: of one step, what the state holds."""
    stand, result = tracer.make(value)
    expanded = initial.expand(x.shape[1:]).unsqueeze(0)
    tracer.add(Place(tracer.array(expanded), result))
    return stand


HANDLERS: Mapping[Any, Handler] = {
    F.linear: _linear,
    sequence_ops.linear: _linear,
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.avg_pool1d: _pool(1, is_max=False),
    F.avg_pool2d: _pool(2, is_max=False),
    F.max_pool1d: _pool(1, is_max=True),
    F.max_pool2d: _pool(2, is_max=True),
    torch.max_pool1d: _pool(1, is_max=True),
    torch.max_pool2d: _pool(2, is_max=True),
    F.adaptive_avg_pool1d: _adaptive(1, is_max=False),
    F.adaptive_avg_pool2d: _adaptive(2, is_max=False),
    F.adaptive_max_pool2d: _adaptive(2, is_max=True),
    torch.sum: _reduction("sum"),
    torch.mean: _reduction("mean"),
    torch.amax: _reduction("max"),
    torch.amin: _reduction("min"),
    torch.max: _reduction("max"),
    torch.min: _reduction("min"),
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.bmm: _matmul,
    torch.softmax: _softmax(is_log=False),
    F.softmax: _softmax(is_log=False),
    torch.log_softmax: _softmax(is_log=True),
    F.log_softmax: _softmax(is_log=True),
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _batch_norm,
    torch.cat: _joined,
    torch.stack: _stacked,
    F.pad: _padded,
    sequence_ops.shift_time: _shift_time,
}
