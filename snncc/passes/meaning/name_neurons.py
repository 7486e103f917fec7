"""The name by which a neuron is known, from what its states and spikes mean."""

from __future__ import annotations

from snncc.ir.neuron_class import Decay, NeuronClass, Reset, Role, StateClass, Values
from snncc.ir.nodes import Expr, Op, Unary
from snncc.ir.symbolic import degree
from snncc.ir.walk import subexpressions

UNKNOWN = "elementwise recurrence"


def name_neuron(neuron: NeuronClass) -> str:
    """Return the name of a neuron; several neurons that share a kernel have theirs joined."""
    membranes = neuron.membranes
    sums = [s for s in neuron.states if s.role is Role.SUM]
    if any(s.membrane is None for s in neuron.spikes) or any(
        s.role is Role.OTHER for s in neuron.states
    ):
        return UNKNOWN
    if not membranes:
        return "running sum" if sums and not neuron.spikes else UNKNOWN
    names = [_name_of(neuron, membrane) for membrane in membranes]
    joined = " and ".join(dict.fromkeys(names))
    return f"{joined}, summed over time" if sums else joined


def _name_of(neuron: NeuronClass, membrane: StateClass) -> str:
    spikes = [s for s in neuron.spikes if s.membrane == membrane.name]
    spike = min(spikes, key=lambda s: s.values is Values.GRADED, default=None)
    roles = [s.role for s in neuron.states]
    currents = roles.count(Role.CURRENT)
    if spike is None:
        return _with_currents("leaky integrator", currents)
    if Role.PARTNER in roles:
        return "resonate-and-fire" if membrane.reset is Reset.NONE else "two-compartment LIF"
    name = _base(membrane)
    if membrane.reset is Reset.CLIP:
        name = f"graded {name} (P2 reset)"
    if spike.is_adaptive:
        name = f"adaptive {name}"
    elif Role.ADAPTATION in roles:
        how = "adaptation current" if {*membrane.coupled_to} & _adapting(neuron) else "adaptation"
        name = "Izhikevich" if name == "quadratic IF" else f"{name} with {how}"
    name = _with_currents(name, currents)
    if membrane.reset is Reset.NONE:
        name = "dynamic decay" if name == "gated LIF" else f"{name} without reset"
    if Role.REFRACTORY in roles:
        name += " with refractory period"
    return name


def _adapting(neuron: NeuronClass) -> set[str]:
    return {s.name for s in neuron.states if s.role is Role.ADAPTATION}


def _with_currents(name: str, currents: int) -> str:
    prefix = {0: "", 1: "current-based "}.get(currents, "second-order ")
    return prefix + name


def _base(membrane: StateClass) -> str:
    """Return the name by the charge alone."""
    match membrane.varies:
        case Decay.UNIT:
            return "IF"
        case Decay.CONSTANT | Decay.LANE | Decay.STEP | Decay.NONE:
            return "LIF"
        case Decay.INPUT:
            return "gated LIF"
        case Decay.STATE:
            return "nonlinear LIF"
        case None:
            return _nonlinear(membrane.charge, membrane.name)


def _nonlinear(charge: Expr | None, name: str) -> str:
    if charge is None:
        return "nonlinear IF"
    if degree(charge, frozenset({name})) == 2:
        return "quadratic IF"
    has_exp = any(isinstance(e, Unary) and e.op is Op.EXP for e in subexpressions(charge))
    return "exponential IF" if has_exp else "nonlinear IF"
