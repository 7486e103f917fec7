"""When a matrix product is faster without the zeros of its sparse factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from snncc.runtime.products.density import density

# Columns that a kernel computes together; narrower products cost as much.
_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class Costs:
    """What a kernel that skips zeros costs, in multiplications of the dense library.

    Attributes:
        kept: One multiplication that is not skipped.
        each: One value of a factor that has as many rows as there are.
        call: A call.
    """

    kept: float
    each: float
    call: float

    def pay(self, x: Tensor, columns: int) -> bool:
        """Tell whether a product with ``x`` [rows, inner] is faster without the zeros of x.

        Args:
            x: The factor that may be sparse; a sample of its values is looked at.
            columns: The columns of the other factor.
        """
        return self.pay_at(x.shape, columns, lambda: density(x))

    def pay_at(self, sizes: Sequence[int], columns: int, share: Callable[[], float]) -> bool:
        """Tell the same of the sizes of ``x`` and the share of its values that are not zero."""
        rows, inner = sizes
        left = rows * inner * columns - self.each * rows * (inner + columns) - self.call
        if left <= 0:
            return False
        return share() * self.kept * rows * inner * max(columns, _COLUMNS) < left
