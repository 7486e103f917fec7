"""Products, pooling and reductions in ONNX.

A handler gets the lowering, the result for each of the sample sizes and the operator's arguments,
and returns the name of the result or what stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from snncc.export.network.tensor_operators import items
from snncc.export.onnx.lowering import Lowering
from snncc.export.onnx.values import Value
from snncc.ir import sequence_ops

Handler: TypeAlias = Callable[..., Any]
Samples: TypeAlias = tuple[Any, ...]


def _linear(
    low: Lowering, samples: Samples, x: Value, weight: Value, bias: Value | None = None
) -> Value:
    """Write a linear layer; the weight is the model's own, and a runtime transposes it once."""
    addend = [] if bias is None else [low.use(bias)]
    if x.rank == 2 or (low.one_step and x.rank == 3 and x.bare):
        rows = low.use(x) if x.rank == 2 else x.bare
        name = low.graph.node("Gemm", rows, low.use(weight), *addend, transB=1)
        return Value(samples, name) if x.rank == 2 else Value(samples, bare=name)
    turned = low.graph.node("Transpose", low.use(weight), perm=[1, 0])
    is_bare = low.one_step and bool(x.bare)
    name = low.graph.node("MatMul", x.bare if is_bare else low.use(x), turned)
    if addend:
        name = low.graph.node("Add", name, *addend)
    return Value(samples, bare=name) if is_bare else Value(samples, name)


def _matmul(low: Lowering, samples: Samples, a: Value, b: Value) -> Value:
    if low.one_step and a.bare and b.bare and a.rank == b.rank > 2:
        return Value(samples, bare=low.graph.node("MatMul", a.bare, b.bare))
    return Value(samples, low.graph.node("MatMul", low.use(a), low.use(b)))


def _addmm(low: Lowering, samples: Samples, c: Value, a: Value, b: Value, **options: Any) -> str:
    return low.graph.node(
        "Gemm", low.use(a), low.use(b), low.use(c),
        alpha=float(options.get("alpha", 1)), beta=float(options.get("beta", 1)),
    )  # fmt: skip


def _convolution(rank: int) -> Handler:
    """Return the handler of convolutions over one to three dimensions."""

    def handle(  # noqa: PLR0913 - the signature of torch
        low: Lowering,
        samples: Samples,
        x: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> str:
        if x.rank != rank + 2:
            raise low.refusal("a convolution without a batch")
        dilations = items(dilation, rank)
        kernel = [weight.size(2 + d) for d in range(rank)]
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
            pads = [t // 2 for t in total] + [t - t // 2 for t in total]
        else:
            pads = list(items(0 if padding == "valid" else padding, rank)) * 2
        return low.graph.node(
            "Conv", low.use(x), low.use(weight), *([] if bias is None else [low.use(bias)]),
            strides=items(stride, rank), pads=pads, dilations=dilations, group=groups,
            kernel_shape=kernel,
        )  # fmt: skip

    return handle


def _max_pool(rank: int) -> Handler:
    def handle(  # noqa: PLR0913 - the signature of torch
        low: Lowering,
        samples: Samples,
        x: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> str:
        if return_indices or x.rank != rank + 2:
            raise low.refusal("a pooling that returns indices, or one without a batch")
        kernel = items(kernel_size, rank)
        return low.graph.node(
            "MaxPool", low.use(x), kernel_shape=kernel,
            strides=kernel if stride in (None, (), []) else items(stride, rank),
            pads=items(padding, rank) * 2, dilations=items(dilation, rank),
            ceil_mode=int(ceil_mode),
        )  # fmt: skip

    return handle


def _average_pool(rank: int) -> Handler:
    def handle(  # noqa: PLR0913 - the signature of torch
        low: Lowering,
        samples: Samples,
        x: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> str:
        kernel, pads = items(kernel_size, rank), items(padding, rank)
        strides = kernel if stride in (None, (), []) else items(stride, rank)
        if x.rank != rank + 2:
            raise low.refusal("a pooling without a batch")
        if divisor_override is not None:
            raise low.refusal("a pooling with a divisor of its own")
        if any(pads) and count_include_pad and ceil_mode:
            # What windows beyond the padding are divided by differs between versions of ONNX.
            raise low.refusal("a mean that counts padding, over windows that may reach beyond it")
        return low.graph.node(
            "AveragePool", low.use(x), kernel_shape=kernel, strides=strides, pads=pads * 2,
            ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad and any(pads)),
        )  # fmt: skip

    return handle


def _adaptive_pool(rank: int, operator: str) -> Handler:
    """Return the handler of pooling to a given size: axis by axis, window by window."""

    def handle(
        low: Lowering, samples: Samples, x: Value, _: Any, return_indices: bool = False
    ) -> str:
        if return_indices or x.rank != rank + 2:
            raise low.refusal("a pooling that returns indices, or one without a batch")
        name = low.use(x)
        for axis in range(2, rank + 2):
            n, out = x.size(axis), samples[0].shape[axis]
            if n == out:
                continue
            windows = [(o * n // out, -(-(o + 1) * n // out)) for o in range(out)]
            parts = [_reduced_window(low, operator, name, axis, window) for window in windows]
            name = parts[0] if len(parts) == 1 else low.graph.node("Concat", *parts, axis=axis)
        return name

    return handle


def _reduced_window(
    low: Lowering, operator: str, name: str, axis: int, window: tuple[int, int]
) -> str:
    bounds = (low.graph.integers([n]) for n in (*window, axis))
    part = low.graph.node("Slice", name, *bounds)
    return low.graph.node(operator, part, low.graph.integers([axis]), keepdims=1)


def _reduction(operator: str) -> Handler:
    """Return the handler of a reduction over axes."""

    def handle(
        low: Lowering, samples: Samples, x: Value, dim: Any = None, keepdim: bool = False, **_: Any
    ) -> Any:
        has_index = not isinstance(samples[0], torch.Tensor)
        results = tuple(s[0] for s in samples) if has_index else samples
        if x.dtype is not low.dtype:
            raise low.refusal(f"a reduction of {x.dtype}")
        axes = tuple(range(x.rank)) if dim in (None, (), []) else items(dim, 1)
        if low.one_step and x.bare and not keepdim and axes == (0,):
            value = Value(results, x.bare)
        elif low.one_step and x.bare and 0 not in axes:
            bare = _reduced(low, operator, x.bare, tuple(a - 1 for a in axes), keepdim)
            value = Value(results, bare=bare)
        else:
            value = Value(results, _reduced(low, operator, low.use(x), axes, keepdim))
        if not has_index:
            return value
        place = _extreme_place(operator.replace("Reduce", "Arg"))
        return [value, place(low, tuple(s[1] for s in samples), x, dim, keepdim)]

    return handle


def _extreme_place(operator: str) -> Handler:
    """Return the handler of where an extreme is; of equal elements the first is meant."""

    def handle(
        low: Lowering, samples: Samples, x: Value, dim: int | None = None, keepdim: bool = False
    ) -> Value:
        if x.dtype is not low.dtype:
            raise low.refusal(f"an extreme of {x.dtype}")
        if dim is None:
            flat = low.graph.node("Reshape", low.use(x), low.graph.integers([-1]))
            name = low.graph.node(operator, flat, axis=0, keepdims=0)
            ones = low.graph.integers([1] * x.rank)
            return Value(samples, low.graph.node("Reshape", name, ones) if keepdim else name)
        axis = dim % x.rank
        if low.one_step and x.bare and axis:
            bare = low.graph.node(operator, x.bare, axis=axis - 1, keepdims=int(keepdim))
            return Value(samples, bare=bare)
        name = low.graph.node(operator, low.use(x), axis=axis, keepdims=int(keepdim))
        return Value(samples, name)

    return handle


def _reduced(low: Lowering, operator: str, name: str, axes: tuple[int, ...], keepdim: bool) -> str:
    return low.graph.node(operator, name, low.graph.integers(axes), keepdims=int(keepdim))


def _softmax(operator: str) -> Handler:
    def handle(low: Lowering, samples: Samples, x: Value, dim: int, *_: Any, **__: Any) -> Value:
        if low.one_step and x.bare and dim % x.rank:
            return Value(samples, bare=low.graph.node(operator, x.bare, axis=dim % x.rank - 1))
        return Value(samples, low.graph.node(operator, low.use(x), axis=dim))

    return handle


def _einsum(low: Lowering, samples: Samples, equation: Any, *operands: Any) -> str:
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        raise low.refusal("an 'einsum' whose subscripts are no text")
    return low.graph.node("Einsum", *(low.use(x) for x in operands), equation=equation)


def _cumulative_sum(
    low: Lowering, samples: Samples, x: Value, dim: int, *, dtype: torch.dtype | None = None
) -> str:
    if x.dtype is not low.dtype or dtype not in (None, low.dtype):
        raise low.refusal(f"a cumulative sum of {x.dtype}")
    return low.graph.node("CumSum", low.use(x), low.number(dim % x.rank))


def _gelu(low: Lowering, samples: Samples, x: Value, approximate: str = "none") -> Value:
    if x.dtype is not torch.float32:
        raise low.refusal("a 'gelu' in other than single precision, which runtimes lack")
    is_bare = low.one_step and bool(x.bare)
    name = low.graph.node("Gelu", x.bare if is_bare else low.use(x), approximate=approximate)
    return Value(samples, bare=name) if is_bare else Value(samples, name)


LAYERS: Mapping[Any, Handler] = {
    F.linear: _linear,
    sequence_ops.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.bmm: _matmul,
    torch.addmm: _addmm,
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    F.max_pool1d: _max_pool(1),
    F.max_pool2d: _max_pool(2),
    F.max_pool3d: _max_pool(3),
    torch.max_pool1d: _max_pool(1),
    torch.max_pool2d: _max_pool(2),
    F.avg_pool1d: _average_pool(1),
    F.avg_pool2d: _average_pool(2),
    F.adaptive_avg_pool1d: _adaptive_pool(1, "ReduceMean"),
    F.adaptive_avg_pool2d: _adaptive_pool(2, "ReduceMean"),
    F.adaptive_max_pool2d: _adaptive_pool(2, "ReduceMax"),
    torch.sum: _reduction("ReduceSum"),
    torch.mean: _reduction("ReduceMean"),
    torch.prod: _reduction("ReduceProd"),
    torch.amax: _reduction("ReduceMax"),
    torch.amin: _reduction("ReduceMin"),
    torch.max: _reduction("ReduceMax"),
    torch.min: _reduction("ReduceMin"),
    torch.argmax: _extreme_place("ArgMax"),
    torch.argmin: _extreme_place("ArgMin"),
    torch.einsum: _einsum,
    torch.cumsum: _cumulative_sum,
    F.gelu: _gelu,
    torch.softmax: _softmax("Softmax"),
    F.softmax: _softmax("Softmax"),
    torch.log_softmax: _softmax("LogSoftmax"),
    F.log_softmax: _softmax("LogSoftmax"),
}
