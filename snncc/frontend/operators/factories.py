"""Tensors made from nothing but numbers and sizes.

What holds one value everywhere is `snncc.frontend.operators.canonical.full` or ``full_like``,
whatever it is called.  Memory that the user leaves uninitialised is taken to hold zeros.  Tensors
made of Python data are a fill where the data are uniform, else a constant of the tape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from snncc.frontend import departures
from snncc.frontend.operators.canonical import cast, full, full_like
from snncc.frontend.operators.invocation import Invocation, SizesOf
from snncc.frontend.recorder import Handler, Recorder
from snncc.frontend.traced import TracedInt
from snncc.ir.record import DEPENDENT


def _sizes(call: Invocation, start: int = 0) -> tuple[Any, ...]:
    """Return the sizes that a call was given, as one tuple or one by one."""
    args = call.args[start:]
    if "size" in call.kwargs:
        return tuple(call.kwargs["size"])
    if len(args) == 1 and isinstance(args[0], tuple | list):
        return tuple(args[0])
    return args


def _filled(value: float) -> Handler:
    """Return the handler of ``zeros(*size)`` and the like."""

    def handler(recorder: Recorder, call: Invocation) -> Any:
        result = call.run()
        _fill(recorder, result, _sizes(call), value)
        return result

    return handler


def _fill(recorder: Recorder, result: Tensor, sizes: Any, value: Any) -> None:
    options = {"dtype": result.dtype, "device": result.device}
    arguments = recorder.lower(sizes), _typed(recorder.lower(value), result.dtype)
    recorder.fresh(result, recorder.emit(full, arguments, options, like=result))


def _typed(value: Any, dtype: torch.dtype) -> Any:
    """Return a number as the kind of Python number that its tensor holds."""
    if not isinstance(value, bool | int | float):
        return value
    if dtype.is_floating_point:
        return float(value)
    return value if dtype.is_complex else bool(value) if dtype == torch.bool else int(value)


def _new_filled(value: float) -> Handler:
    """Return the handler of ``x.new_zeros(*size)`` and the like."""

    def handler(recorder: Recorder, call: Invocation) -> Any:
        result = call.run()
        _fill(recorder, result, _sizes(call, 1), value)
        return result

    return handler


def _filled_like(value: float) -> Handler:
    """Return the handler of ``zeros_like(x)`` and the like."""

    def handler(recorder: Recorder, call: Invocation) -> Any:
        like = call.argument(0, "input")
        result = call.run()
        _fill_like(recorder, result, like, value)
        return result

    return handler


def _fill_like(recorder: Recorder, result: Tensor, like: Tensor, value: Any) -> None:
    options = {"dtype": result.dtype}
    arguments = recorder.node(like), _typed(recorder.lower(value), result.dtype)
    recorder.fresh(result, recorder.emit(full_like, arguments, options, like=result))


def _full(recorder: Recorder, call: Invocation) -> Any:
    """Record ``full(size, value)``, ``full_like(x, value)`` or ``x.new_full(size, value)``."""
    at, is_like = int(call.name == "new_full"), call.name == "full_like"
    first = call.argument(at, "input" if is_like else "size")
    value = call.argument(at + 1, "fill_value")
    result = call.run()
    if isinstance(value, Tensor):
        node = recorder.node(value)
        if value.dtype != result.dtype:
            node = recorder.emit(cast, (node, result.dtype), like=result)
        sizes = recorder.lower(SizesOf(first) if is_like else tuple(first))
        node = recorder.emit(torch.Tensor.expand, (node, sizes), like=result)
        recorder.fresh(result, recorder.emit(torch.detach, (node,), like=result))
    elif is_like:
        _fill_like(recorder, result, first, value)
    else:
        _fill(recorder, result, first, value)
    return result


def _from_sizes(recorder: Recorder, call: Invocation) -> Any:
    """Record a factory as it is, with type and device spelled out."""
    if call.kwargs.get("generator") is not None:
        departures.refuse_generator(recorder)
    dropped = set(_PLACEMENT)
    result = call.run()
    given = call.args
    if call.name in ("rand", "randn"):
        given, dropped = (_sizes(call),), dropped | {"size"}
    options = {k: recorder.lower(v) for k, v in call.kwargs.items() if k not in dropped}
    options |= {"dtype": result.dtype, "device": result.device}
    impure = call.name in _RANDOM
    node = recorder.emit(call.function, recorder.lower(given), options, like=result, impure=impure)
    if impure:
        node.facts = DEPENDENT  # another number in each run
    recorder.fresh(result, node)
    return result


def _from_data(recorder: Recorder, call: Invocation) -> Any:
    """Record ``torch.tensor(data)`` and the like; of a tensor it is a copy without history."""
    is_method = call.name == "new_tensor"
    data = call.argument(int(is_method), "data")
    if isinstance(data, Tensor):
        return _from_tensor(recorder, call, data)
    for part in departures.tensors_in(data):
        if not recorder.may_leave(part):
            number = Invocation(torch.Tensor.__float__, (part,), {})
            return departures.HANDLERS["__float__"](recorder, number)
    if isinstance(data, TracedInt):
        result = call.run()
        _fill(recorder, result, (), data)
        return result
    recorder.lower(data)  # refuses numbers that left torch for good
    result = call.run()
    bind_data(recorder, result)
    return result


def _from_tensor(recorder: Recorder, call: Invocation, data: Tensor) -> Any:
    node = recorder.node(data)
    result = call.run()
    if result is data:
        return result
    if call.name in ("tensor", "new_tensor"):
        node = recorder.emit(torch.detach, (node,), like=data)
    if result.dtype != data.dtype:
        node = recorder.emit(cast, (node, result.dtype), like=result)
    recorder.fresh(result, node)
    return result


def bind_fill(recorder: Recorder, tensor: Tensor, value: float) -> None:
    """Bind a tensor that holds one value everywhere."""
    _fill(recorder, tensor, tuple(tensor.shape), value)


def bind_data(recorder: Recorder, tensor: Tensor) -> None:
    """Bind a tensor that was made of Python data in the run."""
    values = tensor.detach().flatten()
    first = values[0].item() if values.numel() else 0
    if values.numel() == 0 or (first == first and bool((values == values[0]).all())):
        bind_fill(recorder, tensor, first)
    else:
        recorder.bind(tensor, recorder.own(tensor, recorder.constant(tensor)))


_RANDOM = frozenset({"rand", "randn", "randint", "randperm"})
_FROM_SIZES = (
    "arange", "linspace", "logspace", "eye", "range", "tril_indices", "triu_indices",
    "hann_window", "hamming_window",
)  # fmt: skip
_PLACEMENT = ("dtype", "device", "layout", "requires_grad", "pin_memory", "out", "names")

HANDLERS: Mapping[str, Handler] = {
    "zeros": _filled(0),
    "ones": _filled(1),
    "empty": _filled(0),
    "zeros_like": _filled_like(0),
    "ones_like": _filled_like(1),
    "empty_like": _filled_like(0),
    "new_zeros": _new_filled(0),
    "new_ones": _new_filled(1),
    "new_empty": _new_filled(0),
    "full": _full,
    "full_like": _full,
    "new_full": _full,
    **dict.fromkeys(_RANDOM, _from_sizes),
    **dict.fromkeys(_FROM_SIZES, _from_sizes),
    "tensor": _from_data,
    "as_tensor": _from_data,
    "asarray": _from_data,
    "scalar_tensor": _from_data,
    "new_tensor": _from_data,
}
