"""Write the loops of a Triton kernel that recomputes chunks of time and runs them backwards.

A chunk is straight code: a forward run from the state at its start, whose values stay in registers,
and the reverse steps.  Steps of whole chunks have no masks.  What is left at the end of a sequence
is taken a few steps at a time, each time from the start of its chunk, so that it is little code: a
compiler takes longer for long straight code than its length says.  A sequence shorter than a chunk
is one chunk with masks, in a kernel of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from snncc.codegen.gpu import followed, step_loads
from snncc.codegen.kernel_ir import Load, Store, Sweep
from snncc.codegen.triton.span import CHUNK, Span
from snncc.codegen.triton.text import indent

if TYPE_CHECKING:
    from snncc.codegen.triton.writer import Writer

# Steps that are taken at a time of what is left after whole chunks.
_REST = 4


def recomputing_loop(writer: Writer, main: Sweep, recompute: Sweep) -> list[str]:
    """Return the loops over a sequence, from its end to its start."""
    chunks = _Chunks(writer, main, recompute)
    if writer.kernel.short:
        body = [*chunks.loads(CHUNK), *chunks.start("first"), *chunks.run(CHUNK, "GROUP")]
        return ["for first in range(0, steps, CHUNK):", *indent(body)]
    rest, whole = Span("first", "REST"), replace(CHUNK, whole=True)
    left = [*chunks.start("whole"), *chunks.advance("whole", "first")]
    left += [*chunks.loads(rest), *chunks.run(rest, "REST")]
    body = [*chunks.loads(whole), *chunks.start("first"), *chunks.run(whole, "GROUP")]
    return [
        f"REST: tl.constexpr = {_REST} if CHUNK > {_REST} else CHUNK",
        "whole = steps // CHUNK * CHUNK",
        "left = (steps - whole + REST - 1) // REST * REST",
        "for first in range(whole + left - REST, whole - 1, -REST):",
        *indent(left),
        "for first in range(whole - CHUNK, -1, -CHUNK):",
        *indent(body),
    ]


class _Chunks:
    """Writes the parts of a chunk.

    Args:
        writer: Writes steps.
        main: The reverse sweep.
        recompute: The forward sweep.
    """

    def __init__(self, writer: Writer, main: Sweep, recompute: Sweep) -> None:
        self._writer, self._main, self._recompute = writer, main, recompute
        self._read = step_loads(recompute.step)

    def loads(self, span: Span) -> list[str]:
        """Return the lines that issue the loads of the forward run."""
        return self._writer.ahead(self._read, span)

    def start(self, first: str) -> list[str]:
        """Return the lines that set the states to those at the start of a chunk."""
        return self._writer.restore(self._recompute.step.carries, first)

    def advance(self, first: str, last: str) -> list[str]:
        """Return the lines that move the states on, one step after another."""
        step = Span("early", "1", whole=True)
        body = [*self._writer.ahead(self._read, step), *self._forward(step, "0")]
        return [f"for early in range({first}, {last}):", *indent(body)]

    def run(self, span: Span, group: str) -> list[str]:
        """Return the lines that run a chunk forward and then backwards.

        The reverse steps of a group are under a condition: a group after the last step is skipped,
        and values that a compiler could compute early do not fill registers.
        """
        writer, stores = self._writer, self._recompute.step.stores
        forward = self._forward(Span(f"{span.first} + j", "1"), "j")
        return [
            *(f"{writer.vars.tuple_of(s.name, 'kept')} = ()" for s in stores),
            f"for j in tl.static_range({span.count}):",
            *indent(forward),
            *writer.keep(Store(name, None) for name in followed(writer.kernel)),
            f"for group in tl.static_range({span.count} - {group}, -1, -{group}):",
            f"    if {span.first} + group < steps:",
            *indent(indent(self._reverse(Span(f"{span.first} + group", group, span.whole)))),
        ]

    def _forward(self, step: Span, index: str) -> list[str]:
        """Return the lines of a step of the forward run."""
        within = dict.fromkeys((load.name for load in self._read), index)
        lines = self._writer.step(self._recompute, step, within)
        if index == "j":
            lines += self._writer.keep(self._recompute.step.stores)
        return [*lines, *self._writer.advance(self._recompute.step.carries, still=())]

    def _reverse(self, span: Span) -> list[str]:
        """Return the lines of the reverse steps of a group."""
        index = {load.name: "group + j" for load in self._main.step.loads}
        index |= dict.fromkeys((load.name for load in self._own()), "j")
        ahead = self._writer.ahead(self._own(), span)
        return [*ahead, *self._writer.steps(self._main, span, index)]

    def _own(self) -> list[Load]:
        """Return the loads of the reverse sweep that the forward run has not issued."""
        read = {load.argument for load in self._read}
        return [load for load in step_loads(self._main.step) if load.argument not in read]
