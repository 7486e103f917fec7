"""The meaning of a recurrence as a neuron: the words of `passes.meaning.classify_neurons`.

With ``v`` a state before a step and ``v'`` after it, a neuron that is understood has, for each
state, a *charge* ``decay * v + drive`` that becomes ``v'`` while nothing fires, and a *reset* that
says what ``v'`` is instead where it fires.  Every expression here is the user's own, over inputs
and states before the step; claims about them hold over the real numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from snncc.ir.nodes import Expr, Op


class Role(Enum):
    """What a state is for."""

    MEMBRANE = "membrane potential"
    CURRENT = "synaptic current"
    ADAPTATION = "adaptation"
    REFRACTORY = "refractory counter"
    PARTNER = "coupled state"
    PAST = "earlier input"  # that a decay depends on
    SPIKE = "spike of the step before"
    SUM = "running sum"
    LAST = "last value"
    OTHER = "state"


class Decay(Enum):
    """How the factor on a state's old value varies."""

    NONE = "none: nothing is kept"
    UNIT = "none: all is kept"
    CONSTANT = "constant"
    LANE = "a value of its own"  # of the layer, the channel or the neuron; the same at all steps
    STEP = "a value for each step"
    INPUT = "depends on the input"
    STATE = "depends on the state"


class Reset(Enum):
    """What a spike does to a state."""

    NONE = "none"
    HARD = "hard"  # to a value, whatever the potential was
    SUBTRACT = "subtract"  # an amount for each unit of the spike
    CLIP = "clip"  # to the threshold: the graded spike takes what is above (P2)
    OTHER = "other"


class Values(Enum):
    """What a spike can be."""

    BINARY = "binary"
    TERNARY = "ternary"
    INTEGER = "integer"
    SCALED = "binary times a parameter"
    GRADED = "graded"


@dataclass(frozen=True, slots=True)
class StateClass:
    """What one state means.

    Attributes:
        name: The state.
        update: What it becomes: a let, an input or a state.
        role: What it is for.
        charge: Its update while nothing fires; None where that is not one expression.
        decay: The factor on its old value in ``charge``; None where the charge is not affine in it.
        drive: The rest of ``charge``.
        varies: How ``decay`` varies; None without a decay.
        gain: The factor on the step input ``driven_by`` in ``drive``, where it is one.
        driven_by: The only step input in ``drive``, or None.
        reset: What a spike does to it.
        amount: Its value after a hard reset (where that is delayed: what ``decay * v`` becomes), or
            what a spike of one takes away.
        is_delayed: Whether it is the spike of the step before that resets.
        is_detached: Whether the gradient through the spike into the reset is cut.
        is_truncated: Whether the gradient through the state into the step before is cut.
        coupled_to: The other states that ``charge`` reads.
    """

    name: str
    update: str
    role: Role
    charge: Expr | None = None
    decay: Expr | None = None
    drive: Expr | None = None
    varies: Decay | None = None
    gain: Expr | None = None
    driven_by: str | None = None
    reset: Reset = Reset.NONE
    amount: Expr | None = None
    is_delayed: bool = False
    is_detached: bool = False
    is_truncated: bool = False
    coupled_to: tuple[str, ...] = ()

    @property
    def is_affine(self) -> bool:
        """Whether the charge is affine in the state, with a decay that depends on no state."""
        return self.decay is not None and self.varies is not Decay.STATE


@dataclass(frozen=True, slots=True)
class SpikeClass:
    """What one spike means: it fires where ``potential comparison threshold``, upwards.

    Attributes:
        name: The let.
        values: What it can be.
        levels: Its values other than 0, where they are numbers.
        potential: What is compared, or rounded.
        comparison: How, None for a spike that counts (a rounded potential).
        threshold: What it is compared with.
        compared: The let whose value the potential is, where there is one.
        membrane: The state whose potential is compared, where that is proven.
        surrogate: Name of the gradient that the user gave it, or None.
        is_adaptive: Whether the threshold depends on a state.
        is_gated: Whether something else can forbid it where the comparison holds.
        is_early: Whether it looks at the potential that the step before left, not at the charge.
    """

    name: str
    values: Values
    levels: tuple[float, ...]
    potential: Expr | None = None
    comparison: Op | None = None
    threshold: Expr | None = None
    compared: str | None = None
    membrane: str | None = None
    surrogate: str | None = None
    is_adaptive: bool = False
    is_gated: bool = False
    is_early: bool = False


@dataclass(frozen=True, slots=True)
class NeuronClass:
    """What a recurrence means as a neuron.

    Attributes:
        name: The name by which the neuron is known, or "elementwise recurrence".
        states: What each state means, in the order of the recurrence.
        spikes: What fires.
        is_affine: Whether, while nothing fires, the states together are an affine function of the
            states before the step.
        reason: Why it is not understood better; empty where it is.
    """

    name: str
    states: tuple[StateClass, ...]
    spikes: tuple[SpikeClass, ...]
    is_affine: bool
    reason: str = ""

    @property
    def membranes(self) -> tuple[StateClass, ...]:
        """The states that a threshold looks at."""
        return tuple(s for s in self.states if s.role is Role.MEMBRANE)

    @property
    def resets(self) -> tuple[StateClass, ...]:
        """The states that a spike changes, other than by adaptation."""
        kept = (Role.ADAPTATION, Role.REFRACTORY, Role.SUM, Role.SPIKE, Role.LAST)
        return tuple(s for s in self.states if s.reset is not Reset.NONE and s.role not in kept)
