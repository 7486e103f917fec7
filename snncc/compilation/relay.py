"""From the program of a chunk to one whose chunks run in several processes at the same time.

Every state that enters the program is taken from the rank before where it is first read, and given
to the rank after where it is computed: what does not wait for a state runs at once.  A neuron takes
and gives its states itself, in blocks of its lanes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.compilation.runnable import KernelCall, with_kernels
from snncc.ir import sequence_ops
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.graph_function import function_of
from snncc.ir.loop_call import loop_of
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.printer import print_recurrence
from snncc.ir.time_loop import Fill
from snncc.options import Options
from snncc.passes.base import Rejection
from snncc.runtime.operators import Neuron
from snncc.runtime.processes.relays import Give, RelayedNeuron, Take

Node = torch.fx.Node
# Operators that count steps from the first on, with numbers that the model has for each of them.
_NUMBERED = (sequence_ops.numbers_until, sequence_ops.steps_until)


def can_split(program: ChunkProgram) -> Rejection | None:
    """Return why a program cannot run in several processes, or None where it can."""
    if all(axis is None for axis in program.input_axes):
        return Rejection("time-axis", "no input has a time axis, or it is one step and the first")
    if any(program.output_leads):
        return Rejection("leads", "it returns a row from before its first step")
    for node in program.graph.nodes:
        if node.target in _NUMBERED:
            return Rejection("numbers", "it has a number or a parameter of its own for each step")
        if _is_impure(node):
            reason = "it draws random numbers, or updates statistics of a norm, at each step"
            return Rejection("impure", reason, node.meta.get("where"))
    return None


def _is_impure(node: Node) -> bool:
    loop = loop_of(node)
    nodes = [node] if loop is None else list(loop.body.nodes)
    return any(n.meta.get("impure") for n in nodes)


def relayed(program: ChunkProgram, options: Options) -> Callable[..., tuple[Any, ...]]:
    """Return a function that runs a program and hands its states on.

    It takes a `snncc.runtime.processes.handover.Call`, and then what the graph of the program
    takes; it returns the outputs without the states.
    """
    return function_of(_Relay(program, options).graph)


class _Relay:
    """Puts hand-overs into the graph of a program."""

    def __init__(self, program: ChunkProgram, options: Options) -> None:
        self.graph = with_kernels(program.graph, options)
        first, *places = (n for n in self.graph.nodes if n.op == "placeholder")
        with self.graph.inserting_before(first):
            self.call = self.graph.placeholder("call")
        self.entrances: list[Node] = places[: len(program.states)]
        count = len(program.output_axes)
        results: Any = self.graph.output_node().args[0]
        self.exits: Sequence[Node] = results[count:]
        self.graph.output_node().args = (tuple(results[:count]),)
        self.order = {node: i for i, node in enumerate(self.graph.nodes)}
        self.relay()
        self.graph.lint()

    def relay(self) -> None:
        left = set(range(len(self.entrances)))
        for node in list(self.graph.nodes):
            if isinstance(node.target, KernelCall) and isinstance(node.target.neuron, Neuron):
                left -= self.neuron(node, node.target.neuron)
        for state in sorted(left):
            self.state(state)

    def neuron(self, node: Node, neuron: Neuron) -> set[int]:
        """Let a neuron hand its states over itself; return which these are."""
        given: Any = node.args[1:]
        forward = neuron.program.forward
        count = len(forward.states)
        own = [self.entrances.index(n) for n in given[-count:] if n in self.entrances]
        is_read = any(
            len(self.entrances[i].users) > 1 or self.entrances[i] in given[:-count] for i in own
        )
        if not count or len(own) != count or is_read:
            return set()
        finals: Any = tuple(self.exits[i].args[1] for i in own)
        assert all(self.exits[i].args[0] is node for i in own)
        users = [user for user in node.users if user.users]
        kept: Any = frozenset(user.args[1] for user in users)
        for user in [user for user in node.users if not user.users]:
            self.graph.erase_node(user)
        node.target = RelayedNeuron(neuron, tuple(own), finals, kept)
        node.args = (self.call, *node.args)
        return set(own)

    def state(self, state: int) -> None:
        """Take a state before its first reader, and give it on once it is there."""
        entrance, end = self.entrances[state], self.exits[state]
        readers = sorted(entrance.users, key=self.order.__getitem__)
        before = readers[0] if readers else self.graph.output_node()
        with self.graph.inserting_before(before):
            taken = self.graph.call_function(Take(state), (self.call, entrance))
        entrance.replace_all_uses_with(taken, lambda user: user is not taken)
        end = taken if end is entrance else end
        with self.graph.inserting_after(end):
            self.graph.call_function(Give(), (self.call, end))


def fingerprint(program: ChunkProgram) -> int:
    """Return a number that tells programs apart, whatever names their nodes and devices have."""
    numbers = {node: f"%{i}" for i, node in enumerate(program.graph.nodes)}
    lines = [_line(node, numbers) for node in program.graph.nodes]
    lines += [f"{s.start} {s.dtype}" for s in program.states]
    lines += [str(program.input_axes), str(program.output_axes)]
    return number_of("\n".join(lines))


def number_of(text: str) -> int:
    """Return a number of 63 bits that differs where texts differ."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _line(node: Node, numbers: dict[Node, str]) -> str:
    arguments: Any = torch.fx.node.map_arg((node.args, node.kwargs), numbers.__getitem__)
    text = f"{node.op} {_target(node)} {arguments}"
    return re.sub(r"0x[0-9a-f]+|cuda:\d+", "", text)


def _target(node: Node) -> str:
    if node.op == "placeholder":
        return ""
    if isinstance(node.target, NeuronCall):
        return print_recurrence(node.target.program.forward)
    loop = loop_of(node)
    if loop is None:
        return getattr(node.target, "__name__", "")
    numbers = {n: f"%{i}" for i, n in enumerate(loop.body.nodes)}
    steps = [_line(n, numbers) for n in loop.body.nodes]
    places = {n.name: number for n, number in numbers.items()}
    carries = [(places[c.name], c.initial, places[c.update]) for c in loop.carries]
    return "\n".join([*steps, str(carries)])


def shapes_of_states(
    program: ChunkProgram, leaves: Sequence[Tensor], is_written: Sequence[bool]
) -> list[Tensor] | int:
    """Return for each state a tensor without memory, of the shape that a step leaves.

    Args:
        program: The program.
        leaves: The tensors of its placeholders.
        is_written: For each of them whether the program may overwrite it.

    Returns:
        The tensors, or the number of a state that is none.
    """
    given = [
        x.detach().clone() if written else x.detach()
        for x, written in zip(leaves, is_written, strict=True)
    ]
    first = steps_between(program, given, 0, 1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        started = function_of(program.start)(*first)
        _, starts = begun(program, started)
        ends = function_of(program.graph)(1, *starts, *first)
    found = []
    for i, value in enumerate(ends[len(program.output_axes) :]):
        if not isinstance(value, Tensor):
            return i
        found.append(value.new_empty(()).expand(value.shape))
    return found


def begun(
    program: ChunkProgram, started: Sequence[Any], likes: Sequence[Tensor] | None = None
) -> tuple[Sequence[Any], list[Any]]:
    """Return the outputs of a first step that is a program of its own, and the first states.

    Args:
        program: The program.
        started: What its start graph gave.
        likes: For each state a tensor of its shape, dtype and device; without them a loop makes of
            a `Fill` what it needs.
    """
    count = len(program.output_axes) if program.has_first else 0
    outputs, started = started[:count], started[count:]
    values: list[Any] = []
    for i, state in enumerate(program.states):
        start = state.start
        if not isinstance(start, Fill):
            values.append(started[start])
        elif likes is not None:
            full = state.dtype is None  # a neuron broadcasts
            sizes = likes[i].shape if full else ()
            values.append(likes[i].new_full(sizes, start.value))
        elif state.dtype is None:
            values.append(start)
        else:
            values.append(torch.tensor(start.value, dtype=state.dtype, device="cpu"))
    return outputs, values


def steps_between(
    program: ChunkProgram, leaves: Sequence[Tensor], start: int, end: int
) -> list[Tensor]:
    """Return the tensors of a program's placeholders for some of its steps."""
    return [
        x if axis is None else x.narrow(axis, start, end - start)
        for x, axis in zip(leaves, program.input_axes, strict=True)
    ]
