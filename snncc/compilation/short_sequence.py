"""A sequence of one to three steps may show no loop; it is recorded again with the steps repeated.

Three steps do not always show one either: a first step that starts from nothing and a last step
whose state is never read differ from the one between.  The loop that the longer recording proves is
then run on the short sequence that the user passed, and has to give, bit by bit, what the user's
code gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.compilation.pipeline import Recording, record
from snncc.errors import SnnccError
from snncc.frontend.state.sources import gather, preserved
from snncc.ir.custom_gradient import run_graph
from snncc.ir.tape import Tape
from snncc.ir.time_loop import TimeLoop
from snncc.passes.neurons import copy_graph

# Sizes of a time axis that may hide the loop.
SHORT = (1, 2, 3)
FEW = len(SHORT) + 1
# How often they are repeated: enough to tell a first and a last step from those between.
REPEATS = 4


def record_longer(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], short: Recording
) -> Recording | None:
    """Return a recording of the model on a longer sequence, or None where no axis shows a loop.

    Where there is a loop that cannot be cut to the short sequence, the short recording is returned
    as *flat*: it runs as it was recorded.

    Args:
        model: The model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        short: The recording of those very arguments, in which no loop was found.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    expected = _run(short.tape, short.tape.graph, model, args, kwargs)
    has_loop = False
    for stretched in _stretched(leaves):
        longer_args, longer_kwargs = pytree.tree_unflatten(stretched, spec)
        try:
            longer = record(model, longer_args, longer_kwargs)
        except (SnnccError, RuntimeError, IndexError, ValueError, TypeError):
            continue  # not the time axis: the user's own code refuses the longer input
        has_loop |= bool(longer.rolled.loops)
        for candidate in (longer, _cut_to_length(longer)):
            if longer.rolled.loops and _agrees(candidate, model, args, kwargs, expected):
                return candidate
    return replace(short, exact=True, flat=True) if has_loop else None


def _cut_to_length(longer: Recording) -> Recording:
    """Return a recording whose loops make as many steps as the short one has.

    A loop with numbers of its own for each step (``decay ** t``) does not follow the axis.
    """
    graph = copy_graph(longer.rolled.graph)
    for node in graph.nodes:
        if isinstance(node.target, TimeLoop) and node.target.trip.operand is None:
            node.target = _cut(node.target)
    return replace(longer, rolled=replace(longer.rolled, graph=graph), exact=True)


def _cut(loop: TimeLoop) -> TimeLoop:
    steps = loop.trip.seen // REPEATS
    tables = tuple(replace(table, values=table.values[:steps]) for table in loop.tables)
    return replace(loop, trip=replace(loop.trip, seen=steps), tables=tables)


def _stretched(leaves: list[Any]) -> Iterator[list[Any]]:
    """Yield the leaves with a short axis repeated: of all that have one there, then of each alone.

    The axis of time of one argument may be the axis of samples of another, as labels have it.
    """
    ranks = [x.dim() for x in leaves if isinstance(x, Tensor)]
    for dim in range(max(ranks, default=0)):
        short = [i for i, x in enumerate(leaves) if _is_short(x, dim)]
        alone = [[i] for i in short] if len(short) > 1 else []
        for chosen in [short, *alone] if short else []:
            yield [_repeat(x, dim) if i in chosen else x for i, x in enumerate(leaves)]


def _is_short(leaf: Any, dim: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > dim and leaf.shape[dim] in SHORT


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
    """Run the proven loop on the short sequence and compare."""
    try:
        actual = _run(longer.tape, longer.rolled.graph, model, args, kwargs)
    except (SnnccError, RuntimeError, IndexError):
        return False
    return len(actual) == len(expected) and all(map(_is_equal, actual, expected))


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _run(
    tape: Tape,
    graph: torch.fx.Graph,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, ...]:
    """Run a program; buffers and random numbers are as before, for it and for what follows."""
    with preserved(model, args, kwargs), torch.no_grad():
        outputs = run_graph(graph, gather(tape, model, args, kwargs))
        return tuple(x.clone() if isinstance(x, Tensor) else x for x in outputs)
