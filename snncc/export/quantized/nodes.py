"""A quantized network: the operations of a `Network` on whole numbers.

Every operation is defined over the integers, without limits; where a number could leave its type,
a ``limit`` stands.  Bounds of every number are known, so that C code never overflows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy

from snncc.export.network import nodes as floats
from snncc.export.network.nodes import Array, Buffer, Network, Steps
from snncc.export.quantized.formats import Arithmetic, Format


@dataclass(frozen=True, slots=True)
class Number:
    """A literal."""

    value: int


@dataclass(frozen=True, slots=True)
class Name:
    """The value of an input or of an earlier let."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation on integers.

    ``add sub mul neg abs min max lt le gt ge eq ne and or xor not select`` are what they say;
    ``right`` is ``floor(x / 2^bits + 1/2)``, ``floor`` is ``floor(x / 2^bits)``, ``even`` is the
    whole number nearest to ``x / 2^bits``, of two the even one, ``left`` is ``x * 2^bits``;
    ``limit`` is the nearest number of a state; ``divide`` is ``floor(x / y + 1/2)``, and the limit
    on the side of x where y is zero.
    """

    operation: str
    args: tuple[Integer, ...]
    bits: int = 0


Integer: TypeAlias = Number | Name | Apply


def parts(expr: Integer) -> Iterator[Integer]:
    """Yield an expression and everything inside it."""
    yield expr
    if isinstance(expr, Apply):
        for arg in expr.args:
            yield from parts(arg)


@dataclass(eq=False)
class Constant:
    """Numbers that a library keeps with its weights.

    Attributes:
        name: A C identifier.
        values: The numbers, in order of memory.
        bits: Of one of them.
    """

    name: str
    values: numpy.ndarray
    bits: int


@dataclass(frozen=True, slots=True)
class ConstantArray:
    """A strided view of a constant; in each step it begins ``every`` numbers after the last."""

    constant: Constant
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    every: int = 0


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Lets on whole numbers, evaluated for each element."""

    name: str
    comment: str
    shape: tuple[int, ...]
    inputs: tuple[tuple[str, Array | ConstantArray | Steps], ...]
    lets: tuple[tuple[str, Integer], ...]
    results: tuple[tuple[Array, Integer], ...]


@dataclass(frozen=True, slots=True)
class Move:
    """Write a view to an array of the same shape: ``limit(x / 2^shift)``, rounded."""

    source: Array
    result: Array
    shift: int


@dataclass(frozen=True, slots=True)
class Border:
    """Write one number to every element of a view."""

    value: int
    result: Array


@dataclass(frozen=True, slots=True)
class Lookup:
    """The numbers of this step out of a table, [T, *]."""

    table: Constant
    result: Array


@dataclass(frozen=True, slots=True)
class Product:
    """What linear layers and convolutions share: ``y = limit((bias + x w) / 2^shift)``.

    Attributes:
        weight: The weights, as the layer orders them.
        bias: For each output channel what its sum starts from, or None.
        shift: For each output channel by how many bits its sum is shifted.
        sum_bits: Of the sums: no partial sum leaves this type.
        of_spikes: Whether inputs are one or zero.
        by_output: Whether few inputs are zero, so that none is skipped; the weights of a linear
            layer are [out, in] then, else [in, out].
    """

    weight: Constant
    bias: Constant | None
    shift: Constant
    sum_bits: int
    of_spikes: bool
    by_output: bool


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer."""

    layer: floats.Linear
    product: Product


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution; weights are ordered as in floats."""

    layer: floats.Convolution
    product: Product


@dataclass(frozen=True, slots=True)
class MatMul:
    """A product of matrices: ``limit(a b / 2^shift)``."""

    layer: floats.MatMul
    shift: int
    sum_bits: int


@dataclass(frozen=True, slots=True)
class Pool:
    """A maximum, or ``limit(divide(sum * 2^left, divisor))``, over windows."""

    layer: floats.Pool
    divisors: tuple[int, ...]
    left: int
    sum_bits: int


@dataclass(frozen=True, slots=True)
class Reduce:
    """A maximum, a minimum, or ``limit(divide(sum * 2^left, divisor))``, over some axes."""

    layer: floats.Reduce
    left: int
    divisor: int
    sum_bits: int


Layer: TypeAlias = Linear | Convolution | MatMul | Pool | Reduce
Operation: TypeAlias = Pointwise | Move | Border | Lookup | Layer


@dataclass(eq=False)
class QuantizedNetwork:
    """One step of a network in whole numbers.

    Attributes:
        network: The network that it stands for; its buffers hold whole numbers here.
        arithmetic: The sizes of numbers.
        formats: For each buffer what its numbers are.
        operations: For positions in the network the operation that stands there.
        constants: What a library keeps with its weights.
        starts: For each state the numbers that it starts from, in order of memory.
    """

    network: Network
    arithmetic: Arithmetic
    formats: dict[Buffer, Format] = field(default_factory=dict)
    operations: dict[int, Operation] = field(default_factory=dict)
    constants: list[Constant] = field(default_factory=list)
    starts: dict[Buffer, numpy.ndarray] = field(default_factory=dict)
