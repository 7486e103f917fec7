"""Objects that hold tensors, as containers: a dataclass of states, a record of the user's class.

A run may return such an object, or bind an attribute to a new one.  Opened, it is a node of a
pytree whose leaves are its attributes; unflattening makes an object of the same class again.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True)
class Opened:
    """An object of a user's class: its class, and its attributes by name."""

    kind: type
    attributes: dict[str, Any]


def opened(value: Any, known: Container[int]) -> Any:
    """Return nested containers with every object that holds tensors opened.

    Args:
        value: Tensors, containers and objects.
        known: The ids of objects that stay what they are.
    """
    return _open(value, known, ())


def _open(value: Any, known: Container[int], above: tuple[int, ...]) -> Any:
    def visit(leaf: Any) -> Any:
        if id(leaf) in known or id(leaf) in above or not _is_record(leaf):
            return leaf
        inside = (*above, id(leaf))
        return Opened(type(leaf), {k: _open(v, known, inside) for k, v in attributes_of(leaf)})

    return pytree.tree_map(visit, value)


_OPAQUE = (
    *(Tensor, nn.Module, type, ModuleType, FunctionType, MethodType),
    *(set, frozenset, functools.partial, int, float, str),
)


def _is_record(value: Any) -> bool:
    """Tell whether a value is an object that only holds values, tensors among them."""
    if isinstance(value, _OPAQUE):
        return False
    plain = "__reduce_ex__" not in {n for k in type(value).__mro__[:-1] for n in vars(k)}
    return plain and any(True for _ in attributes_of(value)) and _holds_tensor(value)


def _holds_tensor(value: Any) -> bool:
    return next(tensors_inside(value), None) is not None


def attributes_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that an object has of its own."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def tensors_inside(value: Any) -> Iterator[Tensor]:
    """Yield the tensors that can be reached from a value, modules of torch aside."""
    stack, seen = [value], set[int]()
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            yield item
        elif id(item) not in seen and not isinstance(item, type | ModuleType | nn.Module):
            seen.add(id(item))
            stack.extend(_parts(item))


def _parts(value: Any) -> Iterable[Any]:
    match value:
        case dict():
            return value.values()
        case list() | tuple() | set() | frozenset() | deque():
            return value
        case functools.partial():
            return (value.func, value.args, value.keywords)
        case MethodType():
            return (value.__self__,)
        case FunctionType():
            return [c.cell_contents for c in value.__closure__ or () if _is_filled(c)]
        case _:
            return [part for _, part in attributes_of(value)]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _flatten(value: Opened) -> tuple[list[Any], Any]:
    return list(value.attributes.values()), (value.kind, tuple(value.attributes))


def _rebuild(values: Iterable[Any], context: Any) -> Any:
    kind, names = context
    result = object.__new__(kind)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(result, name, value)
    return result


pytree.register_pytree_node(Opened, _flatten, _rebuild)
