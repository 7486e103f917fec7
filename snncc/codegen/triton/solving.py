"""The sweeps of a Triton kernel that solves for its spikes: guesses in registers, a test, a count.

The guesses of a chunk are the bits of one word for each lane; a graded spike is a value for each
step.  A program sweeps until no lane of its block changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from snncc.codegen.base import Argument
from snncc.codegen.kernel_ir import Solve
from snncc.codegen.triton.variables import Variables
from snncc.ir.nodes import Const


class Solving:
    """Writes what surrounds the steps of a sweep.

    Args:
        variables: The variables of the kernel.
        solve: What is repeated.
    """

    def __init__(self, variables: Variables, solve: Solve) -> None:
        self.vars, self.solve = variables, solve
        self.most, self.count, self.open = (
            variables.own(name) for name in ("most", "sweeps", "open")
        )

    def chunk(self, step: list[str]) -> list[str]:
        """Return the lines that sweep over a chunk until nothing changes."""
        vars, carries = self.vars, self.solve.sweep.step.carries
        back = [f"{vars.names[c.name]} = {vars.tuple_of(c.name, 'begin')}" for c in carries]
        # By then every step is final, even where a number is not equal to itself.
        bound = "" if all(g.packed for g in self.solve.guesses) else f" and {self.count} <= CHUNK"
        return [
            *(f"{vars.tuple_of(c.name, 'begin')} = {vars.names[c.name]}" for c in carries),
            *self._start("word", "kept"),
            f"{self.count} = 0",
            f"{self.open} = 1",
            f"while {self.open} != 0{bound}:",
            *_indent([*back, *self._start("found", "found")]),
            f"    {CHANGED} = tl.full((BLOCK,), 0, tl.int32)",
            "    for j in tl.static_range(CHUNK):",
            *_indent(_indent(step)),
            *_indent(self._settle()),
            f"    {self.open} = tl.reduce(tl.where(live, {CHANGED}, 0), 0, either)",
            f"    {self.count} += 1",
            f"{self.most} = tl.maximum({self.most}, {self.count})",
            *back,
        ]

    def counts(self) -> list[str]:
        """Return the lines that write the number of sweeps for every lane."""
        counts = self.solve.counts
        value = f"tl.full((BLOCK,), 0, tl.int32) + {self.most}"
        return [f"tl.store({self.vars.address(counts)}, {value}, mask=live)"]

    def _start(self, word: str, kept: str) -> Iterator[str]:
        """Yield the lines that set guesses, or what is found, to nothing."""
        for guess in self.solve.guesses:
            if guess.packed:
                yield f"{self.vars.tuple_of(guess.value, word)} = tl.full((BLOCK,), 0, tl.int32)"
                continue
            name = self.vars.tuple_of(guess.value, kept)
            yield f"{name} = ()"
            if kept == "kept":
                yield "for j in tl.static_range(CHUNK):"
                yield f"    {name} += ({self.vars.spell(Const(0.0))},)"

    def _settle(self) -> Iterator[str]:
        """Yield the lines that put what was found in place of the guesses."""
        for guess in self.solve.guesses:
            found = self.vars.tuple_of(guess.value, "found")
            given = self.vars.tuple_of(guess.value, "word" if guess.packed else "kept")
            if guess.packed:
                yield f"{CHANGED} |= {given} ^ {found}"
            yield f"{given} = {found}"


CHANGED = "changed"


def keep_found(variables: Variables, name: str, argument: Argument) -> list[str]:
    """Return the lines that keep what a step found in place of a guess."""
    value, found = variables.names[name], variables.tuple_of(argument.value, "found")
    if argument.packed:
        return [f"{found} |= ({value} & (t < steps)).to(tl.int32) << j"]
    given = f"{variables.tuple_of(argument.value, 'kept')}[j]"
    return [
        f"{found} += ({value},)",
        f"{CHANGED} |= (({value} != {given}) & (t < steps)).to(tl.int32)",
    ]


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]
