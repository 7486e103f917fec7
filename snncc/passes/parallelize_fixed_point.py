"""Form: threshold feedback solved by sweeps over all steps (FPT).

Before::

    h[t] = f(v[t-1], x[t])      s[t] = fire(h[t])      v[t] = r(h[t], s[t])

After, for k = 1, 2, ... with s(0) = 0::

    h[t] = f(v[t-1], x[t])      s(k)[t] = fire(h[t])   v[t] = r(h[t], s(k-1)[t])

With its spikes given, a neuron whose charge and reset are affine in its states is an affine
recurrence: nothing waits for a comparison.  Step t depends on spikes before t only, so after k
sweeps the first k steps are final, whatever the decay: at most T + 1 sweeps find that nothing
changes any more, and that is the serial result.  In the published variant a few sweeps have a
sigmoid of growing steepness in place of the threshold; its fixed point is not the serial neuron.

Precondition: with all comparisons given, the states after a step are affine in those before it.
Numerics: until stable, bitwise (each sweep evaluates the step in the serial order); a number of
sweeps, iterated: exact for as many steps.
Source: FPT, arXiv 2506.12087, with the termination argument for thresholds in place of the
contraction argument for sigmoids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch.fx

from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
    Expr,
    FixedPoint,
    FusedTime,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    Select,
    Surrogate,
    Unary,
    Var,
)
from snncc.ir.numerics import Numerics
from snncc.ir.program import NeuronProgram, Sweep
from snncc.ir.walk import bool_lets, let_reads, substitute
from snncc.passes.base import Rejection
from snncc.passes.neurons import neuron_nodes, rewrite_neurons

ZERO, ONE = Const(0.0), Const(1.0)


@dataclass(frozen=True, slots=True)
class ParallelizeFixedPoint:
    """Set the form of every neuron with threshold feedback to `FixedPoint`, and make its sweeps."""

    form: FixedPoint
    name = "parallelize-fixed-point"

    @property
    def numerics(self) -> Numerics:
        """Exact until stable; else for as many steps as there are sweeps."""
        return Numerics.BITWISE if self.form.sweeps is None else Numerics.ITERATED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the graph with its spiking neurons in fixed-point form."""
        for node in neuron_nodes(graph):
            forward = node.target.program.forward  # type: ignore[union-attr]
            made = sweeps_of(forward, self.form)
            if isinstance(made, Rejection):
                return made
        return rewrite_neurons(graph, self._rewrite)

    def _rewrite(self, program: NeuronProgram, _node: torch.fx.Node) -> NeuronProgram:
        made = sweeps_of(program.forward, self.form)
        if isinstance(made, Rejection) or not made:
            return replace(program, forward=replace(program.forward, form=FusedTime()))
        return replace(program, forward=replace(program.forward, form=self.form), sweeps=made)


def sweeps_of(forward: Recurrence, form: FixedPoint) -> tuple[Sweep, ...] | Rejection:
    """Return the sweeps of a neuron; none where no comparison feeds back into its states."""
    cuts = find_feedback(forward)
    if not cuts:
        return ()
    names = _guess_names(forward, cuts)
    degrees = _affine(forward, names)
    if degrees is not None:
        return degrees
    if form.schedule is None:
        return (_sweep(forward, names, forward.lets),)
    soft = []
    for i, steepness in enumerate(form.schedule):
        slope = max(1.0, steepness * form.backward_scale)
        is_last = i == len(form.schedule) - 1
        lets = _softened(forward, cuts, None if is_last else steepness, slope)
        if isinstance(lets, Rejection):
            return lets
        soft.append(_sweep(forward, names, lets))
    return tuple(soft)


def find_feedback(forward: Recurrence) -> tuple[str, ...]:
    """Return the lets that compare and whose result the states depend on, in order."""
    bools = bool_lets(forward.lets)
    compares = {let.name for let in forward.lets if _compares(let, bools)}
    reads = {let.name: let_reads(replace(let, surrogate=None)) for let in forward.lets}
    reached: set[str] = set()
    pending = [state.update for state in forward.states]
    while pending:
        name = pending.pop()
        if name not in reached and name in reads:
            reached.add(name)
            # What a comparison compares feeds back through the comparison alone.
            pending += [] if name in compares else reads[name]
    return tuple(let.name for let in forward.lets if let.name in reached & compares)


def _compares(let: Let, bools: frozenset[str]) -> bool:
    """Tell whether a let is a spike: a bool, or a number with a gradient of its own."""
    return let.name in bools or let.surrogate is not None


def _guess_names(forward: Recurrence, cuts: tuple[str, ...]) -> dict[str, str]:
    taken = {i.name for i in forward.inputs} | {s.name for s in forward.states}
    taken |= {let.name for let in forward.lets}
    names = {}
    for cut in cuts:
        numbered = (f"{cut}_guess", *(f"{cut}_guess{n}" for n in range(2, len(taken) + 2)))
        names[cut] = next(n for n in numbered if n not in taken)
        taken.add(names[cut])
    return names


def _given(forward: Recurrence, names: Mapping[str, str]) -> dict[str, Expr]:
    """Return what replaces each cut let where states depend on it: a guess, or a bool of one."""
    bools = bool_lets(forward.lets)
    return {
        cut: Binary(Op.NE, Var(name), ZERO) if cut in bools else Var(name)
        for cut, name in names.items()
    }


def _sweep(forward: Recurrence, names: Mapping[str, str], lets: Sequence[Let]) -> Sweep:
    """Return the neuron whose states take the cut lets as given.

    Within a step everything is computed as it is in the neuron; what leads from a cut let to a
    state is computed a second time, from the guess.
    """
    copies, replaced = _copies(forward, names, lets)
    updates = []
    for state in forward.states:
        update = replaced.get(state.update)
        if update is not None and not isinstance(update, Var):
            copies.append(Let(f"{state.name}_given", update))
            update = Var(copies[-1].name)
        updates.append(state if update is None else replace(state, update=update.name))
    steps = tuple(i for i in forward.inputs if i.rank is Rank.STEP)
    lanes = tuple(i for i in forward.inputs if i.rank is Rank.LANE)
    guesses = tuple(Input(name, Rank.STEP) for name in names.values())
    outputs = tuple(dict.fromkeys((*forward.outputs, *names)))
    recurrence = replace(
        forward,
        name=f"{forward.name}_sweep",
        inputs=(*steps, *guesses, *lanes),
        states=tuple(updates),
        lets=(*lets, *copies),
        outputs=outputs,
        form=FusedTime(),
    )
    return Sweep(NeuronProgram(recurrence), tuple(outputs.index(name) for name in names))


def _copies(
    forward: Recurrence, names: Mapping[str, str], lets: Iterable[Let]
) -> tuple[list[Let], dict[str, Expr]]:
    """Return copies of the lets between cut lets and states, and what they stand for."""
    replaced = _given(forward, names)
    needed = _towards_states(forward)
    copies = []
    for let in lets:
        if let.name in needed and let.name not in names and let_reads(let) & set(replaced):
            copy = f"{let.name}_given"
            copies.append(replace(let, name=copy, expr=substitute(let.expr, replaced)))
            replaced[let.name] = Var(copy)
    return copies, replaced


def _towards_states(forward: Recurrence) -> set[str]:
    """Return the lets that the states after a step depend on."""
    needed = {state.update for state in forward.states}
    for let in reversed(forward.lets):
        if let.name in needed:
            needed |= let_reads(replace(let, surrogate=None))
    return needed


def _softened(
    forward: Recurrence, cuts: tuple[str, ...], steepness: float | None, slope: float
) -> tuple[Let, ...] | Rejection:
    """Return the lets with sigmoids for thresholds, or thresholds with a sigmoid's gradient."""
    lets: list[Let] = []
    for let in forward.lets:
        if let.name not in cuts:
            lets.append(let)
            continue
        distance = _distance(let.expr)
        if distance is None:
            return Rejection(
                "soft-threshold",
                f"'{let.name}' is no spike of height one that a sigmoid could stand for",
                let.where,
            )
        argument = f"{let.name}_distance"
        lets.append(Let(argument, distance, where=let.where))
        value = let.expr
        if steepness is not None:
            value = Unary(Op.SIGMOID, Binary(Op.MUL, Var(argument), Const(steepness)))
        lets.append(replace(let, expr=value, surrogate=_sigmoid_rule(let.name, argument, slope)))
    return tuple(lets)


def _distance(expr: Expr) -> Expr | None:
    """Return what a spike compares with zero; None for what is no spike of height one."""
    match expr:
        case Unary(Op.FLOAT, Binary(Op.GE | Op.GT, lhs, rhs)):
            return lhs if rhs == ZERO else Binary(Op.SUB, lhs, rhs)
        case Unary(Op.FLOAT, Binary(Op.LE | Op.LT, lhs, rhs)):
            return rhs if lhs == ZERO else Binary(Op.SUB, rhs, lhs)
        case Select(Binary() as condition, Const(1.0), Const(0.0)):
            return _distance(Unary(Op.FLOAT, condition))
        case _:
            return None


def _sigmoid_rule(name: str, argument: str, slope: float) -> Surrogate:
    cotangent = f"g_{name}_soft"
    value = Unary(Op.SIGMOID, Binary(Op.MUL, Var(argument), Const(slope)))
    derivative = Binary(Op.MUL, Binary(Op.MUL, Const(slope), value), Binary(Op.SUB, ONE, value))
    result = Binary(Op.MUL, Var(cotangent), derivative)
    return Surrogate("sigmoid", cotangent, (argument,), (), (result,))


def _affine(forward: Recurrence, names: Mapping[str, str]) -> Rejection | None:
    """Tell why the states are not affine in the states before, the cut lets given."""
    given = _given(forward, names)
    degrees: dict[str, int | None] = {i.name: 0 for i in forward.inputs}
    degrees |= {s.name: 1 for s in forward.states}
    degrees |= dict.fromkeys(names.values(), 0)
    for let in forward.lets:
        degrees[let.name] = _degree(substitute(let.expr, given), degrees)
    for state in forward.states:
        degree = 0 if state.update in given else degrees[state.update]
        if degree is None or degree > 1:
            return Rejection(
                "nonlinear-state",
                f"the next '{state.name}' is not affine in the states, even with spikes given",
                state.where or forward.where,
            )
    return None


def _degree(expr: Expr, degrees: Mapping[str, int | None]) -> int | None:
    """Return the degree of an expression in the states: 0, 1, more, or None for no polynomial."""
    parts = list(_degrees_of_operands(expr, degrees))
    match expr:
        case Const():
            return 0
        case Var(name):
            return degrees[name]
        case Detach() | Unary(Op.NEG, _):
            return parts[0]
        case Binary(Op.ADD | Op.SUB, _, _):
            return None if None in parts else max(p or 0 for p in parts)
        case Binary(Op.MUL, _, _):
            return None if None in parts else sum(p or 0 for p in parts)
        case Binary(Op.DIV, _, _):
            return parts[0] if parts[1] == 0 else None
        case Select():
            condition, *arms = parts
            return None if condition != 0 or None in arms else max(a or 0 for a in arms)
        case _:
            return 0 if all(p == 0 for p in parts) else None


def _degrees_of_operands(expr: Expr, degrees: Mapping[str, int | None]) -> Iterator[int | None]:
    match expr:
        case Unary(_, arg) | Detach(arg):
            yield _degree(arg, degrees)
        case Binary(_, lhs, rhs):
            yield _degree(lhs, degrees)
            yield _degree(rhs, degrees)
        case Select(condition, if_true, if_false):
            yield _degree(condition, degrees)
            yield _degree(if_true, degrees)
            yield _degree(if_false, degrees)
