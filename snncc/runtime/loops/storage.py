"""Places of the values of a recurrent loop: rows of an array, or tensors of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

# The bytes that torch aligns new tensors to.  Matrix products round by it: small ones, on operands
# that are not aligned, add in another order.
ALIGNMENT = 64

# The value at the k-th step that is run.
Read: TypeAlias = Callable[[int], Any]


@dataclass(eq=False)
class Rows:
    """Values that lie in the rows of an array; at the k-th step that of ``index[k]``.

    Attributes:
        array: The array [rows, *].
        index: For each step its row.
        before: The row that holds what a carry of the value starts as, or None.
        is_reused: Whether rows are overwritten in later steps.
    """

    array: Tensor
    index: Sequence[int]
    before: int | None = None
    is_reused: bool = False
    _tensors: list[Tensor] | None = field(default=None, init=False)

    @property
    def is_aligned(self) -> bool:
        """Whether each row starts as the memory of a new tensor does."""
        step = self.array.stride(0) * self.array.element_size()
        return step % ALIGNMENT == 0 and self.array.data_ptr() % ALIGNMENT == 0

    def sequence(self, *, later: bool) -> Tensor:
        """Return all rows but the first, or all but the last.

        It shares memory with the array and is no view of it for autograd, which forbids to change
        what a function returns if that is a view.
        """
        array = self.array
        offset = array.storage_offset() + (array.stride(0) if later else 0)
        sizes = (array.shape[0] - 1, *array.shape[1:])
        empty = torch.empty(0, dtype=array.dtype, device=array.device)
        return empty.set_(array.untyped_storage(), offset, sizes, array.stride())

    def tensors(self) -> list[Tensor]:
        """Return the value of each step."""
        if self._tensors is None:
            rows = self.array.unbind(0)
            self._tensors = [rows[i] for i in self.index]
        return self._tensors

    def addresses(self) -> list[int]:
        """Return the address of the value of each step."""
        first, size = self.array.data_ptr(), self.array.stride(0) * self.array.element_size()
        return [first + i * size for i in self.index]


@dataclass(eq=False)
class Items:
    """Values that are objects of their own, one a step.

    Attributes:
        values: Those of the steps run so far.
        kept: How many steps a value is needed for after its own; None keeps all.
    """

    values: list[Any]
    kept: int | None = None

    def store(self, k: int, value: Any) -> None:
        """Note the value of step k and forget what nobody will read."""
        self.values[k] = value
        if self.kept is not None and k > self.kept:
            self.values[k - self.kept - 1] = None


Cells: TypeAlias = Rows | Items


def is_aligned(value: Any) -> bool:
    """Tell whether a value is a tensor that starts where a new one may."""
    return isinstance(value, Tensor) and value.data_ptr() % ALIGNMENT == 0


@dataclass(frozen=True, slots=True)
class Places:
    """How the kernels of a device are told where a value lies.

    Attributes:
        of: Returns the place of a tensor.
        of_rows: Returns the places of the values of all steps.
    """

    of: Callable[[Tensor], Any]
    of_rows: Callable[[Rows], list[Any]]


# Kernels on the CPU get addresses; what launches kernels on a GPU takes tensors.
ADDRESSES = Places(Tensor.data_ptr, Rows.addresses)
TENSORS = Places(lambda tensor: tensor, Rows.tensors)


def allocate_ring(
    count: int, sizes: Sequence[int], dtype: torch.dtype, length: int, device: torch.device
) -> Rows:
    """Return buffers that the steps use in turn."""
    values, unit = math.prod(sizes), ALIGNMENT // dtype.itemsize
    padded = torch.empty((count, -(-values // unit) * unit), dtype=dtype, device=device)
    array = padded[:, :values].view(count, *sizes)
    return Rows(array, [k % count for k in range(length)], before=count - 1, is_reused=True)


def in_order(length: int, *, reverse: bool) -> range:
    """Return the time step of the k-th step that is run."""
    return range(length - 1, -1, -1) if reverse else range(length)
