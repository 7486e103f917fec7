"""The parts of a scan over chunks: summary, carry, apply, lookback.

The summary runs the step itself from zero for the offset ``b``, and beside it the step's linear
part for each column of the matrix ``A``, which starts as a column of the identity.  Columns that
are zero after a few steps whatever happens, and entries that stay zero, do not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from snncc.ir.chunked_scan import ChunkedScan, Factor
from snncc.ir.names import fresh_name, names_in
from snncc.ir.nodes import (
    Binary,
    Expr,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    Sequential,
    State,
    Unary,
    Var,
)
from snncc.ir.walk import names_read
from snncc.passes.base import Rejection
from snncc.passes.meaning.affine import ONE, ZERO, linear_part
from snncc.passes.scans.state_kinds import StateKinds, state_kinds


def chunked_scan(recurrence: Recurrence) -> ChunkedScan | Rejection:
    """Return the parts of a scan over chunks of a recurrence, or why its states are not affine."""
    whole = replace(
        recurrence,
        lets=tuple(replace(let, surrogate=None) for let in recurrence.lets),
        form=Sequential(),
    )
    kinds = state_kinds(whole)
    if isinstance(kinds, Rejection):
        return kinds
    taken = names_in(whole)

    def fresh(wish: str) -> str:
        return fresh_name(wish, taken)

    starts = {s.name: fresh(f"{s.name}_start") for s in whole.states}
    builder = _Builder(whole, kinds, starts, fresh("anchor"), fresh)
    summary, factors = builder.summary() if kinds.linear else (None, ())
    peaks = tuple(fresh(f"{name}_peak") for name in kinds.linear)
    return ChunkedScan(
        whole=whole,
        linear=kinds.linear,
        delays=kinds.delays,
        sums=kinds.sums,
        starts=tuple(starts.items()),
        anchor=builder.anchor,
        apply=builder.apply(peaks),
        peaks=peaks,
        summary=summary,
        carry=builder.carry(factors) if kinds.linear else None,
        lookback=builder.lookback() if kinds.delays else None,
        factors=factors,
        least=len(whole.states) + 1,
    )


class _Builder:
    """Builds the parts of one recurrence."""

    def __init__(
        self,
        whole: Recurrence,
        kinds: StateKinds,
        starts: dict[str, str],
        anchor: str,
        fresh: Callable[[str], str],
    ) -> None:
        self.whole = whole
        self.kinds = kinds
        self.starts = starts
        self.anchor = anchor
        self.fresh = fresh
        self.update = {s.name: s.update for s in whole.states}

    def part(
        self,
        name: str,
        states: Sequence[State],
        lets: Sequence[Let],
        outputs: tuple[str, ...] = (),
        finals: tuple[str, ...] | None = None,
    ) -> Recurrence:
        """Return a recurrence of some states, without what nothing in it reads.

        Its finals are all states unless they are given.
        """
        ends = {*outputs, *(s.update for s in states)}
        kept = needed_lets(lets, ends)
        read = ends | {n for let in kept for n in names_read(let.expr)}
        read |= {s.initial.name for s in states if isinstance(s.initial, Var)}
        lanes = [*self.starts.values(), self.anchor]
        inputs = (*self.whole.inputs, *(Input(n, Rank.LANE) for n in lanes))
        return replace(
            self.whole,
            name=f"{self.whole.name}_{name}",
            inputs=tuple(i for i in inputs if i.name in read or i.name == self.anchor),
            states=tuple(states),
            lets=tuple(kept),
            outputs=outputs,
            finals=tuple(s.name for s in states) if finals is None else finals,
        )

    def apply(self, peaks: tuple[str, ...]) -> Recurrence:
        """Return the recurrence from given states, with how large its linear states become."""
        states = [replace(s, initial=Var(self.starts[s.name])) for s in self.whole.states]
        lets = list(self.whole.lets)
        for name, peak in zip(self.kinds.linear, peaks, strict=True):
            size = Unary(Op.ABS, Var(self.update[name]))
            larger = self.let_of(Binary(Op.MAX, Var(peak), size), peak, lets)
            states.append(State(peak, ZERO, larger))
        return self.part("apply", states, lets, self.whole.outputs)

    def lookback(self) -> Recurrence:
        """Return the delays alone, which forget where they started."""
        states = [
            replace(s, initial=ZERO) for s in self.whole.states if s.name in self.kinds.delays
        ]
        return self.part("lookback", states, self.whole.lets)

    def summary(self) -> tuple[Recurrence, tuple[Factor, ...]]:
        """Return the recurrence whose finals are the affine map of a chunk."""
        states = [
            replace(s, initial=Var(self.starts[s.name]) if s.name in self.kinds.delays else ZERO)
            for s in self.whole.states
            if s.name not in self.kinds.sums
        ]
        lets, factors = list(self.whole.lets), []
        for source in self.kinds.linear:
            column = self.column(source)
            if not self.kinds.cyclic & {*column}:
                continue  # it dies out within as many steps as there are states
            tangents = self.tangents(column, source, lets)
            for into, name in column.items():
                initial = ONE if into == source else ZERO
                states.append(State(name, initial, self.let_of(tangents[into], name, lets)))
                factors.append(Factor(name, into, source))
        finals = (*self.kinds.linear, *(factor.name for factor in factors))
        return self.part("summary", states, lets, finals=finals), tuple(factors)

    def column(self, source: str) -> dict[str, str]:
        """Return the states that one depends on a state, with names for how much they do."""
        names, size = {source: f"{source}_by_{source}"}, 0
        while size != len(names):
            size = len(names)
            tangents = self.tangents(names, source, None)
            for state in self.kinds.linear:
                if state not in names and tangents[state] != ZERO:
                    names[state] = f"{state}_by_{source}"
        return {state: self.fresh(name) for state, name in names.items()}

    def tangents(
        self, column: dict[str, str], source: str, lets: list[Let] | None
    ) -> dict[str, Expr]:
        """Return how the update of each linear state changes with the states of a column.

        Lets that change get a let of their own in ``lets``, where that is a list.
        """
        values: dict[str, Expr] = {state: Var(name) for state, name in column.items()}
        wanted = {self.update[name] for name in self.kinds.linear}
        for let in needed_lets(self.whole.lets, wanted):
            change = linear_part(let.expr, values)
            if change == ZERO:
                continue
            if lets is not None:
                change = Var(self.let_of(change, f"{let.name}_by_{source}", lets))
            # Where only zeros matter, any name stands for what is not zero.
            values[let.name] = Var(let.name) if lets is None else change
        return {name: values.get(self.update[name], ZERO) for name in self.kinds.linear}

    def let_of(self, value: Expr, wish: str, lets: list[Let]) -> str:
        """Return the name of a value, in a new let where it has none."""
        if isinstance(value, Var):
            return value.name
        lets.append(Let(self.fresh(f"{wish}_next"), value))
        return lets[-1].name

    def carry(self, factors: tuple[Factor, ...]) -> Recurrence:
        """Return the recurrence over chunks: ``s' = A s + b``."""
        offsets = {name: self.fresh(f"{name}_offset") for name in self.kinds.linear}
        lets: list[Let] = []
        for name in self.kinds.linear:
            total: Expr = Var(offsets[name])
            for factor in factors:
                if factor.into == name:
                    part = Binary(Op.MUL, Var(factor.name), Var(factor.source))
                    total = Binary(Op.ADD, total, part)
            lets.append(Let(self.fresh(f"{name}_after"), total))
        after = [let.name for let in lets]
        steps = (*offsets.values(), *(f.name for f in factors))
        lanes = [self.starts[name] for name in self.kinds.linear]
        pairs = zip(self.kinds.linear, after, strict=True)
        states = [State(name, Var(self.starts[name]), update) for name, update in pairs]
        return Recurrence(
            name=f"{self.whole.name}_carry",
            inputs=(
                *(Input(name, Rank.STEP) for name in steps),
                *(Input(name, Rank.LANE) for name in lanes),
            ),
            states=tuple(states),
            lets=tuple(lets),
            outputs=tuple(after),
            reverse=self.whole.reverse,
            where=self.whole.where,
        )


def needed_lets(lets: Sequence[Let], wanted: Iterable[str]) -> list[Let]:
    """Return the lets that some names depend on, in order."""
    needed, kept = set(wanted), []
    for let in reversed(lets):
        if let.name in needed:
            needed |= {*names_read(let.expr)}
            kept.append(let)
    return kept[::-1]
