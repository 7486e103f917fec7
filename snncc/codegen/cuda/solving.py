"""The sweeps of a CUDA kernel that solves for its spikes: guesses in registers, a test, a count.

The guesses of a chunk are the bits of one word for each lane; a graded spike is a value for each
step.  A thread sweeps until none of its own lanes changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from snncc.codegen.base import Argument
from snncc.codegen.cuda.variables import Variables, indent
from snncc.codegen.kernel_ir import Solve

UNROLL = "#pragma unroll"


def solving_chunk(variables: Variables, solve: Solve, step: Sequence[str]) -> list[str]:
    """Return the lines that sweep over a chunk until nothing changes.

    Args:
        variables: The variables of the kernel.
        solve: What is repeated.
        step: The lines of step ``first + j``.
    """
    carries = [variables.array(c.name, "carry") for c in solve.sweep.step.carries]
    begins = [variables.array(c.name, "begin") for c in solve.sweep.step.carries]
    pairs = list(zip(carries, begins, strict=True))
    words = [guess.value for guess in solve.guesses if guess.packed]
    kept = [guess.value for guess in solve.guesses if not guess.packed]
    given = [(variables.array(word, "word"), variables.array(word, "found")) for word in words]
    # By then every step is final, even where a number is not equal to itself.
    bound = " && sweeps <= CHUNK" if kept else ""
    return [
        *(f"{variables.real} {begin}[VECTOR];" for begin in begins),
        *each_lane([f"{begin}[k] = {carry}[k];" for carry, begin in pairs]),
        *(f"int {word}[VECTOR] = {{}};" for word, _ in given),
        *(f"{variables.real} {variables.array(k, 'kept')}[CHUNK][VECTOR] = {{}};" for k in kept),
        "int sweeps = 0;",
        f"for (bool open = true; open{bound}; sweeps++) {{",
        "  open = false;",
        *indent(each_lane([f"{carry}[k] = {begin}[k];" for carry, begin in pairs])),
        *(f"  int {found}[VECTOR] = {{}};" for _, found in given),
        UNROLL,
        "  for (int j = 0; j < CHUNK; j++) {",
        "    const int t = first + j;",
        *indent(indent(list(step))),
        "  }",
        *indent(
            each_lane([f"open |= live[k] && {word}[k] != {found}[k];" for word, found in given])
        ),
        *indent(each_lane([f"{word}[k] = {found}[k];" for word, found in given])),
        "}",
        "most = sweeps > most ? sweeps : most;",
        *each_lane([f"{carry}[k] = {begin}[k];" for carry, begin in pairs]),
    ]


def keep_found(variables: Variables, name: str, argument: Argument) -> str:
    """Return the line that keeps what a step found in place of a guess."""
    value = variables.names[name]
    if argument.packed:
        return f"{variables.array(argument.value, 'found')}[k] |= (int)({value} && t < steps) << j;"
    given = f"{variables.array(argument.value, 'kept')}[j][k]"
    return f"open |= live[k] && t < steps && {given} != {value}; {given} = {value};"


def each_lane(inside: list[str]) -> list[str]:
    """Return the lines that run for every lane of a thread."""
    return ["EACH_LANE {", *indent(inside), "}"] if inside else []
