"""The node types of the neuron-level IR: one scalar step of a recurrence, repeated over time.

A `Recurrence` says *what* one neuron computes in one time step; its ``form`` says *how* the time
axis is executed.  Every node is a frozen dataclass that is compared by structure.  All values are
scalars of one lane (one neuron of one sample) and have one of two types: the working float type
of the recurrence, or bool.  Operations are evaluated exactly in the order in which they are
written, each rounded once: the IR never reassociates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from snncc.errors import Location


class Op(Enum):
    """Scalar operations, named as torch names them."""

    # float -> float
    NEG = "neg"
    ABS = "abs"
    SIGN = "sign"
    EXP = "exp"
    EXPM1 = "expm1"  # exp(x) - 1, exact for small x
    LOG = "log"
    LOG1P = "log1p"  # log(1 + x), exact for small x
    SQRT = "sqrt"
    SIGMOID = "sigmoid"
    LOGSIGMOID = "logsigmoid"  # log(sigmoid(x)), exact for large x
    TANH = "tanh"
    SIN = "sin"
    COS = "cos"
    FLOOR = "floor"
    CEIL = "ceil"
    ROUND = "round"  # half to even
    FLOAT16 = "float16"  # rounded to a half type; the value stays one of the working type
    BFLOAT16 = "bfloat16"
    # bool -> bool, bool -> float
    NOT = "not"
    FLOAT = "float"
    # (float, float) -> float
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"
    QUOTIENT = "quotient"  # within two units in the last place: of gradients, in GPU kernels
    POW = "pow"
    MIN = "min"  # propagates NaN, as torch.minimum
    MAX = "max"  # propagates NaN, as torch.maximum
    # (float, float) -> bool
    LT = "lt"
    LE = "le"
    GT = "gt"
    GE = "ge"
    EQ = "eq"
    NE = "ne"
    # (bool, bool) -> bool
    AND = "and"
    OR = "or"
    XOR = "xor"


COMPARISONS = frozenset({Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE})
LOGICAL = frozenset({Op.NOT, Op.AND, Op.OR, Op.XOR})
HALF_ROUNDINGS = frozenset({Op.FLOAT16, Op.BFLOAT16})
# Operations whose result differs by units in the last place between maths libraries.
# SQRT is among them: IEEE 754 defines its rounding, but torch's vector code on AVX-512 differs from
# it by one unit in a seventh of all float32 arguments.
TRANSCENDENTAL = frozenset(
    {
        Op.EXP, Op.EXPM1, Op.LOG, Op.LOG1P, Op.SQRT, Op.SIGMOID, Op.LOGSIGMOID, Op.TANH, Op.SIN,
        Op.COS, Op.POW,
    }
)  # fmt: skip
# Powers that are products and quotients, in torch as in the kernels.
EXACT_POWERS = frozenset({-2.0, -1.0, 0.0, 1.0, 2.0, 3.0})


@dataclass(frozen=True, slots=True)
class Const:
    """A literal: a float (rounded to the working type) or a bool."""

    value: float | bool


@dataclass(frozen=True, slots=True)
class Var:
    """The value of an input, a state before this step, or an earlier let."""

    name: str


@dataclass(frozen=True, slots=True)
class Unary:
    """``op(arg)``."""

    op: Op
    arg: Expr


@dataclass(frozen=True, slots=True)
class Binary:
    """``op(lhs, rhs)``, evaluated exactly in this order."""

    op: Op
    lhs: Expr
    rhs: Expr


@dataclass(frozen=True, slots=True)
class Select:
    """``if_true`` where ``condition`` (a bool) holds, ``if_false`` elsewhere."""

    condition: Expr
    if_true: Expr
    if_false: Expr


@dataclass(frozen=True, slots=True)
class Detach:
    """The value of ``arg``, through which no gradient flows."""

    arg: Expr


Expr: TypeAlias = Const | Var | Unary | Binary | Select | Detach


@dataclass(frozen=True, slots=True)
class Let:
    """``name = expr``: a named intermediate of one step.

    With a ``surrogate``, the value is ``expr`` and the gradient is the surrogate's: differentiation
    does not look into ``expr``.
    """

    name: str
    expr: Expr
    surrogate: Surrogate | None = None
    where: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The user's own backward rule of one let.

    The cotangent of the let is bound to the name ``cotangent``; ``lets`` are evaluated in order
    (they may read ``cotangent``, and anything that the let itself may read, and the let);
    ``results[i]`` is then the contribution to the cotangent of the variable ``args[i]``.
    """

    name: str
    cotangent: str
    args: tuple[str, ...]
    lets: tuple[Let, ...]
    results: tuple[Expr, ...]


class Rank(Enum):
    """How often an input has a new value."""

    STEP = "step"  # a value for each time step and lane
    LANE = "lane"  # one value for each lane, the same at all steps


@dataclass(frozen=True, slots=True)
class Input:
    """A float that the step reads: a per-step sequence, or a parameter of the lane."""

    name: str
    rank: Rank


@dataclass(frozen=True, slots=True)
class State:
    """A value carried between steps.

    ``Var(name)`` reads the value *before* the step; ``update`` names the let, input or state whose
    value becomes the state after the step.  ``initial`` is a constant or reads a LANE input.
    """

    name: str
    initial: Const | Var
    update: str
    where: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Sequential:
    """One step after another, as the reference interpreter does."""


@dataclass(frozen=True, slots=True)
class FusedTime:
    """One kernel runs all steps; the state of a tile of lanes stays in registers or L1."""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """The spikes of all steps are solved for by sweeps, each of which takes them as given.

    Attributes:
        sweeps: How many sweeps, the first without any spike included; None until none changes.
        schedule: For each sweep the steepness of the sigmoid that stands for the threshold; None
            keeps the threshold.
        backward_scale: Steepness of a sigmoid's derivative over that of the sigmoid; at least one.
        draws: Whether the last sweep draws its spikes from its sigmoid.
    """

    sweeps: int | None = None
    schedule: tuple[float, ...] | None = None
    backward_scale: float = 1.0 / 3.0
    draws: bool = False


@dataclass(frozen=True, slots=True)
class Scan:
    """Time is cut into chunks that run side by side, each an affine map of what it starts from.

    Attributes:
        forward: Whether the neuron runs so; its adjoint runs so wherever that is affine.
    """

    forward: bool = True


@dataclass(frozen=True, slots=True)
class ParallelReset:
    """Chunks of time run at once, each from the states that a restart shortly before it leaves.

    A step restarts a neuron if the states after it do not depend on those before it.

    Attributes:
        backward: Whether its adjoint runs by chunks too, each an affine map of what it starts from.
    """

    backward: bool = False


Form: TypeAlias = Sequential | FusedTime | FixedPoint | Scan | ParallelReset


@dataclass(frozen=True, slots=True)
class Recurrence:
    """One step of a per-neuron recurrence, repeated over the time axis.

    Attributes:
        name: A C identifier.
        inputs: What the step reads.
        states: What is carried; only float states exist.
        lets: The step, in order of evaluation (single assignment).
        outputs: Names of lets, inputs or states written at every step, as [T, *lanes].
        finals: Names of states whose value after the last step is returned, as [*lanes].
        reverse: Whether steps run from T-1 down to 0 (an adjoint).
        form: How the time axis is executed.
    """

    name: str
    inputs: tuple[Input, ...]
    states: tuple[State, ...]
    lets: tuple[Let, ...]
    outputs: tuple[str, ...]
    finals: tuple[str, ...] = ()
    reverse: bool = False
    form: Form = Sequential()
    where: Location | None = field(default=None, compare=False)

    @property
    def step_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that have a value for each step, in order."""
        return tuple(i.name for i in self.inputs if i.rank is Rank.STEP)

    @property
    def lane_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that have one value for each lane, in order."""
        return tuple(i.name for i in self.inputs if i.rank is Rank.LANE)
