"""Names that are not taken yet."""

from __future__ import annotations

from collections.abc import Iterable

from snncc.ir.nodes import Recurrence


class Names:
    """Hands out names that are not taken yet.

    Args:
        taken: The names that are.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def fresh(self, wish: str) -> str:
        """Return the wish, or the wish with a number, and take it."""
        return fresh_name(wish, self._taken)


def fresh_name(wish: str, taken: set[str]) -> str:
    """Return the wish, or the wish with a number where it is taken, and take it."""
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    taken.add(name)
    return name


def names_in(recurrence: Recurrence) -> set[str]:
    """Return every name of a recurrence, those in its surrogates included."""
    rules = [let.surrogate for let in recurrence.lets if let.surrogate is not None]
    return {
        *(i.name for i in recurrence.inputs),
        *(s.name for s in recurrence.states),
        *(let.name for let in recurrence.lets),
        *(rule.cotangent for rule in rules),
        *(let.name for rule in rules for let in rule.lets),
    }
