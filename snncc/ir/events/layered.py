"""What a network of events would give layer by layer: the meaning of the serial code."""

from __future__ import annotations

import torch
from torch import Tensor

from snncc.ir import interpret
from snncc.ir.events.network import EventNetwork, EventTensors, Shown


def run_layered(network: EventNetwork, tensors: EventTensors) -> tuple[Tensor, ...]:
    """Run a network layer by layer, each with all spikes of the layers before; return its results.

    Args:
        network: The network; its order is not read.
        tensors: What it runs on.
    """
    last, membranes = list(tensors.emitted), list(tensors.membrane)
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in network.groups]
    for t in range(tensors.standing[0].shape[0]):
        before, now = list(last), list[Tensor]()
        for index, group in enumerate(network.groups):
            u = tensors.standing[index][t]
            if group.fire is None:
                now.append(u)
                continue
            for edge, weight in zip(network.edges, tensors.weights, strict=True):
                if edge.target == index:
                    spikes = before[edge.source] if edge.is_delayed else now[edge.source]
                    u = u + _known(spikes) @ weight
            u = _known(tensors.decay[index]) * _known(membranes[index]) + u
            inputs = {group.potential: u} | dict(
                zip(group.lanes, tensors.lanes[index], strict=True)
            )
            values = interpret.run_step(group.fire, inputs, {})
            *spike, after = (values[name].to(u.dtype).expand_as(u) for name in group.fire.outputs)
            membranes[index] = after
            now.append(spike[0] if spike else torch.zeros_like(u))
            seen[index].append((now[index], after))
        last = list(now)
    return tuple(_shown(seen[r.group], r.shown) for r in network.results)


def is_layered(network: EventNetwork) -> bool:
    """Tell whether the network with groups that hold all that is queued is the layered one.

    It is if all ways to a layer are of one length, counted in layers: then each is evaluated once a
    time step, on all of its input.  A chain is such a network, and so are branches side by side; a
    way past a layer is not.
    """
    levels: list[int] = []
    for index, group in enumerate(network.groups):
        sources = [e.source for e in network.edges if e.target == index and not e.is_delayed]
        heard = {levels[source] for source in sources}
        if len(heard) > 1 or (heard and group.starts):
            return False
        levels.append(heard.pop() + 1 if heard else 0)
    return True


def _known(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _shown(seen: list[tuple[Tensor, Tensor]], shown: Shown) -> Tensor:
    spikes, membranes = (torch.stack([each[i] for each in seen]) for i in (0, 1))
    return {Shown.SPIKES: spikes, Shown.MEMBRANES: membranes, Shown.LAST: membranes[-1]}[shown]
