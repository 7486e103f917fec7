"""The graph under construction: which node every tensor object of the run stands for.

A tensor object is found by its id, which a weak reference keeps honest; memory is found by its
storage.  A `Recorder` knows nothing of the spelling of operators (`snncc.frontend.calls` does) or
of where tensors from outside come from (its ``origin`` does).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from snncc.errors import CaptureError, Location, UnsupportedError
from snncc.frontend import functionalize
from snncc.frontend.comparisons import Comparisons
from snncc.frontend.draft import Draft, carries_gradient, needed_for
from snncc.frontend.functionalize import Edge, Memory, View
from snncc.frontend.location import NOWHERE, CallSites, Here
from snncc.frontend.operators.canonical import cast, full_like, numel, size
from snncc.frontend.operators.invocation import Call, Invocation, SizesOf, concrete
from snncc.frontend.operators.varying import VaryingSizes
from snncc.frontend.traced import TracedFloat, TracedInt, TracedItem, refuse_leaked
from snncc.ir.layouts import Order
from snncc.ir.record import DIFFERENTIABLE, Node

Handler = Callable[["Recorder", Invocation], Any]


class Origin(Protocol):
    """Where the tensors come from that the recorded function reads and does not compute."""

    def view(self, recorder: Recorder, tensor: Tensor) -> View:
        """Return the view of a tensor that the recorder has not seen before."""
        ...

    def constant(self, recorder: Recorder, tensor: Tensor) -> Node:
        """Return the node of a tensor that was made of Python data in the run."""
        ...

    def before_write(self, recorder: Recorder, view: View) -> None:
        """Prepare for a write to a view."""
        ...

    def guard(self, place: Node) -> None:
        """Note that the recording holds for the present value of a placeholder alone."""
        ...


class _Bound(weakref.ref[Tensor]):
    """A tensor object and what it stands for; ``key`` is its id."""

    __slots__ = ("key", "view")
    key: int
    view: View


class Recorder:
    """Records one function: a run of the model, or of a custom gradient.

    Args:
        sites: Reads call paths.
        origin: Where tensors from outside come from.
        outer: The recorder of the function of which this one is the inside of one node: its nodes
            have no place in the user's code, and it runs without gradients as a matter of course.
    """

    def __init__(self, sites: CallSites, origin: Origin, outer: Recorder | None = None) -> None:
        self.draft: Draft = Draft(None if outer is None else outer.draft)
        self.sites = sites
        self._origin = origin
        self._inner = outer is not None
        self.comparisons = Comparisons()
        self.varying: VaryingSizes = VaryingSizes() if outer is None else outer.varying
        self._views: dict[int, _Bound] = {}
        self._memories: dict[int, weakref.ref[Memory]] = {}
        self._sizes: dict[tuple[Node, int], Node] = {}
        views = self._views

        def forget(bound: Any) -> None:
            del views[bound.key]

        self._forget = forget
        self._frame: FrameType | None = None
        self._here: Here | None = None

    def start_call(self, frame: FrameType | None = None) -> None:
        """Forget where the previous torch call was made.

        Args:
            frame: The frame that makes the next one, where it is known.
        """
        self._frame = frame
        self._here = None

    def close(self) -> None:
        """Forget the tensors of the run; what is left of them holds on to the recorder."""
        self._views.clear()

    @property
    def here(self) -> Here:
        """The call path and source line of the torch call under way."""
        if self._here is None:
            self._here = self.sites.here(self._frame)
        return self._here

    @property
    def where(self) -> Location | None:
        """The user's line of the torch call under way."""
        return self.here[1]

    @property
    def grad(self) -> bool:
        """Whether gradients are recorded, as seen from the entry of the function."""
        return self._inner or torch.is_grad_enabled()

    def placeholder(self, name: str, tensor: Tensor, facts: int) -> Node:
        """Add a placeholder."""
        node = self.draft.placeholder(name, self._meta(tensor, False, ()))
        node.facts = facts
        return node

    def emit(  # noqa: PLR0913 - a call, and what is known of its value
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        like: View | Tensor | None = None,
        impure: bool = False,
        orders: tuple[Order, ...] = (),
    ) -> Node:
        """Append a call to the graph; its value has the shape and dtype of ``like``."""
        if target is cast:
            args = _cast_at_once(*args)
        node = self.draft.call(target, args, kwargs or {}, self._meta(like, impure, orders))
        facts = 0
        if target is not full_like:  # depends on sizes alone
            for leaf in node.leaves:
                if type(leaf) is Node:
                    facts |= leaf.facts
        if like is not None and (target is torch.detach or not carries_gradient(like.dtype)):
            facts &= ~DIFFERENTIABLE
        node.facts = facts
        return node

    def _meta(
        self, like: View | Tensor | None, impure: bool, orders: tuple[Order, ...]
    ) -> Mapping[str, Any]:
        if self._inner:
            return self.draft.meta(NOWHERE, True, impure, like, orders)
        here, grad = self._here or self.here, torch.is_grad_enabled()
        return self.draft.meta(here, grad, impure, like, orders)

    def is_used(self, node: Node) -> bool:
        """Tell whether a gradient may need the value of a node."""
        users = (c for c in self.draft.calls if node in c.operands)
        return node.target is not None or any(c.target is not torch.detach for c in users)

    def refuse_alias(self, reason: str) -> NoReturn:
        """Raise the error for memory that is shared in a way that cannot be proven right."""
        raise CaptureError(
            "An in-place operator writes to memory that other tensors share.",
            code="capture.alias",
            location=self.where,
            notes=[reason],
            hints=["Write to a copy ('x = x.clone()'), or use the operator that returns a result."],
        )

    def find(self, tensor: Tensor) -> View | None:
        """Return the view of a tensor object, or None where it was never seen."""
        bound = self._views.get(id(tensor))
        return None if bound is None else bound.view

    def view(self, tensor: Tensor) -> View:
        """Return the view of a tensor object; a new one comes from outside the run."""
        bound = self._views.get(id(tensor))
        if bound is not None:
            return bound.view
        view = self._origin.view(self, tensor)
        self.bind(tensor, view)
        return view

    def bind(self, tensor: Tensor, view: View) -> None:
        """Make a tensor object stand for a view."""
        bound = _Bound(tensor, self._forget)
        bound.key, bound.view = id(tensor), view
        self._views[bound.key] = bound

    def memory_at(self, tensor: Tensor) -> Memory | None:
        """Return the known memory in which a tensor lies."""
        memory = self._memories.get(self._storage(tensor))
        return None if memory is None else memory()

    def own(self, tensor: Tensor, node: Node) -> View:
        """Return a view that owns the memory of a tensor."""
        memory = Memory()
        self._memories[self._storage(tensor)] = weakref.ref(memory)
        return View(memory, tuple(tensor.shape), tensor.dtype, node, generation=0)

    def _storage(self, tensor: Tensor) -> int:
        try:
            storage: int = tensor.untyped_storage()._cdata
            return storage
        except NotImplementedError:
            raise self._no_memory() from None

    def _no_memory(self) -> UnsupportedError:
        """Return the error for a tensor that lies nowhere."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return UnsupportedError(
                "The model transforms a function by 'torch.func' or 'torch.vmap'.",
                code="unsupported.function-transform",
                location=self.where,
                notes=["Inside of it, operators work on parts of tensors that are not seen."],
                hints=[
                    "Write it for whole tensors: with a batch dimension, or a gradient by hand."
                ],
            )
        return UnsupportedError(
            "A tensor has no memory of its own.",
            code="unsupported.tensor-kind",
            location=self.where,
            notes=["Sparse tensors are of this kind."],
            hints=["Use plain dense tensors: 'x.to_dense()'."],
        )

    def node(self, tensor: Tensor) -> Node:
        """Return the node of a tensor's present value."""
        return functionalize.read(self, self.view(tensor))

    def read(self, view: View) -> Node:
        """Return the node of a view's present value."""
        return functionalize.read(self, view)

    def child(self, parent: View, edge: Edge, tensor: Tensor) -> View:
        """Return the part of a view that ``tensor`` is; without history under ``no_grad``."""
        view = View(parent.memory, tuple(tensor.shape), tensor.dtype, parent=parent, edge=edge)
        if self.grad or not self.read(view).is_differentiable:
            self.read(view)
            return view
        view = View(view.memory, view.shape, view.dtype, parent=view, edge=Edge(torch.detach))
        self.read(view)
        return view

    def constant(self, tensor: Tensor) -> Node:
        """Return the node of a tensor that was made of Python data in the run."""
        return self._origin.constant(self, tensor)

    def may_leave(self, tensor: Tensor) -> bool:
        """Tell whether a value may steer the program, being the same in every run of the tape."""
        node = self.node(tensor)
        if node.is_dependent:
            return False
        if node.is_guarded:
            self.guard(node)
        return True

    def guard(self, node: Node) -> None:
        """Note that the recording holds for the present value of a node alone."""
        for place in needed_for([node]):
            if place.target is None and place.is_guarded:
                self._origin.guard(place)

    def before_write(self, view: View) -> None:
        """Prepare for a write to a view."""
        if view.memory.is_shared:
            self.refuse_alias("Another tensor shares this memory in a way that is not known.")
        self._origin.before_write(self, view)

    def write(self, view: View, node: Node) -> None:
        """Make ``node`` the value of a view's memory, as an in-place operator does."""
        if not self.grad:
            node = functionalize.past_history(self, node, self.read(view), view)
        functionalize.write(self, view, node)

    def fresh(self, tensor: Tensor, node: Node) -> Node:
        """Make a tensor with memory of its own stand for ``node``; return what it stands for."""
        if node.facts & DIFFERENTIABLE and not self.grad:
            node = self.emit(torch.detach, (node,), like=tensor)
        self.bind(tensor, self.own(tensor, node))
        return node

    def sizes(self, node: Node, rank: int) -> tuple[Node, ...]:
        """Return the sizes of a tensor as integer nodes."""
        return tuple(self.size(node, dim) for dim in range(rank))

    def size(self, node: Node, dim: int) -> Node:
        """Return one size of a tensor as an integer node."""
        found = self._sizes.get((node, dim))
        if found is None:
            found = self._sizes[node, dim] = self._integer(
                size, (node, dim), node.meta["shape"][dim]
            )
        return found

    def compare(self, comparison: str, value: int, number: Any) -> None:
        """Note that Python compared an integer that was computed from sizes with a number."""
        path, where = self.sites.here()
        # By its place in the source: Python compiles the condition of a 'while' twice.
        self.comparisons.add((path[:-1], where, comparison), value, number)

    def _integer(self, function: Callable[..., int], args: tuple[Any, ...], value: int) -> Node:
        node = self.emit(function, args)
        node.meta = {**node.meta, "value": value}
        node.facts = 0  # sizes may steer the program
        return node

    def integer(self, value: TracedInt) -> Any:
        """Return the node of an integer that was computed from sizes."""
        if value.owner is not self:
            return int(value)
        if value.node is None:
            function, *operands = value.expression
            if function is size:
                value.node = self.size(self.read(operands[0]), operands[1])
            elif function is numel:
                value.node = self._integer(numel, (self.read(operands[0]),), int(value))
            else:
                args = tuple(self.lower(x) for x in operands)
                value.node = self._integer(function, args, int(value))
        return value.node

    def lower(self, value: Any) -> Any:
        """Return an argument with nodes in the place of tensors and traced integers."""
        bound = self._views.get(id(value))  # has the ids of the tensors that are alive
        if bound is not None:
            return functionalize.read(self, bound.view)
        kind = type(value)
        if kind in _LITERALS:
            return value
        if kind is tuple or kind is list:
            return tuple([self.lower(v) for v in value])
        return self.node(value) if isinstance(value, Tensor) else self._lower_rare(value)

    def _lower_rare(self, value: Any) -> Any:
        kind = type(value)
        if kind is TracedInt:
            return self.integer(value)
        if kind is TracedFloat or kind is TracedItem:
            refuse_leaked(value, "re-enters the program")
        if kind is Call:
            return self._lower_call(value)
        if kind is SizesOf:
            return self.sizes(self.node(value.tensor), value.tensor.dim())
        if isinstance(value, tuple | list):
            return tuple([self.lower(v) for v in value])
        if kind is slice:
            return slice(self.lower(value.start), self.lower(value.stop), self.lower(value.step))
        return _plain(value)

    def lower_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return keyword arguments with nodes in the place of tensors."""
        return {name: self.lower(value) for name, value in options.items()}

    def _lower_call(self, call: Call) -> Node:
        args, kwargs = self.lower(call.args), self.lower_options(call.kwargs)
        with torch.no_grad():
            seen = concrete(call)
        return self.emit(call.target, args, kwargs, like=seen)


def _cast_at_once(operand: Node, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return the arguments of a cast; zeros and ones are the same in every type on the way."""
    source = operand.args[0] if operand.target is cast else None
    is_bool = isinstance(source, Node) and source.meta.get("dtype") is torch.bool
    return (source, dtype) if is_bool and dtype is not torch.bool else (operand, dtype)


def _plain(value: Any) -> Any:
    """Return a scalar of numpy as one of Python; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if item is not None and getattr(value, "shape", None) == () else value


_LITERALS = frozenset(
    {int, float, bool, str, type(None), type(...), torch.dtype, torch.device, complex}
)
