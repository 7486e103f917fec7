"""What a call of a model depends on that neither its arguments nor the model hold."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules import module as torch_modules

from snncc.frontend.precision import autocast_state, without_autocast

_CPU = torch.device("cpu")
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def surroundings() -> Hashable:
    """Return what a recording made now would take from its surroundings.

    Autocast, the type and the device of tensors for which none is named, and hooks of all modules.
    """
    device = torch.get_default_device() if _has_function_modes() else _CPU
    return autocast_state(), torch.get_default_dtype(), device, _global_hooks()


def matter_to_programs() -> bool:
    """Tell whether there are surroundings that change what a compiled program computes."""
    return torch._C._is_any_autocast_enabled() or _has_function_modes()


@contextmanager
def plain_surroundings() -> Iterator[None]:
    """Switch off what surrounds a program: casts, types and devices are part of it."""
    with ExitStack() as stack:
        stack.enter_context(without_autocast())
        if _has_function_modes() and torch.get_default_device() != _CPU:
            stack.enter_context(_CPU)
        yield


def _has_function_modes() -> bool:
    return bool(torch._C._len_torch_function_stack())


def _global_hooks() -> Hashable:
    """Return what tells the hooks of all modules apart; None where there are none."""
    modules: Any = torch_modules
    if not modules._has_any_global_hook():
        return None
    return tuple(tuple(getattr(modules, name)) for name in _GLOBAL_HOOKS)
