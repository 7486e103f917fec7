"""The numerical promise of a rewrite or of a compiled layer."""

from __future__ import annotations

from enum import Enum


class Numerics(Enum):
    """How the results of a rewritten program relate to those of the serial program.

    The members are in order: a composition promises what its weakest part promises.
    """

    BITWISE = "bitwise"  # the same float operations in the same order
    REASSOCIATED = "reassociated"  # equal over the reals; rounding may differ
    ITERATED = "iterated"  # exact for the first k steps after k evaluations
    SUBSTITUTED = "substituted"  # a different model; only when asked for by name

    @property
    def rank(self) -> int:
        """Position in the order, strongest promise first."""
        return list(Numerics).index(self)


def weakest(*promises: Numerics) -> Numerics:
    """Return the promise of a composition of parts; BITWISE for no parts."""
    return max(promises, key=lambda p: p.rank, default=Numerics.BITWISE)
