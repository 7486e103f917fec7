"""In-place operators, views and aliases as pure functions.

Every tensor object of the run has a `View`; views that share memory form a tree under the view
that owns it.  An edge of the tree says how the child's value follows from the parent's (``select``,
``reshape``, ``detach``, ...).  A write to a view carries the new value up to the root, each edge
backwards (``select_scatter``, ``reshape``, ...); the other views of that memory are stale then and
are derived again from the root at their next read.  So ``buf[t] = v`` is
``torch.select_scatter(buf, v, 0, t)``, and a later ``buf[t]`` is ``v`` itself.

A ``detach`` edge shares memory but not history.  A write that crosses it changes the value and
leaves the history as it was, which is `snncc.frontend.operators.canonical.graft`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch

from snncc.frontend.operators.canonical import graft, setitem
from snncc.ir.record import Node


class Emitter(Protocol):
    """What this module needs from the recorder."""

    def emit(
        self, target: Callable[..., Any], args: tuple[Any, ...], *, like: View | None = None
    ) -> Node:
        """Append a call to the graph; its value has the shape and dtype of ``like``."""
        ...

    def sizes(self, node: Node, rank: int) -> tuple[Node, ...]:
        """Return the sizes of a tensor as integer nodes."""
        ...

    def is_used(self, node: Node) -> bool:
        """Tell whether a gradient may need the value of a node."""
        ...

    def refuse_alias(self, reason: str) -> NoReturn:
        """Raise the error for memory that is shared in a way that cannot be proven right."""
        ...


@dataclass(eq=False, slots=True, weakref_slot=True)
class Memory:
    """A piece of memory.

    Attributes:
        generation: How often it was written.
        is_shared: Whether views lie in it whose relation to each other is not known.
        owner: The tensor from outside the run that it belongs to, if there is one.
        has_fixed_sizes: Whether its shape is the same in every run.
        is_updated: Whether an operator changes it behind the scenes, as a norm does its statistics.
    """

    generation: int = 0
    is_shared: bool = False
    owner: torch.Tensor | None = None
    has_fixed_sizes: bool = False
    is_updated: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """How a view follows from its parent: ``target(parent, *args)``; None is the same value.

    ``is_secret`` marks ``.data``: autograd does not notice a write through it.
    """

    target: Callable[..., Any] | None
    args: tuple[Any, ...] = ()
    is_secret: bool = False


@dataclass(eq=False, slots=True)
class View:
    """What a tensor object stands for.

    Attributes:
        memory: The memory that it reads and writes.
        shape: Shape as seen.
        dtype: Type as seen.
        node: The value, as of ``generation``; None until it is first read.
        parent: The view that this one is a part of; None for the owner of the memory.
        edge: How it follows from the parent.
        generation: The generation of the memory for which ``node`` holds.
    """

    memory: Memory
    shape: tuple[int, ...]
    dtype: torch.dtype
    node: Node | None = None
    parent: View | None = None
    edge: Edge = Edge(None)
    generation: int = -1


def read(emitter: Emitter, view: View) -> Node:
    """Return the node that holds the present value of a view."""
    node = view.node
    if node is None or view.generation != view.memory.generation:
        if view.parent is not None:
            node = view.node = _derive(emitter, view, read(emitter, view.parent))
        assert node is not None
        view.generation = view.memory.generation
    return node


def write(emitter: Emitter, view: View, node: Node) -> None:
    """Make ``node`` the value of a view and, through it, of all views of its memory."""
    memory = view.memory
    updates = [(view, node)]
    while view.parent is not None:
        base = read(emitter, view.parent)
        node = _carry_up(emitter, view, base, node)
        view = view.parent
        updates.append((view, node))
    memory.generation += 1
    for updated, value in updates:
        updated.node, updated.generation = value, memory.generation


def past_history(emitter: Emitter, value: Node, old: Node | None, like: View) -> Node:
    """Return ``value`` with the history of ``old``, or with none where that has none."""
    value = emitter.emit(torch.detach, (value,), like=like)
    if old is not None and old.is_differentiable:
        value = emitter.emit(graft, (value, old), like=like)
    return value


def element(node: Node, dim: int, index: Any) -> tuple[Node | None, Node]:
    """Look up ``node.select(dim, index)`` through the slices that were written into ``node``.

    Returns:
        The value of that slice or None, and the oldest tensor with the same slice.
    """
    while True:
        if node.target in (torch.unsqueeze, torch.stack):
            return _only_element(node, dim), node
        if node.target is not torch.select_scatter or not _may_compare(index, node.args[3]):
            return None, node
        base, value, at_dim, at = node.args
        if at_dim != dim:
            return None, node
        if at == index:
            return _node(value), node
        node = _node(base)


def _only_element(node: Node, dim: int) -> Node | None:
    """Return the one slice of a tensor that was made by adding a dim to it."""
    content, added = node.args
    if isinstance(content, tuple):
        content = content[0] if len(content) == 1 else None
    return _node(content) if content is not None and added == dim else None


def _may_compare(a: Any, b: Any) -> bool:
    return type(a) is int and type(b) is int and (a < 0) == (b < 0)


def _node(value: Any) -> Node:
    assert isinstance(value, Node)
    return value


def _derive(emitter: Emitter, view: View, base: Node) -> Node:
    target, args = view.edge.target, view.edge.args
    if target is None:
        return base
    if target is torch.detach:
        return past_history(emitter, base, view.node, view)
    if target is torch.select:
        value, base = element(base, *args)
        if value is not None:
            return value
    return emitter.emit(target, (base, *args), like=view)


def _carry_up(emitter: Emitter, view: View, base: Node, node: Node) -> Node:
    assert view.parent is not None
    target, args = view.edge.target, view.edge.args
    if target is None:
        return node
    if target is torch.detach:
        if view.edge.is_secret and base.is_differentiable and emitter.is_used(base):
            emitter.refuse_alias("Gradients would be computed from the value before the write.")
        return past_history(emitter, node, base, view.parent)
    rule = _BACKWARD.get(target)
    if rule is None:
        name = getattr(target, "__name__", target)
        emitter.refuse_alias(f"It writes through the result of '{name}'.")
    return rule(emitter, view.parent, (base, node), args)


Nodes = tuple[Node, Node]
Rule = Callable[[Emitter, View, Nodes, tuple[Any, ...]], Node]


def _select_back(emitter: Emitter, parent: View, nodes: Nodes, args: tuple[Any, ...]) -> Node:
    return emitter.emit(torch.select_scatter, (*nodes, *args), like=parent)


def _getitem_back(emitter: Emitter, parent: View, nodes: Nodes, args: tuple[Any, ...]) -> Node:
    return emitter.emit(setitem, (nodes[0], args[0], nodes[1]), like=parent)


def _reshape_back(emitter: Emitter, parent: View, nodes: Nodes, args: tuple[Any, ...]) -> Node:
    sizes = emitter.sizes(nodes[0], len(parent.shape))
    return emitter.emit(torch.reshape, (nodes[1], sizes), like=parent)


def _transpose_back(emitter: Emitter, parent: View, nodes: Nodes, args: tuple[Any, ...]) -> Node:
    return emitter.emit(torch.transpose, (nodes[1], *args), like=parent)


def _permute_back(emitter: Emitter, parent: View, nodes: Nodes, args: tuple[Any, ...]) -> Node:
    inverse = tuple(sorted(range(len(args[0])), key=args[0].__getitem__))
    return emitter.emit(torch.permute, (nodes[1], inverse), like=parent)


def _diagonal_back(emitter: Emitter, parent: View, nodes: Nodes, args: tuple[Any, ...]) -> Node:
    return emitter.emit(torch.diagonal_scatter, (*nodes, *args), like=parent)


def _narrow_back(emitter: Emitter, parent: View, nodes: Nodes, args: tuple[Any, ...]) -> Node:
    dim, start, length = args
    if type(start) is not int or type(length) is not int:
        emitter.refuse_alias("The bounds of the part that it writes depend on shapes.")
    index = (slice(None),) * dim + (slice(start, start + length),)
    return emitter.emit(setitem, (nodes[0], index, nodes[1]), like=parent)


_BACKWARD: Mapping[Callable[..., Any], Rule] = {
    torch.select: _select_back,
    operator.getitem: _getitem_back,
    torch.reshape: _reshape_back,
    torch.flatten: _reshape_back,
    torch.unflatten: _reshape_back,
    torch.squeeze: _reshape_back,
    torch.unsqueeze: _reshape_back,
    torch.transpose: _transpose_back,
    torch.permute: _permute_back,
    torch.diagonal: _diagonal_back,
    torch.narrow: _narrow_back,
}
