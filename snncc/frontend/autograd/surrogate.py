"""torch.autograd.Function as one node: the user's forward and backward, each as a graph.

While a run is recorded, ``forward`` of every subclass of Function leads here, whoever calls
``apply`` and however it was bound (``spike = Fn.apply`` at import).  The user's ``forward`` runs
once, under ``no_grad`` as autograd runs it, with a context of ours, and is recorded into a graph of
its own; then ``backward`` runs on what was saved and is recorded behind it.  Together they are a
`CustomGradient`.  Afterwards autograd's own context gets what was saved, so that the recorded run
itself has its gradient too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import (
    Function,
    FunctionMeta,
    _SingleLevelFunction,
)

from snncc.frontend.autograd.function_call import Context, FunctionCall, Rules
from snncc.frontend.operators.outputs import bind_stranger
from snncc.frontend.session import Session, quiet
from snncc.ir.custom_gradient import CustomGradient


@contextmanager
def functions_recorded(session: Session) -> Iterator[None]:
    """Record calls of torch.autograd.Function in this context."""
    known = _Known()
    patched: list[tuple[Any, dict[str, Any]]] = []
    create = FunctionMeta.__init__

    def patch(cls: Any) -> None:
        own = {name: vars(cls)[name] for name in _PATCHED if name in vars(cls)}
        patched.append((cls, own))
        wrappers = _wrappers(session, known, cls)
        for name, wrapper in wrappers.items():
            setattr(cls, name, staticmethod(wrapper))

    def created(cls: Any, name: str, bases: Any, attributes: Any) -> None:
        create(cls, name, bases, attributes)  # type: ignore[no-untyped-call]
        patch(cls)

    for cls in _subclasses(Function):
        patch(cls)
    FunctionMeta.__init__ = created  # type: ignore[method-assign]
    try:
        yield
    finally:
        FunctionMeta.__init__ = create  # type: ignore[method-assign]
        for cls, own in patched:
            for name in _PATCHED:
                if name in own:
                    setattr(cls, name, own[name])
                elif name in vars(cls):
                    delattr(cls, name)


_PATCHED = ("forward", "setup_context")


def _subclasses(cls: Any) -> list[Any]:
    """Return all subclasses, each once, parents after their children."""
    found: dict[Any, None] = {}
    for child in type.__subclasses__(cls):
        found.update(dict.fromkeys(_subclasses(child)))
        found[child] = None
    return list(found)


def _wrappers(session: Session, known: _Known, cls: Any) -> dict[str, Callable[..., Any]]:
    """Return what replaces the static methods of a Function while a run is recorded."""
    forward, setup = _original(cls.forward), _original(cls.setup_context)
    has_context = setup is _SingleLevelFunction.setup_context
    rules = Rules(cls, forward, None if has_context else setup)
    saved: list[Context] = []  # between 'forward' and 'setup_context' of one call

    def forward_with_context(ctx: Any, *args: Any) -> Any:
        if not session.is_listening:
            return forward(ctx, *args)
        result, stand_in = _record(session, known, rules, args)
        stand_in.give_to(ctx)
        return result

    def forward_alone(*args: Any) -> Any:
        if not session.is_listening:
            return forward(*args)
        result, stand_in = _record(session, known, rules, args)
        saved.append(stand_in)
        return result

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        if saved:
            saved.pop().give_to(ctx)
        else:
            setup(ctx, inputs, output)

    wrapper: Any = forward_with_context if has_context else forward_alone
    wrapper.__wrapped__ = forward  # torch binds default arguments by its signature
    wrapper.replaces, setup_context.replaces = forward, setup  # type: ignore[attr-defined]
    if has_context:
        return {"forward": wrapper}
    return {"forward": wrapper, "setup_context": setup_context}


def _original(function: Any) -> Any:
    """Return a static method as its class defines it; a subclass may inherit a wrapper."""
    return getattr(function, "replaces", function)


def _record(
    session: Session, known: _Known, rules: Rules, args: tuple[Any, ...]
) -> tuple[Any, Context]:
    """Run a Function's forward, record it as one node; return its result and the context."""
    session.functions.add(rules.cls)
    with quiet():
        call = FunctionCall(session, rules, args)
    with session.recording(call.inner):
        call.run_forward()
        with quiet():
            key = call.key()
        function = known.calls.get(key)
        if function is None:
            call.run_backward()
            function = call.assemble()
            function = known.functions.setdefault(function, function)
            if key is not None and len(call.arguments.places) == call.forward_places:
                known.calls[key] = function
    call.inner.close()
    with quiet(), torch.set_grad_enabled(session.grad):
        return _emit(call, function), call.ctx


@dataclass
class _Known:
    """The functions of a recording: by themselves, and by what their backward depends on."""

    functions: dict[CustomGradient, CustomGradient] = field(default_factory=dict)
    calls: dict[Any, CustomGradient] = field(default_factory=dict)


def _emit(call: FunctionCall, function: CustomGradient) -> Any:
    """Add the node of the call to the caller's graph, bind the results and return them."""
    outer, is_tuple = call.outer, isinstance(call.result, tuple)
    finished = [call.release(x) for x in call.tensors]
    impure = any(n.meta["impure"] for n in call.inner.draft.calls)
    nodes = tuple(call.arguments.nodes)
    node = outer.emit(function, nodes, like=None if is_tuple else finished[0], impure=impure)
    for position, tensor in enumerate(finished):
        part = outer.emit(operator.getitem, (node, position), like=tensor) if is_tuple else node
        if outer.memory_at(tensor) is None:
            outer.fresh(tensor, part)
        else:
            bind_stranger(outer, tensor, part)
    if not is_tuple:
        return finished[0]
    rest = iter(finished)
    return tuple(next(rest) if isinstance(x, Tensor) else x for x in call.result)
