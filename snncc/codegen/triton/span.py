"""Steps of time that a Triton kernel writes out one after another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Steps that are written out one after another.

    Attributes:
        first: The first of them.
        count: How many they are, a constant of the kernel.
        whole: Whether all of them exist; else those after the last step of time are masked.
    """

    first: str
    count: str
    whole: bool = False

    @property
    def mask(self) -> str:
        """The variable that tells which lanes move a value in a step."""
        return "live" if self.whole else "now"


GROUP = Span("first", "GROUP")
CHUNK = Span("first", "CHUNK")
