"""Stand-ins for the values of a network while its ONNX graph is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(eq=False)
class Value:
    """A tensor, or an integer that depends on sizes.

    Attributes:
        samples: What it is for each of the sample sizes: an example, or an integer.  A dim
            that differs among them is dynamic.
        name: Its name in the graph; empty while it has none.
        known: Its values, where they depend on parameters alone.
        bare: The name of it without its first axis, which is of size one, where that has one.
        step: An axis of size one, and the name of it without that axis, where that has one.
        label: What to call it, should it get a name.
    """

    samples: tuple[Any, ...]
    name: str = ""
    known: Tensor | None = None
    bare: str = ""
    step: tuple[int, str] | None = None
    label: str = ""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of a tensor for each of the sample sizes."""
        return tuple(tuple(x.shape) for x in self.samples)

    @property
    def dtype(self) -> torch.dtype:
        """The type of a tensor."""
        found: torch.dtype = self.samples[0].dtype
        return found

    @property
    def rank(self) -> int:
        """How many axes a tensor has."""
        return len(self.samples[0].shape)

    @property
    def is_number(self) -> bool:
        """Whether it is an integer."""
        return not isinstance(self.samples[0], Tensor)

    def sample(self, number: int) -> Any:
        """Return what it is for one of the sample sizes."""
        return self.samples[number]

    def is_static(self, dim: int) -> bool:
        """Tell whether a dim is the same for all sample sizes."""
        return len({shape[dim] for shape in self.shapes}) == 1

    def size(self, dim: int) -> int:
        """Return the size of a static dim."""
        found: int = self.samples[0].shape[dim]
        return found


def known_value(tensor: Tensor, count: int, label: str = "") -> Value:
    """Return what stands for a tensor that depends on parameters alone."""
    return Value((tensor.detach(),) * count, known=tensor.detach(), label=label)


def copied(values: Sequence[Value]) -> list[Value]:
    """Return values that get names of their own, as in a graph that others do not see into."""
    return [replace(value) for value in values]


def map_values(function: Callable[[Value], Any], nest: Any) -> Any:
    """Apply a function to every value in nested tuples, lists and dictionaries."""
    return pytree.tree_map(lambda x: function(x) if isinstance(x, Value) else x, nest)


def values_in(nest: Any) -> list[Value]:
    """Return every value in nested tuples, lists and dictionaries."""
    return [x for x in pytree.tree_leaves(nest) if isinstance(x, Value)]
