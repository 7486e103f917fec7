"""One call of a torch.autograd.Function: its forward and its backward, recorded into a graph.

Tensors that they read from elsewhere become further arguments, without gradient.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from snncc.errors import CaptureError, SnnccError
from snncc.frontend.draft import carries_gradient, needed_for
from snncc.frontend.functionalize import View
from snncc.frontend.operators.canonical import cast
from snncc.frontend.operators.varying import refuse_size
from snncc.frontend.precision import without_autocast
from snncc.frontend.recorder import Recorder
from snncc.frontend.session import Session, quiet
from snncc.frontend.state.paths import Variables
from snncc.frontend.traced import TracedInt
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.record import DEPENDENT, DIFFERENTIABLE, GUARDED, Node, to_fx


@dataclass(frozen=True)
class Rules:
    """A Function's own static methods; ``setup`` is None where ``forward`` gets the context."""

    cls: Any
    forward: Callable[..., Any]
    setup: Callable[..., Any] | None

    @functools.cached_property
    def _namespaces(self) -> tuple[Mapping[str, Any], ...]:
        """What the backward reads numbers from: its classes, globals and closure."""
        mro = self.cls.__mro__
        found: list[Mapping[str, Any]] = [vars(c) for c in mro[: mro.index(_SingleLevelFunction)]]
        backward = inspect.unwrap(self.cls.backward)
        if isinstance(backward, FunctionType):
            found.append(Variables(backward))
        return tuple(found)

    def numbers(self) -> tuple[Any, ...] | None:
        """Return the numbers that the backward may read, or None where one cannot be compared."""
        found: list[Any] = []
        for position, names in enumerate(self._namespaces):
            for name, value in names.items():
                if isinstance(value, _NUMBERS):
                    described = _described(value, None)
                    if described is None:
                        return None
                    found.append((position, name, described))
        return tuple(found)


class Context:
    """Stands for the ``ctx`` of a Function."""

    def __init__(
        self, needs_input_grad: tuple[bool, ...], refuse: Callable[[str], NoReturn]
    ) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()
        self.materialize_grads = True
        self.non_differentiable: tuple[Tensor, ...] = ()
        self._refuse = refuse

    @property
    def saved_variables(self) -> tuple[Any, ...]:
        """The old name of ``saved_tensors``."""
        return self.saved_tensors

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep what ``backward`` needs."""
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        """Do nothing: there is no forward-mode differentiation."""

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Keep which outputs have no gradient."""
        self.non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Keep whether absent cotangents are zeros; the recorded ``backward`` sees none absent."""
        self.materialize_grads = value

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Refuse a Function that works in place."""
        self._refuse("It changes its arguments in place.")

    def give_to(self, ctx: Any) -> None:
        """Leave in autograd's context what the user's code left in this one."""
        for name, value in vars(self).items():
            if name not in _OWN:
                setattr(ctx, name, value)
        ctx.save_for_backward(*self.saved_tensors)
        ctx.mark_non_differentiable(*self.non_differentiable)
        ctx.set_materialize_grads(self.materialize_grads)


def _refuse(name: str, inner: Recorder, outer: Recorder, reason: str) -> NoReturn:
    """Raise the error for a Function that cannot be one node."""
    raise CaptureError(
        f"The autograd Function '{name}' cannot be recorded.",
        code="capture.custom-gradient",
        location=inner.where or outer.where,
        notes=[reason],
        hints=["Its 'forward' and 'backward' may contain what a model may contain."],
    )


_OWN = frozenset(vars(Context((), functools.partial(_refuse, ""))))


class Arguments:
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
        facts = DEPENDENT | (DIFFERENTIABLE if carries_gradient(tensor.dtype) else 0)
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


class FunctionCall:
    """One call of a Function under way."""

    def __init__(self, session: Session, rules: Rules, args: tuple[Any, ...]) -> None:
        self.session, self.rules, self.args = session, rules, args
        self.outer = self.session.recorder
        self.outer.start_call()
        if any(self.outer.varying.of(a) for a in args if isinstance(a, Tensor)):
            refuse_size(self.outer.where)
        self.arguments = Arguments(self.outer)
        self.inner = Recorder(self.session.sites, self.arguments, self.outer)
        self.inner.start_call()
        self.stand_ins = [self.stand_in(a) for a in self.args]
        self.operands = list(self.arguments.tensors)
        needs_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in self.stand_ins)
        self.name = self.rules.cls.__name__
        self.refuse = functools.partial(_refuse, self.name, self.inner, self.outer)
        self.ctx = Context(needs_grad, self.refuse)
        self.cotangents: list[Node] = []

    def stand_in(self, value: Any) -> Any:
        """Return what ``forward`` gets: of a tensor a new object that asks for a gradient."""
        if isinstance(value, TracedInt):
            return int(value)
        if not isinstance(value, Tensor):
            return value
        stand_in = value.detach()
        if carries_gradient(stand_in.dtype):
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
        numbers = self.rules.numbers()
        kept = [
            (name, _described(value, self.inner))
            for name, value in vars(self.ctx).items()
            if name not in _PLUMBING
        ]
        if numbers is None or any(described is None for _, described in kept):
            return None
        seen = [(p.meta["dtype"], p.meta["shape"]) for p in self.arguments.places]
        outputs = [node.number for node in self.outputs]
        text = self.inner.draft.text()
        return self.rules.cls, numbers, tuple(kept), tuple(seen), tuple(outputs), text

    def run_backward(self) -> None:
        """Run the user's backward."""
        with quiet():
            seeds = [self.cotangent(x) for x in self.results]
        with without_autocast():  # as autograd does, which calls it after the forward pass
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


_NUMBERS = (bool, int, float, tuple)
_PLAIN = (bool, int, float, str, type(None))
_PLUMBING = frozenset({"needs_input_grad", "materialize_grads", "_refuse"})


def _described(value: Any, recorder: Recorder | None) -> tuple[Any, ...] | None:
    """Return a value, or a tuple of values, such that equal ones mean the same; None if unknown.

    Args:
        value: A number, string or None; a tensor where there is a recorder.
        recorder: Knows the tensors.
    """
    found: list[Any] = []
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, _PLAIN):
            found.append(repr(part))
        elif recorder is not None and isinstance(part, Tensor):
            found.append(recorder.node(part).number)
        else:
            return None
    return type(value), *found
