"""The step of a neuron that takes its spikes from guesses, and says what these should have been.

Before::

    s = float(h >= threshold)         v = r(h, s)

After::

    fires = h >= threshold            v = r(h, float(guess))            found: fires

A guess is a bool wherever a let depends on states through comparisons alone, so that it takes one
bit; a graded spike is guessed as the number that it is.

Numerics: bitwise, where every guess is what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from snncc.ir.names import fresh_name, names_in
from snncc.ir.nodes import Const, Expr, Let, Recurrence, Var
from snncc.ir.program import Guess, GuessedStep
from snncc.ir.walk import bool_lets, children, is_bool, names_read, rebuild
from snncc.passes.parallel.unroll_sweeps import with_spikes_given


def guess_spikes(forward: Recurrence, cuts: tuple[str, ...]) -> GuessedStep:
    """Return the step of a neuron whose cut lets are given."""
    guessing = _Guessing(forward)
    lets: list[Let] = []
    for let in forward.lets:
        lets += guessing.cut(let) if let.name in cuts else [let]
    step = with_spikes_given(replace(forward, lets=tuple(lets)), guessing.given, guessing.taken)
    return GuessedStep(step.lets, step.states, tuple(guessing.guesses))


class _Guessing:
    """Replaces what compares by guesses."""

    def __init__(self, forward: Recurrence) -> None:
        self.taken = names_in(forward)
        self.given: dict[str, Expr] = {}
        self.guesses: list[Guess] = []
        self._bools = bool_lets(forward.lets)
        self._inputs = {i.name for i in forward.inputs}

    def cut(self, let: Let) -> list[Let]:
        """Return the lets that stand for a cut let, having guessed what it depends on."""
        if let.name in self._bools:
            self.given[let.name] = self._guess(let.name, is_bool=True)
            return [let]
        found: dict[Expr, str] = {}
        self._find_comparisons(let.expr, found, let.name)
        rest = _replaced(let.expr, dict.fromkeys(found, Const(False)))
        if not self._inputs.issuperset(names_read(rest)):
            self.given[let.name] = self._guess(let.name, is_bool=False)
            return [let]
        parts = {expr: Var(name) for expr, name in found.items()}
        guesses = {expr: self._guess(name, is_bool=True) for expr, name in found.items()}
        self.given[let.name] = _replaced(let.expr, guesses)
        own = [Let(v.name, e, where=let.where) for e, v in parts.items() if e != v]
        return [*own, replace(let, expr=_replaced(let.expr, parts))]

    def _find_comparisons(self, expr: Expr, found: dict[Expr, str], owner: str) -> None:
        """Name the largest bools in an expression that are no literals."""
        if is_bool(expr, self._bools) and any(names_read(expr)):
            if expr not in found:
                named = expr.name if isinstance(expr, Var) else ""
                found[expr] = named or fresh_name(f"{owner}_fires", self.taken)
            return
        for child in children(expr):
            self._find_comparisons(child, found, owner)

    def _guess(self, found: str, *, is_bool: bool) -> Var:
        name = fresh_name(f"{found}_guess", self.taken)
        self.guesses.append(Guess(name, found, is_bool))
        return Var(name)


def _replaced(expr: Expr, values: Mapping[Expr, Expr]) -> Expr:
    """Replace whole expressions, the largest first."""
    if expr in values:
        return values[expr]
    return rebuild(expr, tuple(_replaced(child, values) for child in children(expr)))
