"""A network of neurons that runs as a queue of spikes, over all layers at once.

A neuron layer is an `EventGroup`, what a spike adds to the potentials of another layer a row of an
`EventEdge`'s matrix.  `snncc.ir.events.run` says what a time step does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate
from typing import Literal

from torch import Tensor

from snncc.errors import Location
from snncc.ir.nodes import Recurrence
from snncc.ir.program import Adjoint


@dataclass(frozen=True, slots=True)
class EventGroup:
    """The neurons of one layer, or the events that come from outside.

    Attributes:
        name: As in the plan.
        fire: What follows the charge, as the user wrote it: a recurrence without states, with the
            potential as its STEP input and thresholds and the like as LANE inputs.  Its outputs are
            the spike and the membrane after it, or the membrane alone where the group only
            integrates.  None stands for an input, whose events are given.
        starts: Whether the group is evaluated as soon as a time step begins.
        is_output: Whether its spikes are what stopping waits for.
        adjoint: The gradient of ``fire``, where one is needed.
        where: The user's line.
    """

    name: str
    fire: Recurrence | None
    starts: bool = False
    is_output: bool = False
    adjoint: Adjoint | None = None
    where: Location | None = field(default=None, compare=False)

    @property
    def fires(self) -> bool:
        """Whether it has spikes."""
        return self.fire is None or len(self.fire.outputs) == 2

    @property
    def potential(self) -> str:
        """The name of the potential in ``fire``."""
        return "" if self.fire is None else self.fire.step_inputs[0]

    @property
    def lanes(self) -> tuple[str, ...]:
        """The parameters that ``fire`` reads, each one value for each neuron."""
        return () if self.fire is None else self.fire.lane_inputs


@dataclass(frozen=True, slots=True)
class EventEdge:
    """What the spikes of one group add to the potentials of another.

    Attributes:
        source: Index of the group that spikes.
        target: Index of the group that integrates; no input.
        is_delayed: Whether it is the spikes of the time step before that arrive.
    """

    source: int
    target: int
    is_delayed: bool = False


@dataclass(frozen=True, slots=True)
class EventOrder:
    """In what order spikes are processed, and until when.

    Attributes:
        group_size: How many neurons deliver their spikes in one forward step.
        policy: The highest potential first, or any queued neuron with equal chance.
        noise: What a uniform number in [0, 1) is multiplied with and added to a potential.
        refractory_dropout: With what chance a neuron that fires may fire again in the time step.
        stop: How many forward steps follow the first that has a spike of an output group; None
            stands for all, until the queue is empty.
    """

    group_size: int = 8
    policy: Literal["momentum", "random"] = "momentum"
    noise: float = 0.0
    refractory_dropout: float = 0.0
    stop: int | None = None

    @property
    def draws(self) -> bool:
        """Whether it needs random numbers."""
        return self.policy == "random" or self.noise > 0.0 or self.refractory_dropout > 0.0


class Shown(Enum):
    """What of a group is seen outside of the network."""

    SPIKES = "spikes"  # [T, B, n]: how often it fired, times the height of a spike
    MEMBRANES = "membranes"  # [T, B, n]: after each time step
    LAST = "last"  # [B, n]: the membrane after the last time step


@dataclass(frozen=True, slots=True)
class EventResult:
    """One result of a network."""

    group: int
    shown: Shown


@dataclass(frozen=True, slots=True)
class EventTensors:
    """What a network runs on; n is the size of a group.  None where a group has no such thing.

    Attributes:
        standing: For each group [T, B, n]: what it gets in each time step without any spike: input
            frame, bias, rest.  For an input the events themselves: how many, or how high.
        decay: For each group [n] or []: what a membrane keeps of itself from step to step.
        membrane: For each group [B, n]: before the first time step.
        emitted: For each group that an edge with delay leaves [B, n]: its spikes in the time step
            before the first.
        lanes: For each group the parameters of ``fire``, each [n] or [].
        weights: For each edge [sources, targets]: what a spike of one adds to a potential.
    """

    standing: tuple[Tensor, ...]
    decay: tuple[Tensor | None, ...]
    membrane: tuple[Tensor | None, ...]
    emitted: tuple[Tensor | None, ...]
    lanes: tuple[tuple[Tensor, ...], ...]
    weights: tuple[Tensor, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size of each group."""
        return tuple(x.shape[2] for x in self.standing)

    @property
    def firsts(self) -> tuple[int, ...]:
        """The number of the first neuron of each group, counted over all groups."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]


@dataclass(frozen=True, slots=True)
class EventNetwork:
    """Groups in layer order, the edges between them, and what is seen of them."""

    groups: tuple[EventGroup, ...]
    edges: tuple[EventEdge, ...]
    results: tuple[EventResult, ...]
    order: EventOrder

    def is_recalled(self, group: int) -> bool:
        """Tell whether the spikes of a group arrive a time step later somewhere."""
        return any(e.source == group and e.is_delayed for e in self.edges)

    def targets_of(self, group: int) -> tuple[int, ...]:
        """Return the groups that the spikes of a group reach in the same time step."""
        return tuple(e.target for e in self.edges if e.source == group and not e.is_delayed)

    def flatten(self, tensors: EventTensors) -> tuple[Tensor, ...]:
        """Return tensors as a list, in the order in which `unflatten` reads it."""
        flat: list[Tensor] = [*tensors.standing]
        for each in (tensors.decay, tensors.membrane, tensors.emitted):
            flat += [tensor for tensor in each if tensor is not None]
        return (*flat, *(x for lanes in tensors.lanes for x in lanes), *tensors.weights)

    def unflatten(self, flat: Sequence[Tensor]) -> EventTensors:
        """Return the tensors that a list holds."""
        rest: Iterator[Tensor] = iter(flat)
        neurons = [group.fire is not None for group in self.groups]
        recalled = [self.is_recalled(i) for i in range(len(self.groups))]
        return EventTensors(
            standing=tuple(next(rest) for _ in self.groups),
            decay=tuple(next(rest) if is_neuron else None for is_neuron in neurons),
            membrane=tuple(next(rest) if is_neuron else None for is_neuron in neurons),
            emitted=tuple(next(rest) if wanted else None for wanted in recalled),
            lanes=tuple(tuple(next(rest) for _ in group.lanes) for group in self.groups),
            weights=tuple(next(rest) for _ in self.edges),
        )
