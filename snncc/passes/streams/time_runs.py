"""Run a sequence graph on sequences of one, two and three steps.

Nothing is assumed about which axis of which input is time: assignments are tried, the most natural
first, until one is found that every loop of the graph follows.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.fx
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.ir import sequence_ops
from snncc.ir.events.region import EventRegion
from snncc.ir.events.steps import EventStanding
from snncc.ir.loop_call import loop_of
from snncc.ir.neuron_call import NeuronCall
from snncc.passes.base import Rejection
from snncc.passes.neurons import copy_graph
from snncc.passes.streams.made_steps import follow_steps

Environment: TypeAlias = dict[torch.fx.Node, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ShortRuns:
    """The values of every node on sequences of one, two and three steps.

    Attributes:
        graph: The graph; its first placeholder is the number of steps.
        runs: For each number of steps the value of each node.
        length: How many steps the graph takes, where that is a number of its own; else 0.
    """

    graph: torch.fx.Graph
    runs: dict[int, Environment]
    length: int


def run_short(
    graph: torch.fx.Graph, values: Sequence[Tensor], inputs: Sequence[bool]
) -> ShortRuns | Rejection:
    """Run a graph on short sequences of random values.

    Args:
        graph: The sequence graph.
        values: Tensors of the sizes of its placeholders; their values do not matter.
        inputs: For each placeholder whether it may have a time axis.
    """
    prepared = _with_length(graph, inputs)
    if isinstance(prepared, Rejection):
        return prepared
    copy, seen = prepared
    samples = [_sample(value) for value in values]
    order = {node: i for i, node in enumerate(copy.nodes)}
    visited = _visited_axes(graph)
    stops: list[tuple[bool, int, torch.fx.Node]] = []
    picked = _picked_axes(graph, samples, inputs, seen)
    for axes in (*picked, *_candidates(samples, inputs, seen)):
        try:
            runs = {steps: _run(copy, _sized(samples, axes, steps), steps) for steps in (1, 2, 3)}
            _require_growing(copy, runs)
        except _StopError as stop:
            stops.append((bool(visited & axes.items()), order[stop.node], stop.node))
            continue
        return ShortRuns(copy, runs, seen or 0)
    _, _, node = max(stops)  # of an axis that a loop visits, else what got furthest
    reason, hint = _why(node)
    code = "made-steps" if _is_made(node) else "time-axis"
    return Rejection(code, reason, _where(node), hint)


# What operators raise when sizes do not fit: this axis was not the time axis.
FAILURES = (
    *(RuntimeError, IndexError, ValueError, TypeError, ArithmeticError),
    UnsupportedError,
)


def _visited_axes(graph: torch.fx.Graph) -> set[tuple[int, int]]:
    """Return which axes of which placeholders have as many steps as a loop."""
    places = [n for n in graph.nodes if n.op == "placeholder"]
    trips = (n for n in graph.nodes if isinstance(n.target, sequence_ops.TripLength))
    return {(places.index(n.args[0]), n.target.dim) for n in trips if n.args[0] in places}


def _picked_axes(
    graph: torch.fx.Graph, values: Sequence[Tensor], inputs: Sequence[bool], seen: int | None
) -> Iterator[dict[int, int]]:
    """Yield axes with as many steps as the loops, of inputs that a single step is taken from.

    A loop over the steps of an input may forget all of them but the first.
    """
    places = [n for n in graph.nodes if n.op == "placeholder"]
    for i, (place, is_input) in enumerate(zip(places, inputs, strict=True)):
        for user in place.users if is_input else ():
            if user.target is torch.select and values[i].shape[user.args[1]] == seen:
                yield {i: user.args[1]}


def _require_growing(graph: torch.fx.Graph, runs: dict[int, Environment]) -> None:
    """Check that what a loop visits grows with the steps, whatever rows stand in front.

    Raises:
        _StopError: The loop visits a part of what is the same whatever the sequence.
    """
    for view in graph.find_nodes(op="call_function", target=sequence_ops.time_view):
        source, dim, *_ = view.args
        rows = {env[source].shape[dim] - len(env[view]) for env in runs.values()}
        if len(rows) > 1:
            raise _StopError(view)
    for node in graph.nodes:
        is_led = isinstance(node.target, sequence_ops.TripLength) and node.target.offset
        if is_led and any(env[node] != steps for steps, env in runs.items()):
            raise _StopError(node)


class _StopError(Exception):
    """A run on a short sequence could not pass a node."""

    def __init__(self, node: torch.fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


def _why(node: torch.fx.Node) -> tuple[str, str]:
    """Return why no run on short sequences passed a node, as far as can be told, and a hint."""
    if node.target in (torch.select, operator.getitem, torch.narrow):
        hint = "Return all steps, and pick from what the stream returns."
        return "single steps are picked out by their numbers", hint
    if node.target is not sequence_ops.time_view:
        name = getattr(node.target, "__name__", str(node.target))
        hint = "Apply it to each step alone; its sizes are those of the whole sequence."
        return f"'{name}' does not take another number of steps", hint
    source, _, start, stride, _ = node.args
    if isinstance(stride, int) and stride < 0:
        hint = "Let the loop run forwards: its first step is the last of the sequence."
        return "a loop runs backwards in time", hint
    if (start, stride) != (0, 1):
        hint = "Visit every step, and drop the results that are not wanted."
        return "a loop does not visit every step in order", hint
    maker = _maker(source)
    if maker is not None:
        reason = f"its steps are put together in the model, by '{maker}', not an axis of an input"
        return reason, "Put them together outside of the model, and pass them to it."
    hint = "Give the inputs of all loops one time axis, or stream loops of other lengths apart."
    return "its loops do not follow one axis of the inputs", hint


def _where(node: torch.fx.Node) -> Any:
    """Return the line of a node, or that of the first node that depends on it and has one."""
    seen = [node]
    for each in seen:
        if each.meta.get("where") is not None:
            return each.meta["where"]
        seen += [user for user in each.users if user not in seen]
    return None


def _is_made(node: torch.fx.Node) -> bool:
    """Tell whether a node is the view of a loop over steps that the model puts together."""
    is_view = node.target is sequence_ops.time_view and node.args[2:4] == (0, 1)
    return is_view and _maker(node.args[0]) is not None


def _maker(source: Any) -> str | None:
    """Return the name of the operator that makes a sequence of what has no time axis."""
    seen = [source]
    for node in seen:
        if node.target in _MAKERS:
            return str(node.target.__name__)
        seen += [n for n in node.all_input_nodes if n not in seen]
    return None


_MAKERS = frozenset({torch.stack, torch.cat, torch.Tensor.repeat, torch.Tensor.expand})


def _with_length(
    graph: torch.fx.Graph, inputs: Sequence[bool]
) -> tuple[torch.fx.Graph, int | None] | Rejection:
    """Return the graph with its number of steps as the first placeholder, and T where fixed.

    Loops over parameters, such as over the taps of a filter, have lengths of their own.
    """
    result = copy_graph(graph)
    first = next(iter(result.nodes))
    moving = _with_their_loops(result, _from_inputs(result, inputs))
    with result.inserting_before(first):
        length = result.placeholder("length")
    seen = follow_steps(result, length)
    moving |= _reached(result, length.users)
    for node in list(result.nodes):
        if isinstance(node.target, sequence_ops.TripLength):
            if not _is_time(node, moving):
                continue
            if node.target.offset:
                continue  # of what has rows in front of the first step
            if node not in moving:
                # The length is that of a parameter with a value for each step.
                seen.add(node.args[0].meta["shape"][node.target.dim])
            node.replace_all_uses_with(length)
            result.erase_node(node)
        elif node in moving:
            seen |= _use_length(node, length)
    if len(seen) > 1:
        reason = f"its loops make {' and '.join(map(str, sorted(seen)))} steps"
        return Rejection("trips", reason, hint="Compile and stream loops of other lengths apart.")
    for node in result.nodes:
        if node.target is sequence_ops.time_view and node.args[0] not in moving:
            _follow_steps(node, length, seen)
    return result, next(iter(seen), None)


def _is_time(trip: torch.fx.Node, moving: set[torch.fx.Node]) -> bool:
    """Tell whether a number of steps is that of a loop over the input."""
    return trip in moving or any(user in moving for user in trip.users)


def _use_length(node: torch.fx.Node, length: torch.fx.Node) -> set[int]:
    """Let a node follow the number of steps; return the number that it had for it."""
    if node.target is sequence_ops.step_numbers:
        node.target, node.args = sequence_ops.numbers_until, (*node.args, length)
        return set()
    position = length_position(node)
    if position is None or not isinstance(node.args[position], int):
        return set()
    steps: Any = node.args[position]
    node.update_arg(position, length)
    return {steps}


def _follow_steps(view: torch.fx.Node, length: torch.fx.Node, seen: set[int]) -> None:
    """Let a view of a parameter with a value for each step follow the steps of the sequence."""
    x, dim, start, stride, steps = view.args
    if (start, stride) == (0, 1) and (steps is length or steps in seen):
        view.target, view.args = sequence_ops.steps_until, (x, dim, length, length)


def _from_inputs(graph: torch.fx.Graph, inputs: Sequence[bool]) -> set[torch.fx.Node]:
    """Return the nodes that an input can change; all of them where no input has a loop."""
    places = [n for n in graph.nodes if n.op == "placeholder"]
    seeds = [n for n, is_input in zip(places, inputs, strict=True) if is_input]
    found = _reached(graph, seeds)
    loops = [n for n in graph.nodes if is_loop(n)]
    return found if any(n in found for n in loops) else set(graph.nodes)


def _reached(graph: torch.fx.Graph, seeds: Iterable[torch.fx.Node]) -> set[torch.fx.Node]:
    """Return nodes and all that depends on them."""
    found = set(seeds)
    for node in graph.nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _with_their_loops(graph: torch.fx.Graph, moving: set[torch.fx.Node]) -> set[torch.fx.Node]:
    """Return nodes with the other parts of the loops that they are parts of.

    A loop over a number of steps may count, or draw, without reading an input.
    """
    loops = {node.meta["loop"] for node in moving if "loop" in node.meta}
    return moving | {node for node in graph.nodes if node.meta.get("loop") in loops}


def is_loop(node: torch.fx.Node) -> bool:
    """Tell whether a node is a neuron, or another loop over time."""
    return isinstance(node.target, NeuronCall | EventRegion) or loop_of(node) is not None


def length_position(node: torch.fx.Node) -> int | None:
    """Return which argument of a node is the number of steps."""
    target: Any = node.target
    if isinstance(node.target, NeuronCall | EventRegion):
        return 0
    if node.target is torch.arange:
        return 0 if any(takes_as_length(user, node) for user in node.users) else None
    return {sequence_ops.time_view: 4, sequence_ops.repeat_time: 1}.get(target)


def takes_as_length(loop: torch.fx.Node, node: torch.fx.Node) -> bool:
    """Tell whether a node is a loop that makes as many steps as another node is long."""
    called = loop_of(loop)
    if called is None or called.trip.operand is None:
        return False
    return loop.args[called.trip.operand] is node


def _sample(value: Tensor) -> Tensor:
    """Return random values of the size and type of a tensor; integers are kept."""
    if value.dtype.is_floating_point:
        return torch.rand_like(value) + 0.5
    return value


def _candidates(
    values: Sequence[Tensor], inputs: Sequence[bool], seen: int | None
) -> Iterator[dict[int, int]]:
    """Yield assignments of a time axis to the inputs, the most natural first."""
    yield {}
    positions = [i for i, is_input in enumerate(inputs) if is_input]
    ranks = max((values[i].dim() for i in positions), default=0)
    for dim in range(ranks):
        fitting = [i for i in positions if values[i].dim() > dim]
        if seen is not None:
            fitting = [i for i in fitting if values[i].shape[dim] == seen]
        sizes = {values[i].shape[dim] for i in fitting}
        for length in sorted(sizes, reverse=True):
            same = [i for i in fitting if values[i].shape[dim] == length]
            yield dict.fromkeys(same, dim)
            if len(same) > 1:
                yield from ({i: dim} for i in same)


def _sized(values: Sequence[Tensor], axes: dict[int, int], steps: int) -> list[Tensor]:
    """Return the values with as many steps along their time axes as are asked for."""
    return [
        _stretch(value, axes[i], steps) if i in axes else value for i, value in enumerate(values)
    ]


def _stretch(value: Tensor, dim: int, steps: int) -> Tensor:
    index = torch.arange(steps) % max(value.shape[dim], 1)
    return value.index_select(dim, index)


def _run(graph: torch.fx.Graph, values: Sequence[Tensor], steps: int) -> Environment:
    """Run a graph by the reference and return the value of every node.

    Raises:
        _StopError: The sizes do not fit.
    """
    env: Environment = {}
    places = iter([steps, *values])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = next(places)
            elif node.op == "call_function":
                try:
                    env[node] = call_node(node, env)
                except FAILURES as error:
                    raise _StopError(node) from error
    return env


def call_node(node: torch.fx.Node, env: Environment) -> Any:
    """Run one node on the values of its operands.

    Raises:
        ValueError: It is a loop's view of its input that leaves steps out or reorders them.
    """
    args: Any = torch.fx.node.map_arg(node.args, env.__getitem__)
    kwargs: Any = torch.fx.node.map_arg(node.kwargs, env.__getitem__)
    if node.target is sequence_ops.time_view:
        _require_whole(*args)
    target: Any = node.target
    if isinstance(target, EventRegion):
        return EventStanding(target).shapes(*args)
    return target(*args, **kwargs)


def _require_whole(x: Tensor, dim: int, start: int, stride: int, length: int) -> None:
    rows = x.shape[dim] - length  # that stand before the first step
    if stride != 1 or not 0 <= start <= rows:
        raise ValueError("the loop does not visit every step in order")
