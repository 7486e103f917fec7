"""A number of sweeps as one recurrence: each reads the spikes that the one before it found.

Before::

    h[t] = f(v[t-1], x[t])        s[t] = fire(h[t])        v[t] = r(h[t], s[t])

After, for k = 1 to K with s(0) = 0::

    h(k)[t] = f(v(k)[t-1], x[t])  s(k)[t] = fire(h(k)[t])  v(k)[t] = r(h(k)[t], s(k-1)[t])

Sweep k needs at step t what sweep k - 1 found at step t and nothing later, so all sweeps advance
through time together: K neurons in a chain, in one kernel.  The spikes between two sweeps never
leave a register, the input is read once, and the adjoint of the chain is the published gradient.

Numerics: iterated, the first K steps are final; substituted where sigmoids stand for thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from snncc.ir.names import fresh_name, names_in
from snncc.ir.nodes import (
    Const,
    Expr,
    FixedPoint,
    Input,
    Let,
    Rank,
    Recurrence,
    State,
    Surrogate,
    Var,
)
from snncc.ir.walk import bool_lets, let_reads, substitute
from snncc.passes.base import Rejection
from snncc.passes.parallel.soften_thresholds import Sigmoid, soften_thresholds
from snncc.passes.simplify_step import simplify_step


def unroll_sweeps(
    forward: Recurrence, cuts: Sequence[str], form: FixedPoint
) -> Recurrence | Rejection:
    """Return the chain of sweeps that a form asks for.

    Args:
        forward: The neuron.
        cuts: Its lets that feed spikes back into its states.
        form: How many sweeps, and with which thresholds.

    Where spikes are drawn, its last STEP inputs are the random numbers to draw them with.
    """
    assert form.sweeps is not None
    taken = names_in(forward) | {f"{cut}_distance" for cut in cuts}
    uniforms = {cut: fresh_name(f"{cut}_uniform", taken) for cut in cuts} if form.draws else {}
    drawn = tuple(Input(name, Rank.STEP) for name in uniforms.values())
    forward = replace(forward, inputs=(*forward.inputs, *drawn))
    bools = bool_lets(forward.lets)
    given: dict[str, Expr] = {cut: Const(False if cut in bools else 0.0) for cut in cuts}
    lets: list[Let] = []
    states: list[State] = []
    for k in range(form.sweeps):
        own = _lets_of_sweep(forward, cuts, form, k, uniforms)
        if isinstance(own, Rejection):
            return own
        sweep = with_spikes_given(replace(forward, lets=own), given, taken)
        is_last = k == form.sweeps - 1
        new = {} if is_last else {n: fresh_name(f"{n}_sweep{k + 1}", taken) for n in _own(sweep)}
        lets += [_renamed(let, new) for let in sweep.lets]
        states += [
            replace(s, name=new.get(s.name, s.name), update=new.get(s.update, s.update))
            for s in sweep.states
        ]
        given = {cut: Var(new.get(cut, cut)) for cut in cuts}
    return simplify_step(replace(forward, lets=tuple(lets), states=tuple(states), form=form))


def _lets_of_sweep(
    forward: Recurrence,
    cuts: Sequence[str],
    form: FixedPoint,
    k: int,
    uniforms: Mapping[str, str],
) -> tuple[Let, ...] | Rejection:
    """Return the lets of sweep k, which counts from zero, with its own thresholds."""
    if form.schedule is None:
        return forward.lets
    steepness = form.schedule[k]
    slope = max(1.0, steepness * form.backward_scale)
    is_last = k == len(form.schedule) - 1
    return soften_thresholds(forward, cuts, Sigmoid(steepness, slope, is_last, uniforms))


def with_spikes_given(
    forward: Recurrence, given: Mapping[str, Expr], taken: set[str]
) -> Recurrence:
    """Return the neuron whose states take some lets as given.

    Within a step everything is computed as it is in the neuron; what leads from a cut let to a
    state is computed a second time, from what is given in its place.

    Args:
        forward: The neuron.
        given: For each cut let what its states depend on instead.
        taken: Names that are not free; it gets the new ones.
    """
    copies, replaced = _copies(forward, given, taken)
    states = []
    for state in forward.states:
        update = replaced.get(state.update)
        if update is not None and not isinstance(update, Var):
            copies.append(Let(fresh_name(f"{state.name}_given", taken), update))
            update = Var(copies[-1].name)
        states.append(state if update is None else replace(state, update=update.name))
    return replace(forward, lets=(*forward.lets, *copies), states=tuple(states))


def _copies(
    forward: Recurrence, given: Mapping[str, Expr], taken: set[str]
) -> tuple[list[Let], dict[str, Expr]]:
    """Return copies of the lets between cut lets and states, and what they stand for."""
    replaced = dict(given)
    needed = _towards_states(forward)
    copies = []
    for let in forward.lets:
        if let.name in needed and let.name not in given and let_reads(let) & set(replaced):
            copy = fresh_name(f"{let.name}_given", taken)
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


def _own(sweep: Recurrence) -> list[str]:
    """Return every name that a sweep defines."""
    return sorted(names_in(sweep) - {i.name for i in sweep.inputs})


def _renamed(let: Let, new: Mapping[str, str]) -> Let:
    values = {old: Var(name) for old, name in new.items()}
    rule = let.surrogate
    if rule is not None:
        rule = Surrogate(
            rule.name,
            new.get(rule.cotangent, rule.cotangent),
            tuple(new.get(arg, arg) for arg in rule.args),
            tuple(_renamed(part, new) for part in rule.lets),
            tuple(substitute(result, values) for result in rule.results),
        )
    name = new.get(let.name, let.name)
    return Let(name, substitute(let.expr, values), rule, let.where)
