"""Automatic mixed precision: the casts that autocast inserts, written into the recording.

Under ``torch.autocast`` an operator converts its arguments before it runs, by lists of operators
that differ between devices and versions of torch.  Which arguments an operator converts, and to
what, is asked of torch itself: the operator runs once on tensors without data, watched below
autocast, where conversions are calls of ``aten::_to_copy``.  They are recorded as casts, the
operator itself runs with autocast off, and the program needs no autocast any more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from snncc.frontend.operators.invocation import Invocation

_DEVICES = ("cpu", "cuda")


def autocast_state() -> Hashable:
    """Return what autocast does in this context; None where it is off."""
    if not torch._C._is_any_autocast_enabled():
        return None
    return tuple(
        (device, torch.get_autocast_dtype(device))
        for device in _DEVICES
        if torch.is_autocast_enabled(device)
    )


@contextmanager
def without_autocast() -> Iterator[None]:
    """Switch autocast off where it is on."""
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class Casts(NamedTuple):
    """What autocast does to one call.

    Attributes:
        types: For each leaf of the arguments the type that it is converted to, or None.
        results: The types of the tensors that the call returns.
    """

    types: tuple[torch.dtype | None, ...]
    results: tuple[torch.dtype, ...]


class Precision:
    """Finds the casts of calls under autocast, once for each function and types of arguments."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Casts] = {}

    def casts(self, call: Invocation) -> Casts:
        """Return what autocast does to a call.

        Raises:
            Exception: Torch cannot run the call without data.
        """
        leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
        types = tuple((x.dtype, x.device) if isinstance(x, Tensor) else type(x) for x in leaves)
        key = (autocast_state(), call.function, types, spec)
        if key not in self._known:
            self._known[key] = _probe(call.function, leaves, spec)
        return self._known[key]


def apply_casts(call: Invocation, casts: Casts, cast: Callable[[Tensor, Any], Any]) -> Invocation:
    """Return a call whose arguments are converted by ``cast``."""
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    cast_leaves = [
        leaf if dtype is None or leaf.dtype is dtype else cast(leaf, dtype)
        for leaf, dtype in zip(leaves, casts.types, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(cast_leaves, spec)
    return Invocation(call.function, args, kwargs)


def types_of(result: Any) -> tuple[torch.dtype, ...]:
    """Return the types of the tensors in a result."""
    return tuple(x.dtype for x in pytree.tree_leaves(result) if isinstance(x, Tensor))


def _probe(function: Callable[..., Any], leaves: list[Any], spec: pytree.TreeSpec) -> Casts:
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # or a weight that was converted before is not seen
    watch = _Conversions()
    try:
        with _disable_current_modes(), torch.no_grad():
            mode = FakeTensorMode()
            fakes = [mode.from_tensor(x.detach()) if isinstance(x, Tensor) else x for x in leaves]
            args, kwargs = pytree.tree_unflatten(fakes, spec)
            with mode, watch:
                results = types_of(function(*args, **kwargs))
    finally:
        torch.set_autocast_cache_enabled(cached)
    return Casts(tuple(watch.types.get(id(x)) for x in fakes), results)


class _Conversions(TorchDispatchMode):
    """Notes which tensors are converted to which type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: dict[int, torch.dtype] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        dtype = kwargs.get("dtype")
        is_conversion = func is torch.ops.aten._to_copy.default and dtype is not None
        if is_conversion and self.types.setdefault(id(args[0]), dtype) is not dtype:
            raise TypeError("one argument is converted to two types")
        return func(*args, **kwargs)
