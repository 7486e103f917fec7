"""Random numbers that are functions of where they are used, so that any order of work draws them.

A draw is a hash of the seed of the call and of five numbers: what it is for, sample, time step,
forward step, neuron.  Each is added, multiplied, and mixed in (modulo 2^64)::

    z = seed;   for each number n:  z = mix(z + (n + 1) * 0x9E3779B97F4A7C15)
    mix(z):  z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB
             z ^= z >> 31
    uniform = (z >> 11) * 2^-53

Torch has no unsigned integers of 64 bits with arithmetic; products wrap around all the same, and
shifts are made unsigned by a mask.
Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014, figure 15.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = "int | Tensor"


class Purpose(Enum):
    """What a number is drawn for."""

    ORDER = 0
    REFRACTORY = 1


def uniform(seed: int, purpose: Purpose, *place: Number) -> Tensor:
    """Return uniform numbers in [0, 1) as float64; the numbers of the place broadcast together.

    Args:
        seed: The seed of the call.
        purpose: What they are for.
        *place: Sample, time step, forward step and neuron.
    """
    state = torch.tensor(seed, dtype=torch.int64)
    for number in (purpose.value, *place):
        state = _mixed(state + (torch.as_tensor(number, dtype=torch.int64) + 1) * _GOLDEN)
    return _shifted(state, 11).to(torch.float64) * 2.0**-53


def new_seed() -> int:
    """Return a seed from torch's generator, so that ``torch.manual_seed`` makes runs repeat."""
    return int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros coming in from the left."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


_GOLDEN, _FIRST, _SECOND = map(
    _signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
