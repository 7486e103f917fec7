"""Random event networks on dyadic numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from snncc.ir.events.network import (
    EventEdge,
    EventGroup,
    EventNetwork,
    EventOrder,
    EventResult,
    EventTensors,
    Shown,
)
from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
    Expr,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    Unary,
    Var,
)
from tests.strategies import surrogate

QUARTERS = [i / 4 for i in range(-6, 7)]


def fire(
    reset: str = "hard", comparison: Op = Op.GE, *, detach: bool = False, kind: str = "atan"
) -> Recurrence:
    """Return what follows the charge of a neuron with a threshold of its own."""
    inputs = (Input("u", Rank.STEP), Input("th", Rank.LANE))
    above = Let("above", Binary(Op.SUB, Var("u"), Var("th")))
    s = Unary(Op.FLOAT, Binary(comparison, Var("above"), Const(0.0)))
    spike = Let("s", s, surrogate("s", "above", kind))
    seen: Expr = Detach(Var("s")) if detach else Var("s")
    left: Expr = Binary(Op.SUB, Var("u"), Binary(Op.MUL, seen, Var("th")))
    if reset == "hard":
        left = Binary(Op.MUL, Var("u"), Binary(Op.SUB, Const(1.0), seen))
    return Recurrence("fire", inputs, (), (above, spike, Let("v", left)), ("s", "v"))


def integrate() -> Recurrence:
    """Return what follows the charge of a readout: nothing."""
    return Recurrence("read", (Input("u", Rank.STEP),), (), (), ("u",))


def chain(
    sizes: Sequence[int], order: EventOrder, steps: Sequence[Recurrence] | None = None
) -> EventNetwork:
    """Return a chain of layers, the first with an input frame; all spikes and membranes shown."""
    steps = steps or [fire()] * len(sizes)
    groups = tuple(
        EventGroup(f"layer{i}", step, starts=i == 0, is_output=i == len(sizes) - 1)
        for i, step in enumerate(steps)
    )
    edges = tuple(EventEdge(i, i + 1) for i in range(len(sizes) - 1))
    return EventNetwork(groups, edges, all_results(groups), order)


def all_results(groups: Sequence[EventGroup]) -> tuple[EventResult, ...]:
    """Return everything that can be seen of neurons."""
    return tuple(
        EventResult(i, shown) for i, g in enumerate(groups) if g.fire is not None for shown in Shown
    )


def tensors_of(
    network: EventNetwork, sizes: Sequence[int], rng: random.Random, steps: int, samples: int
) -> EventTensors:
    """Return dyadic tensors for a network: few of them, so that sums are exact and ties happen."""

    def some(*shape: int, of: Sequence[float] = QUARTERS) -> Tensor:
        values = [rng.choice(of) for _ in range(torch.Size(shape).numel())]
        return torch.tensor(values, dtype=torch.float64).reshape(shape)

    def only(i: int, wanted: bool, *shape: int, of: Sequence[float] = QUARTERS) -> Tensor | None:
        return some(*shape, of=of) if wanted else None

    groups = list(enumerate(network.groups))
    events = [0.0, 0.0, 1.0, 2.0]
    return EventTensors(
        standing=tuple(
            some(steps, samples, n, of=QUARTERS if g.fire else events)
            for (_, g), n in zip(groups, sizes, strict=True)
        ),
        decay=tuple(only(i, g.fire is not None, sizes[i], of=[0.5, 0.75, 1.0]) for i, g in groups),
        membrane=tuple(only(i, g.fire is not None, samples, sizes[i]) for i, g in groups),
        emitted=tuple(
            only(i, network.is_recalled(i), samples, sizes[i], of=[0.0, 1.0]) for i, _ in groups
        ),
        lanes=tuple(tuple(some(sizes[i], of=[0.25, 0.5, 1.0]) for _ in g.lanes) for i, g in groups),
        weights=tuple(
            some(sizes[e.source], sizes[e.target], of=[0.0, *QUARTERS]) for e in network.edges
        ),
    )
