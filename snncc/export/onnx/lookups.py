"""Integers in ONNX, and operators that look things up by them.

A handler is called as those of `layers` are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from snncc.export.onnx.expressions import Lanes
from snncc.export.onnx.graph import TYPES
from snncc.export.onnx.lowering import INTEGERS, Lowering
from snncc.export.onnx.values import Value
from snncc.frontend.operators import canonical
from snncc.ir.nodes import Binary, Const, Op, Select, Unary, Var

Handler: TypeAlias = Callable[..., Any]
Samples: TypeAlias = tuple[Any, ...]


def _cast(low: Lowering, samples: Samples, x: Value, dtype: torch.dtype) -> Any:
    """Write a conversion; to an integer it leaves out what is behind the point, as torch does."""
    if x.is_number or not {x.dtype, dtype} & INTEGERS:
        return low.elementwise(samples, canonical.cast, (x, dtype), {})
    if dtype not in TYPES:
        raise low.refusal(f"a cast to {dtype}")
    if low.one_step and x.bare:
        return Value(samples, bare=low.graph.cast(x.bare, dtype))
    return low.graph.cast(low.use(x), dtype)


def small(low: Lowering, x: Value, bound: float, dtype: torch.dtype) -> Value:
    """Write integers as floats: not a number where they are too large to be counted on exactly."""
    lanes = Lanes(low.graph, dtype, {"x": low.term(x)}, low.count)
    is_large = Binary(Op.GT, Unary(Op.ABS, Var("x")), Const(bound))
    term = lanes.write(Select(is_large, Const(float("nan")), Var("x")))
    return Value(low.sampled(canonical.cast, (x, dtype), {}), term.name)


def _embedding(
    low: Lowering, samples: Samples, rows: Value, weight: Value, *_: Any, **options: Any
) -> Value:
    """Write rows of a table; what else an embedding does is for its gradient."""
    if options.get("max_norm") is not None:
        raise low.refusal("an embedding that scales its rows in place")
    if low.one_step and rows.bare:
        return Value(samples, bare=low.graph.node("Gather", low.use(weight), rows.bare, axis=0))
    return Value(samples, low.graph.node("Gather", low.use(weight), low.use(rows), axis=0))


def _one_hot(low: Lowering, samples: Samples, x: Value, num_classes: int = -1) -> str:
    """Write a row of a number of classes with a one where x says: a comparison with each class."""
    if num_classes < 0:
        raise low.refusal("a 'one_hot' whose number of classes depends on its values")
    classes = low.graph.constant(torch.arange(num_classes), "classes")
    each = low.graph.node("Unsqueeze", low.use(x), low.graph.integers([-1]))
    return low.graph.cast(low.graph.node("Equal", each, classes), torch.int64)


def _pad(  # noqa: PLR0913 - the signature of torch
    low: Lowering,
    samples: Samples,
    x: Value,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> str:
    """Write rows around a tensor; torch counts axes from the last, and cuts rows below 0."""
    if mode != "constant" or not all(isinstance(n, int) for n in pad):
        raise low.refusal(f"a padding of mode '{mode}', or by a number that depends on a size")
    sides = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    sides = [(0, 0)] * (x.rank - len(sides)) + sides
    bounds = low.graph.integers([n for n, _ in sides] + [n for _, n in sides])
    fill = low.graph.constant(torch.tensor(value or 0.0, dtype=x.dtype), "padding")
    return low.graph.node("Pad", low.use(x), bounds, fill)


def _softplus(
    low: Lowering, samples: Samples, x: Value, beta: float = 1.0, threshold: float = 20.0
) -> Value:
    """Write log(1 + exp(beta x)) / beta, which is x within rounding where torch returns x."""
    if x.dtype is not low.dtype or threshold < 20.0:
        raise low.refusal("a 'softplus' with a threshold of its own")
    is_bare = low.one_step and bool(x.bare)
    name = x.bare if is_bare else low.use(x)
    if beta == 1.0:
        name = low.graph.node("Softplus", name)
    else:
        name = low.graph.node("Softplus", low.graph.node("Mul", name, low.use(beta)))
        name = low.graph.node("Div", name, low.use(beta))
    return Value(samples, bare=name) if is_bare else Value(samples, name)


def _foreach(target: Any) -> Handler:
    """Return the handler of an operator on each tensor of a list."""

    def handle(low: Lowering, samples: Samples, tensors: Sequence[Any], *others: Any) -> Any:
        pairs = [
            tuple(o[i] if isinstance(o, list | tuple) else o for o in others)
            for i in range(len(tensors))
        ]
        return [low.apply(target, (x, *rest)) for x, rest in zip(tensors, pairs, strict=True)]

    return handle


LOOKUPS: Mapping[Any, Handler] = {
    canonical.cast: _cast,
    F.embedding: _embedding,
    torch.embedding: lambda low, samples, weight, rows, *_: _embedding(low, samples, rows, weight),
    F.one_hot: _one_hot,
    F.pad: _pad,
    torch._C._nn.pad: _pad,
    F.softplus: _softplus,
    torch._foreach_mul: _foreach(torch.mul),
    torch._foreach_add: _foreach(torch.add),
    torch._foreach_sub: _foreach(torch.sub),
}
