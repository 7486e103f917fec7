"""Norms in ONNX; a handler is called as those of `layers` are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from snncc.export.network.tensor_operators import items
from snncc.export.onnx.lowering import Lowering
from snncc.export.onnx.values import Value

Handler: TypeAlias = Callable[..., Any]
Samples: TypeAlias = tuple[Any, ...]


def _batch_norm(  # noqa: PLR0913 - the signature of torch
    low: Lowering,
    samples: Samples,
    x: Value,
    mean: Value | None,
    var: Value | None,
    weight: Value | None = None,
    bias: Value | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> str:
    """Write a norm in evaluation mode."""
    if training or mean is None or var is None:
        raise low.refusal("a batch norm in training mode, or without running statistics")
    channels = mean.size(0)
    scale = _or_filled(low, weight, channels, 1.0)
    shift = _or_filled(low, bias, channels, 0.0)
    statistics = (low.use(mean), low.use(var))
    return low.graph.node("BatchNormalization", low.use(x), scale, shift, *statistics, epsilon=eps)


def _or_filled(low: Lowering, parameter: Value | None, size: Any, fill: float) -> str:
    """Return the name of a parameter, or of a constant where there is none."""
    if parameter is not None:
        return low.use(parameter)
    return low.graph.constant(torch.full(torch.Size(items(size, 1)), fill, dtype=low.dtype))


def _layer_norm(  # noqa: PLR0913 - the signature of torch
    low: Lowering,
    samples: Samples,
    x: Value,
    normalized_shape: Any,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    sizes = tuple(normalized_shape)
    affine = [_or_filled(low, weight, sizes, 1.0), *([] if bias is None else [low.use(bias)])]
    is_bare = low.one_step and bool(x.bare) and len(sizes) < x.rank
    name = low.graph.node(
        "LayerNormalization", x.bare if is_bare else low.use(x), *affine,
        axis=-len(sizes), epsilon=eps,
    )  # fmt: skip
    return Value(samples, bare=name) if is_bare else Value(samples, name)


def _group_norm(  # noqa: PLR0913 - the signature of torch
    low: Lowering,
    samples: Samples,
    x: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    """Write a norm of groups as the norm of a last axis that holds a group."""
    sizes = x.shapes[0][1:]
    if any(not x.is_static(d) for d in range(1, x.rank)):
        raise low.refusal("a group norm of channels whose size varies")
    inside = math.prod(sizes) // num_groups
    graph = low.graph
    rows = graph.node("Reshape", low.use(x), graph.integers([-1, num_groups, inside]))
    ones = graph.constant(torch.ones(inside, dtype=low.dtype), "ones")
    normal = graph.node("LayerNormalization", rows, ones, axis=-1, epsilon=eps)
    value: Any = Value(samples, graph.node("Reshape", normal, graph.integers([-1, *sizes])))
    for function, parameter in ((torch.mul, weight), (torch.add, bias)):
        if parameter is not None:
            shape = (-1, *(1,) * (x.rank - 2))
            value = low.apply(function, (value, low.apply(torch.reshape, (parameter, shape))))
    return value


def _instance_norm(  # noqa: PLR0913 - the signature of torch
    low: Lowering,
    samples: Samples,
    x: Value,
    mean: Value | None = None,
    var: Value | None = None,
    weight: Value | None = None,
    bias: Value | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    """Write a norm of each channel: of groups of one, or by running statistics."""
    if not use_input_stats:
        return _batch_norm(low, samples, x, mean, var, weight, bias, False, momentum, eps)
    if x.rank < 3 or not x.is_static(1):
        raise low.refusal("an instance norm without a batch, or of channels whose number varies")
    return _group_norm(low, samples, x, x.size(1), weight, bias, eps)


NORMS: Mapping[Any, Handler] = {
    F.batch_norm: _batch_norm,
    torch.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
}
