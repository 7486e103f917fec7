"""What lowering, emission and the runtime pass to one another, and the interface of a target."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Protocol

from snncc.ir.nodes import Rank

if TYPE_CHECKING:
    from snncc.codegen.kernel_ir import Kernel


class FloatType(Enum):
    """The working type: every float of a kernel has it."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def size(self) -> int:
        """Bytes of one value."""
        return 4 if self is FloatType.FLOAT32 else 8


class Job(Enum):
    """What a kernel computes."""

    INFERENCE = "inference"  # outputs and finals
    TRAINING = "training"  # the same, and the saved values where they live in memory
    BACKWARD = "backward"  # gradients


class Role(Enum):
    """What an argument is to the program."""

    INPUT = "input"  # an input of the forward or of the adjoint recurrence, read
    OUTPUT = "output"  # an output of the recurrence: [T, *lanes], written
    FINAL = "final"  # a final of the recurrence: [*lanes], written
    SAVED = "saved"  # a forward value kept in memory: written in training, read by backward


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """Which kernel of a program is wanted.

    Attributes:
        job: Forward without or with saved values, or backward.
        dtype: The working type.
        uniform: Inputs whose innermost lane dimension has stride 0 instead of 1.
        wanted: For BACKWARD the outputs and finals of the adjoint that are asked for.
    """

    job: Job
    dtype: FloatType
    uniform: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Argument:
    """One array of a kernel.

    Attributes:
        name: Unique in the kernel; the name of its field in the argument structure.
        value: The IR name of what it holds.
        role: What it is to the program.
        rank: Whether it has a time axis.
        uniform: Whether the innermost lane dimension has stride 0 instead of 1.
        packed: One bit for each lane, `BLOCK` lanes in a word, each row padded to whole words.
        written: Whether the kernel writes it.
    """

    name: str
    value: str
    role: Role
    rank: Rank
    uniform: bool = False
    packed: bool = False
    written: bool = False


# Lanes that one call of a step function computes; also the bits of one packed word.
BLOCK = 32


@dataclass(frozen=True, slots=True)
class Signature:
    """What the runtime must know to call a kernel.

    Attributes:
        dtype: The working type.
        arguments: The arrays, in order.
        tile: The most lanes of one tile; tiles are a multiple of `BLOCK` lanes.
        scratch: Values of each step and lane that the kernel keeps between its sweeps.
        checkpoint: Values of each chunk and lane that it keeps when time is cut into chunks.
    """

    dtype: FloatType
    arguments: tuple[Argument, ...]
    tile: int
    scratch: int = 0
    checkpoint: int = 0


@dataclass(frozen=True, slots=True)
class KernelSource:
    """A complete translation unit and how to build and call it.

    Attributes:
        name: The exported function.
        target: The language.
        text: Readable and stable: no versions, paths or times.
        anonymous: The text without the user's names.  Where it is equal, one binary serves.
        signature: The arguments of the exported function.
        flags: Compiler flags that the numerics of the kernel need.
    """

    name: str
    target: str
    text: str
    anonymous: str
    signature: Signature
    flags: tuple[str, ...]


class Target(Protocol):
    """A language that kernels are written in."""

    name: ClassVar[str]

    def emit(self, kernel: Kernel) -> KernelSource:
        """Write a kernel in this language."""
        ...
