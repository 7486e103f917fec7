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
        reverse: Whether steps run from T-1 down to 0 (an adjoint); inputs and stacked results are
            in the order of time all the same.
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
    reverse: bool = False

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def inputs(self) -> tuple[tuple[str, int], ...]:
        """For each body placeholder that an operand gives a value, its name and the operand."""
        steps = [(step.name, step.operand) for step in self.steps]
        return (*steps, *((i.name, i.operand) for i in self.invariants))

    def node(self, name: str) -> torch.fx.Node:
        """Return the body node of that name."""
        found: torch.fx.Node = next(n for n in self.body.nodes if n.name == name)
        return found

    def length(self, arguments: tuple[Any, ...]) -> int:
        """Return the number of steps for these arguments."""
        if self.trip.operand is None:
            return self.trip.seen
        return int(arguments[self.trip.operand].shape[self.trip.dim]) + self.trip.offset

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Run the loop step by step, as the user's code did."""
        history: dict[str, list[Any]] = {result.node: [] for result in self.results}
        carried = self.initial_values(arguments)
        values: dict[str, Any] = {}
        length = self.length(arguments)
        for t in range(length - 1, -1, -1) if self.reverse else range(length):
            values = self.run_step(t, arguments, carried)
            for node, seen in history.items():
                seen.append(values[node])
            carried = {c.name: values[c.update] for c in self.carries}
        return tuple(
            self._stacked(history[r.node]) if r.stacked else history[r.node][-1]
            for r in self.results
        )

    def _stacked(self, seen: list[Any]) -> Any:
        in_order = seen[::-1] if self.reverse else seen
        like = next((x for x in in_order if isinstance(x, Tensor)), None)
        # What is no tensor is kept as it is; a carry may start as a number and become a tensor.
        if like is None and in_order:
            return in_order
        return torch.stack([x if like is None else _as_tensor(x, like) for x in in_order])

    def initial_values(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """Return what each carry holds before the first step: a tensor, or a `Fill`."""
        return {
            c.name: c.initial if isinstance(c.initial, Fill) else arguments[c.initial]
            for c in self.carries
        }

    def run_step(
        self, t: int, arguments: tuple[Any, ...], carried: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the value of every body node at step t, given those of the carries."""
        values = dict(carried)
        for step in self.steps:
            operand, index = arguments[step.operand], step.start + step.stride * t
            values[step.name] = (
                operand.select(step.dim, index) if isinstance(operand, Tensor) else operand[index]
            )
        values |= {table.name: table.values[t] for table in self.tables}
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


def _as_tensor(value: Any, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.full_like(like, value.value if isinstance(value, Fill) else value)
