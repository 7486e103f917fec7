"""Nests of loops over the elements of strided arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snncc.export.network.nodes import Strided

Strides = tuple[int, ...]


@dataclass(frozen=True)
class Loops:
    """A nest of loops over the elements of some arrays; neighbouring axes are merged."""

    sizes: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    letter: str

    @classmethod
    def of(cls, shape: tuple[int, ...], strides: Sequence[Strides], letter: str = "i") -> Loops:
        """Return the fewest loops that visit a shape with these strides."""
        groups: list[list[int]] = []
        for d, n in enumerate(shape):
            if n == 1:
                continue
            last = groups[-1][-1] if groups else -1
            if groups and all(s[last] == s[d] * n for s in strides):
                groups[-1].append(d)
            else:
                groups.append([d])
        sizes = []
        for group in groups:
            size = 1
            for d in group:
                size *= shape[d]
            sizes.append(size)
        return cls(tuple(sizes), tuple(map(tuple, groups)), shape, letter)

    @property
    def variables(self) -> list[str]:
        """The names of the loop variables."""
        return [f"{self.letter}{k}" for k in range(len(self.sizes))]

    def index(self, array: Strided) -> str:
        """Return the position in its buffer of an array's element."""
        strides = broadcast_strides(array, self.shape)
        parts = []
        for variable, group in zip(self.variables, self.groups, strict=True):
            stride = strides[group[-1]]
            if stride:
                parts.append(variable if stride == 1 else f"{variable} * {stride}")
        parts += [str(array.offset)] if array.offset or not parts else []
        return " + ".join(parts)

    def around(self, body: list[str]) -> list[str]:
        """Return the body inside the loops."""
        if not self.sizes:
            return ["{", *indented(body), "}"]
        lines = body
        for variable, size in reversed(list(zip(self.variables, self.sizes, strict=True))):
            head = f"for (int {variable} = 0; {variable} < {size}; {variable}++) {{"
            lines = [head, *indented(lines), "}"]
        return lines


def loops_over(shape: tuple[int, ...], arrays: Sequence[Strided]) -> Loops:
    """Return loops over a shape that some arrays are broadcast to."""
    return Loops.of(shape, [broadcast_strides(a, shape) for a in arrays])


def broadcast_strides(array: Strided, shape: tuple[int, ...]) -> Strides:
    """Return the strides of an array that is broadcast to a shape."""
    missing = len(shape) - len(array.shape)
    if missing < 0:  # leading axes of size one: a view with an axis for time
        return array.strides[-missing:]
    own = (0 if n == 1 else s for n, s in zip(array.shape, array.strides, strict=True))
    return (*[0] * missing, *own)


def indented(lines: Sequence[str]) -> list[str]:
    """Return lines two spaces further in."""
    return [f"  {line}" for line in lines]
