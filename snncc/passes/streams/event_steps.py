"""A network of events in a stream: its time, and a copy that takes some steps and goes on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.ir.events.currents import Currents
from snncc.ir.events.region import EventRegion
from snncc.ir.events.steps import (
    EventFixed,
    EventQueue,
    EventSizes,
    EventStanding,
    drawn_seed,
)
from snncc.ir.loop_call import LoopCall
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Const, Var
from snncc.ir.sequence_ops import shift_time
from snncc.ir.time_loop import Fill, TimeLoop
from snncc.passes.base import Rejection

if TYPE_CHECKING:
    from snncc.passes.streams.explicit_states import Streamer

Arguments = Sequence[Any]


def is_drawing(node: torch.fx.Node) -> bool:
    """Tell whether a node is a network of events that draws random numbers."""
    return isinstance(node.target, EventRegion) and node.target.network.order.draws


def is_event_start_only(region: EventRegion, positions: Iterable[int]) -> bool:
    """Tell whether a network reads some of its arguments before its first step alone.

    Args:
        region: The network.
        positions: Positions of arguments; the number of steps is none.
    """
    return not (EventStanding(region).drives | EventFixed(region).reads) & set(positions)


def mixed_events(
    region: EventRegion,
    whole: Arguments,
    parts: Sequence[Arguments],
    same: Callable[[Tensor, Tensor], bool],
) -> Rejection | None:
    """Return why a network of events cannot be run step by step; None if it can.

    Args:
        region: The network.
        whole: The arguments of its node for three steps.
        parts: Those for each of them alone.
        same: Tells whether two tensors are equal up to rounding.
    """
    for kept in (x for g in region.groups if isinstance(g, Currents) for x in g.standing.nodes):
        if isinstance(kept.target, NeuronCall | TimeLoop | LoopCall) or kept.target is shift_time:
            reason = "has a state between two neurons"
            hint = "Multiply the spikes of the step before, and keep no other state between layers."
            return Rejection("mixes-time", reason, kept.meta.get("where"), hint)
    standing = EventStanding(region)
    each = [standing(t + 1, *arguments) for t, arguments in enumerate(parts)]
    for group, x in enumerate(standing(0, *whole)):
        if not all(same(x[t : t + 1], part[group]) for t, part in enumerate(each)):
            reason = "gets something between two neurons that does not treat the time steps apart"
            hint = "Apply it to each step alone, or to what the stream returns."
            return Rejection("mixes-time", reason, region.network.groups[group].where, hint)
    length, *arguments = whole
    sizes = region.sizes(each[0][0].shape[1], arguments)
    try:
        region.fixed(length, arguments, sizes)
    except UnsupportedError as error:
        return Rejection("mixes-time", error.message, error.location, error.hints[0])
    return None


def continue_events(streamer: Streamer, node: torch.fx.Node) -> torch.fx.Node:
    """Copy a network of events: it starts from its states and returns them.

    Args:
        streamer: Where to.
        node: The network.
    """
    region: Any = node.target
    network, (length, *arguments) = region.network, node.args
    seed, elapsed = _seed(streamer, node)
    membranes = [
        _membrane(streamer, node, network.groups[index].name, group)
        for index, group in enumerate(region.groups)
        if isinstance(group, Currents)
    ]
    emitted = [
        _state(streamer, node, f"{network.groups[index].name}.spikes", start)
        for index, start in enumerate(region.emitted)
        if network.is_recalled(index)
    ]
    given = streamer.mapped(arguments)

    def part(target: Any, *first: Any) -> torch.fx.Node:
        own = [x if i in target.reads else None for i, x in enumerate(given)]
        return streamer.call(target, (*first, *own), node)

    steps = streamer.mapped(length)
    first = EventStanding(region)
    streamer.counts |= first.is_started
    standing = part(first, streamer.elapsed if first.is_started else 0, steps)
    sizes = part(EventSizes(region), standing)
    fixed = part(EventFixed(region), steps, sizes)
    values = (elapsed, seed, standing, sizes, fixed, membranes, emitted)
    queue = streamer.call(EventQueue(region), values, node)
    ends = range(len(network.results), len(network.results) + len(membranes) + len(emitted))
    streamer.exits += [streamer.call(operator.getitem, (queue, i), node) for i in ends]
    return queue


def _membrane(streamer: Streamer, node: torch.fx.Node, name: str, group: Currents) -> torch.fx.Node:
    places = dict(group.lanes)
    match group.initial:
        case Var(lane):
            start: Any = places[lane]
        case Const(value):
            start = float(value)
    return _state(streamer, node, f"{name}.{group.membrane.removesuffix('_prev')}", start)


def _state(streamer: Streamer, node: torch.fx.Node, name: str, start: int | float) -> torch.fx.Node:
    """Add a state that starts from an argument of the network, or from a number."""
    value: Any = node.args[1 + start] if isinstance(start, int) else start
    is_node = isinstance(value, torch.fx.Node)
    begun = streamer.begin(value) if is_node else Fill(float(value))
    entrance = streamer.state(name, begun, node.target.dtype, node)  # type: ignore[union-attr]
    if is_node:
        streamer.copies.setdefault(value, entrance)  # not read
    return entrance


def _seed(streamer: Streamer, node: torch.fx.Node) -> tuple[Any, Any]:
    """Return the seed, which is drawn once, and the count of steps; numbers where none is drawn."""
    if not is_drawing(node):
        return 0, 0
    drawn = streamer.start.call_function(drawn_seed)
    drawn.meta["impure"] = True
    entrance = streamer.state("queue.seed", drawn, torch.int64, node)
    streamer.exits.append(entrance)
    streamer.counts = True
    return entrance, streamer.elapsed
