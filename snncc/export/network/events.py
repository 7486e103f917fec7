"""A network of events as operations of an exported library.

What its groups get without spikes are ordinary operations, what depends on parameters alone is
computed here; the queue itself is one operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snncc.codegen.prepare import prepare
from snncc.export.network.nodes import Array, Pointwise, Queue, QueueEdge, Steps
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.events.currents import Currents, Given, Sizes
from snncc.ir.events.network import EventResult, Shown
from snncc.ir.events.region import EventRegion
from snncc.ir.events.steps import (
    EventFixed,
    EventQueue,
    EventSizes,
    EventStanding,
    drawn_seed,
)
from snncc.ir.nodes import Let, Var
from snncc.ir.printer import IR_DIALECT, spell
from snncc.ir.walk import names_read
from snncc.passes.neurons import copy_graph
from snncc.runtime.events.arrays import rows_of

if TYPE_CHECKING:
    from snncc.export.network.trace import Tracer

MOST_PLACES = 2**20  # weights of a matrix that is stored without its zeros
EVENTS = EventStanding | EventSizes | EventFixed | EventQueue


def apply_events(tracer: Tracer, target: EVENTS, args: tuple[Any, ...]) -> Any:
    """Return what stands for the value of a part of a network of events.

    Raises:
        UnsupportedError: The network has no form in a library.
    """
    assert tracer.node is not None
    if isinstance(target, EventStanding):
        return _standing(tracer, target, args)
    if isinstance(target, EventQueue):
        return _queue(tracer, target, args)
    tracer.fixed.add(tracer.node)  # it depends on inputs by their sizes alone
    with torch.no_grad():
        return target(*args)


def with_seed(program: ChunkProgram, seed: int) -> ChunkProgram:
    """Return a program whose random numbers are of a seed that is given, not drawn and kept.

    Args:
        program: The program.
        seed: The seed; not used where nothing is drawn.
    """
    graph, start = copy_graph(program.graph), copy_graph(program.start)
    for node in start.find_nodes(op="call_function", target=drawn_seed):
        node.target, node.args, node.meta = torch.tensor, (seed,), {}
    places = graph.find_nodes(op="placeholder")[1:]
    queues = [n for n in graph.nodes if isinstance(n.target, EventQueue)]
    kept = [queue.args[1] for queue in queues if isinstance(queue.args[1], torch.fx.Node)]
    for queue in queues:
        queue.update_arg(1, seed)
    results: Any = graph.output_node().args[0]
    count = len(program.output_axes)
    ends = zip(places, results[count:], strict=False)
    exits = [end for place, end in ends if place not in kept]
    graph.output_node().args = ((*results[:count], *exits),)
    for place in kept:
        graph.erase_node(place)
    pairs = zip(places, program.states, strict=False)
    states = tuple(state for place, state in pairs if place not in kept)
    return replace(program, graph=graph, start=start, states=states)


def _standing(tracer: Tracer, target: EventStanding, args: tuple[Any, ...]) -> list[Tensor]:
    node = tracer.node
    assert node is not None
    if isinstance(args[0], Steps):
        reason = "a layer starts from what no spikes of the step before make"
        raise tracer.refusal(reason, "Start from no spikes, and add no bias to what is fed back.")
    with torch.no_grad():
        known = target(0, *args[1:])
    made: list[Tensor] = []
    for group, example in zip(target.region.groups, known, strict=True):
        if isinstance(group, Given):
            made.append(args[2 + group.argument].flatten(2))
            continue
        lanes = [i for name, i in group.lanes if name in names_read(group.drive)]
        read = [node.args[2 + i] for i in (*group.externals, *lanes)]
        if tracer.fixed.issuperset(x for x in read if isinstance(x, torch.fx.Node)):
            made.append(example.contiguous())
        else:
            sizes = target.region.sizes(example.shape[1], args[2:])
            made.append(_driven(tracer, target.region, group, args[2:], sizes))
            tracer.node = node
    return made


def _driven(
    tracer: Tracer, region: EventRegion, group: Currents, arguments: Sequence[Any], sizes: Sizes
) -> Tensor:
    """Write down what a group gets in a step without spikes; return [1, B, n]."""
    node = tracer.node
    assert node is not None
    places = group.standing.find_nodes(op="placeholder")
    for place, edge in zip(places, group.sources, strict=False):
        shape = sizes.shapes[region.network.edges[edge].source]
        tracer.values[place] = torch.zeros(1, sizes.samples, *shape, dtype=region.dtype)
        tracer.fixed.add(place)
    for place, position in zip(places[len(group.sources) :], group.externals, strict=True):
        tracer.values[place] = arguments[position]
        given = node.args[2 + position]
        if not isinstance(given, torch.fx.Node) or given in tracer.fixed:
            tracer.fixed.add(place)
    tracer.run(group.standing)
    tracer.node = node
    results: Any = group.standing.output_node().args[0]
    shape = (sizes.samples, *group.shape)
    values = {
        name: torch.as_tensor(tracer.values[x] if isinstance(x, torch.fx.Node) else x)
        for name, x in zip(group.steps, results, strict=True)
    }
    values = {name: (x[0] if x.dim() else x).expand(shape) for name, x in values.items()}
    if isinstance(group.drive, Var) and group.drive.name in values:
        return values[group.drive.name].reshape(1, sizes.samples, -1)
    read = set(names_read(group.drive))
    lanes = ((name, i) for name, i in group.lanes if name in read)
    values |= {name: torch.as_tensor(arguments[i]).expand(shape) for name, i in lanes}
    return _sum(tracer, group, values, shape).reshape(1, sizes.samples, -1)


def _sum(
    tracer: Tracer, group: Currents, values: dict[str, Tensor], shape: tuple[int, ...]
) -> Tensor:
    """Write down what inputs and parameters add to a membrane."""
    stand, result = tracer.make(torch.zeros(shape, dtype=next(iter(values.values())).dtype))
    read = set(names_read(group.drive))
    lets = prepare((Let("drive", group.drive),), ["drive", *values])
    tracer.add(
        Pointwise(
            name=f"{group.neuron.name}_drive",
            comment=f"drive = {spell(group.drive, IR_DIALECT)}",
            shape=shape,
            inputs=tuple((n, tracer.array(x)) for n, x in values.items() if n in read),
            lets=lets,
            results=((result, "drive"),),
        )
    )
    return stand


def _queue(tracer: Tracer, target: EventQueue, args: tuple[Any, ...]) -> list[Tensor]:
    _, seed, standing, sizes, fixed, membranes, emitted = args
    network, samples = target.region.network, sizes.samples
    with torch.no_grad():
        tensors = target.tensors(standing, sizes, fixed, membranes, emitted)
    homes = _by_group(target.neurons, membranes, len(network.groups))
    late = _by_group(target.recalled, emitted, len(network.groups))
    wanted = {r.group for r in network.results if r.shown is Shown.SPIKES} | {*target.recalled}
    spikes = {
        g: tracer.make(torch.zeros_like(standing[g]), f"{network.groups[g].name}_spikes")
        for g in sorted(wanted)
    }

    def rows(x: Tensor | None) -> Array | None:
        return None if x is None else tracer.dense(x.reshape(samples, -1))

    def whole(x: Tensor | None, group: int) -> Array | None:
        size = tensors.sizes[group]
        return None if x is None else tracer.array(x.expand(size).contiguous())

    groups = range(len(network.groups))
    tracer.add(
        Queue(
            network=network,
            seed=int(seed),
            standing=tuple(tracer.dense(x[0]) for x in standing),
            decay=tuple(whole(tensors.decay[g], g) for g in groups),
            membranes=tuple(rows(homes[g]) for g in groups),
            emitted=tuple(rows(late[g]) for g in groups),
            lanes=tuple(
                tuple(tracer.array(x.expand(tensors.sizes[g]).contiguous()) for x in lanes)
                for g, lanes in enumerate(tensors.lanes)
            ),
            edges=tuple(_edges(tracer, tensors.weights)),
            spikes=tuple(spikes[g][1] if g in spikes else None for g in groups),
        )
    )

    def shown(result: EventResult) -> Tensor:
        value = spikes[result.group][0] if result.shown is Shown.SPIKES else homes[result.group]
        assert value is not None
        rows = value.reshape(samples, *sizes.shapes[result.group])
        return rows if result.shown is Shown.LAST else rows[None]

    ends = [EventResult(g, Shown.LAST) for g in target.neurons]
    last = [shown(EventResult(g, Shown.SPIKES))[0] for g in target.recalled]
    return [*map(shown, (*network.results, *ends)), *last]


def _by_group(groups: Sequence[int], values: Sequence[Tensor], count: int) -> list[Tensor | None]:
    known = dict(zip(groups, values, strict=True))
    return [known.get(group) for group in range(count)]


def _edges(tracer: Tracer, matrices: Sequence[Tensor]) -> Iterator[QueueEdge]:
    for matrix in matrices:
        rows = rows_of(matrix.detach())
        fans = tuple(rows.fans.tolist())
        if rows.dense is not None:
            yield QueueEdge(tracer.array(rows.dense), fans)
            continue
        assert rows.weights is not None
        assert rows.starts is not None
        assert rows.places is not None
        if len(rows.places) > MOST_PLACES:
            reason = f"a matrix has {len(rows.places)} weights among zeros; {MOST_PLACES} fit"
            raise tracer.refusal(reason, "Use smaller layers, or export with mode='fused'.")
        starts, places = tuple(rows.starts.tolist()), tuple(rows.places.tolist())
        values = rows.weights if len(rows.weights) else rows.weights.new_zeros(1)
        yield QueueEdge(tracer.array(values.contiguous()), fans, starts, places)
