"""Reading and writing parts of a tensor.

An index of integers, slices, ``...`` and ``None`` is a chain of views: one ``torch.select`` for
each integer, at most one ``operator.getitem`` for the slices that are not full, one
``torch.unsqueeze`` for each ``None``.  A write through such an index is a write to that view.  A
write through a mask is ``torch.where`` where the value is a number, or an elementwise function of
parts that were read through the same mask.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from snncc.frontend import departures
from snncc.frontend.functionalize import Edge, View
from snncc.frontend.operators.canonical import cast, full_like, setitem
from snncc.frontend.operators.invocation import Call, Invocation
from snncc.frontend.operators.masks import unmasked
from snncc.frontend.operators.outputs import record
from snncc.frontend.operators.varying import refuse_size
from snncc.frontend.recorder import Handler, Recorder
from snncc.ir.record import Node, map_nodes

_FULL = slice(None)


def basic_edges(recorder: Recorder, index: Any, rank: int) -> list[Edge] | None:
    """Return the views that an index means, outermost first; None for masks and index tensors."""
    items = _complete(index, rank)
    if items is None:
        return None
    edges: list[Edge] = []
    slices: list[slice] = []
    new_dims: list[int] = []
    for item in items:
        if item is None:
            new_dims.append(len(slices) + len(new_dims))
        elif isinstance(item, slice):
            slices.append(item)
        else:
            edges.append(Edge(torch.select, (len(slices), recorder.lower(item))))
    while slices and _is_full(slices[-1]):
        slices.pop()
    if slices:
        bounds = tuple(_FULL if _is_full(s) else recorder.lower(s) for s in slices)
        edges.append(Edge(operator.getitem, (bounds,)))
    edges += [Edge(torch.unsqueeze, (dim,)) for dim in new_dims]
    return edges


def _complete(index: Any, rank: int) -> list[Any] | None:
    """Return an index with one item for each dim, None for new dims; None where not basic."""
    items = [_integer(i) for i in (index if isinstance(index, tuple) else (index,))]
    if any(isinstance(i, bool) or not _is_basic(i) for i in items):
        return None
    missing = rank - sum(i is not None and i is not Ellipsis for i in items)
    at = next((n for n, i in enumerate(items) if i is Ellipsis), len(items))
    return items[:at] + [_FULL] * missing + items[at + 1 :]


def _integer(item: Any) -> Any:
    """Return an integer of another library as one of Python."""
    foreign = isinstance(item, numbers.Integral) and not isinstance(item, int)
    return int(item) if foreign else item


def _is_basic(item: Any) -> bool:
    return item is None or item is Ellipsis or isinstance(item, int | slice)


def _is_full(item: slice) -> bool:
    return item.start in (None, 0) and item.stop is None and item.step in (None, 1)


def part(recorder: Recorder, base: Tensor, edges: list[Edge], result: Tensor) -> View:
    """Return the view of ``result``, which is ``base`` seen through a chain of edges."""
    parent, seen = recorder.view(base), base.detach()
    for edge in edges[:-1]:
        seen = _apply(edge, seen)
        parent = View(parent.memory, tuple(seen.shape), seen.dtype, parent=parent, edge=edge)
    return recorder.child(parent, edges[-1] if edges else Edge(None), result)


def _apply(edge: Edge, seen: Tensor) -> Tensor:
    values = map_nodes(edge.args, lambda node: node.meta["value"])
    result: Tensor = edge.target(seen, *values)  # type: ignore[misc]
    return result


def _getitem(recorder: Recorder, call: Invocation) -> Any:
    base, index = call.args
    edges = basic_edges(recorder, index, base.dim())
    if edges is None:
        lowered = Call(operator.getitem, (recorder.node(base), recorder.lower(index)))
        return record(recorder, call.run(), lowered, call.args, impure=False)
    result = call.run()
    recorder.bind(result, part(recorder, base, edges, result))
    return result


def _setitem(recorder: Recorder, call: Invocation) -> Any:
    base, index, value = call.args
    assign(recorder, base, index, value, call.run)


def assign(recorder: Recorder, base: Tensor, index: Any, value: Any, run: Callable[[], Any]) -> Any:
    """Run ``base[index] = value`` and record it.

    Args:
        recorder: The recorder.
        base: The tensor that is written to.
        index: Which part of it; ``()`` is all.
        value: A number or a tensor that broadcasts to the part.
        run: Does it for real.
    """
    edges = basic_edges(recorder, _bounded(recorder, index), base.dim())
    view = recorder.view(base)
    if edges is None:
        node = _write_advanced(recorder, base, index, value)
    else:
        seen = base.detach()
        for edge in edges:
            seen = _apply(edge, seen)
            view = View(view.memory, tuple(seen.shape), seen.dtype, parent=view, edge=edge)
        node = _fitted(recorder, view, value)
    recorder.before_write(view)
    result = run()
    recorder.write(view, node)
    return result


def _bounded(recorder: Recorder, index: Any) -> Any:
    """Return an index with numbers for the tensors that bound its slices.

    Raises:
        CaptureError: Such a tensor depends on the model's inputs.
    """
    if isinstance(index, tuple):
        return tuple(_bounded(recorder, item) for item in index)
    if not isinstance(index, slice):
        return index
    return slice(*[_leaving(recorder, x) for x in (index.start, index.stop, index.step)])


def _leaving(recorder: Recorder, bound: Any) -> Any:
    """Return a tensor that Python uses as a number as that number, if it may leave torch."""
    if not isinstance(bound, Tensor):
        return bound
    number = Invocation(torch.Tensor.__index__, (bound,), {})
    return departures.HANDLERS["__index__"](recorder, number)


def _fitted(recorder: Recorder, view: View, value: Any) -> Node:
    """Return a value with the type and shape of the view that it is written to."""
    if not isinstance(value, Tensor):
        number = recorder.lower(value)
        options = {"dtype": view.dtype}
        return recorder.emit(full_like, (recorder.read(view), number), options, like=view)
    node, shape = recorder.node(value), tuple(value.shape)
    if value.dtype != view.dtype:
        node = recorder.emit(cast, (node, view.dtype), like=value.detach().to(view.dtype))
    rank = len(view.shape)
    if len(shape) > rank:
        sizes = recorder.sizes(node, len(shape))[len(shape) - rank :]
        node = recorder.emit(torch.reshape, (node, sizes), like=value.reshape(shape[-rank:] or ()))
        shape = shape[len(shape) - rank :]
    if shape != view.shape:
        sizes = recorder.sizes(recorder.read(view), rank)
        node = recorder.emit(torch.Tensor.expand, (node, sizes), like=view)
    return node


def _write_advanced(recorder: Recorder, base: Tensor, index: Any, value: Any) -> Node:
    old = recorder.node(base)
    mask = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        node = _write_masked(recorder, base, mask, value)
        if node is not None:
            return node
    return recorder.emit(
        setitem, (old, recorder.lower(index), recorder.lower(value)), like=base.detach()
    )


def _write_masked(recorder: Recorder, base: Tensor, mask: Tensor, value: Any) -> Node | None:
    """Return ``where(mask, value, base)`` where that is what the write means."""
    if isinstance(value, Tensor):
        if value.dtype != base.dtype:
            return None
        chosen: Any = recorder.node(value)
        if value.dim() > 0:
            chosen = unmasked(recorder, chosen, recorder.node(mask))
    else:
        chosen = recorder.lower(value)
        if torch.result_type(base, value) != base.dtype:
            return None
    if chosen is None:
        return None
    condition = recorder.node(mask)
    for dim in range(mask.dim(), base.dim()):
        shape = (*mask.shape, *[1] * (dim + 1 - mask.dim()))
        condition = recorder.emit(torch.unsqueeze, (condition, dim), like=mask.reshape(shape))
    return recorder.emit(torch.where, (condition, chosen, recorder.node(base)), like=base)


def _unbind(recorder: Recorder, call: Invocation) -> Any:
    x = call.args[0]
    dim = call.argument(1, "dim", 0) % max(x.dim(), 1)
    if dim in recorder.varying.of(x):
        refuse_size(recorder.where)
    results = call.run()
    for position, result in enumerate(results):
        recorder.bind(result, part(recorder, x, [Edge(torch.select, (dim, position))], result))
    return results


def _split(recorder: Recorder, call: Invocation) -> Any:
    """Record ``split``, ``chunk`` and the like: each piece is an element or a slice."""
    x = call.args[0]
    for size in departures.tensors_in(call.args[1:], call.kwargs):
        departures.HANDLERS["__array__"](recorder, Invocation(torch.Tensor.__array__, (size,), {}))
    recorder.lower((call.args[1:], *call.kwargs.values()))  # refuses numbers that left torch
    dim = {"hsplit": 1, "vsplit": 0, "dsplit": 2}.get(call.name, call.argument(2, "dim", 0))
    dim %= max(x.dim(), 1)
    if dim in recorder.varying.of(x):
        refuse_size(recorder.where)
    results = call.run()
    start = 0
    for result in results:
        length = int(result.shape[dim])
        recorder.bind(result, part(recorder, x, _piece(dim, start, length), result))
        start += length
    return results


def _piece(dim: int, start: int, length: int) -> list[Edge]:
    if length == 1:
        return [Edge(torch.select, (dim, start)), Edge(torch.unsqueeze, (dim,))]
    bounds = (*[_FULL] * dim, slice(start, start + length))
    return [Edge(operator.getitem, (bounds,))]


HANDLERS: Mapping[str, Handler] = {
    "__getitem__": _getitem,
    "__setitem__": _setitem,
    "unbind": _unbind,
    **dict.fromkeys(("split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit"), _split),
}
