"""Let a recurrence start from states that it is given, and tell what they become."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from snncc.ir.nodes import FusedTime, Input, Rank, Recurrence, State, Var


def with_open_states(forward: Recurrence) -> Recurrence:
    """Return a recurrence that takes the start of every state and returns its end.

    The starts are LANE inputs after all others, in the order of the states.
    """
    taken = {i.name for i in forward.inputs} | {s.name for s in forward.states}
    taken |= {let.name for let in forward.lets}
    names = []
    for state in forward.states:
        names.append(next(n for n in numbered(f"{state.name}_start") if n not in taken))
        taken.add(names[-1])
    states = tuple(
        State(s.name, Var(name), s.update, s.where)
        for s, name in zip(forward.states, names, strict=True)
    )
    finals = dict.fromkeys((*forward.finals, *(s.name for s in forward.states)))
    return replace(
        forward,
        inputs=(*forward.inputs, *(Input(name, Rank.LANE) for name in names)),
        states=states,
        finals=tuple(finals),
        form=FusedTime(),
    )


def numbered(name: str) -> Iterator[str]:
    """Yield a name, and then the name with numbers from two on."""
    yield name
    for number in count(2):
        yield f"{name}_{number}"
