"""The update of one state as an expression of this step's inputs, states and decisions.

A spike may act on a state in the step in which it is fired, or one step later: then the step reads
it from a state that holds it, or decides anew what the step before decided (`History`).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from snncc.ir.neuron_class import Values
from snncc.ir.nodes import Const, Detach, Expr, Op, State, Unary, Var
from snncc.ir.symbolic import constant, equal
from snncc.ir.walk import children, names_read
from snncc.passes.meaning.affine import ZERO, join, simplified
from snncc.passes.meaning.find_spikes import Spike, firing
from snncc.passes.meaning.read_step import OPPOSITE, Outcome, Step

TRUE = Const(True)


@dataclass(frozen=True)
class History:
    """How a step knows of the spikes of the step before.

    Attributes:
        memories: For each state that holds a spike, that spike.
        twins: For each decision that repeats that of a spike one step later, the outcome that
            means that it fired.
    """

    memories: Mapping[str, Spike]
    twins: Mapping[str, Const]


def find_history(step: Step, spikes: tuple[Spike, ...]) -> History:
    """Return how a step knows of the spikes of the step before."""
    updates = {s.name: step.value(s.update) for s in step.recurrence.states}
    memories = {
        name: spike for name, value in updates.items() for spike in spikes
        if equal(value, spike.value)
    }  # fmt: skip
    twins: dict[str, Const] = {}
    for name, decision in step.decisions.items():
        if {*names_read(decision)} & {*step.recurrence.step_inputs}:
            continue
        gap = simplified(join(Op.SUB, decision.lhs, decision.rhs), updates)
        for fires in (firing(step, spike) for spike in spikes):
            if fires is None or not equal(gap, join(Op.SUB, fires.lhs, fires.rhs)):
                continue
            if decision.op in (fires.op, OPPOSITE[fires.op]):
                twins[name] = Const(decision.op is fires.op)
    return History(memories, twins)


@dataclass(frozen=True)
class Update:
    """The update of one state.

    Attributes:
        step: The step that it is part of.
        state: The state.
        expr: Its value after the step, without the decisions on which it does not depend.
        spikes: The spikes of the step.
        history: See there.
        reset_by: The decisions in ``expr`` through which a spike acts.
    """

    step: Step
    state: State
    expr: Expr
    spikes: tuple[Spike, ...]
    history: History
    reset_by: frozenset[str]

    @property
    def names(self) -> frozenset[str]:
        """Every state of the step."""
        return frozenset(s.name for s in self.step.recurrence.states)

    @property
    def inputs(self) -> frozenset[str]:
        """Every input that has a value for each step."""
        return frozenset(self.step.recurrence.step_inputs)

    @property
    def involved(self) -> tuple[Spike, ...]:
        """The spikes of this step that act on the state."""
        return tuple(s for s in self.spikes if s.decisions & self.reset_by)

    def outcomes(self, *, fired: bool) -> list[Outcome]:
        """Return the outcomes of all decisions in which a spike acts, or in which none does."""
        decisions = self.step.decisions_in(self.expr)
        decisions = decisions.union(*(s.decisions for s in self.involved))
        acting = self.reset_by.union(*(s.decisions for s in self.involved))
        wholes = {d: ZERO for d in acting if d.startswith("#")}
        every = list(self.step.outcomes(decisions))
        counted: list[Outcome] = [{**outcome, **wholes} for outcome in every]
        # A spike that counts can be 0 by another decision too, whatever the count.
        counted += every if wholes and not fired else []
        return [outcome for outcome in counted if self._acts(outcome) is fired]

    def _acts(self, outcome: Outcome) -> bool:
        now = (constant(simplified(s.value, outcome)) != 0.0 for s in self.involved)
        late = (
            outcome[d] == self.history.twins.get(d, TRUE)
            for d in self.reset_by
            if d.startswith("?") and not self.involved
        )
        return any(now) or any(late)

    @property
    def is_detached(self) -> bool:
        """Whether no gradient goes through the spike into the state."""
        step, raw = self.step, self.step.values.get(self.state.update, Var(self.state.update))
        lets = {n for n, e in step.spikes.items() if step.decisions_in(e) & self.reset_by}
        if lets:
            return not _is_attached(raw, lets)
        if any("!" in d for d in self.reset_by):
            held = {s.name: step.values.get(s.update) for s in step.recurrence.states}
            kept = {n for n in self.history.memories if not isinstance(held[n], Detach)}
            return not _is_attached(raw, kept)
        # A comparison has no gradient; what is added to it or scales it has.
        differentiable = self.names | self.inputs
        values = (step.values.get(s.name, ZERO) for s in self.involved)
        return not any(_is_attached(value, differentiable) for value in values)

    @property
    def is_truncated(self) -> bool:
        """Whether no gradient goes through the state into the step before."""
        lets, name = self.step.recurrence.lets, self.state.name
        update = self.step.values.get(self.state.update)
        is_read = any(name in names_read(let.expr) for let in lets)
        is_attached = any(_is_attached(let.expr, {name}) for let in lets)
        return isinstance(update, Detach) or (is_read and not is_attached)


def read_update(step: Step, state: State, spikes: tuple[Spike, ...], history: History) -> Update:
    """Return the update of a state, and the decisions through which spikes act on it."""
    expr = step.without_idle(step.value(state.update))
    now = step.decisions_in(expr) & {d for s in spikes for d in s.decisions}
    reset_by = now or step.decisions_in(expr) & {*history.twins}
    if not reset_by:
        # The states that hold a spike count as states like any other where another spike acts.
        marks = {name: _mark(name, spike) for name, spike in history.memories.items()}
        expr = step.without_idle(simplified(expr, marks))
        reset_by = frozenset(d for d in step.decisions_in(expr) if "!" in d)
    return Update(step, state, expr, spikes, history, reset_by)


def _mark(name: str, spike: Spike) -> Expr:
    """Return a state that holds a spike as a decision, or as the number that it is."""
    return Unary(Op.FLOAT, Var(f"?!{name}")) if spike.kind is Values.BINARY else Var(f"#!{name}")


def _is_attached(expr: Expr, names: Set[str]) -> bool:
    match expr:
        case Var(name):
            return name in names
        case Detach():
            return False
        case _:
            return any(_is_attached(child, names) for child in children(expr))
