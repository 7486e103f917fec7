"""Find which values of a recurrence have a history: what autograd of the serial code says.

Comparisons and logic give bools, and `Detach` ends a history; everything else passes it on, also
where the derivative is zero (`floor`).  A let with a surrogate has one where any argument does.
"""

from __future__ import annotations

from collections.abc import Iterable

from snncc.ir.nodes import Detach, Expr, Let, Recurrence, Var
from snncc.ir.walk import children, is_bool, let_reads


def find_histories(recurrence: Recurrence, wanted: Iterable[str]) -> frozenset[str]:
    """Return the names whose values have a history.

    Args:
        recurrence: The recurrence.
        wanted: Names of the inputs that require gradients.
    """
    found = set(wanted)
    count = -1
    while len(found) > count:
        count = len(found)
        for state in recurrence.states:
            initial = {state.initial.name} if isinstance(state.initial, Var) else set()
            if found & {*initial, state.update}:
                found.add(state.name)
        bools: set[str] = set()
        for let in recurrence.lets:
            if is_bool(let.expr, bools):
                bools.add(let.name)
            elif _requires(let, found, bools):
                found.add(let.name)
    return frozenset(found)


def _requires(let: Let, found: set[str], bools: set[str]) -> bool:
    if let.surrogate is not None:
        return bool(let_reads(let) & found)
    return _flows(let.expr, found, bools)


def _flows(expr: Expr, found: set[str], bools: set[str]) -> bool:
    if isinstance(expr, Detach) or is_bool(expr, bools):
        return False
    if isinstance(expr, Var):
        return expr.name in found
    return any(_flows(child, found, bools) for child in children(expr))
