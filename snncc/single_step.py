"""A sequence of one step shows no loop; it is recorded a second time with the step repeated.

The loop that the longer recording proves is then run on the single step that the user passed, and
has to give, bit by bit, what the user's code gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import SnnccError
from snncc.frontend.sources import gather
from snncc.pipeline import Recording, record
from snncc.translation import run_graph

# Steps of the longer recording: enough to tell a first and a last step from those between.
REPEATS = 4


def record_repeated(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], single: Recording
) -> Recording | None:
    """Return a recording of the model on a longer sequence, or None where there is no such axis.

    Args:
        model: The model.
        args: Its arguments, with a time axis of size 1.
        kwargs: Its keyword arguments.
        single: The recording of those very arguments.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    values = gather(single.tape, model, args, kwargs)
    expected = run_graph(single.tape.graph, values)
    for stretched in _stretched(leaves):
        longer_args, longer_kwargs = pytree.tree_unflatten(stretched, spec)
        try:
            longer = record(model, longer_args, longer_kwargs)
        except (SnnccError, RuntimeError, IndexError, ValueError, TypeError):
            continue  # not the time axis: the user's own code refuses the longer input
        if longer.rolled.loops and _agrees(longer, model, args, kwargs, expected):
            return longer
    return None


def _stretched(leaves: list[Any]) -> Iterator[list[Any]]:
    """Yield the leaves with one axis of size 1 repeated, for each such axis."""
    ranks = [x.dim() for x in leaves if isinstance(x, Tensor)]
    for dim in range(max(ranks, default=0)):
        if any(_has_single(x, dim) for x in leaves):
            yield [_repeat(x, dim) if _has_single(x, dim) else x for x in leaves]


def _has_single(leaf: Any, dim: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > dim and leaf.shape[dim] == 1


def _repeat(leaf: Tensor, dim: int) -> Tensor:
    longer = torch.cat([leaf.detach()] * REPEATS, dim)
    return longer.requires_grad_(leaf.requires_grad)


def _agrees(
    longer: Recording,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    expected: tuple[Any, ...],
) -> bool:
    """Run the proven loop on the single step and compare."""
    values = gather(longer.tape, model, args, kwargs)
    try:
        actual = run_graph(longer.rolled.graph, values)
    except (RuntimeError, IndexError):
        return False
    return len(actual) == len(expected) and all(
        a.shape == b.shape and torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(actual, expected, strict=True)
    )
