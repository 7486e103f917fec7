"""The part of a certificate that is about a network that runs as a queue of spikes.

In which order spikes come is a part of that network, so it is not the one that was written, and its
results are not compared with those of the serial code.  What is compared:

- *product*: what the matrices make of spikes is what the operators of the code make of them;
- *kernel*: the kernels give what the reference gives for the same order, bit by bit;
- *network*: with all queued spikes processed at once the queue is the layered network, in float64,
  where no rounding decides a spike; where all ways to a layer are of one length.

How far the results of the chosen order are from those of the layered network is measured, and said
in a note.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from snncc.compilation.pipeline import Compiled
from snncc.equivalence.certificate import (
    OUTPUT_TOLERANCE,
    Comparison,
    compare,
    compare_all,
    compare_gradients,
)
from snncc.equivalence.translation import interpret_graph
from snncc.ir.events.currents import Currents
from snncc.ir.events.layered import is_layered, run_layered
from snncc.ir.events.network import EventNetwork, EventOrder, EventResult, EventTensors, Shown
from snncc.ir.events.region import EventRegion
from snncc.ir.events.run import run_events
from snncc.runtime.events.runner import EventRunner

Run = Callable[[EventTensors], Sequence[Tensor]]


def compare_events(
    compiled: Compiled, values: Sequence[Any], *, gradients: bool
) -> tuple[list[Comparison], list[str]]:
    """Return the comparisons of the networks of events in a model, and what is to be noted.

    Args:
        compiled: The model.
        values: The tensors that it runs on.
        gradients: Whether to compare gradients too.
    """
    calls: list[tuple[EventRegion, tuple[Any, ...]]] = []

    def call(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target: Any = node.target
        if isinstance(target, EventRegion):
            calls.append((target, args))
        return target(*args, **kwargs)

    with torch.no_grad():
        interpret_graph(compiled.graph, values, call)
    found: list[Comparison] = []
    notes: list[str] = []
    for (region, args), runner in zip(calls, compiled.event_networks, strict=True):
        with torch.no_grad():
            tensors = region.tensors(args[0], args[1:])
        found += _products(region, tensors, args)
        found += _kernels(region, runner, tensors, gradients)
        if is_layered(region.network):
            found += _wide(region.network, tensors, gradients)
        else:
            notes.append(
                "There are ways past a layer, so that no order of spikes is the layered one."
            )
        notes += _distance(region.network, tensors)
    return found, notes


def _products(
    region: EventRegion, tensors: EventTensors, args: tuple[Any, ...]
) -> list[Comparison]:
    """Compare matrices with operators, on the spikes of the layered network."""
    network, dtype = region.network, tensors.standing[0].dtype
    groups = range(len(network.groups))
    everything = replace(
        network,
        results=tuple(EventResult(i, Shown.SPIKES) for i in groups if network.groups[i].fire),
    )
    with torch.no_grad():
        rest = iter(run_layered(everything, tensors))
        spikes = [next(rest) if network.groups[i].fire else tensors.standing[i] for i in groups]
        found = []
        for index, group in enumerate(region.groups):
            if not isinstance(group, Currents) or not group.sources:
                continue
            arriving = [_arriving(network, tensors, spikes, edge) for edge in group.sources]
            written = region.driven(args[0], args[1:], group, arriving)
            pairs = zip(arriving, group.sources, strict=True)
            ours = tensors.standing[index] + sum(x @ tensors.weights[e] for x, e in pairs)
            name = f"input of {network.groups[index].name}"
            found.append(compare("product", name, written, ours, OUTPUT_TOLERANCE[dtype]))
    return found


def _arriving(
    network: EventNetwork, tensors: EventTensors, spikes: Sequence[Tensor], edge: int
) -> Tensor:
    """Return the spikes that an edge brings, [T, B, n]."""
    source = network.edges[edge].source
    first = tensors.emitted[source]
    if not network.edges[edge].is_delayed or first is None:
        return spikes[source]
    return torch.cat([first[None], spikes[source][:-1]])


def _kernels(
    region: EventRegion, runner: EventRunner, tensors: EventTensors, gradients: bool
) -> list[Comparison]:
    """Compare kernels with the reference, for the same order."""
    network, seed = region.network, region.seed()
    counts: list[Tensor] = []

    def reference(given: EventTensors) -> Sequence[Tensor]:
        outputs = run_events(network, given, seed)
        counts.append(outputs.counts)
        return outputs.results

    def kernel(given: EventTensors) -> Sequence[Tensor]:
        outputs = runner.run(given, seed)
        counts.append(outputs.counts)
        return outputs.results

    found = _pair("kernel", "queue of spikes", network, tensors, (reference, kernel), gradients)
    return [*found, compare("kernel", "counts of events", counts[0], counts[1], 0.0)]


def _wide(network: EventNetwork, tensors: EventTensors, gradients: bool) -> list[Comparison]:
    """Compare the queue, all spikes at once, with the layered network, in float64."""
    wide = replace(network, order=EventOrder(group_size=sum(tensors.sizes)))
    doubled = network.unflatten([x.double() for x in network.flatten(tensors)])
    runs: tuple[Run, Run] = (
        lambda given: run_layered(network, given),
        lambda given: run_events(wide, given).results,
    )
    allowed = OUTPUT_TOLERANCE[torch.float64]
    return _pair("network", "all spikes at once", network, doubled, runs, gradients, allowed)


def _pair(  # noqa: PLR0913 - two runs of one network
    part: str,
    name: str,
    network: EventNetwork,
    tensors: EventTensors,
    runs: tuple[Run, Run],
    gradients: bool,
    allowed: float = 0.0,
) -> list[Comparison]:
    """Compare two ways to run a network, and their gradients for a sum of all results."""
    results: list[list[Tensor]] = []
    slopes: list[dict[str, Tensor]] = []
    for run in runs:
        flat = [x.detach().clone().requires_grad_(gradients) for x in network.flatten(tensors)]
        results.append([*run(network.unflatten(flat))])
        slopes.append(_slopes(results[-1], network, flat) if gradients else {})
    found = compare_all(part, name, results[0], results[1], allowed)
    return found + compare_gradients(part, slopes[0], slopes[1])


def _slopes(
    results: Sequence[Tensor], network: EventNetwork, flat: Sequence[Tensor]
) -> dict[str, Tensor]:
    total = sum((x * x.detach().cos()).sum() for x in results if x.requires_grad)
    weights = flat[len(flat) - len(network.edges) :]
    if not isinstance(total, Tensor) or not weights:
        return {}
    found = torch.autograd.grad(total, weights, materialize_grads=True)
    return {f"weights {i}": x for i, x in enumerate(found)}


def _distance(network: EventNetwork, tensors: EventTensors) -> list[str]:
    """Return how far the results of the chosen order are from the layered ones."""
    groups = [i for i, group in enumerate(network.groups) if group.fire is not None]
    every = replace(network, results=tuple(EventResult(i, Shown.SPIKES) for i in groups))
    with torch.no_grad():
        layered = torch.cat([x.flatten() for x in run_layered(every, tensors)])
        queued = torch.cat([x.flatten() for x in run_events(every, tensors).results])
    moved, size = int((layered != queued).sum()), layered.numel()
    fired = int((layered != 0).sum()), int((queued != 0).sum())
    differ = f"{moved} of {size} spikes differ from those of the layered network"
    return [
        "The order of spikes is a part of this network; in the order that was chosen",
        f"{differ}, {fired[1]} neurons fire in place of {fired[0]}.",
    ]
