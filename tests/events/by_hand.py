"""One sample of an event network, one scalar after another: what the reference must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snncc.ir import interpret
from snncc.ir.events.network import EventNetwork, EventTensors

GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
ZERO = torch.zeros((), dtype=torch.float64)


def drawn(seed: int, *numbers: int) -> float:
    """Return a random number by the formula, in whole numbers of Python."""
    z = seed
    for number in numbers:
        z = (z + (number + 1) * GOLDEN) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
    return (z >> 11) * 2.0**-53


class ByHand:
    """A network and one sample; gradients are those of autograd through all scalars.

    After ``run``, ``spikes`` and ``membranes`` are [T, N], ``counts`` a list.
    """

    def __init__(
        self, network: EventNetwork, tensors: EventTensors, sample: int, seed: int = 0
    ) -> None:
        self.network, self.tensors, self.sample, self.seed = network, tensors, sample, seed
        self.order = network.order
        self.home = [i for i, size in enumerate(tensors.sizes) for _ in range(size)]
        self.place = [j for size in tensors.sizes for j in range(size)]
        self.all = range(len(self.home))
        self.m, self.emitted = self.own(tensors.membrane), self.own(tensors.emitted)
        self.ways: dict[bool, dict[tuple[int, int], Tensor]] = {False: {}, True: {}}
        for edge, w in zip(network.edges, tensors.weights, strict=True):
            for i in self.all:
                for j in self.all:
                    if self.home[i] == edge.source and self.home[j] == edge.target:
                        self.ways[edge.is_delayed][i, j] = w[self.place[i], self.place[j]]
        self.is_input = [network.groups[g].fire is None for g in self.home]
        self.counts = [0] * 5

    def own(self, values: Sequence[Any]) -> list[Tensor]:
        """Return the values of this sample's neurons."""
        found = [(values[g], j) for g, j in zip(self.home, self.place, strict=True)]
        return [ZERO if x is None else x[self.sample][j] for x, j in found]

    def run(self) -> ByHand:
        """Take all time steps."""
        spikes, membranes = [], []
        for t in range(self.tensors.standing[0].shape[0]):
            self.start(t)
            self.step(t)
            spikes.append(torch.stack(self.emitted))
            membranes.append(torch.stack(self.m))
        self.spikes, self.membranes = torch.stack(spikes), torch.stack(membranes)
        return self

    def start(self, t: int) -> None:
        """Begin a time step."""
        groups, tensors = self.network.groups, self.tensors
        self.standing = [
            tensors.standing[g][t, self.sample, j]
            for g, j in zip(self.home, self.place, strict=True)
        ]
        for i in self.all:
            if not self.is_input[i]:
                self.m[i] = tensors.decay[self.home[i]][self.place[i]] * self.m[i]
        self.queue = [self.standing[i] if self.is_input[i] else ZERO for i in self.all]
        self.rank = [x.item() for x in self.queue]
        for (i, j), w in self.ways[True].items():
            self.counts[3] += int(self.emitted[i] != 0 and w != 0)
            self.standing[j] = self.standing[j] + self.emitted[i] * w
        self.emitted, self.refractory = list(self.queue), [False for _ in self.all]
        self.open = {g for g, group in enumerate(groups) if group.fire is not None}
        self.arriving = {g for g, group in enumerate(groups) if group.starts}
        self.picked: list[int] = []
        self.gone = [ZERO for _ in self.all]
        self.left: int | None = None

    def step(self, t: int) -> None:
        """Take forward steps until nothing is left to do."""
        k = 0
        while True:
            self.counts[0] += 1
            self.open -= self.arriving
            if self.stops(has_fired=self.evaluate(t, k)):
                return
            self.pick(t, k)
            reached = {x for i in self.picked for x in self.network.targets_of(self.home[i])}
            self.arriving = (reached & self.open) | {g for g in self.open if self.is_quiet(g)}
            if not self.picked and not self.arriving:
                return
            k += 1

    def is_quiet(self, group: int) -> bool:
        """Tell whether no spike can reach a group any more."""
        ways = {j for (i, j), w in self.ways[False].items() if i in self.picked and w != 0}
        busy = {self.home[j] for j in ways} | self.open
        busy |= {self.home[i] for i in self.all if self.queue[i] != 0}
        sources, wanted = set[int](), [group]
        while wanted:
            target = wanted.pop()
            wanted += [g for g in range(group) if target in self.network.targets_of(g)]
            sources |= set(wanted)
        return sources.isdisjoint(busy)

    def stops(self, *, has_fired: bool) -> bool:
        """Tell whether what is queued is dropped now."""
        if self.left is not None:
            self.left -= 1
        elif has_fired and self.order.stop is not None:
            self.left = self.order.stop
        return self.left == 0

    def evaluate(self, t: int, k: int) -> bool:
        """Evaluate what was reached; tell whether an output fired."""
        ways = self.ways[False]
        reached = {j for (i, j), w in ways.items() if i in self.picked and w != 0}
        reached |= {i for i in self.all if self.home[i] in self.arriving}
        has_fired = False
        for j in sorted(j for j in reached if not self.refractory[j]):
            self.counts[4] += 1
            x = self.standing[j] if self.home[j] in self.arriving else ZERO
            for i in [*self.picked, *(i for i in self.all if i not in self.picked)]:
                x = x + self.gone[i] * ways.get((i, j), ZERO)
            group, u = self.network.groups[self.home[j]], self.m[j] + x
            lanes = (lane[self.place[j]] for lane in self.tensors.lanes[self.home[j]])
            inputs = {"u": u} | dict(zip(group.lanes, lanes, strict=True))
            values = interpret.run_step(group.fire, inputs, {})
            *spike, self.m[j] = (values[name] for name in group.fire.outputs)
            for s in spike:
                self.queue[j], self.emitted[j] = self.queue[j] + s, self.emitted[j] + s
                if s != 0:
                    self.rank[j] = u.item()
                    self.counts[2] += 1
                    has_fired |= group.is_output
                    kept = drawn(self.seed, 1, self.sample, t, k, j)
                    self.refractory[j] = kept >= self.order.refractory_dropout
        return has_fired

    def priority(self, t: int, k: int, i: int) -> float:
        """Return the number that is highest for what is picked first."""
        draw = drawn(self.seed, 0, self.sample, t, k, i)
        return draw if self.order.policy == "random" else self.rank[i] + self.order.noise * draw

    def pick(self, t: int, k: int) -> None:
        """Take some neurons out of the queue."""
        waiting = [i for i in self.all if self.queue[i] != 0]
        waiting.sort(key=lambda i: -self.priority(t, k, i))
        self.picked = waiting[: self.order.group_size]
        stays = set(waiting) - set(self.picked)
        self.gone = [ZERO if i in stays else x for i, x in enumerate(self.queue)]
        self.queue = [x if i in stays else ZERO for i, x in enumerate(self.queue)]
        self.counts[1] += len(self.picked)
        ways = self.ways[False].items()
        self.counts[3] += sum(int(w != 0) for (i, _), w in ways if i in self.picked)
