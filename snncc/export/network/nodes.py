"""A network as an exported library runs it: buffers, and operations on them in order.

Every size is known.  A value is a strided view of a buffer; operators that only arrange values are
views and are gone.  What depends on parameters alone has been computed and is a weight.  This is
what the printers of libraries read, and what decides how much memory a library needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias

from torch import Tensor

from snncc.errors import Location
from snncc.ir.events.network import EventNetwork
from snncc.ir.nodes import Const, Let


class Home(Enum):
    """Where a buffer lives."""

    INPUT = "input"  # given by the caller at each step
    OUTPUT = "output"  # given by the caller, written at each step
    STATE = "state"  # kept from step to step
    WEIGHT = "weight"  # constant
    WORK = "work"  # alive within a step only


@dataclass(eq=False)
class Buffer:
    """Memory for ``size`` numbers.

    Attributes:
        name: Unique among the buffers of its home.
        home: Where it lives.
        size: How many numbers.
        values: Of a weight its values; of a state those that it starts from, or one number.
    """

    name: str
    home: Home
    size: int
    values: Tensor | float | None = None


@dataclass(frozen=True, slots=True)
class Array:
    """A strided view of a buffer."""

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def is_dense(self) -> bool:
        """Whether its elements lie side by side in order."""
        return self.strides == dense_strides(self.shape) or self.numel <= 1


class Strided(Protocol):
    """Numbers that lie in strides, wherever they lie."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""

    @property
    def strides(self) -> tuple[int, ...]:
        """For each axis how far apart its elements are."""

    @property
    def offset(self) -> int:
        """Where the first element lies."""


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a dense array."""
    strides: list[int] = []
    size = 1
    for n in reversed(shape):
        strides.insert(0, size)
        size *= n
    return tuple(strides)


@dataclass(frozen=True, slots=True)
class Steps:
    """The number of steps so far times ``factor``, as an operand of arithmetic."""

    factor: int = 1


Operand: TypeAlias = Array | Const | Steps


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Lets evaluated for each element: a neuron, or an elementwise operator.

    Attributes:
        name: What it is called in the library.
        comment: What it computes, for the reader.
        shape: The elements; every array broadcasts to it.
        inputs: For each name that the lets read its operand.
        lets: The step, in order.
        results: For each array the name of the let, or input, that is written to it.
    """

    name: str
    comment: str
    shape: tuple[int, ...]
    inputs: tuple[tuple[str, Operand], ...]
    lets: tuple[Let, ...]
    results: tuple[tuple[Array, str], ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Write a view, in order of its elements, to a dense array."""

    source: Array
    result: Array


@dataclass(frozen=True, slots=True)
class Place:
    """Write an array to a view of the same shape."""

    source: Array
    result: Array


@dataclass(frozen=True, slots=True)
class Border:
    """Write one number to every element of a view: what padding adds to an array."""

    value: float
    result: Array


@dataclass(frozen=True, slots=True)
class Linear:
    """``y = x W + b`` for rows of x; ``weight`` is [in, out], zeros of x cost nothing."""

    x: Array
    weight: Array
    bias: Array | None
    result: Array


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution in two dimensions, [B, C, H, W]; ``weight`` is [in, kh, kw, out / groups]."""

    x: Array
    weight: Array
    bias: Array | None
    result: Array
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    kernel: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Pool:
    """A maximum or mean over windows, [B, C, H, W].

    Attributes:
        x: The input.
        result: The output.
        windows: For each output row, then for each output column, its first and last index + 1.
        is_max: Whether the maximum is taken.
        divisors: For each output element of one channel what a sum is divided by.
    """

    x: Array
    result: Array
    windows: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    is_max: bool
    divisors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reduce:
    """A reduction over some axes; ``kind`` is ``sum``, ``mean``, ``max`` or ``min``."""

    kind: str
    x: Array
    axes: tuple[int, ...]
    result: Array


@dataclass(frozen=True, slots=True)
class MatMul:
    """A product of matrices, [..., n, k] and [..., k, m], broadcast over leading axes."""

    a: Array
    b: Array
    result: Array


@dataclass(frozen=True, slots=True)
class Softmax:
    """A softmax, or its logarithm, over one axis."""

    x: Array
    axis: int
    is_log: bool
    result: Array


@dataclass(frozen=True, slots=True)
class Normalize:
    """Zero mean and unit variance of each of ``groups`` equal parts of the elements, in order."""

    x: Array
    groups: int
    epsilon: float
    result: Array


@dataclass(frozen=True, slots=True)
class Lookup:
    """The numbers of this step out of a table, [T, *]."""

    table: Array
    result: Array


@dataclass(frozen=True, slots=True)
class QueueEdge:
    """What the spikes of one group add to the potentials of another.

    Attributes:
        weights: [sources, targets], or those that are not zero where ``starts`` is not empty.
        fans: For each source how many weights are not zero.
        starts: Where the weights of a source start, and the last end.
        places: Their targets.
    """

    weights: Array
    fans: tuple[int, ...]
    starts: tuple[int, ...] = ()
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Queue:
    """A time step of a network of events, for each sample; arrays are dense, None for no such.

    Attributes:
        network: The network.
        seed: Of its random numbers.
        standing: For each group [B, n]: what it gets without spikes.
        decay: For each group [n].
        membranes: For each group [B, n]: before the step, and then after it.
        emitted: For each group [B, n]: its spikes in the step before.
        lanes: For each group its parameters, each [n].
        edges: The edges.
        spikes: For each group [B, n]: where its spikes in this step are written.
    """

    network: EventNetwork
    seed: int
    standing: tuple[Array, ...]
    decay: tuple[Array | None, ...]
    membranes: tuple[Array | None, ...]
    emitted: tuple[Array | None, ...]
    lanes: tuple[tuple[Array, ...], ...]
    edges: tuple[QueueEdge, ...]
    spikes: tuple[Array | None, ...]


Operation: TypeAlias = (
    Pointwise
    | Copy
    | Place
    | Border
    | Linear
    | Convolution
    | Pool
    | Reduce
    | MatMul
    | Softmax
    | Normalize
    | Lookup
    | Queue
)


@dataclass(eq=False)
class Network:
    """One step of a network, and what it is the first time where that is something else.

    Attributes:
        inputs: What the caller gives, in order.
        outputs: What the caller gets, in order.
        states: What is kept from step to step.
        weights: The constants.
        work: What is alive within a step.
        operations: In order: a first step of its own, and then the step.
        first: How many operations the first step has of its own; 0 where it is like the others.
        locations: For each operation where the user wrote it, if that is known.
        every_step: For each output whether it is one value a step; else it is for all steps so far.
        shapes: The shapes of the inputs, then of the outputs.
        limit: After how many steps the network has no more numbers, or 0.
        is_double: Whether its numbers are doubles.
    """

    is_double: bool = False
    inputs: list[Buffer] = field(default_factory=list)
    outputs: list[Buffer] = field(default_factory=list)
    states: list[Buffer] = field(default_factory=list)
    weights: list[Buffer] = field(default_factory=list)
    work: list[Buffer] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    locations: list[Location | None] = field(default_factory=list)
    every_step: tuple[bool, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    limit: int = 0
    first: int = 0


def positions(network: Network, step: int) -> range:
    """Return which operations run in a step, counted from one."""
    count = len(network.operations)
    return range(network.first) if step == 1 and network.first else range(network.first, count)
