"""``SNNCC_DUMP=dir``: every stage of a compilation as a text file.

``SNNCC_PRINT=after-all`` or the name of a stage prints the same text to standard error.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch.fx

from snncc.ir.loop_call import LoopCall
from snncc.ir.printer import print_recurrence
from snncc.ir.step_call import StepCall
from snncc.ir.time_loop import TimeLoop
from snncc.options import settings
from snncc.passes.neurons import neuron_nodes


@dataclass
class Dump:
    """Writes the stages of one compilation, numbered, into a folder of its own."""

    name: str
    folder: Path | None = None
    wanted: str = ""
    number: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def open(cls, name: str) -> Dump:
        """Return the dump of one compilation as the settings ask for it."""
        current = settings()
        if current.dump is None:
            return cls(name, None, current.print_after or "")
        base = Path(current.dump) / name
        folder = next(f for n in itertools.count(1) if not (f := _numbered(base, n)).exists())
        folder.mkdir(parents=True)
        return cls(name, folder, current.print_after or "")

    @property
    def is_wanted(self) -> bool:
        """Whether anything is written."""
        return self.folder is not None or bool(self.wanted)

    def graph(self, stage: str, graph: torch.fx.Graph) -> None:
        """Write a graph with its loops and neurons."""
        if not self.is_wanted:
            return
        self.text(f"{next(self.number):02}-{stage}.txt", graph_text(graph), stage)

    def text(self, file: str, text: str, stage: str = "") -> None:
        """Write one file of the dump."""
        if self.folder is not None:
            (self.folder / file).write_text(text + "\n", encoding="utf-8")
        if stage and self.wanted in (stage, "after-all"):
            sys.stderr.write(f"# after {stage}\n{text}\n")


def graph_text(graph: torch.fx.Graph) -> str:
    """Return a graph as text: the code, then each time loop and each recurrence."""
    parts = [str(graph)]
    for node in graph.nodes:
        if isinstance(node.target, TimeLoop):
            parts.append(loop_text(node.target))
    for node in neuron_nodes(graph):
        program = node.target.program  # type: ignore[union-attr]
        parts.append(print_recurrence(program.forward))
        if program.adjoint is not None:
            parts.append(print_recurrence(program.adjoint.recurrence))
        if program.storage is not None:
            parts.append(f"storage {program.storage.place.value}: {program.storage.saved}")
    for node in graph.nodes:
        if isinstance(node.target, LoopCall):
            parts += _call_parts(node.target)
    return "\n\n".join(parts)


def _call_parts(call: LoopCall) -> Iterator[str]:
    """Yield the loops of a recurrent part, each with its fused steps."""
    for loop in call.loops:
        yield loop_text(loop)
        for node in loop.body.nodes:
            if isinstance(node.target, StepCall):
                yield print_recurrence(node.target.recurrence)
    if call.adjoint is not None:
        yield f"backward of {call.forward.name}: {call.adjoint.backward}"


def loop_text(loop: TimeLoop) -> str:
    """Return a time loop as text."""
    order = ", from the last step to the first" if loop.reverse else ""
    lines = [f"time loop {loop.name}, {loop.trip}{order}:"]
    lines += [f"  {part}" for part in (*loop.carries, *loop.steps, *loop.tables, *loop.invariants)]
    lines += [f"  {node.format_node()}" for node in loop.body.nodes if node.op == "call_function"]
    lines += [f"  {result}" for result in loop.results]
    return "\n".join(lines)


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")
