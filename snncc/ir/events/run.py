"""The reference of event networks: torch operations, one forward step after another.

With ``N`` the neurons of all groups, one time step of one sample is::

    m = decay * m;  refractory, queue q, emitted = 0;  reached = the groups that start
    repeat, from forward step k = 0:
        acc = standing of the groups reached just now, 0 elsewhere
              + q[i] * W[i] for each picked neuron i, one after another
        evaluate the groups reached just now, and what a weight other than 0 reaches,
        but no refractory neuron:
            u = m + acc;  s, m = fire(u);  q += s;  emitted += s
            refractory where s is not 0, unless that is dropped
        pick the group_size queued neurons of the highest priority; they leave the queue
        reached just now = the groups that they reach first in this time step,
                           and those not yet reached that no spike can reach any more
    until nothing is queued and all groups were reached

No spike can reach a group any more where, of all groups on the way to it, each was evaluated, none
has queued neurons, and none is evaluated in the next forward step.  So each neuron is evaluated at
least once in a time step, and the standing current of a group, with the feedback of the step
before, arrives with its first event.  Samples do not see each other: here they take their forward
steps side by side, and one that is done waits.

Gradients are those of autograd through these steps.  Picking has none.  What is queued keeps its
gradient until it is picked; a neuron that is not queued delivers its zero at once, so that silent
neurons learn from the evaluations that follow theirs.

Source: arXiv 2408.05098, sections 3 and A; `docs/async.md` says where this differs, and why.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from snncc.ir import interpret
from snncc.ir.events.draws import Purpose, uniform
from snncc.ir.events.network import EventNetwork, EventTensors, Shown

_LOWEST = torch.finfo(torch.float64).min
# The columns of the counts.
COUNTS = ("forward_steps", "events", "spikes", "operations", "evaluations")


class EventOutputs(NamedTuple):
    """What a network gives.

    Attributes:
        results: One tensor for each `EventResult`.
        counts: [B, 5]: for each sample the sums over time that `COUNTS` names.
    """

    results: tuple[Tensor, ...]
    counts: Tensor


def run_events(
    network: EventNetwork, tensors: EventTensors, seed: int = 0, before: int = 0
) -> EventOutputs:
    """Run a network by the reference.

    Args:
        network: The network.
        tensors: What it runs on.
        seed: Of the random numbers, where its order draws any.
        before: How many time steps were taken before; random numbers go on from there.
    """
    run = _Run(network, tensors, seed, before)
    seen: list[tuple[Tensor, Tensor]] = []
    for t in range(tensors.standing[0].shape[0]):
        run.step(t)
        seen.append((run.emitted, run.membrane))
    spikes, membranes = (
        torch.stack([each[i] for each in seen]) if seen else run.none[None][:0] for i in (0, 1)
    )
    shown = {Shown.SPIKES: spikes, Shown.MEMBRANES: membranes, Shown.LAST: run.membrane}
    results = tuple(shown[r.shown][..., run.slices[r.group]] for r in network.results)
    return EventOutputs(results, run.counts)


class _Deliver(torch.autograd.Function):
    """``base + sum over j of e[picked j] * W[picked j]``, added up one after another."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, e: Tensor, weights: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(e, weights)
        total = base.clone()
        for column in order.unbind(1):
            height = e.gather(1, column.clamp(min=0)[:, None])
            row = weights[column.clamp(min=0)]
            total += torch.where((column[:, None] < 0) | (row == 0), 0.0, height * row)
        return total

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (e, weights) = cotangents, ctx.saved_tensors
        return g, g @ weights.t(), e.t() @ g, None


class _Run:
    """The state of all neurons of all groups, [B, N] each."""

    def __init__(
        self, network: EventNetwork, tensors: EventTensors, seed: int, before: int
    ) -> None:
        self.network, self.tensors, self.seed, self.before_all = network, tensors, seed, before
        first = tensors.standing[0]
        self.samples, self.total = first.shape[1], sum(tensors.sizes)
        self.slices = [
            slice(start, start + size)
            for start, size in zip(tensors.firsts, tensors.sizes, strict=True)
        ]
        self.none = first.new_zeros(self.samples, self.total)
        self.never = self.none.bool()
        self.membrane = self._joined(tensors.membrane)
        self.emitted = self._joined(tensors.emitted)
        self.decay = self._by_neuron(tensors.decay)
        self.now, self.later = self._weights(is_delayed=False), self._weights(is_delayed=True)
        self.is_nonzero = self.now != 0
        self.fan_out, self.late_fan_out = self.is_nonzero.sum(1), (self.later != 0).sum(1)
        self.counts = first.new_zeros(self.samples, len(COUNTS), dtype=torch.int64)
        self.numbers = torch.arange(self.total, device=first.device)
        self.rows = torch.arange(self.samples, device=first.device)[:, None]
        inputs = [
            self.none.new_full((size,), group.fire is None, dtype=torch.bool)
            for group, size in zip(network.groups, tensors.sizes, strict=True)
        ]
        self.is_input = torch.cat(inputs)
        self.touches = torch.stack([self.is_nonzero[:, p].any(1) for p in self.slices], 1)

    def _joined(self, tensors: tuple[Tensor | None, ...]) -> Tensor:
        sizes = zip(tensors, self.tensors.sizes, strict=True)
        zeros = self.none.new_zeros
        each = [zeros(self.samples, n) if x is None else x for x, n in sizes]
        return torch.cat(each, 1)

    def _by_neuron(self, tensors: tuple[Tensor | None, ...]) -> Tensor:
        sizes = zip(tensors, self.tensors.sizes, strict=True)
        return torch.cat([self.none.new_ones(n) if x is None else x.expand(n) for x, n in sizes])

    def _weights(self, *, is_delayed: bool) -> Tensor:
        """Return the matrices of all edges as one, [N, N]."""
        whole = self.none.new_zeros(self.total, self.total)
        for edge, weight in zip(self.network.edges, self.tensors.weights, strict=True):
            if edge.is_delayed is is_delayed:
                whole[self.slices[edge.source], self.slices[edge.target]] = weight
        return whole

    def step(self, t: int) -> None:
        """Take one time step."""
        self._start(t)
        if not self.samples:
            return
        arriving = [self._of_samples(group.starts) for group in self.network.groups]
        order, e, k = self.numbers.new_full((self.samples, 0), -1), self.none, 0
        running = self._of_samples(True)
        while True:
            self.counts[:, 0] += running
            self._evaluate(t, k, running, arriving, order, e)
            running = running & ~self._is_stopped(running)
            order = self._picked(t, k, running)
            e = self._taken(order)
            arriving = self._arriving(order, running)
            running = (order >= 0).any(1) | torch.stack(arriving).any(0)
            if not bool(running.any()):
                return
            k += 1

    def _of_samples(self, value: bool) -> Tensor:
        return self.never.new_full((self.samples,), value)

    def _start(self, t: int) -> None:
        """Leak, queue the inputs, and let the spikes of the step before arrive."""
        self.membrane = self.decay * self.membrane
        self.standing = torch.cat([x[t] for x in self.tensors.standing], 1)
        self.queue = torch.where(self.is_input, self.standing, 0.0)
        self.before = self.queue.detach()
        if any(edge.is_delayed for edge in self.network.edges):
            late = self.emitted != 0
            self.counts[:, 3] += (late * self.late_fan_out).sum(1)
            order = torch.where(late, self.numbers, -1)
            self.standing = _deliver(self.standing, self.emitted, self.later, order)
        self.emitted, self.refractory = self.queue, self.never
        self.unreached = torch.stack(
            [self._of_samples(group.fire is not None) for group in self.network.groups]
        )
        self.left = self.counts.new_full((self.samples,), -1)

    def _evaluate(  # noqa: PLR0913 - one forward step
        self, t: int, k: int, running: Tensor, arriving: list[Tensor], order: Tensor, e: Tensor
    ) -> None:
        first = torch.cat(
            [
                (now & running)[:, None].expand(-1, size)
                for now, size in zip(arriving, self.tensors.sizes, strict=True)
            ],
            1,
        )
        self.unreached = self.unreached & ~torch.stack(arriving)
        touched = (self.is_nonzero[order.clamp(min=0)] & (order >= 0)[..., None]).any(1)
        evaluated = (first | touched) & ~self.refractory
        current = _deliver(torch.where(first, self.standing, 0.0), e, self.now, order)
        potential = self.membrane + current
        spikes, after = self._fired(potential)
        spikes = torch.where(evaluated, spikes, 0.0)
        self.membrane = torch.where(evaluated, after, self.membrane)
        fired = spikes.detach() != 0
        self.before = torch.where(fired, potential.detach(), self.before)
        self.queue, self.emitted = self.queue + spikes, self.emitted + spikes
        self.refractory = self.refractory | (fired & self._is_kept(t, k))
        self.fired = fired
        self.counts[:, 2] += fired.sum(1)
        self.counts[:, 4] += evaluated.sum(1)

    def _fired(self, potential: Tensor) -> tuple[Tensor, Tensor]:
        """Return spikes and membranes after them, as if all neurons were evaluated."""
        spikes, after = [], []
        for group, part, lanes in zip(
            self.network.groups, self.slices, self.tensors.lanes, strict=True
        ):
            u = potential[:, part]
            if group.fire is None:
                spikes.append(torch.zeros_like(u))
                after.append(u)
                continue
            inputs = {group.potential: u} | dict(zip(group.lanes, lanes, strict=True))
            values = interpret.run_step(group.fire, inputs, {})
            shown = [values[name].to(u.dtype).expand_as(u) for name in group.fire.outputs]
            spikes.append(shown[0] if group.fires else torch.zeros_like(u))
            after.append(shown[-1])
        return torch.cat(spikes, 1), torch.cat(after, 1)

    def _is_kept(self, t: int, k: int) -> Tensor:
        """Tell for which neurons firing makes them refractory."""
        chance = self.network.order.refractory_dropout
        if chance == 0.0:
            return ~self.never
        place = (self.rows, self.before_all + t, k, self.numbers)
        draws = uniform(self.seed, Purpose.REFRACTORY, *place)
        return draws >= chance

    def _is_stopped(self, running: Tensor) -> Tensor:
        """Tell which samples drop what is queued, as an output has fired long enough ago."""
        stop = self.network.order.stop
        if stop is None:
            return self._of_samples(False)
        outputs = [p for g, p in zip(self.network.groups, self.slices, strict=True) if g.is_output]
        has_fired = torch.stack([self.fired[:, part].any(1) for part in outputs]).any(0)
        self.left = torch.where((self.left < 0) & has_fired, stop + 1, self.left)
        self.left = torch.where(running & (self.left > 0), self.left - 1, self.left)
        return self.left == 0

    def _picked(self, t: int, k: int, running: Tensor) -> Tensor:
        """Return the neurons that deliver next, [B, most], in order; -1 where there are fewer."""
        order = self.network.order
        queued = (self.queue.detach() != 0) & running[:, None]
        most = min(order.group_size, int(queued.sum(1).max()))
        priority = self.before.to(torch.float64)
        if order.policy == "random" or order.noise > 0.0:
            place = (self.rows, self.before_all + t, k, self.numbers)
            draws = uniform(self.seed, Purpose.ORDER, *place)
            priority = draws if order.policy == "random" else priority + order.noise * draws
        priority = torch.where(priority >= _LOWEST, priority, _LOWEST)  # what is no number, too
        priority = torch.where(queued, priority, -torch.inf)
        indices = priority.sort(stable=True, dim=1, descending=True).indices[:, :most]
        return torch.where(queued.gather(1, indices), indices, -1)

    def _taken(self, order: Tensor) -> Tensor:
        """Take what is picked out of the queue, and the zeros of neurons that are not in it."""
        self.counts[:, 1] += (order >= 0).sum(1)
        self.counts[:, 3] += (self.fan_out[order.clamp(min=0)] * (order >= 0)).sum(1)
        picked = self.never.new_zeros(self.samples, self.total + 1)
        picked = picked.scatter(1, torch.where(order < 0, self.total, order), True)[:, :-1]
        leaves = picked | (self.queue.detach() == 0)
        e = torch.where(leaves, self.queue, 0.0)
        self.queue = torch.where(leaves, 0.0, self.queue)
        return e

    def _arriving(self, order: Tensor, running: Tensor) -> list[Tensor]:
        """Return for each group in which samples it is reached for the first time."""
        network, delivers = self.network, order >= 0
        touched = (self.touches[order.clamp(min=0)] & delivers[..., None]).any(1)
        found, is_blocked = list[Tensor](), [self._of_samples(False) for _ in network.groups]
        reached = [self._of_samples(False) for _ in network.groups]
        for group, part in enumerate(self.slices):
            spikes = ((order >= part.start) & (order < part.stop)).any(1)
            waits = (self.queue[:, part].detach() != 0).any(1)
            may_fire = waits | touched[:, group] | self.unreached[group]
            for target in network.targets_of(group):
                reached[target] = reached[target] | spikes
                is_blocked[target] = is_blocked[target] | may_fire | is_blocked[group]
            found.append(self.unreached[group] & (reached[group] | ~is_blocked[group]) & running)
        return found


def _deliver(base: Tensor, e: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    result: Tensor = _Deliver.apply(base, e, weights, order)  # type: ignore[no-untyped-call]
    return result
