"""What a product leaves for its gradients: its input as values, as bits, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.runtime import memory
from snncc.runtime.products.spikes import Kept, Packed


@dataclass(frozen=True, slots=True, eq=False)
class SavedInput:
    """What is known of an input when its values are not there.

    Attributes:
        shape: Its sizes.
        strides: Its strides.
        dtype: Its type.
        kept: What is known of its bits, where these are kept.
    """

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    kept: Kept | None

    @classmethod
    def of(cls, ctx: Any, x: Tensor, weight: Tensor, packed: Packed | None) -> SavedInput:
        """Save the weight, and of the input what its gradient reads.

        Args:
            ctx: Of an autograd function whose first two arguments are input and weight.
            x: The input.
            weight: The weight.
            packed: The input as bits, where these are to be kept.
        """
        read, kept = (x, None) if packed is None else (packed.words, packed.kept)
        ctx.save_for_backward(weight, read if ctx.needs_input_grad[1] else None)
        return cls(x.shape, x.stride(), x.dtype, kept)

    def values(self, saved: Tensor | None) -> Tensor | None:
        """Return the input, given what autograd saved of it; None where it was not kept."""
        return saved if self.kept is None or saved is None else self.kept.values(saved)

    def like(self, weight: Tensor) -> Tensor:
        """Return a tensor of the sizes of the input with arbitrary content."""
        if weight.is_cpu:
            return memory.empty_strided(self.shape, self.strides, self.dtype)
        return weight.new_empty_strided(self.shape, self.strides, dtype=self.dtype)
