"""Neurons that take their input in parts: what each part adds, and what follows.

A neuron qualifies if, with ``v`` its membrane, a step is::

    h = decay * v + drive(x)        decay the same at all steps, drive affine in the inputs
    s, v = fire(h)                  a threshold on h; a reset that reads nothing but h and s

so that a part of the input adds to ``h`` what it adds alone.  States that only hold, count or sum
what the neuron gives are no part of it: they stay a recurrence of their own, over its spikes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from snncc.ir.names import fresh_name, names_in
from snncc.ir.neuron_class import Decay, NeuronClass, Role, SpikeClass, StateClass, Values
from snncc.ir.nodes import Binary, Const, Expr, Input, Let, Op, Rank, Recurrence, Var
from snncc.ir.symbolic import degree
from snncc.ir.walk import let_reads, names_read, substitute
from snncc.passes.base import Rejection
from snncc.passes.meaning.classify_neurons import classify_neuron

# States beside the membrane that only hold or count what the neuron gives.
_BYSTANDERS = frozenset({Role.SPIKE, Role.LAST, Role.SUM})
_HEIGHTS = frozenset({Values.BINARY, Values.SCALED, Values.TERNARY})


@dataclass(frozen=True, slots=True)
class EventNeuron:
    """A neuron in the parts that an event network needs.

    Attributes:
        forward: The neuron as it was.
        fire: What follows the charge (`snncc.ir.events.network.EventGroup`).
        decay: The factor on the membrane; it reads lane inputs alone.
        drive: What is added to it; it reads inputs alone.
        membrane: The state.
        spike: The let that is the spike.
        update: The let that the membrane becomes.
        rest: What else the neuron gives, as a recurrence over its spikes and membranes, which are
            STEP inputs under the names ``spike`` and ``update``; None where that is nothing.
    """

    forward: Recurrence
    fire: Recurrence
    decay: Expr
    drive: Expr
    membrane: str
    spike: str
    update: str
    rest: Recurrence | None

    @property
    def initial(self) -> Const | Var:
        """What the membrane is before the first step."""
        return next(s.initial for s in self.forward.states if s.name == self.membrane)


def may_fire(forward: Recurrence) -> bool:
    """Tell whether a neuron has spikes, or anything else with a gradient of its own."""
    return bool(classify_neuron(forward).spikes) or any(let.surrogate for let in forward.lets)


def find_neuron(forward: Recurrence) -> EventNeuron | Rejection:
    """Return a spiking neuron in parts, or why it cannot take its input in parts."""
    neuron = classify_neuron(forward)
    if not forward.step_inputs:
        reason = "gets the same input at all steps; give it one for each step, as by 'x.expand'"
        return _rejected(forward, reason)
    if len(neuron.membranes) != 1 or len(neuron.spikes) != 1:
        reason = "is not one membrane with one threshold; layers without weights between are one"
        return _rejected(forward, reason)
    (spike,), (membrane,) = neuron.spikes, neuron.membranes
    spike = _unscaled(forward, spike)
    reason = _unfit(neuron, membrane, spike) or _unfit_state(membrane, spike)
    if reason:
        return _rejected(forward, reason)
    assert spike.compared is not None
    assert membrane.decay is not None
    assert membrane.drive is not None
    lanes = frozenset(forward.lane_inputs)
    steps = frozenset(forward.step_inputs)
    if not set(names_read(membrane.decay)) <= lanes:
        return _rejected(forward, "has no decay that is the same at all steps")
    if not set(names_read(membrane.drive)) <= lanes | steps:
        return _rejected(forward, "decides within its charge")
    if degree(membrane.drive, steps) not in (0, 1):
        return _rejected(forward, "does not add up its inputs: their effect is not linear")
    fire = _after_charge(forward, spike, membrane)
    if isinstance(fire, Rejection):
        return fire
    rest = _rest(forward, spike, membrane, fire)
    if isinstance(rest, Rejection):
        return rest
    update = _renamed(membrane.update, spike.compared, fire.step_inputs[0])
    made = (membrane.decay, membrane.drive, membrane.name, spike.name, update)
    return EventNeuron(forward, fire, *made, rest)


def _unscaled(forward: Recurrence, spike: SpikeClass) -> SpikeClass:
    """Return the spike itself where it was found as itself times one, as a reset reads it."""
    match next(let.expr for let in forward.lets if let.name == spike.name):
        case Binary(Op.MUL, Var(name), Const(1.0)) if any(x.name == name for x in forward.lets):
            return replace(spike, name=name)
    return spike


def _renamed(name: str, charge: str, potential: str) -> str:
    """Return the name of a value behind the charge, in what follows the charge."""
    return potential if name == charge else name


def _rejected(forward: Recurrence, reason: str) -> Rejection:
    return Rejection("not-events", f"'{forward.name}' {reason}", forward.where)


def _unfit(neuron: NeuronClass, membrane: StateClass, spike: SpikeClass) -> str:
    """Return what keeps the spike of a neuron from being an event; nothing where nothing does."""
    others = [s for s in neuron.states if s is not membrane and s.role not in _BYSTANDERS]
    if others:
        what = f"'{others[0].name.removesuffix('_prev')}', a {others[0].role.value}"
        return f"has a state beside its membrane ({what})"
    if spike.values not in _HEIGHTS or spike.is_gated or spike.is_adaptive:
        return "does not spike with one height at a threshold of its own"
    return ""


def _unfit_state(membrane: StateClass, spike: SpikeClass) -> str:
    """Return what keeps the membrane of a neuron from taking its input in parts."""
    if membrane.is_delayed or spike.is_early:
        return "resets or fires a step late: it compares what the step before left"
    if membrane.varies not in (Decay.CONSTANT, Decay.LANE, Decay.UNIT, Decay.NONE):
        return "has no decay that is the same at all steps"
    if membrane.is_truncated:
        return "cuts the gradient through its state"
    if spike.compared is None or membrane.coupled_to or spike.membrane != membrane.name:
        return "compares something else than its charge"
    return ""


def _after_charge(
    forward: Recurrence, spike: SpikeClass, membrane: StateClass
) -> Recurrence | Rejection:
    """Return what follows the charge as a recurrence of its own, without states."""
    assert spike.compared is not None
    known = {let.name: let for let in forward.lets}
    wanted, needed = [spike.name, membrane.update], set[str]()
    while wanted:
        name = wanted.pop()
        if name in known and name not in needed and name != spike.compared:
            needed.add(name)
            wanted += let_reads(known[name])
    potential = fresh_name("u", names_in(forward))
    lets = tuple(_reading(known[n], spike.compared, potential) for n in known if n in needed)
    read = {name for let in lets for name in let_reads(let)} - needed
    lanes = [i for i in forward.inputs if i.rank is Rank.LANE and i.name in read]
    if read - {potential} - {i.name for i in lanes}:
        return _rejected(forward, "reads more than its charge where it fires or resets")
    outputs = (spike.name, _renamed(membrane.update, spike.compared, potential))
    inputs = (Input(potential, Rank.STEP), *lanes)
    return Recurrence(forward.name, inputs, (), lets, outputs, where=forward.where)


def _reading(let: Let, charge: str, potential: str) -> Let:
    """Return a let that reads the potential where it read the charge."""
    values = {charge: Var(potential)}
    expr, rule = substitute(let.expr, values), let.surrogate
    if rule is None:
        return replace(let, expr=expr)
    lets = tuple(_reading(each, charge, potential) for each in rule.lets)
    results = tuple(substitute(result, values) for result in rule.results)
    args = tuple(_renamed(name, charge, potential) for name in rule.args)
    return replace(let, expr=expr, surrogate=replace(rule, lets=lets, results=results, args=args))


def _rest(
    forward: Recurrence, spike: SpikeClass, membrane: StateClass, fire: Recurrence
) -> Recurrence | Rejection | None:
    """Return what a neuron gives beside spikes and membranes, as a recurrence over those."""
    given = (spike.name, membrane.update)
    outputs = tuple(name for name in forward.outputs if name not in given)
    finals = tuple(name for name in forward.finals if name != membrane.name)
    if not outputs and not finals:
        return None
    states = tuple(s for s in forward.states if s.name != membrane.name)
    known = {let.name: let for let in forward.lets if let.name not in given}
    wanted = [*outputs, *(s.update for s in states)]
    needed, read = set[str](), set[str]()
    while wanted:
        name = wanted.pop()
        read.add(name)
        if name in known and name not in needed:
            needed.add(name)
            wanted += let_reads(known[name])
    if read & {spike.compared, membrane.name} - {*given}:
        return _rejected(
            forward, "shows its potential before the reset, of which one step has several"
        )
    starts = {s.initial.name for s in states if isinstance(s.initial, Var)}
    inputs = [Input(name, Rank.STEP) for name in dict.fromkeys(given) if name in read]
    inputs += [i for i in forward.inputs if i.name in read | starts]
    lets = tuple(let for let in forward.lets if let.name in needed)
    return replace(
        forward, inputs=tuple(inputs), states=states, lets=lets, outputs=outputs, finals=finals
    )
