"""A network cut into chunks of time: what it computes from some steps, and what it carries on.

Run on one chunk after another, each with the states that the one before left, it computes what the
sequence graph computes on the whole: `stream_steps` makes it, the runtime's streams run it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx

from snncc.errors import Location
from snncc.ir.time_loop import Fill


@dataclass(frozen=True, slots=True)
class StreamState:
    """A value that a chunk leaves to the next.

    Attributes:
        name: Unique in the program; for a neuron ``neuron.variable``.
        start: Its value before the first step: a number whatever the shape, or the position among
            the values for states that the program's ``start`` graph gives.
        dtype: Of states that are always tensors their type; None for the carries of a loop.
        where: The user's line.
        along: The axis along which it holds the rows of several steps, if it does.
    """

    name: str
    start: Fill | int
    dtype: torch.dtype | None
    where: Location | None = None
    along: int | None = None


@dataclass(eq=False)
class ChunkProgram:
    """One chunk of time of a whole network.

    Attributes:
        graph: Its placeholders are the number of steps that end with this chunk (an integer), the
            states, and the placeholders of the sequence graph; its output is a tuple: the outputs
            of the sequence graph, then the states after the chunk.
        start: From the placeholders of the sequence graph to the values of the states that do not
            start from a number.  With ``has_first`` it takes the first step: its outputs are those
            of the sequence graph, then the states after that step.
        states: What is carried from chunk to chunk.
        input_axes: For each placeholder of the sequence graph its time axis, or None.
        output_axes: For each of its outputs the time axis, or None where it is one value for the
            sequence so far.
        output_leads: For each of its outputs how many rows stand before those of the chunk along
            its time axis: before the first chunk they are a part of the output.
        length: How many steps the model takes, where that is a number of its own; else 0.
        counts: Whether the network uses the number of steps so far, as a mean over time does.
        has_first: Whether the first step is another program than the others.
        reads_first: Whether ``start`` reads values of the first step, not only its sizes.
    """

    graph: torch.fx.Graph
    start: torch.fx.Graph
    states: tuple[StreamState, ...]
    input_axes: tuple[int | None, ...]
    output_axes: tuple[int | None, ...]
    output_leads: tuple[int, ...]
    length: int
    counts: bool
    has_first: bool = False
    reads_first: bool = False
