"""The key of a recording: arguments and state, without the values of tensors.

Two calls with equal signatures run the same Python, but for sizes, which are listed apart.
Numbers, strings and None are part of a signature by value, tensors by type, rank and by which of
them are the same or share memory, containers and objects by what they hold, anything else by
identity.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from torch import Tensor, nn

from snncc.errors import UnsupportedError
from snncc.frontend.placement import memory_of
from snncc.frontend.state.sources import Holder, walk_arguments

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]

PLAIN = frozenset({bool, int, str, type(None)})


def describe_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]
) -> tuple[Hashable, Shapes]:
    """Return the signature of the arguments of a call, and the shapes of tensors.

    Args:
        model: The model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        leaves: Both of them, flattened.

    Returns:
        The signature; the shapes of the leaves, () for what is no tensor, followed by those of
        the tensors that objects among them hold.
    """
    holders = [] if all(map(_is_plain, leaves)) else walk_arguments(model, args, kwargs)
    describer = Describer(holders)
    given = []
    for number, leaf in enumerate(leaves, start=1):
        given.append(describer.argument(leaf))
        if len(describer.shapes) < number:
            describer.shapes.append(())
    held = describer.describe_all(holders)
    named = tuple(map(_Same, describer.named))
    return (tuple(given), held, named), tuple(describer.shapes)


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) or type(leaf) in PLAIN or type(leaf) is float


class Describer:
    """Describes values of one moment.

    Args:
        holders: The objects that are described by what they hold.

    Attributes:
        shapes: The shapes of the tensors that were described and are no parameters.
        named: The objects that are described by their identity, which has to remain theirs.
    """

    def __init__(self, holders: Iterable[Holder] = ()) -> None:
        self.shapes: list[Shape] = []
        self.named: list[Any] = []
        self._objects: dict[int, int] = {}
        for holder in holders:
            self._objects.setdefault(id(holder.owner), len(self._objects))
        self._tensors: dict[int, int] = {}
        self._memories: dict[int, int] = {}

    def number(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the first numbers; those that are among them are told from others."""
        for tensor in tensors:
            self._tensors.setdefault(id(tensor), len(self._tensors))

    def describe_all(self, holders: Iterable[Holder]) -> Hashable:
        """Return the descriptions of all that some holders hold."""
        return tuple([
            (h.path, type(h.owner), key, self.describe(value))
            for h in holders
            for key, value in h.items()
        ])  # fmt: skip

    def argument(self, leaf: Any) -> Hashable:
        """Describe an argument; the sizes of one that is a parameter are free as well."""
        return self._tensor(leaf) if isinstance(leaf, Tensor) else self.describe(leaf)

    def describe(self, value: Any) -> Hashable:
        """Return a value that is equal for what the model's Python cannot tell apart."""
        kind = type(value)
        if kind in PLAIN:
            return kind, value
        if isinstance(value, Tensor):
            is_parameter = isinstance(value, nn.Parameter)
            return (*self._kind(value), value.shape) if is_parameter else self._tensor(value)
        if kind is float:
            return kind, value, math.copysign(1.0, value)
        if isinstance(value, dict):
            items = [(self.describe(k), self.describe(v)) for k, v in value.items()]
            return kind, tuple(items)
        if isinstance(value, list | tuple | deque):
            return kind, tuple([self.describe(v) for v in value])
        if id(value) in self._objects:
            return kind, self._objects[id(value)]
        self.named.append(value)
        return kind, id(value)

    def _tensor(self, value: Tensor) -> Hashable:
        try:
            self.shapes.append(tuple(value.shape))
        except RuntimeError as error:  # a nested tensor has none
            raise UnsupportedError(
                "A tensor has no sizes of its own.",
                code="unsupported.tensor-kind",
                notes=["Nested tensors are of this kind."],
                hints=["Use plain dense tensors: pad the shorter ones."],
            ) from error
        memory = memory_of(value)
        seen = self._kind(value)
        return *seen, value.dim(), self._memories.setdefault(memory, len(self._memories))

    def _kind(self, value: Tensor) -> tuple[Hashable, ...]:
        number = self._tensors.setdefault(id(value), len(self._tensors))
        return number, value.dtype, value.device, value.requires_grad, value.layout


class _Same:
    """An object, equal to itself alone; it is kept, so that its identity remains its own."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
