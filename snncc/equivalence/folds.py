"""Evidence that folding norms changed nothing but roundings: one neuron layer after the other.

The graph with norms and the graph without run side by side on the user's input, and each layer
gets what the layers *with* norms gave, so that a spike that moved moves no other.  Compared within
rounding is, for each spike, how far its potential is from the threshold, at every step up to the
first at which the spikes of a neuron differ.  Such spikes are counted, and have to be within
rounding of their threshold: their *margin*, relative to the largest of these distances.  All other
results are compared in the neurons whose spikes are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.equivalence.certificate import OUTPUT_TOLERANCE, Comparison, compare
from snncc.equivalence.translation import call_stepwise, interpret_graph
from snncc.ir.interpret import run_in_order
from snncc.ir.loop_call import LoopCall
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.neuron_class import SpikeClass
from snncc.ir.nodes import Binary, Const, Expr, Let, Op, Recurrence, Unary
from snncc.ir.time_loop import TimeLoop
from snncc.passes.fusion.fuse_edges import fresh_name, names_in
from snncc.passes.meaning.classify_neurons import classify_neuron

PART, SPIKES = "fold", ", spikes"


def compare_folds(
    plain: torch.fx.Graph, folded: torch.fx.Graph, values: Sequence[Any]
) -> list[Comparison]:
    """Compare each part that keeps a state with and without norms folded in front of it.

    Args:
        plain: The sequence graph with its norms.
        folded: The sequence graph without.
        values: The tensors of their placeholders.
    """
    seen: list[_Call] = []

    def observe(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call_stepwise(node, args, kwargs)
        if _keeps_state(node):
            seen.append(_Call(node, args, result))
        return result

    found: list[Comparison] = []

    def follow(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call_stepwise(node, args, kwargs)
        if not _keeps_state(node):
            return result
        before = seen.pop(0)
        found.extend(_compared(before, _Call(node, args, result)))
        return before.result

    with torch.no_grad():
        interpret_graph(plain, values, observe)
        interpret_graph(folded, values, follow)
    return found


def moved_spikes(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a line for each layer whose spikes are not all where they were."""
    return [
        f"{c.name.removesuffix(SPIKES)}: {c.differing} of {c.values} spikes moved; the first of "
        f"each neuron was within {c.error:.0e} of its threshold, relative to the farthest."
        for c in comparisons
        if c.part == PART and c.name.endswith(SPIKES) and c.differing and c.within
    ]


@dataclass(frozen=True)
class _Call:
    """One call of a neuron or loop."""

    node: torch.fx.Node
    args: tuple[Any, ...]
    result: tuple[Any, ...]


def _keeps_state(node: torch.fx.Node) -> bool:
    is_loop = isinstance(node.target, TimeLoop) and bool(node.target.carries)
    return is_loop or isinstance(node.target, NeuronCall | LoopCall)


def _compared(before: _Call, after: _Call) -> list[Comparison]:
    name = str(after.node.target.__name__)  # type: ignore[union-attr]
    found: list[Comparison] = []
    results = list(after.result)
    spiking: tuple[str, ...] = ()
    if isinstance(before.node.target, NeuronCall) and isinstance(after.node.target, NeuronCall):
        watched, again = _watch(before), _watch(after)
        for (spike, s, h), (_, z, u) in zip(watched, again, strict=True):
            moved = s != z
            late = moved.cumsum(0) > moved.int()  # behind the first difference
            found.append(_margins(f"{name} {spike}{SPIKES}", moved, h))
            found.append(_compare(f"{name} {spike}, potential", h, torch.where(late, h, u)))
            lanes = moved.any(0)
            results = [_where(lanes, a, b) for a, b in zip(before.result, results, strict=True)]
        spiking = tuple(spike for spike, _, _ in watched)
        outputs = before.node.target.program.forward.outputs
    else:
        outputs = ()
    for position, (a, b) in enumerate(zip(before.result, results, strict=True)):
        if outputs[position : position + 1] and outputs[position] in spiking:
            continue
        label = name if len(results) == 1 else f"{name} {position}"
        found.append(_compare(label, a, b))
    return found


def _compare(name: str, expected: Tensor, actual: Tensor) -> Comparison:
    return compare(PART, name, expected, actual, OUTPUT_TOLERANCE.get(expected.dtype, 0.0))


def _where(lanes: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return b, but a in some lanes."""
    return torch.where(lanes, a, b) if a.shape[a.dim() - lanes.dim() :] == lanes.shape else b


def _watch(call: _Call) -> list[tuple[str, Tensor, Tensor]]:
    """Return for each spike of a neuron its name, its values, and how far it is from another."""
    forward: Recurrence = call.node.target.program.forward  # type: ignore[union-attr]
    taken = names_in(forward)
    spikes = classify_neuron(forward).spikes
    lets = [Let(fresh_name("distance", taken), _distance(spike)) for spike in spikes]
    outputs = tuple(n for s, let in zip(spikes, lets, strict=True) for n in (s.name, let.name))
    watched = replace(forward, lets=(*forward.lets, *lets), outputs=outputs, finals=())
    names = (*forward.step_inputs, *forward.lane_inputs)
    inputs = dict(zip(names, call.args[1:], strict=True))
    results = list(run_in_order(watched, inputs, call.args[0])) if spikes else []
    return [
        (spike.name, results[2 * i], results[2 * i + 1].expand_as(results[2 * i]))
        for i, spike in enumerate(spikes)
    ]


def _distance(spike: SpikeClass) -> Expr:
    """Return how far a potential is above where the spike would be another one."""
    if spike.potential is None:
        return Const(0.0)
    if spike.threshold is not None:
        return Binary(Op.SUB, spike.potential, spike.threshold)
    part = Binary(Op.SUB, spike.potential, Unary(Op.FLOOR, spike.potential))
    return Binary(Op.SUB, part, Const(0.5))  # a number that is rounded


def _margins(name: str, moved: Tensor, distances: Tensor) -> Comparison:
    """Count the spikes that moved; the error is the largest margin of a neuron's first one."""
    allowed = OUTPUT_TOLERANCE.get(distances.dtype, 0.0)
    count = int(moved.sum())
    if not count:
        return Comparison(PART, name, moved.numel(), 0, 0.0, allowed, None)
    first = moved & (moved.cumsum(0) == 1)
    scale = float(distances.abs().max().nan_to_num(1.0, 1.0)) or 1.0
    error = float(distances.abs()[first].max()) / scale
    place = tuple(int(i) for i in moved.nonzero()[0])
    return Comparison(PART, name, moved.numel(), count, error, allowed, place)
