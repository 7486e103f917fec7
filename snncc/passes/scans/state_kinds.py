"""Tell how the states of a recurrence depend on one another, as far as a scan over time cares.

==========  ======================================================================================
kind        what it is
==========  ======================================================================================
sum         ``s' = s + e`` that nothing else reads: parts of it can be added up in any order
delay       depends on the inputs of the last few steps alone, such as a window of inputs
linear      every other one; together they have to be affine, with the delays and inputs given
==========  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from snncc.ir.nodes import Binary, Expr, Op, Recurrence, State, Var
from snncc.ir.walk import names_read
from snncc.passes.base import Rejection
from snncc.passes.meaning.affine import degree_in


class StateKinds(NamedTuple):
    """The states by kind, in the order of the recurrence; ``cyclic`` are those that feed back."""

    sums: tuple[str, ...]
    delays: tuple[str, ...]
    linear: tuple[str, ...]
    cyclic: frozenset[str]


def state_kinds(recurrence: Recurrence) -> StateKinds | Rejection:
    """Return the states by kind, or why they are not affine."""
    reads = states_read(recurrence)
    depends = {s.name: reads[s.update] for s in recurrence.states}
    reach = _closure(depends)
    cyclic = frozenset(name for name, reached in reach.items() if name in reached)
    sums = tuple(s.name for s in recurrence.states if _is_sum(s, recurrence, reads))
    delays = tuple(name for name, reached in reach.items() if not ({name} | reached) & cyclic)
    rest = [s for s in recurrence.states if s.name not in (*sums, *delays)]
    kinds = StateKinds(sums, delays, tuple(s.name for s in rest), cyclic)
    degrees = _degrees(recurrence, kinds)
    for state in rest:
        degree = degrees[state.update]
        if degree is None or degree > 1:
            reason = f"the next '{state.name}' is not affine in the states"
            return Rejection("nonlinear-state", reason, state.where or recurrence.where)
    return kinds


def states_read(recurrence: Recurrence) -> dict[str, frozenset[str]]:
    """Return for each name the states whose values before the step it depends on."""
    reads = {i.name: frozenset[str]() for i in recurrence.inputs}
    reads |= {s.name: frozenset({s.name}) for s in recurrence.states}
    for let in recurrence.lets:
        reads[let.name] = frozenset[str]().union(*(reads[n] for n in names_read(let.expr)))
    return reads


def _closure(depends: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Return for each state those that it depends on after any number of steps."""
    reach, size = dict(depends), -1
    while size != (size := sum(map(len, reach.values()))):
        reach = {n: r.union(*(reach[other] for other in r)) for n, r in reach.items()}
    return reach


def _is_sum(state: State, recurrence: Recurrence, reads: Mapping[str, frozenset[str]]) -> bool:
    """Tell whether a state only adds up something that does not depend on it, for its end."""
    others = [s.update for s in recurrence.states if s.name != state.name]
    if any(state.name in reads[name] for name in (*others, *recurrence.outputs)):
        return False
    added = next((let.expr for let in recurrence.lets if let.name == state.update), None)
    return _addend(added, state.name, reads) is not None


def _addend(expr: Expr | None, name: str, reads: Mapping[str, frozenset[str]]) -> Expr | None:
    match expr:
        case Binary(Op.ADD, Var(own), rest) | Binary(Op.ADD, rest, Var(own)) if own == name:
            return None if any(name in reads[n] for n in names_read(rest)) else rest
        case _:
            return None


def _degrees(recurrence: Recurrence, kinds: StateKinds) -> dict[str, int | None]:
    """Return the degree of each name in the states that are neither sums nor delays."""
    degrees: dict[str, int | None] = {i.name: 0 for i in recurrence.inputs}
    degrees |= {s.name: 0 if s.name in kinds.delays else 1 for s in recurrence.states}
    for let in recurrence.lets:
        degrees[let.name] = degree_in(let.expr, degrees)
    return degrees
