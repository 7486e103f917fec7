"""Copies and conversions of a tensor, and questions about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from snncc.frontend.functionalize import Edge
from snncc.frontend.operators.canonical import cast, numel, size
from snncc.frontend.operators.invocation import Invocation
from snncc.frontend.operators.varying import refuse_size
from snncc.frontend.recorder import Handler, Recorder
from snncc.frontend.traced import TracedInt


def ask(recorder: Recorder, call: Invocation) -> Any:
    """Answer a question whose answer is the same for all values of the tensor."""
    return call.run()


def _copy(recorder: Recorder, call: Invocation) -> Any:
    """Record a copy or a conversion: a new tensor object for the same value."""
    x = call.args[0]
    node = recorder.node(x)
    result = call.run()
    if not isinstance(result, Tensor) or result is x:
        return result
    if call.name == "__deepcopy__":
        node = recorder.emit(torch.detach, (node,), like=result)
    if result.dtype != x.dtype:
        node = recorder.emit(cast, (node, result.dtype), like=result)
    if result.device != x.device:
        node = recorder.emit(torch.Tensor.to, (node, result.device), like=result)
    memory = recorder.memory_at(result)
    if memory is not None and memory is recorder.view(x).memory:
        recorder.bind(result, recorder.child(recorder.view(x), Edge(None), result))
    else:
        recorder.fresh(result, node)
    return result


def _detach(recorder: Recorder, call: Invocation) -> Any:
    parent = recorder.view(call.args[0])
    result = call.run()
    edge = Edge(torch.detach, is_secret=call.name == "__get__")  # x.data
    recorder.bind(result, recorder.child(parent, edge, result))
    return result


def _shape(recorder: Recorder, call: Invocation) -> Any:
    """Return a size or all sizes, as integers that remember their tensor."""
    result = call.run()
    view = recorder.view(call.args[0])
    varying = recorder.varying.of(call.args[0])
    if view.memory.has_fixed_sizes:
        return result
    if isinstance(result, int):
        dim = int(call.argument(1, "dim")) % len(view.shape)
        if dim in varying:
            refuse_size(recorder.where)
        return TracedInt.of(result, recorder, (size, view, dim))
    if varying:
        refuse_size(recorder.where)
    sizes = [TracedInt.of(n, recorder, (size, view, d)) for d, n in enumerate(result)]
    return torch.Size(sizes)


def _count(recorder: Recorder, call: Invocation) -> Any:
    if recorder.varying.of(call.args[0]):
        refuse_size(recorder.where)
    view = recorder.view(call.args[0])
    return TracedInt.of(call.run(), recorder, (numel, view))


def _length(recorder: Recorder, call: Invocation) -> Any:
    if 0 in recorder.varying.of(call.args[0]):
        refuse_size(recorder.where)
    return call.run()


_COPIES = (
    "clone", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "int",
    "long", "bool", "short", "char", "byte", "cpu", "cuda", "positive", "__pos__", "__deepcopy__",
    "pin_memory",
)  # fmt: skip
_QUESTIONS = (
    "dim", "ndimension", "stride", "storage_offset", "element_size", "get_device", "has_names",
    "requires_grad_", "retain_grad", "__repr__", "__format__", "__str__", "__hash__",
    "_set_grad_enabled", "_is_view", "result_type", "promote_types", "can_cast", "share_memory_",
    "get_default_dtype",
)  # fmt: skip

HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(_COPIES, _copy),
    **dict.fromkeys(_QUESTIONS, ask),
    "get:shape": _shape,
    "size": _shape,
    "__len__": _length,
    "numel": _count,
    "nelement": _count,
    "detach": _detach,
    "get:data": _detach,
}
