"""The argument structures of event kernels: fields of 8 bytes, and tables of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of weights with more zeros than this share are compressed.
_SPARSE = 0.75


@dataclass(frozen=True, slots=True)
class Rows:
    """What the spikes of one group add to the potentials of another, as a kernel reads it.

    Attributes:
        dense: [sources, targets], or None where most weights are zero; then
        starts: [sources + 1]: where the weights of a source start, those that are not zero,
        places: the targets of these weights,
        weights: and the weights.
        fans: [sources]: how many weights of a source are not zero.
        full: Whether no weight is zero.
    """

    dense: Tensor | None
    starts: Tensor | None
    places: Tensor | None
    weights: Tensor | None
    fans: Tensor
    full: bool

    def fields(self) -> dict[str, Tensor | int | None]:
        """Return the fields of the structure that tell all this."""
        return {
            "rows": self.dense,
            "starts": self.starts,
            "places": self.places,
            "weights": self.weights,
            "fans": self.fans,
            "full": int(self.full),
        }


def rows_of(matrix: Tensor) -> Rows:
    """Return a matrix [sources, targets] as rows, compressed where most of it is zero."""
    is_nonzero = matrix != 0
    fans = is_nonzero.sum(1)
    counted = int(fans.sum())
    narrow = fans.to(torch.int32)
    if counted >= (1 - _SPARSE) * matrix.numel():
        return Rows(matrix.contiguous(), None, None, None, narrow, counted == matrix.numel())
    starts = torch.cat([fans.new_zeros(1), fans.cumsum(0)])
    places = is_nonzero.nonzero()[:, 1].to(torch.int32)
    return Rows(None, starts, places, matrix[is_nonzero], narrow, full=False)


class Table:
    """Structures one after another, and the tensors whose addresses they hold.

    Args:
        fields: The names of the fields, in order.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self._fields = fields
        self._values: list[int] = []
        self._kept: list[object] = []
        self._packed: Tensor | None = None

    def append(self, values: Mapping[str, Tensor | int | None]) -> None:
        """Add a structure; fields without a value are 0."""
        self._values += [self._word(values.get(name)) for name in self._fields]

    def address(self, position: int = 0) -> int:
        """Return where a structure is; nothing can be added afterwards."""
        if self._packed is None:
            self._packed = torch.tensor(self._values or [0], dtype=torch.int64, device="cpu")
        return self._packed.data_ptr() + 8 * len(self._fields) * position

    def bytes(self) -> bytes:
        """Return the structures."""
        return struct.pack(f"{len(self._values)}q", *self._values)

    def _word(self, value: Tensor | int | None) -> int:
        if isinstance(value, Tensor):
            self._kept.append(value)
            return value.data_ptr()
        return value or 0


def word_of(number: float) -> int:
    """Return the bits of a float64 as an integer."""
    (word,) = struct.unpack("q", struct.pack("d", number))
    return int(word)
