"""A part of a sequence graph that runs as a network of events: neurons and what is between them.

What lies between neurons is kept as graphs of the user's own operators.  In each call they are run
for what a group gets without any spike (`Currents.standing`), and on one spike at a time for the
matrices (`Currents.linear`), so that both follow the weights and are differentiable in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.fx
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.ir import interpret
from snncc.ir.events.currents import Currents, Given, Sizes
from snncc.ir.events.draws import new_seed
from snncc.ir.events.network import EventNetwork, EventTensors
from snncc.ir.events.run import run_events
from snncc.ir.nodes import Expr, Var

MOST_WEIGHTS = 2**26  # of one matrix

# For each group a decay, then the parameters of each group, then the matrix of each edge.
Fixed: TypeAlias = tuple[
    tuple[Tensor | None, ...], tuple[tuple[Tensor, ...], ...], tuple[Tensor, ...]
]


@dataclass(frozen=True, eq=False)
class EventRegion:
    """Target of a ``call_function`` node: ``call(length, *arguments)``.

    Its result is a tuple: what of the network is seen outside, [T, B, *] or [B, *].  Calling it
    runs the reference.

    Attributes:
        network: The network.
        dtype: The type of potentials.
        groups: For each group what drives it, or which argument it is.
        emitted: For each group the position of its spikes before the first step among the
            arguments, or a number; None where no edge recalls them.
    """

    network: EventNetwork
    dtype: torch.dtype
    groups: tuple[Currents | Given, ...]
    emitted: tuple[int | float | None, ...]
    separate: set[tuple[Any, ...]] = field(default_factory=set)

    @property
    def __name__(self) -> str:
        return "events"

    def __call__(self, length: int, *arguments: Any) -> tuple[Tensor, ...]:
        """Run the network by the reference."""
        tensors = self.tensors(length, arguments)
        outputs = run_events(self.network, tensors, self.seed())
        return self.shaped(outputs.results)

    def seed(self) -> int:
        """Return the seed of a call; torch's generator is left alone where nothing is drawn."""
        return new_seed() if self.network.order.draws else 0

    def shaped(self, results: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return results with the axes of their groups."""
        shapes = [
            getattr(self.groups[result.group], "shape", ()) for result in self.network.results
        ]
        return tuple(
            x.reshape(*x.shape[:-1], *shape) for x, shape in zip(results, shapes, strict=True)
        )

    def tensors(self, length: int, arguments: Sequence[Any]) -> EventTensors:
        """Return what the network runs on in a call.

        Raises:
            UnsupportedError: What is between two neurons mixes time steps or samples.
        """
        made = _Tensors(self, length, arguments)
        decay, lanes, weights = made.fixed()
        neurons = [g if isinstance(g, Currents) else None for g in self.groups]
        return EventTensors(
            standing=tuple(made.standing(g) for g in self.groups),
            decay=decay,
            membrane=tuple(None if g is None else made.membrane(g) for g in neurons),
            emitted=tuple(map(made.emitted, self.groups, self.emitted)),
            lanes=lanes,
            weights=weights,
        )

    def standing(
        self, length: int, arguments: Sequence[Any], *, is_later: bool = False
    ) -> tuple[Tensor, ...]:
        """Return what each group gets without any spike, [T, B, n].

        Args:
            length: The number of steps.
            arguments: Those of the call.
            is_later: Whether steps were taken before.
        """
        made = _Tensors(self, length, arguments, is_later=is_later)
        return tuple(made.standing(group) for group in self.groups)

    def sizes(self, samples: int, arguments: Sequence[Any]) -> Sizes:
        """Return the sizes of a call; of the arguments those that are events are read."""
        shapes = (
            group.shape if isinstance(group, Currents) else arguments[group.argument].shape[2:]
            for group in self.groups
        )
        return Sizes(samples, tuple(map(tuple, shapes)))

    def fixed(self, length: int, arguments: Sequence[Any], sizes: Sizes) -> Fixed:
        """Return decays, parameters and matrices; arguments that these do not need may be None.

        Raises:
            UnsupportedError: What is between two neurons mixes time steps or samples.
        """
        return _Tensors(self, length, arguments, sizes).fixed()

    def driven(
        self, length: int, arguments: Sequence[Any], group: Currents, spikes: Sequence[Tensor]
    ) -> Tensor:
        """Return what spikes [T, B, n] of the sources of a group make of its input, as written."""
        made = _Tensors(self, length, arguments)
        shaped = [
            x.reshape(*x.shape[:2], *made.shapes[self.network.edges[edge].source])
            for x, edge in zip(spikes, group.sources, strict=True)
        ]
        return made.whole(group, shaped, length)


class _Tensors:
    """Makes the tensors of one call; sizes that are known need not be found."""

    def __init__(
        self,
        region: EventRegion,
        length: int,
        arguments: Sequence[Any],
        sizes: Sizes | None = None,
        *,
        is_later: bool = False,
    ) -> None:
        self.region, self.length, self.arguments = region, length, arguments
        self.is_later = is_later
        if sizes is None:
            samples, self.like = self._samples()
            sizes = region.sizes(samples, arguments)
        else:
            tensors = (x for x in arguments if isinstance(x, Tensor))
            device = next((x.device for x in tensors), None)
            self.like = torch.zeros((), dtype=region.dtype, device=device)
        self.samples, self.shapes = sizes.samples, sizes.shapes

    def _samples(self) -> tuple[int, Tensor]:
        """Return the batch size, and some tensor on the device of all of them."""
        sizes, like = list[int](), list[Tensor]()
        for group, start in zip(self.region.groups, self.region.emitted, strict=True):
            if isinstance(group, Given):
                x = self.arguments[group.argument]
                return x.shape[1], x.to(self.region.dtype)
            known, seen = self._seen(group)
            first = self.arguments[start] if isinstance(start, int) else None
            if isinstance(first, Tensor) and first.dim() == len(group.shape) + 1:
                known, seen = [*known, first.shape[0]], [*seen, first]
            sizes, like = sizes + known, like + seen
            if not group.sources:
                break
        return 0 if 0 in sizes else max(sizes, default=1), like[0].to(self.region.dtype)

    def _seen(self, group: Currents) -> tuple[list[int], list[Tensor]]:
        """Return the batch sizes that show in what drives a group, and the tensors of it."""
        rank, externals = len(group.shape) + 1, self._externals(group)
        known = (self.arguments[i] for _, i in group.lanes)
        lanes = [torch.as_tensor(x) for x in known if x is not None]
        sizes = [x.shape[0] for x in lanes if x.dim() == rank]
        if not group.sources:
            steps = group.run_standing(*externals)
            return sizes + [x.shape[1] for x in steps if x.dim() > rank], [*steps, *lanes]
        given = ((externals[place], axis) for place, axis in group.batched)
        sizes += [x.shape[axis] for x, axis in given if isinstance(x, Tensor) and x.dim() > axis]
        return sizes, [x for x in (*externals, *lanes) if isinstance(x, Tensor)]

    def _externals(self, group: Currents) -> list[Any]:
        return [self.arguments[i] for i in group.externals]

    def _lanes(self, group: Currents) -> dict[str, Tensor]:
        """Return the lane inputs of a group by name."""
        values = ((name, self.arguments[i]) for name, i in group.lanes)
        return {n: torch.as_tensor(x).to(self.like) for n, x in values if x is not None}

    def _driven(self, group: Currents, inputs: Sequence[Tensor], *, alone: bool = False) -> Tensor:
        """Return what inputs [T, *] add to the membrane; alone, without what is a sample's own."""
        lanes = self._lanes(group)
        lanes |= {name: torch.zeros_like(lanes[name]) for name in group.own if alone}
        known = dict(zip(group.steps, (x.to(self.like) for x in inputs), strict=True)) | lanes
        return interpret.evaluate(group.drive, known, self.like)

    def standing(self, group: Currents | Given) -> Tensor:
        """Return what a group gets without any spike, [T, B, n]."""
        if isinstance(group, Given):
            return torch.as_tensor(self.arguments[group.argument]).flatten(2).to(self.like)
        is_long = group.is_varying or group.is_sized or not group.sources
        length = self.length if is_long else 1
        silence = [self._silence(edge, length) for edge in group.sources]
        return self.whole(group, silence, length).expand(self.length, -1, -1)

    def whole(self, group: Currents, spikes: Sequence[Tensor], length: int) -> Tensor:
        """Return what a group gets with some spikes of its sources, [length, B, n]."""
        run = group.run_later if self.is_later else group.run_standing
        value = self._driven(group, run(*spikes, *self._externals(group)))
        whole = value.expand(length, self.samples, *group.shape)
        return whole.reshape(length, self.samples, torch.Size(group.shape).numel())

    def _silence(self, edge: int, length: int) -> Tensor:
        shape = self.shapes[self.region.network.edges[edge].source]
        return self.like.new_zeros(length, self.samples, *shape)

    def fixed(self) -> Fixed:
        """Return decays, parameters and matrices.

        Raises:
            UnsupportedError: What is between two neurons mixes time steps or samples.
        """
        self.require_separate()
        known = zip(self.region.groups, self.region.network.groups, strict=True)
        pairs = [(g if isinstance(g, Currents) else None, group.lanes) for g, group in known]
        return (
            tuple(None if g is None else self.by_neuron(g, g.decay) for g, _ in pairs),
            tuple(
                () if g is None else tuple(self.by_neuron(g, Var(name)) for name in names)
                for g, names in pairs
            ),
            self.weights(),
        )

    def by_neuron(self, group: Currents, value: Expr) -> Tensor:
        """Return the value of an expression of lane inputs for each neuron, [n]."""
        lanes = {
            name: x[:1] if x.dim() == len(group.shape) + 1 else x
            for name, x in self._lanes(group).items()
        }
        result = interpret.evaluate(value, lanes, self.like)
        return result.expand(1, *group.shape).reshape(-1)

    def membrane(self, group: Currents) -> Tensor:
        """Return the membrane before the first step, [B, n]."""
        value = interpret.evaluate(group.initial, self._lanes(group), self.like)
        count = torch.Size(group.shape).numel()
        return value.expand(self.samples, *group.shape).reshape(self.samples, count)

    def emitted(self, group: Currents | Given, start: int | float | None) -> Tensor | None:
        """Return the spikes before the first step, [B, n]."""
        if start is None:
            return None
        value = self.arguments[start] if isinstance(start, int) else start
        tensor = torch.as_tensor(value).to(self.like)
        shape = getattr(group, "shape", ())
        count = torch.Size(shape).numel()
        return tensor.expand(self.samples, *shape).reshape(self.samples, count)

    def weights(self) -> tuple[Tensor, ...]:
        """Return the matrix of each edge, [sources, targets]."""
        made: dict[int, Tensor] = {}
        if not self.samples:
            sizes = [torch.Size(shape).numel() for shape in self.shapes]
            edges = self.region.network.edges
            return tuple(self.like.new_zeros(sizes[e.source], sizes[e.target]) for e in edges)
        for group in self.region.groups:
            if isinstance(group, Currents):
                gains = self._gains(group)
                for edge in group.sources:
                    made[edge] = self._matrix(group, edge, gains)
        return tuple(made[edge] for edge in range(len(self.region.network.edges)))

    def _gains(self, group: Currents) -> list[Tensor]:
        """Return what a unit of each STEP input adds to the membrane."""
        zero = self.like.new_zeros(())
        none = self._driven(group, [zero] * len(group.steps), alone=True)
        units = (
            [zero + (i == j) for j in range(len(group.steps))] for i in range(len(group.steps))
        )
        return [self._driven(group, each, alone=True) - none for each in units]

    def _effect(self, group: Currents, spikes: Sequence[Tensor], gains: list[Tensor]) -> Tensor:
        """Return what spikes [T, B, *] of the sources add to the membranes, [T, B, *]."""
        parts = group.run_linear(*spikes, *self._externals(group))
        shape = (*spikes[0].shape[:2], *group.shape)
        total: Any = 0.0
        for part, gain in zip(parts, gains, strict=True):
            if part is not None:
                if part.shape[:2] != shape[:2]:
                    raise self._mixes(group)
                total = total + gain * part
        result: Tensor = total.expand(shape)
        return result

    def _mixes(self, group: Currents) -> UnsupportedError:
        return UnsupportedError(
            "What is between two neurons mixes time steps or samples.",
            code="unsupported.async-network",
            location=group.neuron.where,
            notes=["A spike has one effect, whenever and in which sample it comes."],
            hints=["Keep time and batch as the first two axes; or use mode='fused'."],
        )

    def _matrix(self, group: Currents, edge: int, gains: list[Tensor]) -> Tensor:
        """Return what one spike of each source adds."""
        shape = self.shapes[self.region.network.edges[edge].source]
        count = torch.Size(shape).numel()
        if count * torch.Size(group.shape).numel() > MOST_WEIGHTS:
            raise UnsupportedError(
                "A matrix between two neuron layers is too large.",
                code="unsupported.async-network",
                location=group.neuron.where,
                notes=[
                    f"{count} sources of {tuple(group.shape)} targets; {MOST_WEIGHTS} weights fit"
                ],
                hints=["Use mode='fused', which needs no matrix of a convolution."],
            )
        if group.weight is not None and (len(shape), len(group.shape)) == (1, 1):
            weight: Tensor = self.arguments[group.externals[group.weight]]
            return gains[0] * weight.to(self.like).t()
        length = self.length if group.is_sized else -(-count // self.samples)
        rows = length * self.samples
        spikes = [self._silence(each, length) for each in group.sources]
        made = []
        for first in range(0, count, rows):
            units = self.like.new_zeros(rows, count)
            units[: count - first, first : first + rows].fill_diagonal_(1.0)
            spikes[group.sources.index(edge)] = units.reshape(length, self.samples, *shape)
            made.append(self._effect(group, spikes, gains).reshape(rows, -1))
        return torch.cat(made)[:count]

    def require_separate(self) -> None:
        """Check that neither time steps nor samples mix, where that is not known yet."""
        known, length = self.region.separate, self.length
        for index, group in enumerate(self.region.groups):
            if isinstance(group, Currents) and group.sources and self.samples and length:
                # With a step more than there are, no shift of steps is none.
                key = (index, self.samples, length if group.is_sized else None)
                if key not in known and self._is_separate(group, length + (not group.is_sized)):
                    known.add(key)

    def _is_separate(self, group: Currents, length: int) -> bool:
        """Tell whether spikes do the same wherever they are; not known where that is no number.

        Raises:
            UnsupportedError: They do not.
        """
        with torch.no_grad():
            gains = self._gains(group)
            generator = torch.Generator().manual_seed(0)  # the user's is left alone
            once = [
                torch.rand(self._silence(e, 1)[:, :1].shape, generator=generator).to(self.like)
                for e in group.sources
            ]
            alike = [x.expand(length, self.samples, *x.shape[2:]).clone() for x in once]
            same = self._effect(group, alike, gains)
            for x in alike:
                x[1:], x[:, :-1] = 0.0, 0.0  # the last sample of the first step is left
            alone = self._effect(group, alike, gains)
        first = same[:1, -1:]
        expected = torch.zeros_like(alone)
        expected[:1, -1:] = first
        numbers = first.isfinite()
        scale = first[numbers].abs().max() if bool(numbers.any()) else 0.0
        for found, wanted in ((same, first.expand_as(same)), (alone, expected)):
            difference = (found - wanted).abs()
            if bool((difference > 1e-4 * scale).any()):
                raise self._mixes(group)
        return bool(numbers.all())
