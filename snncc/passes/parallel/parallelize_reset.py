"""Form: chunks of time at once, because a hard reset forgets what came before it.

A step *restarts* a neuron if the states after it, or after a few steps more, do not depend on the
states before it.  A spike with hard reset does::

    h[t] = f(v[t-1], x[t])      s[t] = fire(h[t])      v[t] = v_reset where s[t], else h[t]

Two runs that restart at the same step are one from there on.  So chunk c of time starts from a
guess, the states that a restart W steps before it leads to, and is run again only if these are not
bit for bit those in which chunk c - 1 ends::

    entry(c) = run(restart at c L - W, until c L)      end(c) = run(entry(c), until (c + 1) L)
    while entry(c + 1) != end(c) for some c:    entry(c + 1) = end(c), run these chunks again

Given the states before each step the adjoint is affine, so backward runs by chunks as well, as in a
scan, from states that the chunks of the forward sweep return.

Precondition: for some outcome of its comparisons, no state after the step reads one before it.
Numerics: bitwise.  Each step is evaluated in its serial order, from states that are checked.
Gradients are those of autograd up to the order of sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch.fx

from snncc.ir.nodes import (
    Binary,
    Const,
    Expr,
    FusedTime,
    Input,
    Let,
    Op,
    ParallelReset,
    Rank,
    Recurrence,
    Select,
    State,
    Unary,
    Var,
)
from snncc.ir.numerics import Numerics
from snncc.ir.program import NeuronProgram, Restart
from snncc.ir.walk import bool_lets, names_read, substitute
from snncc.passes.base import Rejection
from snncc.passes.meaning.affine import simplified
from snncc.passes.meaning.find_feedback import find_feedback
from snncc.passes.neurons import neuron_nodes, rewrite_neurons
from snncc.passes.parallel.parallelize_scan import FLOATS, scan_programs

ZERO, ONE = Const(0.0), Const(1.0)
# Comparisons whose outcomes are tried, each with each.
_MOST_COMPARISONS = 6


@dataclass(frozen=True, slots=True)
class ParallelizeReset:
    """Set the form of every neuron with a hard reset to `ParallelReset`, and make its programs."""

    name = "parallelize-reset"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the graph with its spiking neurons in parallel-reset form."""
        for node in neuron_nodes(graph):
            made = restart_of(node.target.program.forward)  # type: ignore[union-attr]
            if isinstance(made, Rejection):
                return made
        return rewrite_neurons(graph, _rewrite)


@dataclass(frozen=True, slots=True)
class ScanResetAdjoints:
    """Let the adjoints of neurons in parallel-reset form run by chunks of time as well."""

    name = "scan-reset-adjoints"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with the programs of these scans."""
        return rewrite_neurons(graph, _with_backward)


def _with_backward(program: NeuronProgram, node: torch.fx.Node) -> NeuronProgram:
    is_single = node.meta.get("dtype") in FLOATS and not program.narrow
    has_both = program.restart is not None and program.adjoint is not None
    return with_backward_scan(program) if is_single and has_both else program


def _rewrite(program: NeuronProgram, _node: torch.fx.Node) -> NeuronProgram:
    made = restart_of(program.forward)
    if not isinstance(made, Restart):
        return replace(program, forward=replace(program.forward, form=FusedTime()))
    return replace(program, forward=replace(program.forward, form=ParallelReset()), restart=made)


def restart_of(forward: Recurrence) -> Restart | Rejection | None:
    """Return the programs of a neuron; None where no comparison feeds back into its states."""
    if not find_feedback(forward):
        return None
    outcome = find_restart(forward)
    if isinstance(outcome, Rejection):
        return outcome
    return Restart(NeuronProgram(_guess(forward, outcome)), NeuronProgram(_chunk(forward)))


def with_backward_scan(program: NeuronProgram) -> NeuronProgram:
    """Return a neuron in this form whose adjoint, where that is affine, runs by chunks as well."""
    assert program.restart is not None
    made = scan_programs(program, forward=False)
    if isinstance(made, Rejection) or made.backward is None or made.keeping is None:
        return program
    restart = replace(program.restart, keeping=NeuronProgram(_chunk(made.keeping)))
    forward = replace(program.forward, form=ParallelReset(backward=True))
    return replace(program, forward=forward, scan=made, restart=restart)


def find_restart(forward: Recurrence) -> dict[str, Const] | Rejection:
    """Return values of the lets that compare, after which nothing of the states before is left."""
    cuts, bools = find_feedback(forward), bool_lets(forward.lets)
    if len(cuts) > _MOST_COMPARISONS:
        return Rejection("comparisons", f"{len(cuts)} comparisons decide its states", forward.where)
    surviving: list[set[str]] = []
    for values in itertools.product((True, False), repeat=len(cuts)):
        outcome = {
            cut: Const(value if cut in bools else float(value))
            for cut, value in zip(cuts, values, strict=True)
        }
        surviving.append(_surviving(forward, outcome))
        if not surviving[-1]:
            return outcome
    fewest = min(surviving, key=len)
    state = next(state for state in forward.states if state.name in fewest)
    return Rejection(
        "memory",
        f"'{state.name.removesuffix('_prev')}' depends on its past also after a spike",
        state.where or forward.where,
    )


def _surviving(forward: Recurrence, outcome: Mapping[str, Expr]) -> set[str]:
    """Return the states that still depend on those before a step with a given outcome.

    Steps that follow count too, as long as they forget: a reset may come a step late.
    """
    past = {state.name for state in forward.states}
    known: dict[str, Expr] = {}
    while past:
        values, touched = _follow(forward, known, past, outcome)
        after = {s.name for s in forward.states if s.update in touched}
        if not after < past:
            break
        known = {s.name: v for s in forward.states if isinstance(v := values.get(s.update), Const)}
        past, outcome = after, {}
    return past


def _follow(
    forward: Recurrence,
    known: Mapping[str, Expr],
    past: set[str],
    outcome: Mapping[str, Expr],
) -> tuple[dict[str, Expr], set[str]]:
    """Return the names of a step that are known or other names, and those that read the past."""
    values, touched = dict(known), set(past)
    for let in forward.lets:
        expr = outcome.get(let.name) or simplified(let.expr, values)
        if isinstance(expr, Const | Var):
            values[let.name] = expr
        if touched & {*names_read(expr)}:
            touched.add(let.name)
    return values, touched


def _chunk(forward: Recurrence) -> Recurrence:
    """Return the neuron from any states, which it also returns."""
    taken = _names(forward)
    entries = {state.name: _fresh(f"{state.name}_entry", taken) for state in forward.states}
    return replace(
        forward,
        name=f"{forward.name}_chunk",
        inputs=(*forward.inputs, *(Input(name, Rank.LANE) for name in entries.values())),
        states=tuple(replace(s, initial=Var(entries[s.name])) for s in forward.states),
        finals=tuple(state.name for state in forward.states),
        form=FusedTime(),
    )


def _guess(forward: Recurrence, outcome: Mapping[str, Const]) -> Recurrence:
    """Return the neuron whose comparisons have a given outcome at the first step."""
    taken = _names(forward)
    first, later = _fresh("first", taken), _fresh("first_after", taken)
    lets: list[Let] = []
    forced: dict[str, Expr] = {}
    for let in forward.lets:
        lets.append(Let(let.name, substitute(let.expr, forced), where=let.where))
        if let.name in outcome:
            name = _fresh(f"{let.name}_restarted", taken)
            lets.append(Let(name, _forced(let.name, outcome[let.name], first)))
            forced[let.name] = Var(name)
    updates = {name: var.name for name, var in forced.items() if isinstance(var, Var)}
    states = (replace(s, update=updates.get(s.update, s.update)) for s in forward.states)
    return replace(
        forward,
        name=f"{forward.name}_guess",
        states=(*states, State(first, ONE, later)),
        lets=(*lets, Let(later, ZERO)),
        outputs=(),
        finals=tuple(state.name for state in forward.states),
        form=FusedTime(),
    )


def _forced(name: str, value: Const, first: str) -> Expr:
    """Return a value at the first step, and what is computed at the others."""
    is_first = Binary(Op.NE, Var(first), ZERO)
    match value.value:
        case True:
            return Binary(Op.OR, is_first, Var(name))
        case False:
            return Binary(Op.AND, Unary(Op.NOT, is_first), Var(name))
        case _:
            return Select(is_first, value, Var(name))


def _names(forward: Recurrence) -> set[str]:
    names = {i.name for i in forward.inputs} | {s.name for s in forward.states}
    return names | {let.name for let in forward.lets}


def _fresh(wish: str, taken: set[str]) -> str:
    """Return the wish, or the wish with a number, and take it."""
    numbered = (wish, *(f"{wish}{n}" for n in range(2, len(taken) + 3)))
    name = next(n for n in numbered if n not in taken)
    taken.add(name)
    return name
