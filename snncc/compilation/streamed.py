"""The steps of a sequence graph, its recurrent layers of torch taken apart where they hide them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.fx
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.tape import Position, SourceKind, Tape
from snncc.passes import Rejection
from snncc.passes.hoisting.hoist_stateless import HoistStateless
from snncc.passes.loops.fuse_steps import FuseSteps
from snncc.passes.loops.open_layers import OpenLayers
from snncc.passes.neurons import copy_graph
from snncc.passes.streams.stream_steps import stream_steps

# What can be done about every model that has no stream.
WHOLE = "Call the compiled model on the whole sequence."


def streamed(
    graph: torch.fx.Graph, tape: Tape, leaves: Sequence[Tensor], *, writes_back: bool = False
) -> ChunkProgram | Rejection:
    """Return the program for some steps of a sequence graph.

    Args:
        graph: The sequence graph.
        tape: What it was compiled from.
        leaves: The tensors of its placeholders.
        writes_back: Whether what the model leaves behind in itself is needed, besides what it
            returns; without, it may be missing.
    """
    inputs = [source.kind is SourceKind.INPUT for source in tape.sources]
    program = stream_steps(graph, leaves, inputs)
    if isinstance(program, Rejection) and not writes_back:
        program = stream_steps(returning(graph, tape), leaves, inputs) or program
    return program


def returning(graph: torch.fx.Graph, tape: Tape) -> torch.fx.Graph:
    """Return a graph whose outputs are what the model returns, and None for all others."""
    returned = {leaf.index for leaf in tape.output_leaves if isinstance(leaf, Position)}
    result = copy_graph(graph)
    outputs: Any = result.output_node().args[0]
    result.output_node().args = (
        tuple(x if i in returned else None for i, x in enumerate(outputs)),
    )
    result.eliminate_dead_code()
    return result


def has_time(program: ChunkProgram | Rejection) -> TypeGuard[ChunkProgram]:
    """Tell whether there is a program, and it takes steps: of an input, or as many as it says."""
    if isinstance(program, Rejection):
        return False
    return program.length > 0 or any(axis is not None for axis in program.input_axes)


def with_open_layers(graph: torch.fx.Graph, *, on_gpu: bool) -> torch.fx.Graph:
    """Return a sequence graph with recurrent layers of torch as loops, their steps fused.

    Raises:
        UnsupportedError: The steps of such a layer cannot be told apart.
    """
    opened = OpenLayers().run(graph)
    if isinstance(opened, Rejection):
        raise no_steps(opened)
    if opened is graph:
        return graph
    for each in (HoistStateless(on_gpu), FuseSteps(on_gpu)):
        after = each.run(opened)
        assert isinstance(after, torch.fx.Graph)  # there are loops
        opened = after
    return opened


def hides_steps(
    graph: torch.fx.Graph, tape: Tape, leaves: Sequence[Tensor], *, on_gpu: bool
) -> bool:
    """Tell whether the recurrent layers of a sequence graph are over time.

    Those over another axis, as over the rows of each image, leave its steps apart as they are.

    Raises:
        UnsupportedError: Even as loops they do not let the steps be told apart.
    """
    if has_time(streamed(graph, tape, leaves)):
        return False
    program = streamed(with_open_layers(graph, on_gpu=on_gpu), tape, leaves)
    if isinstance(program, Rejection):
        raise no_steps(program)
    return True


# What to do, by the code of a rejection.
_REMEDIES = {
    "late-loops": "Do at every step what later steps do, times a count of the steps that is 0 or 1"
    " at first: 'total = total + s * (n > 2)'.",
    "made-steps": "Put the steps together before the model, whose loop then runs over its input:"
    " 'model(x.repeat_interleave(2, 0))'.",
}


def no_steps(rejection: Rejection) -> UnsupportedError:
    """Return the error that a model has no steps."""
    return UnsupportedError(
        "The model cannot run one time step after another.",
        code="unsupported.stream",
        location=rejection.where,
        notes=[rejection.reason],
        hints=[
            *filter(None, [_REMEDIES.get(rejection.code, rejection.hint)]),
            WHOLE,
        ],
    )
