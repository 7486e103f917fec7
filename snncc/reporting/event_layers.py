"""The lines of a plan for a network that runs as a queue of spikes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch.fx

from snncc.ir import sequence_ops
from snncc.ir.events.currents import Currents
from snncc.ir.events.network import EventOrder
from snncc.ir.events.region import EventRegion
from snncc.ir.numerics import Numerics
from snncc.ir.tape import Source
from snncc.passes.events.linear_rules import scaled
from snncc.passes.meaning.classify_neurons import classify_neuron
from snncc.reporting.equations import equations_of
from snncc.reporting.operands import parameters_of
from snncc.reporting.report import Layer


class Line(NamedTuple):
    """A layer, the names of the layers of the network that it reads, and who sees it."""

    layer: Layer
    reads: tuple[str, ...]
    is_seen: bool


def event_layers(
    call: torch.fx.Node, kernel: str, sources: Mapping[torch.fx.Node, Source]
) -> Iterator[Line]:
    """Yield a line for each neuron layer and for each operator between two of them.

    Args:
        call: The node of the network.
        kernel: What runs it.
        sources: For each placeholder of the graph where its tensor comes from.
    """
    region: Any = call.target
    assert isinstance(region, EventRegion)
    network, note = region.network, order_text(region.network.order)
    seen = {result.group for result in network.results}
    for index, group in enumerate(region.groups):
        if not isinstance(group, Currents):
            continue
        edges = (network.edges[edge] for edge in group.sources)
        read = tuple(network.groups[edge.source].name for edge in edges)
        named = _named(call, group, sources)
        for node in filter(_is_shown, group.linear.nodes):
            layer = _between(node, parameters_of(node, named))
            yield Line(layer, read, is_seen=False)
            read = (layer.name,)
        yield Line(_neuron(network.groups[index].name, group, kernel, note), read, index in seen)
        note = ""


def _named(
    call: torch.fx.Node, group: Currents, sources: Mapping[torch.fx.Node, Source]
) -> dict[torch.fx.Node, Source]:
    """Return where the tensors come from that the operators before a group read."""
    places = group.linear.find_nodes(op="placeholder")[len(group.sources) :]
    given = ((p, call.args[1 + i]) for p, i in zip(places, group.externals, strict=True))
    return {place: sources[node] for place, node in given if node in sources}  # type: ignore[index]


def _is_shown(node: torch.fx.Node) -> bool:
    target: Any = node.target
    is_folded = isinstance(target, sequence_ops.Folded)
    is_layer = target is sequence_ops.linear or "functional" in getattr(target, "__module__", "")
    return node.op == "call_function" and (is_layer or is_folded or target is scaled)


def _between(node: torch.fx.Node, parameters: list[str]) -> Layer:
    operator = str(node.target.__name__).replace("_over_time", "")  # type: ignore[union-attr]
    operator = "batch_norm" if node.target is scaled else operator
    owner = parameters[0].rpartition(".")[0] if parameters else ""
    where = node.meta.get("where")
    return Layer(
        name=f"{operator}_{owner}" if owner.isdigit() else owner or operator,
        kind="operator",
        where=where,
        form="spike by spike",
        kernel="torch",
        numerics=Numerics.REASSOCIATED,
        operator=operator,
        lines=() if where is None else (where,),
    )


def _neuron(name: str, group: Currents, kernel: str, note: str) -> Layer:
    neuron = group.neuron
    places = [let.where for let in neuron.lets] + [state.where for state in neuron.states]
    return Layer(
        name=name,
        kind="neuron",
        where=neuron.where,
        form="queue of spikes",
        kernel=kernel,
        numerics=Numerics.SUBSTITUTED,
        equations=equations_of(neuron, {}).lines(),
        note=note,
        operator=classify_neuron(neuron).name,
        lines=tuple(dict.fromkeys(where for where in places if where is not None)),
    )


def order_text(order: EventOrder) -> str:
    """Return in what order spikes are processed, in a clause."""
    which = "any of them" if order.policy == "random" else "the highest potential first"
    noise = f", with noise of {order.noise:g}" if order.noise else ""
    spared = f", a share of {order.refractory_dropout:g} not refractory"
    dropout = spared if order.refractory_dropout else ""
    until = "" if order.stop is None else f", until {order.stop} groups after an output"
    return f"spikes of all layers in groups of {order.group_size}, {which}{noise}{dropout}{until}"
