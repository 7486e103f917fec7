"""Sentences about what a neuron means, with the names of its equations."""

from __future__ import annotations

from collections.abc import Iterator

from snncc.ir.neuron_class import Decay, NeuronClass, Reset, Role, SpikeClass, StateClass, Values
from snncc.ir.nodes import Const, Expr, Op
from snncc.ir.walk import names_read
from snncc.passes.meaning.affine import number
from snncc.reporting.equations import Equations
from snncc.reporting.report import Layer, Operand

COMPARED = {Op.GE: ">=", Op.GT: ">", Op.LE: "<=", Op.LT: "<", Op.EQ: "==", Op.NE: "!="}
VALUES = {
    Values.BINARY: "0 or 1",
    Values.TERNARY: "-1, 0 or 1",
    Values.INTEGER: "a whole number",
    Values.SCALED: "0 or a parameter",
    Values.GRADED: "0 or what is above the threshold",
}


def describe(layer: Layer) -> tuple[tuple[str, str], ...]:
    """Return what a neuron means as pairs of what is told and the sentence; none for others."""
    meaning, step = layer.meaning, layer.step
    if meaning is None or step is None:
        return ()
    return tuple(_Speaker(layer, meaning, step).sentences())


class _Speaker:
    def __init__(self, layer: Layer, meaning: NeuronClass, step: Equations) -> None:
        self.operands = {operand.name: operand for operand in layer.operands}
        self.meaning = meaning
        self.step = step

    def sentences(self) -> Iterator[tuple[str, str]]:
        order = list(Role)
        for state in sorted(self.meaning.states, key=lambda s: order.index(s.role)):
            yield state.role.value, "; ".join(self.state(state))
        for spike in self.meaning.spikes:
            yield "spike", "; ".join(self.spike(spike))
        if self.meaning.reason:
            yield "not understood", self.meaning.reason

    def state(self, state: StateClass) -> Iterator[str]:
        """Yield what is told of a state."""
        name = self.step.symbols[state.name].base
        if state.role in (Role.LAST, Role.PAST, Role.SPIKE):
            yield name
            return
        if state.role is Role.REFRACTORY:
            yield f"{name}: counts down, and forbids spikes meanwhile"
            return
        yield f"{name}: {self.decay(state)}"
        if state.driven_by is not None and state.gain is not None:
            gain = self.spell(state.gain)
            yield f"driven by {self.step.shown(state.driven_by)}" + (
                "" if gain == "1" else f" times {gain}"
            )
        if state.reset is not Reset.NONE:
            yield self.reset(state)
        if state.is_truncated:
            yield "no gradient into the step before"

    def decay(self, state: StateClass) -> str:
        if state.decay is None:
            return "not affine in itself" if state.charge is not None else "has several cases"
        spelled = self.spell(state.decay)
        match state.varies:
            case Decay.UNIT:
                return "no decay"
            case Decay.NONE:
                return "nothing is kept of the step before"
            case Decay.LANE:
                return f"decay {spelled}, {self.origin(state.decay)}"
            case _:
                varies = state.varies or Decay.CONSTANT
                return f"decay {spelled}, {varies.value}"

    def origin(self, expr: Expr) -> str:
        """Return how the values of an expression of lane inputs differ, and if they are learned."""
        operands = [self.operands[name] for name in names_read(expr) if name in self.operands]
        learned = "learned, " if any(operand.is_learned for operand in operands) else ""
        return learned + _widest(operands)

    def reset(self, state: StateClass) -> str:
        amount = "" if state.amount is None else self.spell(state.amount)
        value = None if state.amount is None else number(state.amount)
        match state.reset:
            case Reset.HARD:
                text = f"a spike sets it to {amount}"
            case Reset.SUBTRACT if value is not None and value < 0:
                text = f"a spike adds {self.spell(Const(-value))}"
            case Reset.SUBTRACT:
                text = f"a spike takes {amount} away"
            case Reset.CLIP:
                text = f"a spike leaves {amount}, its threshold"
            case _:
                text = "a spike changes it"
        text += " one step later" if state.is_delayed else ""
        return text + (", no gradient through that" if state.is_detached else "")

    def spike(self, spike: SpikeClass) -> Iterator[str]:
        """Yield what is told of a spike."""
        values = VALUES[spike.values]
        if spike.values in (Values.SCALED, Values.INTEGER, Values.GRADED) and spike.levels:
            values = ", ".join(("0", *(self.spell(Const(v)) for v in spike.levels)))
        yield f"{self.step.symbols[spike.name]} is {values}"
        if spike.comparison is not None and spike.potential and spike.threshold:
            potential = spike.compared
            left = self.spell(spike.potential) if potential is None else self.named(potential)
            condition = f"{left} {COMPARED[spike.comparison]} {self.spell(spike.threshold)}"
            adaptive = ", which adapts" if spike.is_adaptive else ""
            only = "only where" if spike.is_gated else "where"
            early = ", before the input counts" if spike.is_early else ""
            yield f"fires {only} {condition}{adaptive}{early}"
        elif spike.potential is not None:
            named = None if spike.compared is None else self.named(spike.compared)
            yield f"{named or self.spell(spike.potential)}, rounded"
        yield "no surrogate" if spike.surrogate is None else f"gradient {spike.surrogate}"

    def named(self, let: str) -> str:
        return self.step.shown(let)

    def spell(self, expr: Expr) -> str:
        value = number(expr)
        return self.step.spell(expr if value is None else Const(value))


def _widest(operands: list[Operand]) -> str:
    found = [operand.varies for operand in operands if operand.varies]
    return max(found, key=len, default="one value for all steps")
