"""Torch operators on whole tensors in ONNX: sizes, arrangement, products, reductions.

A handler of `STRUCTURAL` gets the lowering and the arguments, and returns what stands for the
result.  A handler of `HANDLERS` gets the lowering, the result for each of the sample sizes and the
arguments, and returns the name of the result or what stands for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from snncc.export.network.tensor_operators import items
from snncc.export.onnx.layers import LAYERS
from snncc.export.onnx.lookups import LOOKUPS, small
from snncc.export.onnx.lowering import Lowering
from snncc.export.onnx.norms import NORMS
from snncc.export.onnx.values import Value, known_value
from snncc.frontend.operators import canonical
from snncc.ir import sequence_ops

Handler: TypeAlias = Callable[..., Any]
Samples: TypeAlias = tuple[Any, ...]


def _size(low: Lowering, x: Value, dim: int) -> Any:
    """Return the size of a dim: a number where it is static."""
    if x.is_static(dim):
        return x.size(dim)
    name = low.graph.node("Shape", low.use(x), start=dim % x.rank, end=dim % x.rank + 1)
    scalar = low.graph.node("Squeeze", name, low.graph.integers([0]))
    return Value(tuple(s.shape[dim] for s in x.samples), scalar)


def _numel(low: Lowering, x: Value) -> Any:
    count: Any = 1
    for dim in range(x.rank):
        count = low.apply(operator.mul, (count, _size(low, x, dim)))
    return count


def trip_length(low: Lowering, trip: sequence_ops.TripLength, x: Value) -> Any:
    """Return the number of steps of a loop over an axis."""
    size = _size(low, x, trip.dim)
    return low.apply(operator.add, (size, trip.offset)) if trip.offset else size


def step_count(low: Lowering, count: sequence_ops.StepCount, elapsed: Value | None = None) -> Any:
    """Return a number that Python computed from the number of steps: so far, or of the example."""
    if elapsed is None:
        return count.seen
    steps = low.apply(operator.mul, (elapsed, count.slope))
    whole = low.apply(operator.add, (steps, count.offset)) if count.offset else steps
    if not count.is_inverse:
        return whole
    one = known_value(torch.ones((), dtype=low.dtype), low.count)
    return low.apply(torch.div, (one, whole))


def _integers(op: str) -> Handler:
    """Return the handler of arithmetic on integers."""

    def handle(low: Lowering, a: Any, b: Any) -> Value:
        if any(isinstance(x, Value) and not x.is_number for x in (a, b)):
            raise low.refusal("integers and tensors in one operation")
        samples = low.sampled(_PYTHON[op], (a, b), {})
        return Value(samples, low.graph.node(op, low.number(a), low.number(b)))

    return handle


_PYTHON: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,  # of sizes, which are not negative
}


def _getitem(low: Lowering, x: Any, index: Any) -> Any:
    """Take an element of a tuple, or index a tensor with numbers, slices, None and an ellipsis."""
    if not isinstance(x, Value):
        return x[index]
    items = index if isinstance(index, tuple) else (index,)
    taken = sum(isinstance(i, int | slice) for i in items)
    full: list[Any] = []
    for item in items:
        full += [slice(None)] * (x.rank - taken) if item is Ellipsis else [item]
    dim = 0
    for item in full:
        if item is None:
            x = low.apply(torch.unsqueeze, (x, dim))
        elif isinstance(item, int) and not isinstance(item, bool):
            x = low.apply(torch.select, (x, dim, item))
            continue
        elif isinstance(item, slice):
            x = _sliced(low, x, dim, item)
        else:
            raise low.refusal("an index that is no number and no slice")
        dim += 1
    return x


def _sliced(low: Lowering, x: Value, dim: int, item: slice) -> Value:
    """Return a slice of a tensor; bounds may be integers that depend on sizes."""
    start, stop, step = item.start, item.stop, item.step
    if (start, stop, step) in ((None, None, None), (0, None, None), (0, None, 1)):
        return x
    samples = tuple(
        s[(slice(None),) * dim + (slice(*(b.samples[k] if isinstance(b, Value) else b
                                          for b in (start, stop, step))),)]
        for k, s in enumerate(x.samples)
    )  # fmt: skip
    bounds = [0 if start is None else start, 2**62 if stop is None else stop, dim, step or 1]
    names = [
        low.graph.node("Reshape", b.name, low.graph.integers([1]))
        if isinstance(b, Value)
        else low.graph.integers([b])
        for b in bounds
    ]
    return Value(samples, low.graph.node("Slice", low.use(x), *names))


def _time_view(  # noqa: PLR0913 - the signature of time_view
    low: Lowering, x: Value, dim: int, start: int, stride: int, length: Any
) -> Value:
    """Return per-step slices of a tensor as one sequence, time first."""
    moved = low.apply(torch.movedim, (x, dim, 0)) if dim else x
    result = tuple(
        sequence_ops.time_view(
            s, dim, start, stride, length.samples[k] if isinstance(length, Value) else length
        )
        for k, s in enumerate(x.samples)
    )
    if stride == 1 and tuple(tuple(r.shape) for r in result) == moved.shapes:
        return moved
    if start < 0:
        raise low.refusal("a loop counts its steps from the end of an axis")
    if stride < 0:
        last = low.apply(operator.mul, (length, stride))
        stop: Any = low.apply(operator.add, (last, start))
        # One before the first element cannot be written as an index: below all of them instead.
        stop = -(2**62) if start + stride * result[0].shape[0] < 0 else stop
        return Value(result, _sliced(low, moved, 0, slice(start, stop, stride)).name)
    end = low.apply(operator.add, (low.apply(operator.mul, (length, stride)), start))
    return Value(result, _sliced(low, moved, 0, slice(start, end, stride)).name)


def folded(
    low: Lowering, target: sequence_ops.Folded, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Value:
    """Apply an operator on batches to all steps at once."""
    count, x = target.count, args[0]
    flat = [low.apply(torch.flatten, (y, 0, 1)) for y in args[:count]]
    y = low.apply(target.operator, (*flat, *args[count:]), kwargs)
    sizes = [_size(low, x, 0), _size(low, x, 1), *(_size(low, y, d) for d in range(1, y.rank))]
    result: Value = low.apply(torch.reshape, (y, tuple(sizes)))
    return result


def _step_numbers(
    low: Lowering, values: Sequence[float], rank: int, like: Any, dtype: torch.dtype
) -> Value:
    """Return Python numbers, one a step."""
    numbers = torch.tensor(values, dtype=dtype).reshape(-1, *(1,) * rank)
    return known_value(numbers, low.count, "numbers")


def _numbers_until(  # noqa: PLR0913 - the signature of numbers_until
    low: Lowering, values: Sequence[float], rank: int, like: Any, dtype: torch.dtype, elapsed: Value
) -> Value:
    """Return the number of this step."""
    return _looked_up(low, _step_numbers(low, values, rank, like, dtype), elapsed)


def _steps_until(low: Lowering, x: Value, dim: int, length: Any, elapsed: Value) -> Value:
    """Return the parameters of this step: a slice of a parameter that has a time axis."""
    return _looked_up(low, low.apply(torch.movedim, (x, dim, 0)), elapsed)


def _looked_up(low: Lowering, table: Value, elapsed: Value) -> Value:
    """Return a row of a table, a row for each step."""
    before = low.graph.node("Sub", elapsed.name, low.number(1))
    row = low.graph.node("Gather", low.use(table), before, axis=0)
    return Value(tuple(s[:1] for s in table.samples), bare=row)


def _unchanged(low: Lowering, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _arange(low: Lowering, *args: Any, **_: Any) -> Value:
    first, last, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    samples = low.sampled(lambda a, b, c: torch.arange(a, b, c), (first, last, step), {})
    name = low.graph.node("Range", *(low.number(n) for n in (first, last, step)))
    return Value(samples, name)


def _number(low: Lowering, value: Any, like: Any, dtype: torch.dtype) -> Any:
    return low.wrapped(torch.tensor(value, dtype=dtype))


# Operators that find their own sizes: integers, and what reads them.
STRUCTURAL: Mapping[Any, Handler] = {
    canonical.size: _size,
    canonical.numel: _numel,
    int: lambda low, x: x,
    operator.add: _integers("Add"),
    operator.sub: _integers("Sub"),
    operator.mul: _integers("Mul"),
    operator.floordiv: _integers("Div"),
    operator.getitem: _getitem,
    sequence_ops.time_view: _time_view,
    sequence_ops.step_numbers: _step_numbers,
    sequence_ops.numbers_until: _numbers_until,
    sequence_ops.steps_until: _steps_until,
    sequence_ops.number: _number,
    sequence_ops.small: small,
    canonical.graft: lambda low, value, carrier: value,
    torch.clone: _unchanged,
    torch.detach: _unchanged,
    torch.arange: _arange,
}


def _reshape(low: Lowering, samples: Samples, x: Value, *args: Any, **_: Any) -> Value:
    """Write whatever changes the shape and keeps the elements in order."""
    result = Value(samples)
    if result.shapes == x.shapes:
        return x
    if low.one_step and x.bare and result.shapes == tuple(s[1:] for s in x.shapes):
        return Value(samples, x.bare)
    if low.one_step and result.shapes == tuple((1, *s) for s in x.shapes):
        return Value(samples, bare=low.use(x))
    if low.one_step and x.bare and all(s[:1] == (1,) for s in result.shapes):
        shape = low.shape(tuple(s[1:] for s in result.shapes), [x], infer=True)
        return Value(samples, bare=low.graph.node("Reshape", x.bare, shape))
    integers = [a for a in _flattened(args) if isinstance(a, Value)]
    shape = low.shape(result.shapes, [x, *integers], infer=True)
    return Value(samples, low.graph.node("Reshape", low.use(x), shape))


def _flattened(args: Any) -> list[Any]:
    if isinstance(args, tuple | list):
        return [x for each in args for x in _flattened(each)]
    return [args]


def _transpose(low: Lowering, samples: Samples, x: Value, *args: Any) -> Value:
    """Write a permutation, whatever its spelling: it is read off an example."""
    return _permuted(low, samples, x, torch.transpose, args)


def _permute(low: Lowering, samples: Samples, x: Value, *args: Any) -> Value:
    return _permuted(low, samples, x, torch.permute, args)


def _movedim(low: Lowering, samples: Samples, x: Value, *args: Any) -> Value:
    return _permuted(low, samples, x, torch.movedim, args)


def _permuted(
    low: Lowering, samples: Samples, x: Value, target: Callable[..., Any], args: tuple[Any, ...]
) -> Value:
    order = list(target(torch.empty(tuple(range(x.rank))), *args).shape)
    if order == list(range(x.rank)):
        return x
    if x.step is not None and order == [x.step[0], *(d for d in range(x.rank) if d != x.step[0])]:
        return Value(samples, bare=x.step[1])
    if low.one_step and x.bare and [d for d in order if d] == list(range(1, x.rank)):
        axis = order.index(0)
        name = low.graph.node("Unsqueeze", x.bare, low.graph.integers([axis]))
        return Value(samples, name, step=(axis, x.bare))
    if low.one_step and order[0] == 0 and all(s[0] == 1 for s in x.shapes):
        bare = low.graph.node("Transpose", low.without_first(x), perm=[d - 1 for d in order[1:]])
        return Value(samples, bare=bare)
    return Value(samples, low.graph.node("Transpose", low.use(x), perm=order))


def _select(low: Lowering, samples: Samples, x: Value, dim: int, index: Any) -> Value:
    if low.one_step and dim == 0 and index in (0, -1) and x.bare:
        return Value(samples, x.bare)
    if x.step is not None and x.step[0] == dim and index in (0, -1):
        return Value(samples, x.step[1])
    name = low.graph.node("Gather", low.use(x), low.number(index), axis=dim)
    return Value(samples, name)


def _last_step(low: Lowering, samples: Samples, x: Value) -> Value:
    return _select(low, samples, x, 0, -1)


def _narrow(  # noqa: PLR0913 - the signature of torch
    low: Lowering, samples: Samples, x: Value, dim: int, start: Any, length: Any
) -> Value:
    end = low.apply(operator.add, (start, length))
    return _sliced(low, x, dim, slice(start, end, None))


def _index_select(low: Lowering, samples: Samples, x: Value, dim: int, index: Value) -> str:
    return low.graph.node("Gather", low.use(x), low.use(index), axis=dim)


def _expand(low: Lowering, samples: Samples, x: Value, *args: Any) -> str:
    integers = [a for a in _flattened(args) if isinstance(a, Value)]
    shape = low.shape(Value(samples).shapes, [x, *integers])
    return low.graph.node("Expand", low.use(x), shape)


def _repeat(low: Lowering, samples: Samples, x: Value, repeats: Any) -> str:
    if _flattened(repeats) != [r for r in _flattened(repeats) if isinstance(r, int)]:
        raise low.refusal("it is repeated a number of times that depends on a size")
    missing = len(repeats) - x.rank
    tall = low.apply(
        torch.reshape, (x, (*(1,) * missing, *(_size(low, x, d) for d in range(x.rank))))
    )
    return low.graph.node("Tile", low.use(tall), low.graph.integers(repeats))


def _cat(low: Lowering, samples: Samples, tensors: Sequence[Any], dim: int = 0) -> Value:
    parts = list(tensors)
    if low.one_step and dim and all(isinstance(p, Value) and p.bare for p in parts):
        return Value(samples, bare=low.graph.node("Concat", *(p.bare for p in parts), axis=dim - 1))
    return Value(samples, low.graph.node("Concat", *(low.use(p) for p in parts), axis=dim))


def _stack(low: Lowering, samples: Samples, tensors: Sequence[Any], dim: int = 0) -> str:
    axes = low.graph.integers([dim])
    parts = [low.graph.node("Unsqueeze", low.use(x), axes) for x in tensors]
    return low.graph.node("Concat", *parts, axis=dim)


def _flip(low: Lowering, samples: Samples, x: Value, dims: Sequence[int]) -> str:
    count = len(dims)
    bounds = ([-1] * count, [-(2**62)] * count, dims, [-1] * count)
    return low.graph.node("Slice", low.use(x), *(low.graph.integers(b) for b in bounds))


def _roll(low: Lowering, samples: Samples, x: Value, shifts: Any, dims: Any = None) -> Value:
    """Write the end of an axis in front of its beginning."""
    if dims in (None, (), []):
        flat = low.apply(torch.reshape, (x, (-1,)))
        rolled = low.apply(torch.roll, (flat, shifts, 0))
        return Value(samples, low.use(low.apply(torch.reshape, (rolled, samples[0].shape))))
    for shift, dim in zip(items(shifts, 1), items(dims, 1), strict=True):
        if not x.is_static(dim) or not isinstance(shift, int):
            raise low.refusal("it rolls an axis, or by a number of places, that is dynamic")
        at = x.size(dim) - shift % max(x.size(dim), 1)
        axis = dim % x.rank
        parts = _sliced(low, x, axis, slice(at, None)), _sliced(low, x, axis, slice(0, at))
        x = low.apply(torch.cat, (parts, axis))
    return x


def _shift_time(low: Lowering, samples: Samples, x: Value, initial: Any) -> Value:
    """Return the values of the step before."""
    if low.one_step:
        term = low.term(initial)
        return Value(samples, bare=low.expanded(term, tuple(s[1:] for s in x.shapes), [x]))
    sources = [x, *([initial] if isinstance(initial, Value) else [])]
    wanted = tuple((1, *s[1:]) for s in x.shapes)
    first = low.expanded(low.term(initial), wanted, sources)
    before = _sliced(low, x, 0, slice(0, -1, None))
    return Value(samples, low.graph.node("Concat", first, before.name, axis=0))


HANDLERS: Mapping[Any, Handler] = {
    **LAYERS,
    **NORMS,
    **LOOKUPS,
    torch.reshape: _reshape,
    torch.flatten: _reshape,
    torch.unflatten: _reshape,
    torch.squeeze: _reshape,
    torch.unsqueeze: _reshape,
    sequence_ops.align: _reshape,
    torch.transpose: _transpose,
    torch.permute: _permute,
    torch.movedim: _movedim,
    torch.select: _select,
    sequence_ops.last_step: _last_step,
    torch.narrow: _narrow,
    torch.index_select: _index_select,
    torch.Tensor.expand: _expand,
    sequence_ops.repeat_time: _expand,
    torch.Tensor.repeat: _repeat,
    torch.cat: _cat,
    torch.stack: _stack,
    torch.flip: _flip,
    torch.roll: _roll,
    sequence_ops.shift_time: _shift_time,
    F.dropout: lambda low, samples, x, p=0.5, training=True: x,  # training draws, and is refused
}
