"""The interface of a pass: a frozen value with a name, a numerical promise and one function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.fx

from snncc.errors import Location
from snncc.ir.numerics import Numerics


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a rewrite does not apply; false in a condition.

    Attributes:
        code: Stable identifier, for instance ``mixed-dtype``.
        reason: One clause without a period, in the user's words.
        where: The user's line that is at fault, where there is one.
        hint: What to do about it, a sentence, where something can be done.
    """

    code: str
    reason: str
    where: Location | None = None
    hint: str = ""

    def __bool__(self) -> bool:
        return False


class Pass(Protocol):
    """One rewrite of the sequence graph.

    A pass never changes its argument and never raises to say no.
    """

    @property
    def name(self) -> str:
        """The imperative that the file is named after, with hyphens."""
        ...

    @property
    def numerics(self) -> Numerics:
        """What the rewrite promises about results."""
        ...

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the rewritten graph, or why the rewrite does not apply."""
        ...
