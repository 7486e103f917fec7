"""Choose how a kernel is run for given sizes: tiles, chunks of time, threads, streaming writes."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from snncc.codegen.base import BLOCK, Signature
from snncc.ir.nodes import Rank
from snncc.runtime.layout import Layout

# How far ahead of the computation rows are fetched.  Measured: 4 KB is 10 % slower, 16 KB equal.
_AHEAD_BYTES = 8 * 1024
# Writes bypass the caches when a call moves more than this part of the last level: measured, the
# kernel gains up to a half, and a matrix product that reads the result does not lose.
_STREAM_PART = 4
# Fewer lane-steps than this do not pay for waking a second thread (measured: equal at 40,000).
LEAST_WORK = 1 << 16
# Tiles for each thread where there are lanes enough, so that threads finish together.
_TILES_PER_THREAD = 4
# Steps that are solved by sweeps at a time: they are read again in each sweep.
_SOLVE_STEPS = 32
# A tile narrower than this spends its time in the loop around the blocks.
_LEAST_TILE = 256


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes of the caches in bytes: the second level of one core, and the last level."""

    second_level: int
    last_level: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """Numbers that change the speed of a call and nothing else.

    Attributes:
        tile: Lanes of one tile.
        ahead: Steps between the row that is fetched and the row that is computed.
        chunk: Steps that a backward kernel recomputes at a time.
        threads: Threads.
        stream: Whether writes bypass the caches.
        thread_scratch: Values of scratch for each thread.
    """

    tile: int
    ahead: int
    chunk: int
    threads: int
    stream: bool
    thread_scratch: int


@functools.cache
def this_machine() -> Machine:
    """Ask the system for the sizes of the caches."""
    return Machine(
        _system_size("SC_LEVEL2_CACHE_SIZE") or 512 << 10,
        _system_size("SC_LEVEL3_CACHE_SIZE") or 16 << 20,
    )


def _system_size(name: str) -> int:
    try:
        return max(os.sysconf(name), 0)
    except (AttributeError, OSError, ValueError):
        return 0


def make_schedule(
    signature: Signature, layout: Layout, threads: int, scratch_bytes: int | None = None
) -> Schedule:
    """Choose the schedule of a call.

    Args:
        signature: The kernel.
        layout: The sizes.
        threads: The most threads.
        scratch_bytes: Scratch of one thread; None means half of the second-level cache, and
            `_SOLVE_STEPS` steps of what is solved by sweeps.
    """
    machine, given = this_machine(), scratch_bytes
    if scratch_bytes is None:
        scratch_bytes = machine.second_level // 2
    rows0, rows1, lanes = layout.extents
    work = layout.steps * rows0 * rows1 * lanes
    threads = threads if work >= LEAST_WORK else 1
    size = signature.dtype.size
    step_bytes = signature.scratch * size
    most = signature.tile
    if signature.solves:
        most = min(most, _LEAST_TILE)
    elif step_bytes:
        fitting = scratch_bytes // (max(layout.steps, 1) * step_bytes)
        most = min(max(fitting, _LEAST_TILE), most)
    tile = _tile(rows0 * rows1, lanes, most, threads)
    chunk = max(layout.steps, 1)
    if signature.solves:
        bits = tile * (8 * step_bytes + signature.bits)
        chunk = min(chunk, _SOLVE_STEPS if given is None else max(8 * given // bits, 1))
    elif step_bytes:
        chunk = min(chunk, max(scratch_bytes // (tile * step_bytes), 1))
    chunks = -(-layout.steps // chunk)
    if chunks > 1:
        # All but the last chunk run forward twice: let it be no smaller than the others.
        chunk = -(-layout.steps // chunks)
    arrays = sum(a.rank is Rank.STEP and not a.uniform for a in signature.arguments)
    return Schedule(
        tile=tile,
        ahead=max(_AHEAD_BYTES // (min(tile, max(lanes, BLOCK)) * size), 1),
        chunk=chunk,
        threads=threads,
        stream=work * arrays * size > machine.last_level // _STREAM_PART,
        thread_scratch=(chunks * signature.checkpoint + chunk * signature.scratch) * tile
        + chunk * signature.bits * (tile // BLOCK),
    )


def _tile(rows: int, lanes: int, most: int, threads: int) -> int:
    """Return the lanes of a tile: few tiles, but a multiple of the threads, of equal size."""
    blocks = max(-(-lanes // BLOCK), 1)
    tiles = -(-blocks * BLOCK // max(most // BLOCK * BLOCK, BLOCK))
    if 0 < rows * tiles < threads * _TILES_PER_THREAD:
        wanted = -(-rows * tiles // threads) * threads
        tiles = min(-(-wanted // rows), blocks)
    return -(-blocks // tiles) * BLOCK
