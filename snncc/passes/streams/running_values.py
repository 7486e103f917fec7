"""Continue what a model computes over time: sums, extremes and where they are, running sums.

What reduces some steps is joined with what the steps before left: a sum with a sum, a maximum with
a maximum.  Where the maximum is takes three states: the best value so far, its place, and how many
places were searched before; an equal value later on does not move it, a NaN does, once::

    is_new = best_here > best
    best, place = where(is_new, (best_here, place_here + before), (best, place))
    before = before + places_here

A running sum begins with the last one of the steps before.

Numerics: extremes, places, `any` and `all` are bitwise; sums, means and products are taken step
after step; a running sum goes on in the type in which torch adds, so that on a CPU it is bitwise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
from torch import Tensor

from snncc.frontend.operators.canonical import cast, full_like, numel, size
from snncc.ir import sequence_ops
from snncc.ir.time_loop import Fill

if TYPE_CHECKING:
    from snncc.passes.streams.explicit_states import Streamer
    from snncc.passes.streams.find_time import Time

# Key of a node's meta after a first step of its own: the names of the placeholders that hold what
# the node was after that step, and what it was computed from.
SO_FAR = "so_far"

_Join = Callable[[Tensor, Tensor], Tensor]
# How a reduction over time continues: what joins the value so far with that of the next steps.
_JOINS: dict[Any, _Join] = {
    torch.sum: torch.add,
    torch.mean: torch.add,
    torch.prod: torch.mul,
    torch.amax: torch.maximum,
    torch.amin: torch.minimum,
    torch.any: torch.bitwise_or,
    torch.all: torch.bitwise_and,
}
# Operators that give the extreme value, or along one axis the value and where it is.
_EXTREMES: dict[Any, _Join] = {torch.max: torch.maximum, torch.min: torch.minimum}
# Operators that give where it is alone.
_PLACES: dict[Any, _Join] = {torch.argmax: torch.maximum, torch.argmin: torch.minimum}
# Operators that give one value for each step, of this step and those before.
_SCANS: dict[Any, float] = {torch.cumsum: 0.0, torch.cumprod: 1.0}
# The types in which torch adds up on a CPU.
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
_WHOLE: dict[str, Any] = {"dtype": torch.int64}  # of places


def join_of(node: torch.fx.Node) -> _Join | None:
    """Return what continues a reduction with the result of more steps; None for other nodes."""
    if node.target in _JOINS:
        return _JOINS[node.target]
    if node.target in _EXTREMES and len(node.args) == 1:  # of all elements
        return _EXTREMES[node.target]
    source = _pair_of(node)
    return _EXTREMES[source.target] if source is not None and node.args[1] == 0 else None


def place_join_of(node: torch.fx.Node) -> _Join | None:
    """Return the join of the extreme value whose place a node is; None for other nodes."""
    if node.target in _PLACES:
        return _PLACES[node.target]
    source = _pair_of(node)
    return _EXTREMES[source.target] if source is not None and node.args[1] == 1 else None


def continued_value(node: torch.fx.Node) -> torch.fx.Node | None:
    """Return what a node computes over, if it can be continued with further steps."""
    if node.target in _SCANS or join_of(node) is not None or place_join_of(node) is not None:
        search = _search(node)
        return search.args[0] if isinstance(search.args[0], torch.fx.Node) else None
    return None


def can_reduce_on(node: torch.fx.Node, time: Time) -> bool:
    """Tell whether a node without a time axis can be continued, given the time of its operand."""
    if time.lead:
        return False
    if place_join_of(node) is None:
        return True
    dim = _dim(node)
    return not time.inner and time.dim == (0 if dim is None else dim)


def can_scan_on(node: torch.fx.Node, time: Time) -> bool:
    """Tell whether a node gives running values over the time axis of its operand."""
    return node.target in _SCANS and not time.lead and time.factor == 1 and _dim(node) == time.dim


def continue_reduction(streamer: Streamer, node: torch.fx.Node) -> torch.fx.Node:
    """Continue a reduction over time; what it gives is the value of the sequence so far."""
    if place_join_of(node) is not None:
        return _place(streamer, node)
    join, dtype = join_of(node), streamer.source.dtypes[node]
    begin = _left_by_first(streamer, node) or Fill(_neutral(node, join, dtype))
    so_far = streamer.state(f"{node.name}.so_far", begin, dtype, node, _kept_axis(node))
    here = streamer.graph.node_copy(node, streamer.copies.__getitem__)
    if node.target is torch.mean:
        return _mean(streamer, node, here, so_far)
    result = streamer.call(join, (so_far, here), node)
    streamer.exits.append(result)
    return result


def continue_scan(streamer: Streamer, node: torch.fx.Node) -> torch.fx.Node:
    """Continue running sums or products: they begin with the last of the steps before."""
    dtype, dim = streamer.source.dtypes[node], _dim(node)
    scan: Any = node.target
    wide = _WIDER.get(dtype, dtype)
    begin: Fill | torch.fx.Node = Fill(_SCANS[scan])
    first = _left_by_first(streamer, node)
    if first is not None:
        last = streamer.start.call_function(torch.select, (first, dim, -1))
        begin = streamer.start.call_function(cast, (last, wide))
    entrance = streamer.state(f"{node.name}.so_far", begin, wide, node)
    steps = streamer.call(cast, (streamer.copies[_operand(node)], dtype), node)
    wider = streamer.call(cast, (steps, wide), node)
    running = streamer.call(sequence_ops.GoOn(scan), (wider, dim, entrance), node)
    streamer.exits.append(streamer.call(torch.select, (running, dim, -1), node))
    return streamer.call(cast, (running, dtype), node)


def _mean(
    streamer: Streamer, node: torch.fx.Node, here: torch.fx.Node, so_far: torch.fx.Node
) -> torch.fx.Node:
    """Continue a mean over time: the mean of a chunk weighs as much as its steps."""
    streamer.counts = True
    total = streamer.call(torch.mul, (here, streamer.here_length), node)
    joined = streamer.call(torch.add, (so_far, total), node)
    streamer.exits.append(joined)
    return streamer.call(torch.div, (joined, streamer.elapsed), node)


def _place(streamer: Streamer, node: torch.fx.Node) -> torch.fx.Node:
    """Continue the search for where an extreme value is."""
    search = _search(node)
    join, dim, axis = place_join_of(node), _dim(node), _kept_axis(node)
    operand = _operand(node)
    dtype = streamer.source.dtypes[operand]
    best_of = torch.amax if join is torch.maximum else torch.amin
    begins: list[Fill | torch.fx.Node] = [Fill(_lowest(join, dtype)), Fill(0), Fill(0)]
    first = _left_by_first(streamer, node)
    if first is not None:
        row = _left_by_first(streamer, node, 1)
        assert row is not None
        count = streamer.start.call_function(*_count(row, dim))
        before = streamer.start.call_function(full_like, (first, count), _WHOLE)
        best = streamer.start.call_function(best_of, (row, *_along(search)))
        begins = [best, first, before]
    best, place, before = (
        streamer.state(f"{node.name}.{name}", begin, kind, node, axis)
        for name, begin, kind in zip(
            ("best", "place", "before"), begins, (dtype, torch.int64, torch.int64), strict=True
        )
    )

    def call(target: Any, *args: Any) -> torch.fx.Node:
        return streamer.call(target, args, node)

    x = streamer.copies[operand]
    here = streamer.graph.node_copy(node, streamer.copies.__getitem__)
    best_here = call(best_of, x, *_along(search))
    is_new = call(torch.gt if join is torch.maximum else torch.lt, best_here, best)
    if dtype.is_floating_point:
        is_number = call(torch.eq, best, best)
        is_nan = call(torch.logical_and, call(torch.isnan, best_here), is_number)
        is_new = call(torch.logical_or, is_new, is_nan)
    result = call(torch.where, is_new, call(torch.add, here, before), place)
    count = streamer.graph.call_function(*_count(x, dim))
    searched = streamer.graph.call_function(full_like, (here, count), _WHOLE)
    streamer.exits += [
        call(torch.where, is_new, best_here, best),
        result,
        call(torch.add, before, searched),
    ]
    return result


def _left_by_first(streamer: Streamer, node: torch.fx.Node, which: int = 0) -> torch.fx.Node | None:
    """Return, in the start graph, what a first step of its own left; None where there is none."""
    if SO_FAR not in node.meta:
        return None
    name = node.meta[SO_FAR][which]
    return streamer.starts[next(n for n in streamer.source.graph.nodes if n.name == name)]


def _pair_of(node: torch.fx.Node) -> torch.fx.Node | None:
    """Return the search along one axis, for its value or its place, that a node takes a part of."""
    source = node.args[0] if node.target is operator.getitem else None
    is_pair = isinstance(source, torch.fx.Node) and source.target in _EXTREMES
    return source if is_pair else None  # type: ignore[return-value]


def _search(node: torch.fx.Node) -> torch.fx.Node:
    """Return the node that computes over time, of which another may take a part."""
    return _pair_of(node) or node


def _operand(node: torch.fx.Node) -> torch.fx.Node:
    operand = continued_value(node)
    assert operand is not None
    return operand


def _dim(node: torch.fx.Node) -> int | None:
    """Return the one axis that a search, or a running sum, is along; None where it is along all."""
    args = _search(node).args
    return args[1] if len(args) > 1 else None  # type: ignore[return-value]


def _along(search: torch.fx.Node) -> Sequence[Any]:
    return search.args[1:] if len(search.args) > 1 and search.args[1] is not None else ()


def _kept_axis(node: torch.fx.Node) -> int | None:
    """Return the axis that a reduction keeps with size 1, where it reduces no other."""
    args: Any = _search(node).args
    is_kept = len(args) > 2 and args[2] is True
    dims = args[1] if is_kept and isinstance(args[1], tuple | list) else args[1:2]
    return dims[0] if is_kept and len(dims) == 1 else None


def _count(x: torch.fx.Node, dim: int | None) -> tuple[Callable[..., int], tuple[Any, ...]]:
    """Return the call that counts the places of a search."""
    return (numel, (x,)) if dim is None else (size, (x, dim))


def _neutral(node: torch.fx.Node, join: _Join | None, dtype: torch.dtype) -> float:
    """Return the value that a join leaves as it is."""
    if join in (torch.maximum, torch.minimum):
        return _lowest(join, dtype)
    return 1 if join in (torch.mul, torch.bitwise_and) else 0


def _lowest(join: _Join | None, dtype: torch.dtype) -> float:
    """Return the value that no value is below, or for a minimum above."""
    is_maximum = join is torch.maximum
    if dtype is torch.bool:
        return not is_maximum
    if dtype.is_floating_point:
        return -torch.inf if is_maximum else torch.inf
    return torch.iinfo(dtype).min if is_maximum else torch.iinfo(dtype).max
