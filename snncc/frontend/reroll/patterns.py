"""The terms of a proven loop: what an operand of its body may be.

An operand is followed over the iterations k = 0..K-1.  It is one of

* `Same`: a value that this iteration computed before;
* `Back`: a value of the iteration ``depth`` before, and before that initial values from outside;
* `Outer`: one and the same value from outside;
* `Numbers`: a Python number for each iteration;
* `Element`, `Gathered`, `Listed`: consecutive or chosen elements of a tensor, or of a list;
* `Pure`: an integer or a constant fill made anew from such operands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Same:
    """The value of an operation of this iteration, by its place in the body."""

    place: int


@dataclass(frozen=True, slots=True)
class Back:
    """The value of an operation ``depth`` iterations before; ``initial`` while there is none.

    ``initial`` holds codes: what the iterations 0..depth-1 read.
    """

    place: int
    depth: int
    initial: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outer:
    """A value from outside that is the same in all iterations, by its code."""

    code: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """A Python number for each iteration."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Element:
    """``select(base, dim, start + stride * k)`` of an outside tensor, by its code."""

    base: int
    dim: int
    start: int
    stride: int


@dataclass(frozen=True, slots=True)
class Gathered:
    """``select(base, dim, indices[k])`` of an outside tensor, by its code."""

    base: int
    dim: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """One outside tensor for each iteration, by their codes."""

    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pure:
    """A floating item made in each iteration: like that of ``code``, from these operands."""

    code: int
    operands: tuple[Pattern, ...]


PerStep: TypeAlias = Element | Gathered | Listed
Pattern: TypeAlias = Same | Back | Outer | Numbers | PerStep | Pure


@dataclass(frozen=True, slots=True)
class Refuted:
    """Why iterations are not one body; false in a condition.

    Attributes:
        step: The last iteration at fault.
        place: The operation of the body at fault.
        reason: What differs, as the end of a sentence.
    """

    step: int
    place: int
    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Proof:
    """A loop: ``count`` iterations of ``period`` operations from position ``start``.

    Attributes:
        start: Position of the first operation of iteration 0.
        period: Operations in the body.
        count: Number of iterations.
        columns: What each operand of the body is, operation after operation.
        offsets: Where the operands of each operation start in ``columns``.
        selects: The operations of the body that only take a per-step input from outside.
    """

    start: int
    period: int
    count: int
    columns: tuple[Pattern, ...]
    offsets: tuple[int, ...]
    selects: dict[int, PerStep]

    @property
    def stop(self) -> int:
        """Position after the last iteration."""
        return self.start + self.period * self.count

    def place(self, position: int) -> int:
        """Return the place in the body of a position of the sequence."""
        return (position - self.start) % self.period

    def operands(self, place: int) -> tuple[Pattern, ...]:
        """Return what the operands of one operation of the body are."""
        return self.columns[self.offsets[place] : self.offsets[place + 1]]

    def reads(self) -> Iterator[tuple[int, Pattern]]:
        """Yield (place, pattern) for all that the body reads, in order, nested patterns too."""
        for place in range(self.period):
            if place in self.selects:
                yield place, self.selects[place]
                continue
            stack = list(reversed(self.operands(place)))
            while stack:
                pattern = stack.pop()
                yield place, pattern
                if isinstance(pattern, Pure):
                    stack.extend(reversed(pattern.operands))

    @property
    def is_carried(self) -> bool:
        """Whether an iteration reads what one before it computed."""
        return any(isinstance(p, Back) for _, p in self.reads())

    @property
    def is_indexed(self) -> bool:
        """Whether the iterations read different inputs."""
        return any(isinstance(p, PerStep | Numbers) for _, p in self.reads())
