"""Evidence that folding norms changed nothing but roundings: one neuron layer after the other.

The graph with norms and the graph without run side by side on the user's input, and each layer
gets what the layers *with* norms gave, so that a spike that moved moves no other.  Compared within
rounding is, for each spike, how far its potential is from the threshold, at every step up to the
first at which the spikes of a neuron differ.  Such spikes are counted, and have to be within
rounding of their threshold: their *margin*, relative to the largest of these distances.  All other
results are compared in the neurons whose spikes are equal.

A norm behind a neuron becomes a part of it, so that neurons with and without norms may have other
results.  What only the latter have is what they compute of the spikes of the former, and is
compared where something reads it, or as a result of the network.
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
from snncc.ir.names import fresh_name, names_in
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.neuron_class import SpikeClass
from snncc.ir.nodes import Binary, Const, Expr, Input, Let, Op, Rank, Recurrence, Unary
from snncc.ir.time_loop import TimeLoop
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
        after = _Call(node, args, result)
        found.extend(_compared(before, after))
        return _continued(before, after)

    with torch.no_grad():
        expected = interpret_graph(plain, values, observe)
        actual = interpret_graph(folded, values, follow)
    for position, (a, b) in enumerate(zip(expected, actual, strict=True)):
        found.append(_compare(f"output {position}" if len(expected) > 1 else "output", a, b))
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
    """Compare the results that both calls have."""
    name = str(after.node.target.__name__)  # type: ignore[union-attr]
    found: list[Comparison] = []
    expected, results = _named(before), _named(after)
    spiking: tuple[str, ...] = ()
    if _is_neuron(before) and _is_neuron(after):
        watched = _watch(before)
        spiking = tuple(spike for spike, _, _ in watched)
        again = _watch(after, spiking) if watched else []  # all its spikes are of the norm
        for (spike, s, h), (_, z, u) in zip(watched, again, strict=True):
            moved = s != z
            late = moved.cumsum(0) > moved.int()  # behind the first difference
            found.append(_margins(f"{name} {spike}{SPIKES}", moved, h))
            found.append(_compare(f"{name} {spike}, potential", h, torch.where(late, h, u)))
            lanes = moved.any(0)
            shared = expected.keys() & results.keys()
            results |= {key: _where(lanes, expected[key], results[key]) for key in shared}
    for position, (key, value) in enumerate(expected.items()):
        if key in results and key[1] not in spiking:
            label = name if len(expected) == 1 else f"{name} {position}"
            found.append(_compare(label, value, results[key]))
    return found


def _continued(before: _Call, after: _Call) -> tuple[Any, ...]:
    """Return what the layers behind a call get: its results, for the spikes with norms."""
    expected, results = _named(before), _named(after)
    if results.keys() <= expected.keys():
        return tuple(expected[key] for key in results)
    forward = _forward(after)
    computed = {let.name for let in forward.lets}
    spikes = {name: values for name, values, _ in _watch(before) if name in computed}
    given = replace(
        forward,
        inputs=(*forward.inputs, *(Input(name, Rank.STEP) for name in spikes)),
        lets=tuple(let for let in forward.lets if let.name not in spikes),
    )
    values = run_in_order(given, _inputs(after) | spikes, after.args[0])
    results = dict(zip(results, values, strict=True)) | expected
    return tuple(results[key] for key in _named(after))


def _named(call: _Call) -> dict[tuple[str, Any], Tensor]:
    """Return the results of a call by what and whose they are; by position where it is a loop."""
    if not _is_neuron(call):
        return {("result", position): value for position, value in enumerate(call.result)}
    forward = _forward(call)
    keys = [("output", n) for n in forward.outputs] + [("final", n) for n in forward.finals]
    return dict(zip(keys, call.result, strict=True))


def _is_neuron(call: _Call) -> bool:
    return isinstance(call.node.target, NeuronCall)


def _forward(call: _Call) -> Recurrence:
    forward: Recurrence = call.node.target.program.forward  # type: ignore[union-attr]
    return forward


def _inputs(call: _Call) -> dict[str, Tensor]:
    forward = _forward(call)
    return dict(zip((*forward.step_inputs, *forward.lane_inputs), call.args[1:], strict=True))


def _compare(name: str, expected: Tensor, actual: Tensor) -> Comparison:
    return compare(PART, name, expected, actual, OUTPUT_TOLERANCE.get(expected.dtype, 0.0))


def _where(lanes: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return b, but a in some lanes."""
    return torch.where(lanes, a, b) if a.shape[a.dim() - lanes.dim() :] == lanes.shape else b


def _watch(call: _Call, spikes: Sequence[str] = ()) -> list[tuple[str, Tensor, Tensor]]:
    """Return for each spike of a neuron its name, its values, and how far it is from another.

    Args:
        call: The call of the neuron.
        spikes: Their names, where they are known: what is computed of a spike counts as one too.
    """
    forward = _forward(call)
    taken = names_in(forward)
    distinct: dict[tuple[Expr | None, Expr | None], SpikeClass] = {}
    for spike in classify_neuron(forward).spikes:
        distinct.setdefault((spike.potential, spike.threshold), spike)
    classes = list(distinct.values())
    lets = [Let(fresh_name("distance", taken), _distance(spike)) for spike in classes]
    computed = {let.name for let in forward.lets}
    own = [spike.name for spike in classes]
    names = [a if a in computed else b for a, b in zip(spikes or own, own, strict=True)]
    outputs = tuple(n for name, let in zip(names, lets, strict=True) for n in (name, let.name))
    watched = replace(forward, lets=(*forward.lets, *lets), outputs=outputs, finals=())
    results = list(run_in_order(watched, _inputs(call), call.args[0])) if names else []
    return [
        (name, results[2 * i], results[2 * i + 1].expand_as(results[2 * i]))
        for i, name in enumerate(names)
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
