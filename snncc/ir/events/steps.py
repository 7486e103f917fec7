"""A network of events cut into chunks of time: a call of its region in parts, states made explicit.

A region (`snncc.ir.events.region`) runs all steps in one call.  For some steps at a time it is

    standing = EventStanding(elapsed, length, *arguments)    what groups get without spikes
    sizes    = EventSizes(standing, *arguments)              the batch, and the shapes of groups
    fixed    = EventFixed(length, sizes, *arguments)         decays, parameters, matrices
    results  = EventQueue(elapsed, seed, standing, sizes, fixed, membranes, emitted)

so that what depends on the parameters alone is a value of its own, which need not be computed in
each step.  Behind the results the queue gives what it takes again: membranes, and the spikes of the
last step where an edge recalls them.  Random numbers go on counting time steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from snncc.ir.events.currents import Currents, Sizes
from snncc.ir.events.draws import new_seed
from snncc.ir.events.network import EventNetwork, EventResult, EventTensors, Shown
from snncc.ir.events.region import EventRegion
from snncc.ir.events.run import EventOutputs, run_events
from snncc.ir.nodes import Var
from snncc.ir.walk import names_read


def drawn_seed() -> Tensor:
    """Return a seed as a tensor, which a stream can keep."""
    return torch.tensor(new_seed(), dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class EventStanding:
    """Target of a node: what each group of a region gets without any spike."""

    region: EventRegion

    @property
    def __name__(self) -> str:
        return "standing"

    def __call__(self, elapsed: int, length: int, *arguments: Any) -> tuple[Tensor, ...]:
        """Return [T, B, n] for each group.

        Args:
            elapsed: How many steps were taken, these included; read where `is_started`.
            length: How many steps these are.
            *arguments: Those of the region.
        """
        return self.region.standing(length, arguments, is_later=elapsed > length)

    @property
    def is_started(self) -> bool:
        """Whether the first step differs from later ones."""
        return any(isinstance(g, Currents) and g.is_started for g in self.region.groups)

    def shapes(self, length: int, *arguments: Any) -> tuple[Tensor, ...]:
        """Return random values of the sizes of the results of a call of the region."""
        standing = self(0, length, *arguments)
        shapes = self.region.sizes(standing[0].shape[1], arguments).shapes
        made = []
        for result in self.region.network.results:
            lead = standing[result.group].shape[0 if result.shown is not Shown.LAST else 1 : 2]
            made.append(torch.rand(*lead, *shapes[result.group]).to(standing[0]))
        return tuple(made)

    @property
    def reads(self) -> set[int]:
        """The positions of the arguments that it reads; of initial states the sizes alone."""
        groups = (group for group in self.region.groups if isinstance(group, Currents))
        starts = ((g, g.initial.name) for g in groups if isinstance(g.initial, Var))
        return self.drives.union(*(_lanes(group, [name]) for group, name in starts))

    @property
    def drives(self) -> set[int]:
        """The positions of the arguments that what it returns depends on."""
        found: set[int] = set()
        for group in self.region.groups:
            if isinstance(group, Currents):
                found |= {*group.externals, *_lanes(group, names_read(group.drive))}
            else:
                found.add(group.argument)
        return found


@dataclass(frozen=True, eq=False)
class EventSizes:
    """Target of a node: the sizes of a region."""

    region: EventRegion

    @property
    def __name__(self) -> str:
        return "sizes"

    def __call__(self, standing: Sequence[Tensor], *arguments: Any) -> Sizes:
        """Return the sizes."""
        return self.region.sizes(standing[0].shape[1], arguments)

    @property
    def reads(self) -> set[int]:
        """The positions of the arguments that it reads."""
        groups = self.region.groups
        return {group.argument for group in groups if not isinstance(group, Currents)}


@dataclass(frozen=True, eq=False)
class EventFixed:
    """Target of a node: decays and parameters of the neurons, and what spikes add to potentials."""

    region: EventRegion

    @property
    def __name__(self) -> str:
        return "fixed"

    def __call__(self, length: int, sizes: Sizes, *arguments: Any) -> tuple[Tensor, ...]:
        """Return decays, then parameters, then matrices.

        Raises:
            UnsupportedError: What is between two neurons mixes time steps or samples.
        """
        decay, lanes, weights = self.region.fixed(length, arguments, sizes)
        decays = (x for x in decay if x is not None)
        return (*decays, *(x for each in lanes for x in each), *weights)

    @property
    def reads(self) -> set[int]:
        """The positions of the arguments that it reads."""
        found: set[int] = set()
        for group, known in zip(self.region.groups, self.region.network.groups, strict=True):
            if isinstance(group, Currents):
                places = group.linear.find_nodes(op="placeholder")[len(group.sources) :]
                pairs = zip(group.externals, places, strict=True)
                found |= {position for position, place in pairs if place.users}
                read = {*names_read(group.drive), *names_read(group.decay), *known.lanes}
                found |= _lanes(group, read)
        return found


@dataclass(frozen=True, eq=False)
class EventQueue:
    """Target of a node: the queue of spikes of a region, for some steps.

    Attributes:
        region: The region.
    """

    region: EventRegion

    @property
    def __name__(self) -> str:
        return "queue"

    @cached_property
    def network(self) -> EventNetwork:
        """The network, with the results that the next steps need behind its own."""
        own, groups = self.region.network, range(len(self.region.groups))
        lasts = [EventResult(g, Shown.LAST) for g in groups if own.groups[g].fire is not None]
        spikes = [EventResult(g, Shown.SPIKES) for g in groups if own.is_recalled(g)]
        return replace(own, results=tuple(dict.fromkeys((*own.results, *lasts, *spikes))))

    def __call__(self, elapsed: int, seed: Any, *given: Any) -> tuple[Tensor, ...]:
        """Run the steps by the reference.

        Args:
            elapsed: How many steps were taken, these included.
            seed: Of the random numbers.
            *given: Standing currents, sizes, what is fixed, membranes, and spikes of the last step.
        """
        tensors = self.tensors(*given)
        outputs = run_events(self.network, tensors, int(seed), self.before(elapsed, tensors))
        return self.shaped(outputs, tensors, given[1])

    def before(self, elapsed: int, tensors: EventTensors) -> int:
        """Return how many steps were taken before these."""
        return max(0, elapsed - len(tensors.standing[0]))

    def tensors(
        self,
        standing: Sequence[Tensor],
        sizes: Sizes,
        fixed: Sequence[Tensor],
        membranes: Sequence[Tensor],
        emitted: Sequence[Tensor],
    ) -> EventTensors:
        """Return what the network runs on."""
        neurons = len(membranes)
        flat = [*standing, *fixed[:neurons]]
        for groups, values in ((self.neurons, membranes), (self.recalled, emitted)):
            for group, value in zip(groups, values, strict=True):
                whole = value.to(standing[0]).expand(sizes.samples, *sizes.shapes[group])
                flat.append(whole.reshape(sizes.samples, standing[group].shape[2]))
        return self.network.unflatten((*flat, *fixed[neurons:]))

    def shaped(
        self, outputs: EventOutputs, tensors: EventTensors, sizes: Sizes
    ) -> tuple[Tensor, ...]:
        """Return results, then what the next steps need, with the axes of their groups."""
        found = dict(zip(self.network.results, outputs.results, strict=True))
        results = [(r.group, found[r]) for r in self.region.network.results]
        results += [(g, found[EventResult(g, Shown.LAST)]) for g in self.neurons]
        for group in self.recalled:
            spikes, before = found[EventResult(group, Shown.SPIKES)], tensors.emitted[group]
            assert before is not None
            results.append((group, spikes[-1] if len(spikes) else before))
        return tuple(x.reshape(*x.shape[:-1], *sizes.shapes[group]) for group, x in results)

    @property
    def neurons(self) -> list[int]:
        """The groups that have membranes."""
        groups = self.region.network.groups
        return [g for g, group in enumerate(groups) if group.fire is not None]

    @property
    def recalled(self) -> list[int]:
        """The groups whose spikes arrive a step later somewhere."""
        network = self.region.network
        return [g for g in range(len(network.groups)) if network.is_recalled(g)]


def _lanes(group: Currents, names: Iterable[str]) -> set[int]:
    """Return the positions of the lane inputs with some names."""
    wanted = set(names)
    return {position for name, position in group.lanes if name in wanted}
