"""Write kernels as C11 with OpenMP: threads over tiles of lanes, vector code over blocks of lanes.

Arrays are seen as [steps, rows0, rows1, lanes].  A tile is part of one row; its state stays in the
first-level cache over all of time.  Within a time step a tile is computed block by block, and
while a block is computed the block that will be needed some 8 KB later is fetched: rows of
different time steps lie far apart, where hardware does not look ahead.
A backward kernel that recomputes cuts time into chunks whose scratch fits the second-level cache.
"""

from __future__ import annotations

from typing import ClassVar

from snncc.codegen.anonymize import anonymize
from snncc.codegen.base import Argument, KernelSource, Signature
from snncc.codegen.c.expressions import C_TYPE
from snncc.codegen.c.preamble import preamble
from snncc.codegen.c.step import WORD, step_function
from snncc.codegen.c.tile import sweeps, tile_function
from snncc.codegen.description import describe, operations
from snncc.codegen.kernel_ir import Kernel
from snncc.codegen.prepare import identifier
from snncc.ir.nodes import Rank

# The state and the lane inputs of a tile should leave room in a first-level cache of 32 KB.
_RESIDENT_BYTES = 24 * 1024
_LARGEST_TILE, _SMALLEST_TILE = 2048, 256

# -ffp-contract=off: eager torch rounds after every operation, a fused multiply-add does not.
FLAGS = (
    "-std=c11",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
# A loop is not made two where it begins to fetch from elsewhere: of a kernel that recomputes, gcc
# would compile half as much again, for no time at all while it runs.
_RECOMPUTING = ("-fno-split-loops",)

# The sizes at the head of the argument structure, before the scratch and the arrays.
HEADER = {
    "steps": "time steps",
    "rows0": "the lanes of all arrays are [rows0, rows1, lanes]",
    "rows1": "",
    "lanes": "",
    "tile": "lanes of one tile, a multiple of BLOCK",
    "ahead": "steps between a row that is fetched and the row that is computed",
    "chunk": "steps that are recomputed at a time",
    "threads": "",
    "stream": "whether outputs bypass the caches",
    "thread_scratch": "values of scratch for each thread",
}


class CTarget:
    """C11 with OpenMP, for the system's compiler."""

    name: ClassVar[str] = "c"

    def emit(self, kernel: Kernel) -> KernelSource:
        """Write a kernel as one translation unit."""
        guesses = kernel.solve.guesses if kernel.solve else ()
        signature = Signature(
            dtype=kernel.dtype,
            arguments=kernel.arguments,
            tile=tile_lanes(kernel),
            scratch=len(kernel.scratch) + sum(not guess.packed for guess in guesses),
            checkpoint=len(kernel.recompute.step.carries) if kernel.recompute else 0,
            bits=sum(guess.packed for guess in guesses),
            solves=kernel.solve is not None,
        )
        return KernelSource(
            name=identifier(kernel.name),
            target=self.name,
            text=_unit(kernel),
            anonymous=_unit(anonymize(kernel)),
            signature=signature,
            flags=FLAGS + (_RECOMPUTING if kernel.recompute else ()),
        )


def _unit(kernel: Kernel) -> str:
    name = identifier(kernel.name)
    functions = [
        step_function(f"{name}_{sweep.name}", sweep.step, kernel.dtype) for sweep in sweeps(kernel)
    ]
    guesses = kernel.solve.guesses if kernel.solve else ()
    packed = any(a.packed and a.written for a in kernel.arguments) or any(g.packed for g in guesses)
    parts = [
        _comment(kernel),
        preamble(operations(kernel), kernel.dtype, packed=packed, solves=bool(kernel.solve)),
        f"\n/* Lanes of one tile at most. */\n#define TILE {tile_lanes(kernel)}\n",
        *map(_text, (_structure(name, kernel), *functions)),
        _text(tile_function(name, kernel)),
        _text(_entry(name)),
    ]
    return "".join(parts)


def tile_lanes(kernel: Kernel) -> int:
    """Return the most lanes of one tile: what its resident values leave room for."""
    carries = sum(len(sweep.step.carries) for sweep in sweeps(kernel))
    lane_inputs = sum(a.rank is Rank.LANE and not a.uniform for a in kernel.arguments)
    lanes = _RESIDENT_BYTES // (kernel.dtype.size * max(carries + lane_inputs, 1))
    power = 1 << max(lanes.bit_length() - 1, 0)
    return min(max(power, _SMALLEST_TILE), _LARGEST_TILE)


def _text(lines: list[str]) -> str:
    return "\n" + "\n".join(lines) + "\n"


def _comment(kernel: Kernel) -> str:
    text = "\n".join(f" * {line}".rstrip() for line in describe(kernel))
    return f"/*\n{text}\n */\n"


def _structure(name: str, kernel: Kernel) -> list[str]:
    real = C_TYPE[kernel.dtype]
    lines = [
        f"  int64_t {field};" + (f" /* {comment} */" if comment else "")
        for field, comment in HEADER.items()
    ]
    lines.append(f"  {real} *scratch;")
    for argument in kernel.arguments:
        lines.append(f"  {_field(argument, real)}")
    return [f"struct {name}_arguments {{", *lines, "};"]


def _field(argument: Argument, real: str) -> str:
    kind = WORD if argument.packed else real
    const = "" if argument.written else "const "
    strides = ", ".join(f"{argument.name}_{axis}" for axis in stride_axes(argument))
    return f"{const}{kind} *{argument.name}; int64_t {strides};"


def stride_axes(argument: Argument) -> tuple[str, ...]:
    """Return the axes whose strides the argument structure holds: time, rows0, rows1."""
    return ("t", "0", "1") if argument.rank is Rank.STEP else ("0", "1")


def _entry(name: str) -> list[str]:
    return [
        f"void {name}(const struct {name}_arguments *a)",
        "{",
        "  const int64_t tiles = (a->lanes + a->tile - 1) / a->tile;",
        "  const int64_t jobs = a->rows0 * a->rows1 * tiles;",
        "#ifdef _OPENMP",
        "#pragma omp parallel for schedule(static) num_threads((int)a->threads) \\",
        "    if (a->threads > 1)",
        "#endif",
        "  for (int64_t job = 0; job < jobs; job++) {",
        "    const int64_t row = job / tiles, first = job % tiles * a->tile;",
        "    const int64_t width = snncc_smaller(a->tile, a->lanes - first);",
        f"    {name}_tile(a, row / a->rows1, row % a->rows1, first, width);",
        "  }",
        "}",
    ]
