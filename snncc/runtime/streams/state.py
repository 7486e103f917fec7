"""The state of a stream outside of it: tensors by name, in a file with the number of steps."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile

import numpy
import torch
from torch import Tensor

from snncc.arguments import Check, shown
from snncc.errors import BundleError, LaunchError, OptionError
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.time_loop import Fill
from snncc.runtime.events.runner import QueueRunner
from snncc.runtime.streams.recording import memory_of

# What reading a damaged or foreign file may raise.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, LaunchError)
_COUNT = "steps"  # under this name a saved state says how many steps were taken
MASK = Check(
    "The mask",
    code="launch.stream-mask",
    hint="The mask has one bool for each sample of the batch.",
    error=LaunchError,
)
STATE = Check(
    "The state",
    code="launch.stream-state",
    hint="Load what 'state' or 'save' gave.",
    error=LaunchError,
)
_FILE = Check("The file of a state", code="option.file", hint="Name a file: 'state.npz'.")


def write_state(path: str | os.PathLike[str], state: Mapping[str, Tensor], steps: int) -> None:
    """Write a state to a file, whole or not at all.

    Raises:
        OptionError: It is no path.
        BundleError: The file cannot be written.
    """
    target = _FILE.path(path)
    arrays = {name: value.numpy() for name, value in state.items()}
    try:
        if target.exists() and not target.is_file():  # a folder, a device
            raise FileExistsError("it is there, and is no file")
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                numpy.savez(file, **{_COUNT: numpy.asarray(steps)}, **arrays)  # type: ignore[arg-type]
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # of the path: NUL
        raise BundleError(
            f"The state cannot be written to {shown(str(target))}.",
            code="bundle.write",
            notes=[str(error)],
            hints=["Make room, or name another file."],
        ) from error


@contextmanager
def read_state(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Give a state that was written, and its number of steps; nothing in the file is executed.

    Raises:
        OptionError: It is no path.
        BundleError: The file is no state, or not one that fits where it is used.
    """
    source = _FILE.path(path)
    try:
        content = io.BytesIO(source.read_bytes())
        with numpy.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        steps = int(arrays.pop(_COUNT))
        yield {name: torch.from_numpy(value) for name, value in arrays.items()}, steps
    except _UNREADABLE as error:
        raise BundleError(
            f"{shown(str(source))} is not a state of this stream.",
            code="bundle.stream-state",
            notes=[str(error).splitlines()[0] if str(error) else type(error).__name__],
            hints=["Load what 'save' of a stream of the same model wrote."],
        ) from error


def unfit(what: str) -> LaunchError:
    """Return the error that a state is not one of a stream."""
    return LaunchError(
        "The state does not fit the stream.",
        code="launch.stream-state",
        notes=[what],
        hints=["Load what 'state' or 'save' gave, for a batch of the same size."],
    )


def between(program: ChunkProgram, leaves: Sequence[Tensor], start: int, end: int) -> list[Tensor]:
    """Return the leaves of a program for some of their steps."""
    axes = zip(leaves, program.input_axes, strict=True)
    return [x if axis is None else x.narrow(axis, start, end - start) for x, axis in axes]


def events_of(program: ChunkProgram) -> dict[str, Tensor]:
    """Return what the queues of spikes of a program counted last, by name."""
    targets = (node.target for node in program.graph.nodes)
    return {k: x for t in targets if isinstance(t, QueueRunner) for k, x in t.seen.items()}


def own_rows(program: ChunkProgram, outputs: Sequence[Any], steps: int) -> Sequence[Any]:
    """Return outputs without the rows before those of a chunk that is not the first."""
    if not any(program.output_leads):
        return outputs
    return [
        x.narrow(axis, lead, steps) if lead and axis is not None else x
        for x, lead, axis in zip(outputs, program.output_leads, program.output_axes, strict=True)
    ]


def apart(states: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Return states without the graph that they were computed in, in memory of their own.

    Args:
        states: The states.
        others: What the user may write into: outputs, inputs and parameters.
    """
    taken = {memory_of(x) for x in others if isinstance(x, Tensor)}
    tensors = [x.detach() if isinstance(x, Tensor) else x for x in states]
    return [x.clone() if isinstance(x, Tensor) and memory_of(x) in taken else x for x in tensors]


def filled(program: ChunkProgram, states: Sequence[Any], ends: Sequence[Any]) -> list[Any]:
    """Return states of which those that start from a number have the shape that a step leaves.

    Args:
        program: The program that they are states of.
        states: The states.
        ends: What one step makes of them.
    """
    return [
        torch.full_like(end, known.start.value) if isinstance(known.start, Fill) else state
        for known, state, end in zip(program.states, states, ends, strict=True)
    ]


def described(
    kind: str, steps: int, inputs: Mapping[str, Sequence[int]], state: Mapping[str, Tensor]
) -> str:
    """Return a stream as text: what it takes, how far it is, and what it carries on.

    Args:
        kind: What it is.
        steps: How many steps were taken.
        inputs: The sizes of what a step takes, by name.
        state: The state.
    """
    lines = [f"Stream {kind}, {steps or 'no'} step{'' if steps == 1 else 's'} taken"]
    lines += [f"  takes {name} {list(sizes)}" for name, sizes in inputs.items()]
    lines += [
        f"  holds {name} {list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"
        for name, x in state.items()
    ]
    return "\n".join(lines)


def initial_states(program: ChunkProgram, starts: Sequence[Any]) -> list[Any]:
    """Return the states before the first step; a loop makes of a `Fill` what it needs.

    Args:
        program: The program that they are states of.
        starts: The values that the program's ``start`` graph gives.
    """
    values: list[Any] = []
    for state in program.states:
        if not isinstance(state.start, Fill):
            values.append(starts[state.start])
        elif state.dtype is None:
            values.append(state.start)
        else:
            values.append(torch.tensor(state.start.value, dtype=state.dtype, device="cpu"))
    return values


def widened(
    program: ChunkProgram, states: Sequence[Any], like: Sequence[Tensor]
) -> list[Tensor] | None:
    """Return states of which numbers fill all that a step leaves; None where others do not fit.

    Args:
        program: The program that they are states of.
        states: The states before the first step.
        like: What a step leaves.
    """
    wide: list[Tensor] = []
    for known, x, y in zip(program.states, states, like, strict=True):
        if not isinstance(x, Tensor) or x.dtype is not y.dtype:
            return None
        wide.append(x.expand(y.shape) if isinstance(known.start, Fill) else x)
    return wide


def restarted(
    program: ChunkProgram,
    states: Sequence[Any],
    starts: Callable[[], Sequence[Any]],
    mask: Tensor,
) -> list[Any]:
    """Return states of which some samples are those before the first step.

    Args:
        program: The program that they are states of.
        states: The states.
        starts: Returns the states before the first step.
        mask: Bools [B]: the samples that start anew.

    Raises:
        LaunchError: Single samples cannot start anew.
    """
    _require_alike(program)
    result = []
    for known, value, start in zip(program.states, states, starts(), strict=True):
        first: Any = start.value if isinstance(start, Fill) else start
        if isinstance(value, Tensor) and known.along is not None:  # samples are another axis
            value, first = value.movedim(known.along, -1), first.movedim(known.along, -1)
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != len(mask):
            raise LaunchError(
                f"The state '{known.name}' has no axis of {len(mask)} samples.",
                code="launch.stream-mask",
                hints=[MASK.hint],
            )
        rows = mask.reshape(-1, *(1,) * (value.dim() - 1))
        start = torch.as_tensor(first, dtype=value.dtype, device=value.device)
        mixed = torch.where(rows, start, value)
        result.append(mixed if known.along is None else mixed.movedim(-1, known.along))
    return result


def _require_alike(program: ChunkProgram) -> None:
    """Refuse that one sample starts anew in a network that tells its first step from others."""
    if program.has_first:
        note = "Its first step is another program than the others, as from a state 'None'."
    elif program.counts:
        note = "A mean over time or a decay that changes with the step counts them."
    elif program.reads_first:
        note = "What it starts from is computed from the first step, as in 'v = x[0]'."
    else:
        return
    raise LaunchError(
        "The network counts its steps; one sample alone cannot start anew.",
        code="launch.stream-count",
        notes=[note],
        hints=["Use one stream for each sample, or reset all of them."],
    )


def refuse_copy(_stream: object, _protocol: Any) -> NoReturn:
    """Refuse to copy a stream, whose copy would share its buffers.

    Raises:
        OptionError: Always.
    """
    raise OptionError(
        "A stream cannot be copied or pickled.",
        code="option.stream",
        notes=["It runs on memory of its own, and on that of the model that it came from."],
        hints=[
            "Open another with 'fast.stream(x)', and hand it the state with 'load_state'.",
            "Or write the state to a file with 'save', and read it elsewhere with 'load'.",
        ],
    )
