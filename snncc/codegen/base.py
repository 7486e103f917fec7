"""Types that lowering, emission and the runtime pass to one another."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from snncc.ir.nodes import Rank


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
    CHECKPOINT = "checkpoint"  # a state at the start of each chunk of time but the first
    GUESS = "guess"  # a spike of a chunk, kept on chip between sweeps: no array of the caller
    COUNT = "count"  # how many sweeps a lane took: [*lanes], written


class Access(Enum):
    """How a GPU kernel, which counts lanes through, finds the element of a lane in an array."""

    FLAT = "flat"  # the lanes lie in the order in which they are counted, without gaps
    UNIFORM = "uniform"  # one element for all lanes
    ROWS = "rows"  # groups of lanes have strides; the innermost lies without gaps
    REPEATED = "repeated"  # groups of lanes have strides; the innermost has one element
    STRIDED = "strided"  # every group of lanes has a stride


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """Which kernel of a program is wanted.

    Attributes:
        job: Forward without or with saved values, or backward.
        dtype: The working type.
        uniform: Inputs whose innermost lane dimension has stride 0 instead of 1.
        wanted: For BACKWARD the outputs and finals of the adjoint that are asked for.
        gpu: What a GPU kernel is specialised on besides.
    """

    job: Job
    dtype: FloatType
    uniform: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()
    gpu: GpuSpec | None = None


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """What the text of a GPU kernel depends on besides its job.

    Attributes:
        groups: Groups of lane dimensions that some array tells apart; lanes are counted through
            all of them.
        inputs: The access of each input that is not FLAT, by IR name.
        outputs: The access of the outputs.
        folded: Finals that the kernel sums over lanes of a program.
        tiled: Whether the lanes of a program are pieces of several rows, rather than one piece.
        checkpoints: Whether states are kept at the start of each chunk of time, rather than values
            of each step.
        short: Whether a sequence is shorter than a chunk, of those that are recomputed: then Triton
            has a text without the loop over whole chunks.
    """

    groups: int = 1
    inputs: tuple[tuple[str, Access], ...] = ()
    outputs: Access = Access.FLAT
    folded: frozenset[str] = frozenset()
    tiled: bool = False
    checkpoints: bool = False
    short: bool = False


@dataclass(frozen=True, slots=True)
class Argument:
    """One array of a kernel.

    Attributes:
        name: Unique in the kernel; the name of its field in the argument structure.
        value: The IR name of what it holds.
        role: What it is to the program.
        rank: Whether it has a time axis.
        uniform: Whether the innermost lane dimension has stride 0 instead of 1.
        packed: One bit for each step and lane. In C a word holds `BLOCK` lanes, each row padded to
            whole words; on a GPU it holds `WORD_STEPS` steps of one lane.
        written: Whether the kernel writes it.
        access: How a GPU kernel finds the element of a lane.
        folded: Whether it holds sums over lanes of a program.
    """

    name: str
    value: str
    role: Role
    rank: Rank
    uniform: bool = False
    packed: bool = False
    written: bool = False
    access: Access = Access.FLAT
    folded: bool = False


# Lanes that one call of a step function computes; also the bits of one packed word.
BLOCK = 32
# Steps whose bits of one lane share a word on a GPU, where packing along lanes would take shuffles.
WORD_STEPS = 8


class SlotKind(Enum):
    """What a parameter of a GPU kernel is."""

    ARRAY = "array"  # the address of an argument
    STEPS = "steps"  # T
    LANES = "lanes"  # how many lanes there are
    ACROSS = "across"  # how many programs share a row of lanes, each with a piece of it
    EXTENT = "extent"  # the size of a group of lanes
    TIME = "time"  # the stride of an argument along time
    STRIDE = "stride"  # the stride of an argument along a group of lanes
    BLOCK = "block"  # constant: lanes of one program
    WIDTH = "width"  # constant: lanes of one program that lie in one row
    GROUP = "group"  # constant: steps whose loads are issued together
    CHUNK = "chunk"  # constant: steps between two checkpoints, or steps recomputed at a time
    FOLD = "fold"  # constant: neighbouring lanes that an argument holds the sum of


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter of a GPU kernel, in order.

    Attributes:
        name: Its name in the text.
        kind: What it is.
        argument: The argument it belongs to, where there is one.
        group: For EXTENT and STRIDE the group of lanes, outermost first.
    """

    name: str
    kind: SlotKind
    argument: Argument | None = None
    group: int = 0


@dataclass(frozen=True, slots=True)
class Signature:
    """What the runtime must know to call a kernel.

    Attributes:
        dtype: The working type.
        arguments: The arrays, in order.
        tile: The most lanes of one tile; tiles are a multiple of `BLOCK` lanes.
        scratch: Values of each step and lane that the kernel keeps between its sweeps.
        checkpoint: Values of each chunk and lane that it keeps when time is cut into chunks.
        bits: Bools of each step and lane that it keeps between its sweeps.
        solves: Whether it repeats sweeps over a chunk of time until nothing changes.
        slots: The parameters of a GPU kernel.
    """

    dtype: FloatType
    arguments: tuple[Argument, ...]
    tile: int = 0
    scratch: int = 0
    checkpoint: int = 0
    bits: int = 0
    solves: bool = False
    slots: tuple[Slot, ...] = ()


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
