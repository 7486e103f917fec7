"""The share of values that are not zero, told by a sample."""

from __future__ import annotations

import torch
from torch import Tensor

# Values that are looked at.
_SAMPLE = 1 << 12


def density(x: Tensor) -> float:
    """Return the share of values that are not zero, of some that lie evenly in memory."""
    flat = x.detach().view(-1)
    # An odd distance: sizes are often powers of two, and so would be a column of an image.
    sample = flat[:: flat.numel() // _SAMPLE | 1]
    return int(torch.count_nonzero(sample)) / max(sample.numel(), 1)
