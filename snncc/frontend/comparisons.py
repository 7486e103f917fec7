"""Comparisons of sizes with Python numbers: which of them steer the program, and which only count.

``min(T, 50)`` and ``if B == 1`` may make another program at other sizes.  A counter that runs up to
a size, as in ``while t < T`` or ``if t == T - 1`` inside a loop over t, does not: it is compared
with consecutive numbers, and where they end follows the size.  That it follows is seen by comparing
two recordings, see `Count`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from snncc.errors import Location
from snncc.frontend.location import Path
from snncc.ir.tape import Count

Statement = tuple[Path, Location | None, str]  # calls that lead there, the line, what is compared


@dataclass
class _Run:
    """Consecutive numbers that were compared with one size."""

    start: int
    stop: int
    size: int


@dataclass
class Comparisons:
    """The comparisons of a run of the model, by statement and by what was compared.

    ``of_sizes`` tells whether two sizes were compared that are not equal.
    """

    runs: dict[Statement, list[_Run]] = field(default_factory=dict)
    of_sizes: bool = False

    def add(self, statement: Statement, size: int, number: Any) -> None:
        """Note that a size was compared with a number."""
        runs = self.runs.setdefault(statement, [])
        if type(number) is not int:
            runs.append(_Run(0, 1, size))
        elif runs and (runs[-1].stop, runs[-1].size) == (number, size):
            runs[-1].stop += 1
        else:
            runs.append(_Run(number, number + 1, size))

    @property
    def are_steering(self) -> bool:
        """Whether a size was compared with a number that is no counter, or with another size."""
        return self.of_sizes or any(
            run.stop - run.start < 2 for runs in self.runs.values() for run in runs
        )

    def counts(self) -> Iterator[Count]:
        """Yield where counters began, and how far from the size they ended."""
        for (path, where, comparison), runs in self.runs.items():
            for run in runs:
                yield Count(path, where, comparison, run.start, run.stop - run.size)
