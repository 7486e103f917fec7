"""From a sequence graph to a program for one chunk of time, with the states made explicit.

Before, the graph takes a sequence and gives its results.  After, it takes some steps and the states
that the steps before left, and gives the results so far and the states.  A neuron starts from its
states and returns them; a sum or maximum over time is continued, and so is the search for where
the maximum is (`running_values`); a mean divides by the steps so far; everything else treats the
steps apart (`find_time`) and is left as it is.

Precondition: no operator mixes time steps, no loop runs backwards in time, and nothing is read of
the sequence as a whole before its end.
Numerics: bitwise given equal products; sums and means over time are taken step after step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.events.region import EventRegion
from snncc.ir.sequence_ops import StepCount, TripLength
from snncc.passes.base import Rejection
from snncc.passes.streams.explicit_states import Streamer
from snncc.passes.streams.find_time import MAKERS, Kind, TimeMap, find_time
from snncc.passes.streams.first_roles import ALIKE
from snncc.passes.streams.first_step import Split, find_time_after_first, split_first


def stream_steps(
    graph: torch.fx.Graph, values: Sequence[Tensor], inputs: Sequence[bool]
) -> ChunkProgram | Rejection:
    """Return the program for one chunk of a sequence graph.

    Args:
        graph: The sequence graph, its neurons in any form.
        values: Tensors of the sizes of its placeholders.
        inputs: For each placeholder whether it may have a time axis.
    """
    found, split = _find(graph, values, inputs)
    if isinstance(found, Rejection):
        return found
    for output in graph_outputs(found.graph):
        time = found.times[output]
        if time.kind is Kind.ALONG and time.factor != 1:
            reason, hint = (
                "an output folds time into another axis",
                "Return it before it is folded.",
            )
            return Rejection("output-axis", reason, hint=hint)
    if split is not None and any(isinstance(n.target, EventRegion) for n in found.graph.nodes):
        reason = "its spikes are one queue, and its first step is another program"
        return Rejection("first-step", reason, hint=ALIKE)
    if split is not None and (node := _step_of_counts(found)) is not None:
        reason = "its steps compute with the number of all steps, and its first step is another"
        return Rejection("step-count", reason, node.meta.get("where"), ALIKE)
    return Streamer(found, split).program()


def _find(
    graph: torch.fx.Graph, values: Sequence[Tensor], inputs: Sequence[bool]
) -> tuple[TimeMap | Rejection, Split | None]:
    """Return the time of every value, and the first step where it is taken apart."""
    if _has_led_loops(graph):
        found = find_time(graph, values, inputs)
        if not isinstance(found, Rejection):
            return found, None
    split = split_first(graph, inputs)
    if split is None:
        return find_time(graph, values, inputs), None
    if isinstance(split, Rejection):
        return split, None
    found = find_time_after_first(split, values, inputs)
    if not isinstance(found, Rejection) and found.makers:
        reason = "its first step is another, and rows stand before it"
        return Rejection("first-step", reason, hint=ALIKE), None
    return found, split


def _step_of_counts(found: TimeMap) -> torch.fx.Node | None:
    """Return a value of each step that is computed with the number of all of them."""
    known: list[torch.fx.Node] = [n for n in found.graph.nodes if isinstance(n.target, StepCount)]
    for node in known:
        for user in node.users:
            kind = Kind.PREFIX if user.op == "output" else found.times[user].kind
            if kind not in (Kind.PREFIX, Kind.TIMELESS):
                return user
            if kind is Kind.TIMELESS and user not in known:
                known.append(user)
    return None


def _has_led_loops(graph: torch.fx.Graph) -> bool:
    """Tell whether a loop visits some rows of a value that may have rows before the first step."""
    trips = [n for n in graph.nodes if isinstance(n.target, TripLength) and n.target.offset]
    before: list[torch.fx.Node] = list(trips)
    for node in before:
        before += [n for n in node.all_input_nodes if n not in before]
    return any(node.target in MAKERS for node in before)


def graph_outputs(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """Return the outputs of a graph that are nodes."""
    outputs: Any = graph.output_node().args[0]
    return [node for node in outputs if isinstance(node, torch.fx.Node)]
