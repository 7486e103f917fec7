"""Number formats of a quantized network: whole numbers that count parts of a power of two.

A number ``q`` of a format with ``fraction`` f stands for ``q / 2^f``.  Spikes, counts and bools
have fraction 0 and are exact.  All rounding is to the nearest, halves up: ``floor(x + 1/2)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The sizes of whole numbers in a library.

    Attributes:
        name: What it is called.
        weight_bits: Of a weight of a layer.
        state_bits: Of an input, a state, an output, a threshold and a multiplier.
        wide_bits: Of what is computed within a step.
    """

    name: str
    weight_bits: int
    state_bits: int
    wide_bits: int

    @property
    def state_low(self) -> int:
        """The least number of a state."""
        return -(1 << self.state_bits - 1)

    @property
    def state_high(self) -> int:
        """The largest number of a state."""
        return (1 << self.state_bits - 1) - 1

    @property
    def wide_high(self) -> int:
        """What numbers within a step do not exceed; doubling one never overflows."""
        return (1 << self.wide_bits - 2) - 1


INT8 = Arithmetic("int8", 8, 16, 32)
INT16 = Arithmetic("int16", 16, 32, 64)
ARITHMETICS = {a.name: a for a in (INT8, INT16)}

# Steps are counted no further, so that the count fits 32 bits on every processor.
MOST_STEPS = (1 << 30) - 1
# Fractions of values that are almost always zero stop here.
_COARSEST = -16


@dataclass(frozen=True, slots=True)
class Format:
    """What the numbers of a buffer are.

    Attributes:
        fraction: A number stands for itself divided by two to this power.
        low: The least that occurs.
        high: The largest that occurs.
        exact: Whether they are counts: whole by nature, and never rounded.
    """

    fraction: int
    low: int
    high: int
    exact: bool


def fraction_for(largest: float, high: int, finest: int) -> int:
    """Return the finest fraction at which numbers up to ``largest`` do not exceed ``high``."""
    if largest == 0:
        return finest
    fraction = math.floor(math.log2(high / largest))
    while math.ldexp(largest, fraction) > high:  # the logarithm was rounded
        fraction -= 1
    return max(min(fraction, finest), _COARSEST)


def whole(values: Tensor, fraction: int) -> Tensor:
    """Return numbers in a fraction, rounded."""
    return torch.floor(torch.ldexp(values.double(), torch.tensor(float(fraction))) + 0.5)


def limited(values: Tensor, low: int, high: int) -> Tensor:
    """Return rounded numbers as integers between two bounds."""
    return values.clamp(low, high).to(torch.int64).clamp(low, high)


def is_whole(values: Tensor, largest: int) -> bool:
    """Tell whether all values are whole numbers up to ``largest``."""
    values = values.double()
    return bool(((values == values.round()) & (values.abs() <= largest)).all())
