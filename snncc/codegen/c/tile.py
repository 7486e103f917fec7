"""Write what a C kernel does for one tile: set up its state, run its sweeps, write its finals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from snncc.codegen.base import Argument, FloatType, Role
from snncc.codegen.c.expressions import C_TYPE, literal
from snncc.codegen.c.step import (
    WORD,
    Parameter,
    call_lines,
    claimed,
    fetched,
    parameters,
    row_name,
    scratch_name,
    tile_name,
)
from snncc.codegen.kernel_ir import Carry, Kernel, Load, Solve, Sweep
from snncc.ir.nodes import Const, Rank


def tile_function(name: str, kernel: Kernel) -> list[str]:
    """Return the lines of the function that computes one tile over all of time."""
    body = [_pointer(argument, kernel.dtype) for argument in kernel.arguments]
    body.append("const int64_t stream = a->stream;")
    if any(fetched(sweep.step) or claimed(sweep.step) for sweep in sweeps(kernel)):
        body.append("const int64_t ahead = a->ahead;")
    if kernel.solve is not None:
        body += solving_sweeps(name, kernel, kernel.solve)
    elif kernel.recompute is None:
        body += _start(kernel.main, kernel)
        body += ["const int64_t begin = 0, end = a->steps;"]
        body += _sweep(name, kernel.main, kernel, _next_tile(kernel.main))
    else:
        body += _chunked(name, kernel, kernel.recompute)
    for final in kernel.main.finals:
        if final.argument is not None:
            size = f"(size_t)width * sizeof({C_TYPE[kernel.dtype]})"
            body.append(f"memcpy({final.argument.name}, {tile_name(final.name)}, {size});")
    body.append("snncc_finish(stream);")
    return [
        f"static void {name}_tile(",
        f"    const struct {name}_arguments *a,",
        "    int64_t row0, int64_t row1, int64_t first, int64_t width)",
        "{",
        *_indent(body),
        "}",
    ]


def sweeps(kernel: Kernel) -> Iterator[Sweep]:
    """Yield the sweeps of a kernel that run, in order."""
    if kernel.advance is not None and kernel.advance.step.carries:
        yield kernel.advance
    if kernel.recompute is not None:
        yield kernel.recompute
    if kernel.solve is not None:
        yield kernel.solve.sweep
    yield kernel.main


def _pointer(argument: Argument, dtype: FloatType) -> str:
    name = argument.name
    kind = WORD if argument.packed else C_TYPE[dtype]
    const = "" if argument.written else "const "
    offset = f"row0 * a->{name}_0 + row1 * a->{name}_1"
    if argument.uniform and argument.rank is Rank.LANE:
        return f"const {kind} {name} = a->{name}[{offset}];"
    if argument.packed:
        offset += " + first / BLOCK"
    elif not argument.uniform:
        offset += " + first"
    return f"{const}{kind} *{name} = a->{name} + {offset};"


def _start(sweep: Sweep, kernel: Kernel) -> list[str]:
    lines = []
    for carry in sweep.step.carries:
        lines.append(f"_Alignas(64) {C_TYPE[kernel.dtype]} {tile_name(carry.name)}[TILE];")
    for carry in sweep.step.carries:
        lines += _initial(carry, kernel)
    return lines


def _initial(carry: Carry, kernel: Kernel) -> list[str]:
    tile = tile_name(carry.name)
    if isinstance(carry.initial, Const):
        value = literal(float(carry.initial.value), kernel.dtype)
        return [f"snncc_fill({tile}, {value}, width);"]
    source = next(
        a for a in kernel.arguments if a.role is Role.INPUT and a.value == carry.initial.name
    )
    if source.uniform:
        return [f"snncc_fill({tile}, {source.name}, width);"]
    size = f"(size_t)width * sizeof({C_TYPE[kernel.dtype]})"
    return [f"snncc_fill({tile}, 0, width);", f"memcpy({tile}, {source.name}, {size});"]


def solving_sweeps(name: str, kernel: Kernel, solve: Solve) -> list[str]:
    """Return the sweeps of a kernel that solves for its spikes, chunk by chunk.

    What a chunk leaves is final before the next one begins, so that sweeps over a chunk end.
    """
    real, packed = C_TYPE[kernel.dtype], sum(guess.packed for guess in solve.guesses)
    reals = len(solve.guesses) - packed
    carried = [tile_name(carry.name) for carry in solve.sweep.step.carries]
    size = f"(size_t)a->tile * sizeof({real})"
    back = [f"memcpy({tile}, {tile}_before, {size});" for tile in carried]
    return [
        f"{real} *kept = a->scratch + snncc_thread() * a->thread_scratch;",
        f"{WORD} *bits = ({WORD} *)(void *)(kept + a->chunk * {reals} * a->tile);",
        *_start(kernel.main, kernel),
        *(f"_Alignas(64) {real} {tile}_before[TILE];" for tile in carried),
        "int64_t most = 0;",
        "for (int64_t begin = 0; begin < a->steps; begin += a->chunk) {",
        "  const int64_t end = snncc_smaller(begin + a->chunk, a->steps);",
        f"  memset(kept, 0, (size_t)((end - begin) * {reals} * a->tile) * sizeof *kept);",
        f"  memset(bits, 0, (size_t)((end - begin) * {packed} * a->tile / BLOCK) * sizeof *bits);",
        *(f"  memcpy({tile}_before, {tile}, {size});" for tile in carried),
        "  int64_t count = 0;",
        "  for (uint32_t changed = 1; changed && count <= end - begin; count++) {",
        "    changed = 0;",
        *_indent(_indent(_sweep(name, solve.sweep, kernel, []))),
        *_indent(_indent(back)),
        "  }",
        "  most = count > most ? count : most;",
        *_indent(_sweep(name, kernel.main, kernel, _next_tile(kernel.main))),
        "}",
        f"snncc_count({solve.counts.name}, most, width);",
    ]


def guess_row(argument: Argument, row: str, kernel: Kernel) -> str:
    """Return the definition of where a guess of this time step is kept."""
    assert kernel.solve is not None
    place, kind = kernel.solve.place(argument), [g.packed for g in kernel.solve.guesses]
    offset = f"((t - begin) * {kind.count(argument.packed)} + {place}) * a->tile"
    if argument.packed:
        return f"{WORD} *{row} = bits + {offset} / BLOCK;"
    return f"{C_TYPE[kernel.dtype]} *{row} = kept + {offset};"


def _chunked(name: str, kernel: Kernel, recompute: Sweep) -> list[str]:
    """Return the sweeps of a kernel that recomputes, chunk by chunk from the last to the first."""
    real = C_TYPE[kernel.dtype]
    carried = [tile_name(carry.name) for carry in recompute.step.carries]
    size = f"(size_t)a->tile * sizeof({real})"
    places = [f"checkpoint + (c * {len(carried)} + {i}) * a->tile" for i in range(len(carried))]
    saves = [f"memcpy({p}, {tile}, {size});" for p, tile in zip(places, carried, strict=True)]
    loads = [f"memcpy({tile}, {p}, {size});" for p, tile in zip(places, carried, strict=True)]
    lines = [
        f"{real} *checkpoint = a->scratch + snncc_thread() * a->thread_scratch;",
        "const int64_t chunks = (a->steps + a->chunk - 1) / a->chunk;",
        f"{real} *kept = checkpoint + chunks * {len(carried)} * a->tile;",
        *_start(recompute, kernel),
    ]
    if carried and kernel.advance is not None:
        lines += [
            "for (int64_t c = 0; c + 1 < chunks; c++) {",
            "  const int64_t begin = c * a->chunk, end = begin + a->chunk;",
            *_indent([*saves, *_sweep(name, kernel.advance, kernel, [])]),
            "}",
        ]
    lines += [
        *_start(kernel.main, kernel),
        "for (int64_t c = chunks; c-- > 0;) {",
        "  const int64_t begin = c * a->chunk, end = snncc_smaller(begin + a->chunk, a->steps);",
    ]
    if carried:
        lines += _indent(["if (c + 1 < chunks) {", *_indent(loads), "}"])
    lines += _indent(_sweep(name, recompute, kernel, _places(kernel.main, "end - 1 - over")))
    lines += _indent(_sweep(name, kernel.main, kernel, _next_tile(recompute)))
    return [*lines, "}"]


def _next_tile(sweep: Sweep) -> list[str]:
    """Return the places of the first rows that a sweep will read in the tile after this one."""
    return _places(sweep, "a->steps - 1 - over" if sweep.backwards else "over", " + width")


def _places(sweep: Sweep, row: str, lane: str = "") -> list[str]:
    """Return the address of a row in each array that a sweep reads."""
    return [_place(argument, row, lane) for argument in fetched(sweep.step)]


def _place(argument: Argument, row: str, lane: str = "") -> str:
    row = f"({row})" if " " in row else row
    return f"snncc_place({argument.name}, {row} * a->{argument.name}_t{lane})"


def _sweep(name: str, sweep: Sweep, kernel: Kernel, following: list[str]) -> list[str]:
    """Return the loop over the time steps of a chunk.

    Args:
        name: The kernel.
        sweep: What runs at each step.
        kernel: The kernel that the sweep belongs to.
        following: Places to fetch from when the rows of this sweep are exhausted.
    """
    rows = [line for p in parameters(sweep.step, kernel.dtype) for line in _row(p, kernel)]
    loop = "for (int64_t t = begin; t < end; t++) {"
    if sweep.backwards:
        loop = "for (int64_t t = end; t-- > begin;) {"
    places, fetches = _fetch(sweep, following)
    function = f"{name}_{sweep.name}"
    return [
        loop,
        *_indent([*rows, *places]),
        "  int64_t b = 0;",
        "  for (; b + BLOCK <= width; b += BLOCK) {",
        *_indent(_indent([*fetches, *call_lines(function, sweep.step, kernel.dtype)])),
        "  }",
        "  if (b < width) {",
        *_indent(_indent(call_lines(function, sweep.step, kernel.dtype, partial=True))),
        "  }",
        "}",
    ]


def _fetch(sweep: Sweep, following: list[str]) -> tuple[list[str], list[str]]:
    """Return the definitions of the addresses that a time step fetches ahead, and the fetches."""
    row = f"t {'-' if sweep.backwards else '+'} ahead"
    lines, fetches = [], []
    for i, argument in enumerate(claimed(sweep.step)):
        lines.append(f"const uintptr_t claim{i} = {_place(argument, row)};")
        fetches.append(f"snncc_claim(claim{i}, b, stream);")
    own = _places(sweep, row)
    if not own:
        return lines, fetches
    following = following or own
    count = max(len(own), len(following))
    own, following = (
        [*places, *[places[-1]] * (count - len(places))] for places in (own, following)
    )
    if own != following:
        over = "begin - 1 - t + ahead" if sweep.backwards else "t + ahead - end"
        lines.append(f"const int64_t over = {over};")
    for i, (inside, outside) in enumerate(zip(own, following, strict=True)):
        choice = inside if inside == outside else f"over < 0 ? {inside}\n        : {outside}"
        lines += f"const uintptr_t fetch{i} = {choice};".splitlines()
        fetches.append(f"snncc_fetch(fetch{i}, b);")
    return lines, fetches


def _row(param: Parameter, kernel: Kernel) -> list[str]:
    """Return the definition of what a parameter refers to in this time step."""
    real, argument = C_TYPE[kernel.dtype], param.argument
    if isinstance(param.source, str) or (argument is not None and argument.rank is Rank.LANE):
        return []
    if argument is None:
        place = kernel.scratch.index(param.source.name)
        offset = f"((t - begin) * {len(kernel.scratch)} + {place}) * a->tile"
        const = "const " if isinstance(param.source, Load) else ""
        return [f"{const}{real} *{scratch_name(param.source.name)}_row = kept + {offset};"]
    name, row = argument.name, row_name(param)
    if argument.role is Role.GUESS:
        return [guess_row(argument, row, kernel)]
    if argument.uniform:
        return [f"const {real} {row} = {name}[t * a->{name}_t];"]
    const = "const " if isinstance(param.source, Load) else ""
    return [f"{const}{WORD if argument.packed else real} *{row} = {name} + t * a->{name}_t;"]


def _indent(lines: Iterable[str]) -> list[str]:
    return [line if line.startswith("#") else f"  {line}" for line in lines]
