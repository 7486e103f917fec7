"""Numbers that Python computed from the number of steps, as functions of it.

``len(x)``, a counter, or ``1 / len(x)`` are plain numbers to Python, so that a record has their
values alone.  The model is recorded with one step and with two steps more, and a number that stands
at the same place of all three programs and grows with the steps is a `StepCount` from then on: a
stream has its value for the steps so far, as if the sequence ended there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.compilation.dump import Dump
from snncc.compilation.pipeline import Compiled, record, sequence_graph
from snncc.compilation.specializations import RECORDING
from snncc.compilation.time_lists import TimeLists, find_time_lists
from snncc.errors import SnnccError, UnsupportedError
from snncc.frontend.state.sources import gather
from snncc.ir.sequence_ops import StepCount
from snncc.passes.neurons import copy_graph
from snncc.passes.streams.time_runs import is_loop, length_position
from snncc.runtime import memory

# Where a number stands: the node, and which of its arguments it is.
_Place: TypeAlias = tuple[torch.fx.Node, int]
Model: TypeAlias = Callable[..., Any]


def count_steps(
    lists: TimeLists,
    model: Model,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    axes: Sequence[int | None],
) -> Compiled:
    """Return a program whose numbers follow the number of steps; the same where none does.

    Args:
        lists: The program, with sequences in the place of lists.
        model: The model.
        arguments: An example, with sequences in the place of lists.
        axes: For each source of the record its time axis, or None.

    Raises:
        UnsupportedError: A number that is returned changes with the steps in another way.
    """
    compiled = lists.compiled
    sources = compiled.recording.tape.sources
    pairs = zip(sources, axes, strict=True)
    along = [(s.index, a) for s, a in pairs if s.index is not None and a is not None]
    leaves, spec = pytree.tree_flatten(arguments)
    if not along:
        return compiled
    steps = leaves[along[0][0]].shape[along[0][1]]
    places = [p for p in _places(compiled.graph) if _may_follow(p, steps)]
    if not places:
        return compiled
    longer = []
    for more in (1, 2):
        stretched = list(leaves)
        for index, axis in along:
            stretched[index] = _stretch(leaves[index], axis, more)
        found = _recorded(lists, model, pytree.tree_unflatten(stretched, spec))
        if found is None:  # the model has a number of steps of its own
            return compiled
        longer.append(found)
    return _following(compiled, longer, places, steps)


def _recorded(
    lists: TimeLists, model: Model, arguments: tuple[tuple[Any, ...], dict[str, Any]]
) -> Compiled | None:
    """Return the program for some arguments, without kernels; None where the model refuses them."""
    compiled = lists.compiled
    columns = lists.arguments.leaves
    args, kwargs = lists.arguments.split(arguments, [0 if len(c) > 1 else None for c in columns])
    try:
        with RECORDING, memory.passing(), torch.no_grad():
            recording = record(model, args, kwargs)
            values = gather(recording.tape, model, args, kwargs)
            dump = Dump("longer")
            graph = sequence_graph(recording, compiled.options, values, dump, compiled.gates)
    except (SnnccError, RuntimeError, IndexError, ValueError, TypeError, KeyError):
        return None
    recording.tape.forget_calls()
    return find_time_lists(replace(compiled, recording=recording, graph=graph)).compiled


def _following(
    compiled: Compiled, longer: Sequence[Compiled], places: Sequence[_Place], steps: int
) -> Compiled:
    """Return a program in which the numbers at some places follow the steps."""
    graphs = [list(each.graph.nodes) for each in longer]
    order = {node: i for i, node in enumerate(compiled.graph.nodes)}
    names = [_name(node) for node in order]
    is_same = all([*map(_name, nodes)] == names for nodes in graphs)
    counts: dict[tuple[int, int], StepCount] = {}
    for node, position in places:
        seen = _numbers(node)[position]
        others = [_numbers(nodes[order[node]]).get(position) for nodes in graphs if is_same]
        count = _count([seen, *others], steps) if is_same else None
        if count is not None:
            counts[order[node], position] = count
        elif node.op == "output" and others != [seen, seen]:
            raise _uncountable(seen)
    return replace(compiled, graph=_with_counts(compiled.graph, counts)) if counts else compiled


def _with_counts(graph: torch.fx.Graph, counts: dict[tuple[int, int], StepCount]) -> torch.fx.Graph:
    """Return a graph with nodes in the place of numbers."""
    result = copy_graph(graph)
    nodes = list(result.nodes)
    first = next(node for node in nodes if node.op != "placeholder")
    for (index, position), count in counts.items():
        with result.inserting_before(first):
            number = result.call_function(count, ())
        node = nodes[index]
        if node.op == "output":
            values: Any = list(node.args[0])
            values[_given(node)[position]] = number
            node.args = (tuple(values),)
        else:
            node.update_arg(position, number)
    return result


def _places(graph: torch.fx.Graph) -> Iterator[_Place]:
    """Yield where the numbers of a graph stand that are no sizes or places of its loops."""
    for node in graph.nodes:
        is_structure = is_loop(node) or length_position(node) is not None
        if not is_structure and node.target not in _PICKS:
            yield from ((node, position) for position in _numbers(node))


_PICKS = frozenset({torch.select, torch.narrow, torch.movedim, torch.unsqueeze, torch.flatten})


def _numbers(node: torch.fx.Node) -> dict[int, int | float]:
    """Return the numbers among the arguments of a node, or among what the graph returns."""
    values: Any = node.args
    if node.op == "output":
        outputs: Any = node.args[0]
        values = [outputs[i] for i in _given(node)]
    return {i: x for i, x in enumerate(values) if type(x) in (int, float)}


def _given(output: torch.fx.Node) -> list[int]:
    """Return which outputs there are; the items of lists are gone, as many as steps."""
    outputs: Any = output.args[0]
    return [i for i, x in enumerate(outputs) if x is not None]


def _may_follow(place: _Place, steps: int) -> bool:
    """Tell whether a number may be a count of steps: close to a multiple of them, or its inverse.

    What is returned may follow them in any way.
    """
    node, position = place
    number = _numbers(node)[position]
    if node.op == "output":
        return True
    if 0 < number < 1:
        number = 1 / number
    nearest = round(number)
    return (
        abs(number - nearest) < 1e-9 * nearest
        and nearest >= steps - 1
        and (nearest + 1) % steps <= 2
    )


def _count(numbers: Sequence[Any], steps: int) -> StepCount | None:
    """Return the function of the steps that has these values at this number and the next two."""
    if None in numbers or len(set(map(type, numbers))) > 1 or len(set(numbers)) < len(numbers):
        return None
    is_inverse = isinstance(numbers[0], float) and numbers[0] < 1
    whole = [round(1 / x) if is_inverse else round(x) for x in numbers]
    slope = whole[1] - whole[0]
    offset = whole[0] - slope * steps
    count = StepCount(numbers[0], slope, offset, is_inverse)
    return count if [count(steps + i) for i in range(3)] == list(numbers) else None


def _stretch(x: Tensor, axis: int, more: int) -> Tensor:
    """Return a sequence with more steps, which are the first ones again."""
    index = torch.arange(x.shape[axis] + more, device=x.device) % x.shape[axis]
    return x.detach().index_select(axis, index).requires_grad_(x.requires_grad)


def _name(node: torch.fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)) if node.op != "placeholder" else "x"


def _uncountable(number: float) -> UnsupportedError:
    return UnsupportedError(
        "The model cannot run one time step after another.",
        code="unsupported.stream",
        notes=[f"it returns {number}, which changes with the number of steps"],
        hints=["Return tensors alone, or compute the number from 'stream.steps'."],
    )
