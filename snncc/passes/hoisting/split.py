"""Shared knowledge about a time loop while it is taken apart."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.fx

from snncc.ir.time_loop import Carry, TimeLoop
from snncc.passes.hoisting.batch_rules import Value


class Split(Protocol):
    """A loop that is being taken apart.

    Attributes:
        loop: The loop.
        body: The nodes of its body by name.
        carries: For each carry placeholder the carry and its update.
        operands: What the loop is called with.
        env: The body nodes that exist outside of the loop already.
        tables: The numbers of each step, by placeholder.
        lasts: What the last values of body nodes are outside of the loop.
        length: The number of steps.
        halves: Whether kernels read and write values of half types.
    """

    loop: TimeLoop
    body: dict[str, torch.fx.Node]
    carries: dict[torch.fx.Node, tuple[Carry, torch.fx.Node]]
    operands: list[Any]
    env: dict[torch.fx.Node, Value]
    tables: dict[torch.fx.Node, tuple[float, ...]]
    lasts: dict[torch.fx.Node, torch.fx.Node]
    length: Any
    halves: bool

    def emit(self, target: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
        """Add a call to the sequence graph."""
        ...

    def bind(self, node: torch.fx.Node, value: Any, *, stacked: bool) -> None:
        """Note the value of a body node."""
        ...

    def is_stacked(self, node: torch.fx.Node) -> bool:
        """Tell whether a body node has a value for each step."""
        ...

    def numbers(self, node: torch.fx.Node, rank: int, dtype: torch.dtype) -> Value:
        """Return the numbers of a table as a sequence."""
        ...

    def any_sequence(self) -> Any:
        """Return a tensor [T, *]."""
        ...

    def needed(
        self, nodes: tuple[torch.fx.Node, ...]
    ) -> tuple[list[torch.fx.Node], list[torch.fx.Node]]:
        """Return which nodes of a group are read at every step, and whose last value is."""
        ...
