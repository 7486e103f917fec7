"""Hooks on gradients, which run while autograd does and leave nothing in a record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from torch import nn
from torch.nn.modules import module as torch_modules

from snncc.errors import CaptureError, Location
from snncc.frontend.operators.invocation import Invocation
from snncc.frontend.recorder import Recorder
from snncc.frontend.state.sources import Holder

_OF_MODULES = ("_backward_hooks", "_backward_pre_hooks")
_OF_ALL_MODULES = ("_global_backward_hooks", "_global_backward_pre_hooks")


def refuse_module_hooks(holders: Iterable[Holder]) -> None:
    """Refuse modules with hooks on their gradients.

    Raises:
        CaptureError: There is one.
    """
    if any(getattr(torch_modules, name, None) for name in _OF_ALL_MODULES):
        _refuse("All modules have a hook on their gradients", None)
    for holder in holders:
        owner = holder.owner
        if isinstance(owner, nn.Module) and any(getattr(owner, name) for name in _OF_MODULES):
            _refuse(f"Module '{holder.path or type(owner).__name__}' has a backward hook", None)


def refuse_hook(recorder: Recorder, call: Invocation) -> NoReturn:
    """Raise the error for a hook on the gradient of a tensor."""
    _refuse("A gradient hook on a tensor cannot be recorded", recorder.where)


def _refuse(what: str, where: Location | None) -> NoReturn:
    raise CaptureError(
        f"{what}.",
        code="capture.tensor-hook",
        location=where,
        notes=["Compiled layers have no gradient in between on which it could run."],
        hints=["Write the change of the gradient as a torch.autograd.Function."],
    )


class History:
    """The node of autograd that made a tensor: it may be looked at, and takes no hooks."""

    def __init__(self, node: Any, recorder: Recorder) -> None:
        self._node = node
        self._recorder = recorder

    def register_hook(self, hook: Any) -> NoReturn:
        """Refuse a hook."""
        self._recorder.start_call()
        _refuse("A hook on a node of autograd cannot be recorded", self._recorder.where)

    register_prehook = register_hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def __repr__(self) -> str:
        return repr(self._node)


def history(recorder: Recorder, call: Invocation) -> Any:
    """Answer ``x.grad_fn``."""
    node = call.run()
    return None if node is None else History(node, recorder)
