"""torch.autograd.Function as one node: the user's forward and backward, each as a graph.

While a run is recorded, ``forward`` of every subclass of Function leads here, whoever calls
``apply`` and however it was bound (``spike = Fn.apply`` at import).  The user's ``forward`` runs
once, under ``no_grad`` as autograd runs it, with a context of ours, and is recorded into a graph of
its own; then ``backward`` runs on what was saved and is recorded behind it.  Together they are a
`CustomGradient`.  Afterwards autograd's own context gets what was saved, so that the recorded run
itself has its gradient too.

Tensors that ``forward`` or ``backward`` read from elsewhere become further arguments, without
gradient.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NoReturn

import torch
import torch.fx
from torch import Tensor
from torch.autograd.function import (  # type: ignore[attr-defined]
    Function,
    FunctionMeta,
    _SingleLevelFunction,
)

from snncc.errors import CaptureError, SnnccError
from snncc.frontend.canonical import cast
from snncc.frontend.draft import DEPENDENT, DIFFERENTIABLE, GUARDED, Node, needed_for, to_fx
from snncc.frontend.functionalize import View
from snncc.frontend.outputs import bind_stranger
from snncc.frontend.paths import Variables
from snncc.frontend.recorder import Recorder
from snncc.frontend.session import Session, quiet
from snncc.frontend.traced import TracedInt
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
        create(cls, name, bases, attributes)
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
    forward, setup = cls.forward, cls.setup_context
    saved: list[_Context] = []  # between 'forward' and 'setup_context' of one call

    @functools.wraps(forward)  # torch binds default arguments by the signature
    def forward_with_context(ctx: Any, *args: Any) -> Any:
        if not session.is_listening:
            return forward(ctx, *args)
        result, stand_in = _record(session, known, _Rules(cls, forward, None), args)
        stand_in.give_to(ctx)
        return result

    @functools.wraps(forward)
    def forward_alone(*args: Any) -> Any:
        if not session.is_listening:
            return forward(*args)
        result, stand_in = _record(session, known, _Rules(cls, forward, setup), args)
        saved.append(stand_in)
        return result

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        if saved:
            saved.pop().give_to(ctx)
        else:
            setup(ctx, inputs, output)

    if setup is _SingleLevelFunction.setup_context:
        return {"forward": forward_with_context}
    return {"forward": forward_alone, "setup_context": setup_context}


@dataclass(frozen=True)
class _Rules:
    """A Function's own static methods."""

    cls: Any
    forward: Callable[..., Any]
    setup: Callable[..., Any] | None


class _Context:
    """Stands for the ``ctx`` of a Function."""

    def __init__(self, needs_input_grad: tuple[bool, ...], refuse: Callable[[str], NoReturn]):
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()
        self.materialize_grads = True
        self.non_differentiable: tuple[Tensor, ...] = ()
        self._refuse = refuse

    @property
    def saved_variables(self) -> tuple[Any, ...]:
        return self.saved_tensors

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self.non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self.materialize_grads = value

    def mark_dirty(self, *tensors: Tensor) -> None:
        self._refuse("It changes its arguments in place.")

    def give_to(self, ctx: Any) -> None:
        """Leave in autograd's context what the user's code left in this one."""
        own = set(vars(_Context((), self._refuse)))
        for name, value in vars(self).items():
            if name not in own:
                setattr(ctx, name, value)
        ctx.save_for_backward(*self.saved_tensors)
        ctx.mark_non_differentiable(*self.non_differentiable)
        ctx.set_materialize_grads(self.materialize_grads)


class _Arguments:
    """The sources of a Function's graphs: its tensor arguments, and what else they read.

    Args:
        outer: The recorder of the code that calls the Function.
    """

    def __init__(self, outer: Recorder) -> None:
        self._outer = outer
        self.nodes: list[Node] = []  # of the caller's graph
        self.tensors: list[Tensor] = []
        self.places: list[Node] = []  # the placeholder of each

    def bind(self, recorder: Recorder, tensor: Tensor, original: Tensor) -> View:
        """Make ``tensor`` stand for a new placeholder that is given ``original``."""
        node = self._outer.node(original)
        facts = DEPENDENT | (DIFFERENTIABLE if tensor.dtype.is_floating_point else 0)
        if not node.is_dependent:
            facts = node.facts & GUARDED
        name = f"x{len(self.nodes)}"
        place = recorder.placeholder(name, tensor, facts)
        view = recorder.own(tensor, place)
        view.memory.is_shared = True  # what belongs to the caller is not written to
        self._add(node, original, place)
        recorder.bind(tensor, view)
        return view

    def view(self, recorder: Recorder, tensor: Tensor) -> View:
        """Return the view of a tensor that is not an argument: it becomes one."""
        return self.bind(recorder, tensor, tensor)

    def constant(self, recorder: Recorder, tensor: Tensor) -> Node:
        """Return the node of a tensor that was made of Python data in the Function."""
        place = recorder.placeholder(f"x{len(self.nodes)}", tensor, 0)
        copy = tensor.detach().clone()
        self._add(self._outer.constant(copy), copy, place)
        return place

    def _add(self, node: Node, tensor: Tensor, place: Node) -> None:
        self.nodes.append(node)
        self.tensors.append(tensor)
        self.places.append(place)

    def before_write(self, recorder: Recorder, view: View) -> None:
        """Allow every write: what must not be written to is marked as shared."""

    def guard(self, place: Node) -> None:
        """Note that the recording holds for the present value of a placeholder alone."""
        self._outer.guard(self.nodes[self.places.index(place)])


class _Call:
    """One call of a Function under way."""

    def __init__(self, session: Session, rules: _Rules, args: tuple[Any, ...]) -> None:
        self.session, self.rules, self.args = session, rules, args
        self.outer = self.session.recorder
        self.outer.start_call()
        self.arguments = _Arguments(self.outer)
        self.inner = Recorder(self.session.sites, self.arguments, inner=True)
        self.inner.start_call()
        self.stand_ins = [self.stand_in(a) for a in self.args]
        self.operands = list(self.arguments.tensors)
        needs_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in self.stand_ins)
        self.ctx = _Context(needs_grad, self.refuse)
        self.cotangents: list[Node] = []
        self.name = self.rules.cls.__name__

    def refuse(self, reason: str) -> NoReturn:
        raise CaptureError(
            f"The autograd Function '{self.name}' cannot be recorded.",
            code="capture.custom-gradient",
            location=self.inner.where or self.outer.where,
            notes=[reason],
            hints=["Its 'forward' and 'backward' may contain what a model may contain."],
        )

    def stand_in(self, value: Any) -> Any:
        """Return what ``forward`` gets: of a tensor a new object that asks for a gradient."""
        if isinstance(value, TracedInt):
            return int(value)
        if not isinstance(value, Tensor):
            return value
        stand_in = value.detach()
        if stand_in.dtype.is_floating_point:
            stand_in.requires_grad_()
        self.arguments.bind(self.inner, stand_in, value)
        return stand_in

    def run_forward(self) -> None:
        """Run the user's forward; autograd has switched gradients off."""
        if self.rules.setup is None:
            self.result = self.rules.forward(self.ctx, *self.stand_ins)
        else:
            self.result = self.rules.forward(*self.stand_ins)
            self.rules.setup(self.ctx, tuple(self.stand_ins), self.result)
        self.results = list(self.result) if isinstance(self.result, tuple) else [self.result]
        self.tensors = [x for x in self.results if isinstance(x, Tensor)]
        with quiet():
            self.outputs = [self.inner.node(x) for x in self.tensors]
        self.forward_places = len(self.arguments.places)

    def key(self) -> Any:
        """Return what the backward depends on, or None where that is not known."""
        places = self.arguments.places
        described = [_described(self.inner, x) for x in vars(self.ctx).items()]
        described += [_described(self.inner, x) for x in _numbers_read_by(self.rules.cls)]
        if _UNKNOWN in described:
            return None
        seen = tuple((p.meta["dtype"], p.meta["shape"]) for p in places)
        return self.rules.cls, seen, self.inner.draft.text(), repr(self.outputs), tuple(described)

    def run_backward(self) -> None:
        """Run the user's backward."""
        with quiet():
            seeds = [self.cotangent(x) for x in self.results]
        found = self.call_backward(seeds)
        with quiet():
            places = self.arguments.places[: len(self.operands)]
            self.gradients = tuple(map(self.gradient, found, self.operands, places))

    def assemble(self) -> CustomGradient:
        """Return the function that the call is one of."""
        places, calls = self.arguments.places, self.inner.draft.calls
        output = tuple(self.outputs) if isinstance(self.result, tuple) else self.outputs[0]
        impure = [n for n in calls if n.meta["impure"]]
        forward = needed_for([*self.outputs, *impure])
        backward = needed_for(self.gradients)
        if any(n in backward for n in impure):
            self.refuse("Its gradient depends on random numbers that 'forward' has drawn.")
        missing = (None,) * (len(places) - len(self.gradients))
        marked = {id(t) for t in self.ctx.non_differentiable}
        return CustomGradient(
            self.name,
            to_fx(places, [n for n in calls if n in forward], output),
            to_fx(
                [*places, *self.cotangents],
                [n for n in calls if n in backward],
                (*self.gradients, *missing),
            ),
            tuple(n for n, x in enumerate(self.tensors) if id(x) in marked),
        )

    def release(self, output: Tensor) -> Tensor:
        """Return an output as the caller may have it: never a stand-in itself."""
        return output.detach() if output.requires_grad else output

    def cotangent(self, output: Any) -> Any:
        """Return a tensor that stands for the gradient of an output."""
        if not isinstance(output, Tensor):
            return None
        seed = torch.ones_like(output)
        name = f"g{len(self.cotangents)}"
        node = self.inner.placeholder(name, seed, DEPENDENT | DIFFERENTIABLE)
        self.inner.bind(seed, self.inner.own(seed, node))
        self.cotangents.append(node)
        return seed

    def call_backward(self, cotangents: list[Any]) -> Sequence[Any]:
        """Return the user's gradient or None for each tensor argument."""
        cls = self.rules.cls
        rule = cls.vjp if cls.backward is _SingleLevelFunction.backward else cls.backward
        if rule is _SingleLevelFunction.backward:
            self.refuse("It has no 'backward'.")
        boxed = getattr(cls, "boxed_grads_call", False)
        try:
            result = rule(self.ctx, cotangents) if boxed else rule(self.ctx, *cotangents)
        except SnnccError:
            raise
        except Exception as error:
            self.refuse(f"Its 'backward' raises {type(error).__name__}: {error}")
        gradients = list(result) if isinstance(result, tuple | list) else [result]
        gradients += [None] * (len(self.args) - len(gradients))
        return [g for a, g in zip(self.args, gradients, strict=False) if isinstance(a, Tensor)]

    def gradient(self, gradient: Any, operand: Tensor, place: Node) -> Node | None:
        """Return the node of a gradient, in the shape and type of its argument."""
        if not isinstance(gradient, Tensor):
            return None
        node = self.inner.node(gradient)
        if gradient.shape != operand.shape:
            sizes = self.inner.sizes(place, operand.dim())
            node = self.inner.emit(torch.Tensor.sum_to_size, (node, sizes), like=operand)
        if gradient.dtype != operand.dtype:
            node = self.inner.emit(cast, (node, operand.dtype), like=operand)
        return node


def _record(
    session: Session, known: _Known, rules: _Rules, args: tuple[Any, ...]
) -> tuple[Any, _Context]:
    """Run a Function's forward, record it as one node; return its result and the context."""
    with quiet():
        call = _Call(session, rules, args)
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
    with quiet(), torch.set_grad_enabled(session.grad):
        return _emit(call, function), call.ctx


@dataclass
class _Known:
    """The functions of a recording: by themselves, and by what their backward depends on."""

    functions: dict[CustomGradient, CustomGradient] = field(default_factory=dict)
    calls: dict[Any, CustomGradient] = field(default_factory=dict)


def _emit(call: _Call, function: CustomGradient) -> Any:
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


_UNKNOWN = "?"
_CONTEXT_PLUMBING = ("needs_input_grad", "materialize_grads", "_refuse")


def _described(recorder: Recorder, entry: tuple[str, Any]) -> Any:
    """Return an attribute of a context, or a variable, as a value that can be compared."""
    name, value = entry
    if name in _CONTEXT_PLUMBING:
        return None
    parts = value if isinstance(value, tuple) else (value,)
    found = []
    for part in parts:
        if isinstance(part, Tensor):
            found.append(recorder.node(part).number)
        elif part is None or isinstance(part, bool | int | float | str):
            found.append(repr(part))
        else:
            return _UNKNOWN
    return name, *found


def _numbers_read_by(cls: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numbers that a Function's backward may read: of its class, globals and closure."""
    for base in cls.__mro__[: cls.__mro__.index(_SingleLevelFunction)]:
        for name, value in vars(base).items():
            if isinstance(value, bool | int | float | tuple):
                yield f"{base.__name__}.{name}", value
    backward = inspect.unwrap(cls.backward)
    if isinstance(backward, FunctionType):
        for name, value in Variables(backward).items():
            if isinstance(value, bool | int | float | tuple):
                yield name, value
