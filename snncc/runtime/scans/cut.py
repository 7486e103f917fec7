"""Cut a sequence into chunks."""

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


# Chunks of fewer lanes than this are laid side by side in memory, so that they fill vector units.
FEW_LANES = 64
# Lanes of all chunks together that fill a machine whose prices were not measured, as a GPU.
MANY_LANES = 1 << 16
# Shorter chunks spend their time between the sweeps.
LEAST_STEPS = 32


def choose_cut(steps: int, lanes: int, least: int) -> Cut | None:
    """Return how to cut a sequence without prices; None where it is to stay whole.

    Args:
        steps: T.
        lanes: How many lanes there are.
        least: The fewest steps of a chunk.
    """
    chunks = min(-(-MANY_LANES // max(lanes, 1)), steps // max(least, LEAST_STEPS))
    return cut_into(steps, steps // chunks) if chunks > 1 else None


def cut_into(steps: int, length: int) -> Cut | None:
    """Return chunks of a length; None where there would be fewer than two."""
    chunks = steps // length
    return Cut(chunks, length, steps - chunks * length) if chunks > 1 else None
