"""Sizes that depend on values: how many elements a mask selects, where a tensor ends a slice.

Such a tensor may be computed with, but a number that Python reads off its sizes would be frozen
into the program.  So each tensor that has such a size is remembered, and what is made of it is
looked at: with that size one larger, which sizes of the result are larger?
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import CaptureError, Location
from snncc.frontend.operators.invocation import Invocation

# Functions whose result has a size that depends on values, whatever they are given.
SOURCES = frozenset(
    {
        *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "_unique2"),
        *("unique_dim", "bincount", "_unique", "linalg_lstsq"),
    }
)
# The same, where an argument is a tensor: a mask, or numbers of repetitions; or is missing.
_CONDITIONAL = frozenset({"__getitem__", "repeat_interleave", "where", "one_hot", "index"})
# The same, where a size is a tensor, as in ``torch.arange(lengths.max())``; which of the arguments
# are sizes.
_SIZES: Mapping[str, slice] = {
    **dict.fromkeys(("arange", "range", "eye", "zeros", "ones", "empty"), slice(None)),
    **dict.fromkeys(("rand", "randn", "randint", "randperm"), slice(None)),
    **dict.fromkeys(("linspace", "logspace"), slice(2, 3)),
    "full": slice(0, 1),
    "new_full": slice(1, 2),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty"), slice(1, None)),
    **dict.fromkeys(("expand", "repeat", "tile", "view", "reshape"), slice(1, None)),
    **dict.fromkeys(("broadcast_to", "unflatten"), slice(1, None)),
    "narrow": slice(3, 4),
}
_SIZE_NAMES = ("size", "sizes", "shape", "length", "end", "start", "step", "steps", "n", "repeats")
NAMES = SOURCES | _CONDITIONAL | _SIZES.keys()
_MASKS = (torch.bool, torch.uint8)


class VaryingSizes:
    """The tensors of a run that have sizes which depend on values."""

    def __init__(self) -> None:
        self._dims: dict[int, tuple[weakref.ref[Tensor], frozenset[int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._dims)

    def of(self, tensor: Tensor) -> frozenset[int]:
        """Return the dims of a tensor whose sizes depend on values."""
        found = self._dims.get(id(tensor))
        return found[1] if found is not None else frozenset()

    def follow(self, call: Invocation, result: Any, is_fixed: Callable[[Tensor], bool]) -> None:
        """Remember which sizes of the results of a call depend on values that are not fixed."""
        given = {id(x) for x in _tensors((call.args, call.kwargs))}
        made = [x for x in _tensors(result) if id(x) not in given]
        if made and _is_source(call, is_fixed):
            for x in made:
                self._mark(x, _selected(call) if call.name == "__getitem__" else range(x.dim()))
        elif made and any(key in self._dims for key in given):
            shapes = self._grown_shapes(call, made)
            for x, shape in zip(made, shapes, strict=True):
                self._mark(x, [d for d, n in enumerate(x.shape) if shape is None or n != shape[d]])

    def _mark(self, x: Tensor, dims: Any) -> None:
        if dims:
            key, known = id(x), self._dims
            known[key] = (weakref.ref(x, lambda _: known.pop(key, None)), frozenset(dims))

    def _grown_shapes(self, call: Invocation, made: list[Tensor]) -> list[torch.Size | None]:
        """Return the shapes of results for sizes one larger; None for what is not known."""
        try:
            args, kwargs = pytree.tree_map_only(Tensor, self._larger, (call.args, call.kwargs))
            shapes = [x.shape for x in _tensors(call.function(*args, **kwargs))]
        except Exception:  # it needs values, or sizes that fit
            shapes = []
        ranks = [len(shape) for shape in shapes]
        return [*shapes] if ranks == [x.dim() for x in made] else [None] * len(made)

    def _larger(self, x: Tensor) -> Tensor:
        dims = self.of(x)
        shape = [n + (d in dims) for d, n in enumerate(x.shape)]
        return torch.empty(shape, dtype=x.dtype, device="meta")


def _is_source(call: Invocation, is_fixed: Callable[[Tensor], bool]) -> bool:
    """Tell whether a call's results have sizes that depend on values."""
    if call.name in SOURCES:
        return True
    if call.name == "where":
        return len(call.args) + len(call.kwargs) == 1
    if call.name == "one_hot":
        return int(call.argument(1, "num_classes", -1)) == -1
    if call.name == "repeat_interleave":
        repeats = call.argument(1, "repeats", call.args[0] if call.args else None)
        return isinstance(repeats, Tensor)
    if call.name in ("__getitem__", "index"):
        ends = any(_ends_at_tensor(item) for item in _items(call.args[1]))
        return ends or any(x.dtype in _MASKS for x in _tensors(call.args[1:]))
    if call.name in _SIZES:
        named = [call.kwargs.get(name) for name in _SIZE_NAMES]
        sizes = _tensors((call.args[_SIZES[call.name]], named))
        return not all(map(is_fixed, sizes))
    return False


def _items(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _ends_at_tensor(item: Any) -> bool:
    """Tell whether an item of an index is a slice that a tensor bounds."""
    bounds = (item.start, item.stop, item.step) if isinstance(item, slice) else ()
    return any(isinstance(bound, Tensor) for bound in bounds)


def _selected(call: Invocation) -> list[int]:
    """Return the dims of ``x[index]`` that are as long as masks and tensors in it say."""
    x, index = call.args
    try:
        one, two = (_shape_of_part(x, index, count) for count in (1, 2))
    except (RuntimeError, IndexError):  # masks beside indices that fit them
        return list(range(x.dim()))
    return [d for d, n in enumerate(one) if n != two[d]]


def _shape_of_part(x: Tensor, index: Any, count: int) -> torch.Size:
    """Return the shape of ``x[index]`` where masks and slices of tensors select so many."""
    items: list[Any] = []
    for item in _items(index):
        if _ends_at_tensor(item):
            items.append(slice(count))
        elif not isinstance(item, Tensor):
            items.append(item)
        elif item.dtype in _MASKS:
            items += [torch.empty(count, dtype=torch.long, device="meta")] * item.dim()
        else:
            items.append(torch.empty(item.shape, dtype=torch.long, device="meta"))
    sizes = [max(n, 2) for n in x.shape]
    return torch.empty(sizes, device="meta")[tuple(items)].shape


def _tensors(value: Any) -> Iterator[Tensor]:
    return (x for x in pytree.tree_leaves(value) if isinstance(x, Tensor))


def refuse_size(where: Location | None) -> NoReturn:
    """Raise the error for a size that depends on values and is read by Python."""
    raise CaptureError(
        "A size that depends on the values of a tensor is read.",
        code="capture.varying-size",
        location=where,
        notes=["What Python computes from it would be frozen into the program."],
        hints=["Count with 'mask.sum()', and multiply by the mask instead of selecting with it."],
    )
