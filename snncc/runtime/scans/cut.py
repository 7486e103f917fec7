"""How a sequence is cut into chunks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """Some chunks of equal length, and the steps that are left over.

    Attributes:
        chunks: How many chunks.
        length: Steps of each.
        rest: Steps after the last chunk, in the direction of the sweep.
    """

    chunks: int
    length: int
    rest: int


# Lanes of all chunks together that fill the vector units of a core, or a GPU.
CPU_LANES = 256
GPU_LANES = 1 << 16
# Shorter chunks spend their time between the sweeps.
LEAST_STEPS = 32


def choose_cut(steps: int, lanes: int, threads: int, least: int, *, on_gpu: bool) -> Cut | None:
    """Return how to cut a sequence; None where it is to stay whole.

    Args:
        steps: T.
        lanes: How many lanes there are.
        threads: Threads of a CPU kernel.
        least: The fewest steps of a chunk.
        on_gpu: Whether kernels run on a GPU.
    """
    wanted = GPU_LANES if on_gpu else CPU_LANES * threads
    chunks = min(-(-wanted // max(lanes, 1)), steps // max(least, LEAST_STEPS))
    return cut_into(steps, steps // chunks) if chunks > 1 else None


def cut_into(steps: int, length: int) -> Cut | None:
    """Return chunks of a length; None where there would be fewer than two."""
    chunks = steps // length
    return Cut(chunks, length, steps - chunks * length) if chunks > 1 else None
