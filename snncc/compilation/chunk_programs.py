"""The programs of a compiled model for some of its steps, or why it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from snncc.compilation.pipeline import PLACES, Compiled
from snncc.compilation.streamed import has_time, no_steps, streamed, with_open_layers
from snncc.errors import UnsupportedError
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.tape import SourceKind
from snncc.options import GPU_TARGETS, Options
from snncc.passes import Rejection, gradient_passes
from snncc.passes.loops.open_layers import has_layers


def chunk_program(
    compiled: Compiled, leaves: Sequence[Tensor], *, writes_back: bool = False
) -> ChunkProgram:
    """Return the program that runs a compiled model chunk by chunk of time.

    Args:
        compiled: The compiled model.
        leaves: The tensors of the recording's sources, of sizes that it serves.
        writes_back: Whether what the model leaves behind in itself is needed, besides what it
            returns; without, it may be missing.

    Raises:
        UnsupportedError: The model relates time steps other than by its states.
    """
    tape = compiled.recording.tape
    program = streamed(compiled.graph, tape, leaves, writes_back=writes_back)
    if has_layers(compiled.graph) and not has_time(program):
        graph = with_open_layers(compiled.graph, on_gpu=compiled.target in GPU_TARGETS)
        program = streamed(graph, tape, leaves, writes_back=writes_back)
    if isinstance(program, Rejection):
        raise no_steps(program)
    return program


def require_row_a_step(program: ChunkProgram) -> None:
    """Refuse a program that gives more rows than it takes steps.

    Raises:
        UnsupportedError: An output begins before the first step.
    """
    if any(program.output_leads):
        raise UnsupportedError(
            "The model returns a row from before its first step.",
            code="unsupported.stream",
            notes=["An export gives one row for each step."],
            hints=["Return the rows of the steps alone, as in 'out[1:]'."],
        )


def differentiated(
    program: ChunkProgram,
    compiled: Compiled,
    options: Options,
    leaves: Sequence[Tensor],
    *,
    by_states: bool = False,
) -> ChunkProgram:
    """Return a program whose steps have gradients, by inputs and parameters.

    Args:
        program: The program of a compiled model.
        compiled: The model.
        options: How it was compiled.
        leaves: The tensors of the recording's sources.
        by_states: Whether they have gradients by states, too.
    """
    kinds = [source.kind for source in compiled.recording.tape.sources]
    wanted = [
        leaf.is_floating_point() and (leaf.requires_grad or kind is not SourceKind.BUFFER)
        for leaf, kind in zip(leaves, kinds, strict=True)
    ]
    flags = (False, *(by_states for _ in program.states), *wanted)
    graph = program.graph
    on_gpu = compiled.target in GPU_TARGETS
    for each in gradient_passes(PLACES[options.storage], flags, on_gpu=on_gpu):
        after = each.run(graph)
        assert not isinstance(after, Rejection)  # these always apply
        graph = after
    return replace(program, graph=graph)


def uniform_program(compiled: Compiled, leaves: Sequence[Tensor]) -> ChunkProgram:
    """Return the program of a compiled model for any step, the first included.

    Args:
        compiled: The compiled model.
        leaves: The tensors of the recording's sources, of sizes that it serves.

    Raises:
        UnsupportedError: There is none.
    """
    program = chunk_program(compiled, leaves)
    require_row_a_step(program)
    if program.has_first:
        raise UnsupportedError(
            "The first step of the model is another program than the others.",
            code="unsupported.stream",
            notes=["A graph of NIR is the same at every step."],
            hints=["Begin with tensors, as 'torch.zeros', where a state is 'None' at first."],
        )
    return program
