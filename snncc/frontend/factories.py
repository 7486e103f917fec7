"""Tensors made from nothing but numbers and sizes.

What holds one value everywhere is `snncc.frontend.canonical.full` or ``full_like``, whatever it is
called.  Memory that the user leaves uninitialised is taken to hold zeros.  Tensors made of Python
data are a fill where the data are uniform, else a constant of the tape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from snncc.frontend import departures
from snncc.frontend.canonical import cast, full, full_like
from snncc.frontend.recorder import Recorder
from snncc.frontend.traced import TracedInt

Function = Callable[..., Any]
Handler = Callable[[Recorder, Function, tuple[Any, ...], dict[str, Any]], Any]


def _sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    if "size" in kwargs:
        return tuple(kwargs["size"])
    if len(args) == 1 and isinstance(args[0], tuple | list):
        return tuple(args[0])
    return args


def _filled(value: float) -> Handler:
    """Return the handler of ``zeros(*size)`` and the like."""

    def handler(
        recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        result = function(*args, **kwargs)
        _fill(recorder, result, _sizes(args, kwargs), value)
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

    def handler(
        recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        result = function(*args, **kwargs)
        _fill(recorder, result, _sizes(args[1:], kwargs), value)
        return result

    return handler


def _filled_like(value: float) -> Handler:
    """Return the handler of ``zeros_like(x)`` and the like."""

    def handler(
        recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        like = args[0] if args else kwargs["input"]
        result = function(*args, **kwargs)
        _fill_like(recorder, result, like, value)
        return result

    return handler


def _fill_like(recorder: Recorder, result: Tensor, like: Tensor, value: Any) -> None:
    options = {"dtype": result.dtype}
    arguments = recorder.node(like), _typed(recorder.lower(value), result.dtype)
    recorder.fresh(result, recorder.emit(full_like, arguments, options, like=result))


def _full(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Record ``full(size, value)``, ``full_like(x, value)`` or ``x.new_full(size, value)``."""
    names = {"full": "size", "full_like": "input", "new_full": "size"}
    name = str(function.__name__)
    given = list(args[1:] if name == "new_full" else args)
    first = given.pop(0) if given else kwargs[names[name]]
    value = given.pop(0) if given else kwargs["fill_value"]
    result = function(*args, **kwargs)
    if isinstance(value, Tensor):
        node = recorder.node(value)
        if value.dtype != result.dtype:
            node = recorder.emit(cast, (node, result.dtype), like=result)
        sizes = recorder.sizes(recorder.node(first), first.dim()) if name == "full_like" else None
        sizes = sizes if sizes is not None else recorder.lower(tuple(first))
        node = recorder.emit(torch.Tensor.expand, (node, sizes), like=result)
        recorder.fresh(result, recorder.emit(torch.detach, (node,), like=result))
    elif name == "full_like":
        _fill_like(recorder, result, first, value)
    else:
        _fill(recorder, result, first, value)
    return result


def _from_sizes(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Record a factory as it is, with type and device spelled out."""
    if kwargs.get("generator") is not None:
        departures.refuse_generator(recorder)
    impure = str(function.__name__) in _RANDOM
    result = function(*args, **kwargs)
    sizes = _sizes(args, kwargs) if impure and function.__name__ in ("rand", "randn") else None
    given = recorder.lower((sizes,) if sizes is not None else args)
    dropped = {"dtype", "device", "layout", "requires_grad", "pin_memory", "out", "names"}
    dropped |= {"size"} if sizes is not None else set()
    options = {k: recorder.lower(v) for k, v in kwargs.items() if k not in dropped}
    options |= {"dtype": result.dtype, "device": result.device}
    node = recorder.emit(function, given, options, like=result, impure=impure)
    recorder.fresh(result, node)
    return result


def _from_data(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Record ``torch.tensor(data)`` and the like; of a tensor it is a copy without history."""
    method = function is torch.Tensor.new_tensor
    data = args[1] if method and len(args) > 1 else args[0] if args else kwargs["data"]
    if isinstance(data, Tensor):
        return _from_tensor(recorder, function, args, kwargs)
    for part in departures.tensors_in(data):
        if not recorder.may_leave(part):
            return departures.HANDLERS["__float__"](recorder, torch.Tensor.__float__, (part,), {})
    if isinstance(data, TracedInt):
        result = function(*args, **kwargs)
        _fill(recorder, result, (), data)
        return result
    recorder.lower(data)  # refuses numbers that left torch for good
    result = function(*args, **kwargs)
    bind_data(recorder, result)
    return result


def _from_tensor(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    data = next(x for x in reversed(args) if isinstance(x, Tensor))
    node = recorder.node(data)
    result = function(*args, **kwargs)
    if result is data:
        return result
    if function in (torch.tensor, torch.Tensor.new_tensor):
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
_FROM_SIZES = """arange linspace logspace eye range tril_indices triu_indices hann_window
hamming_window""".split()

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
