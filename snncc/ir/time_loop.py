"""L1: a loop over time with one body, proven from the unrolled record of a run.

A `TimeLoop` is the target of a ``call_function`` node of an fx graph; its arguments are the tensors
listed in ``operands`` order and its result is a tuple, one entry for each of ``results``.  Calling
it runs the body step by step: that is the reference semantics which every later form must match.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fill:
    """An initial value that is one number, whatever the shape (``zeros_like``, ``0.0``).

    ``like`` names the body node whose shape it has, or None for a Python number; ``dtype`` is its
    type where that is not the node's.
    """

    value: float
    like: str | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class Carry:
    """A value that flows from one step to the next.

    Attributes:
        name: The body's placeholder.
        initial: Index of the operand that holds the value before the first step, or a `Fill`.
        update: The body node (or placeholder) whose value becomes the carry of the next step.
    """

    name: str
    initial: int | Fill
    update: str


@dataclass(frozen=True, slots=True)
class Step:
    """A per-step input: ``operand.select(dim, start + stride * k)`` at step k.

    ``select`` keeps the meaning of indexing: a negative index counts from the end.
    """

    name: str
    operand: int
    dim: int
    start: int
    stride: int


@dataclass(frozen=True, slots=True)
class Table:
    """A Python number that differs from step to step (``decay ** t``): one value for each step."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Invariant:
    """An operand that is the same at every step."""

    name: str
    operand: int


@dataclass(frozen=True, slots=True)
class Trip:
    """The number of steps: a constant, or the size of an operand along a dim plus ``offset``."""

    seen: int
    operand: int | None = None
    dim: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A result of the loop: the value of a body node.

    ``stacked`` results are torch.stack over all steps along dim 0; others are the last step's.
    """

    node: str
    stacked: bool


@dataclass(eq=False)
class TimeLoop:
    """One body, repeated over time.

    Attributes:
        name: A Python identifier, unique in the model.
        body: Graph whose placeholders are the carries, steps, tables and invariants by name; its
            call_function nodes carry the meta of the run (`snncc.ir.record`), as seen at the second
            step.  It has no output node of interest: `carries` and `results` name its nodes.
        trip: Number of steps.
        operands: How many arguments the call takes.
    """

    name: str
    body: torch.fx.Graph
    trip: Trip
    operands: int
    carries: tuple[Carry, ...]
    steps: tuple[Step, ...]
    tables: tuple[Table, ...]
    invariants: tuple[Invariant, ...]
    results: tuple[Result, ...]

    @property
    def __name__(self) -> str:
        return self.name

    def node(self, name: str) -> torch.fx.Node:
        """Return the body node of that name."""
        found: torch.fx.Node = next(n for n in self.body.nodes if n.name == name)
        return found

    def length(self, arguments: tuple[Any, ...]) -> int:
        """Return the number of steps for these arguments."""
        if self.trip.operand is None:
            return self.trip.seen
        return int(arguments[self.trip.operand].shape[self.trip.dim]) + self.trip.offset

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Run the loop step by step, as the user's code did."""
        history: dict[str, list[Any]] = {result.node: [] for result in self.results}
        carried = {c.name: self._initial(c, arguments) for c in self.carries}
        values: dict[str, Any] = {}
        for k in range(self.length(arguments)):
            values = self._run_body(k, arguments, carried)
            for node, seen in history.items():
                seen.append(values[node])
            carried = {c.name: values[c.update] for c in self.carries}
        return tuple(
            torch.stack(history[r.node]) if r.stacked else history[r.node][-1] for r in self.results
        )

    def _initial(self, carry: Carry, arguments: tuple[Any, ...]) -> Any:
        return carry.initial if isinstance(carry.initial, Fill) else arguments[carry.initial]

    def _run_body(
        self, k: int, arguments: tuple[Any, ...], carried: dict[str, Any]
    ) -> dict[str, Any]:
        values = dict(carried)
        for step in self.steps:
            index = step.start + step.stride * k
            values[step.name] = arguments[step.operand].select(step.dim, index)
        values |= {table.name: table.values[k] for table in self.tables}
        values |= {i.name: arguments[i.operand] for i in self.invariants}
        for node in self.body.nodes:
            if node.op == "call_function":
                args = torch.fx.node.map_arg(node.args, lambda n: _filled(values, n.name))
                kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: _filled(values, n.name))
                values[node.name] = node.target(*args, **kwargs)
        return {name: _filled(values, name) for name in values}

    def __iter__(self) -> Iterator[torch.fx.Node]:
        return iter(self.body.nodes)


def _filled(values: dict[str, Any], name: str) -> Any:
    value = values[name]
    if not isinstance(value, Fill):
        return value
    if value.like is None:
        return value.value
    like = values.get(value.like)
    return value if like is None else torch.full_like(like, value.value, dtype=value.dtype)
