"""What people make of the steps: sums, means, last values, losses, records, logs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Group
from tests.compatibility.neurons import Net, lif

readouts = Group("readouts")
CASES = readouts.cases

STEPS = 6


def labelled(T: int, B: int) -> tuple[Any, ...]:
    return (torch.randn(T, B, WIDTH) * 1.5).requires_grad_(), torch.randint(3, (B,))


class Stacked(Net):
    """A layer; what becomes of its stacked spikes and last potential is up to `collect`."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros(x.shape[1], WIDTH)
        out = []
        for x_t in x:
            v, s = lif(v, self.fc1(x_t))
            out.append(s)
        return self.collect(torch.stack(out), v)

    def collect(self, s: Tensor, v: Tensor) -> Any:
        raise NotImplementedError


class Running(Net):
    """A layer; `take` sees the spikes and potentials of each step."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros(x.shape[1], WIDTH)
        seen: Any = self.start(v)
        for t in range(x.shape[0]):
            v, s = lif(v, self.fc1(x[t]))
            seen = self.take(seen, t, s, v)
        return seen

    def start(self, like: Tensor) -> Any:
        return torch.zeros_like(like)

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        raise NotImplementedError


class Integrated(Net):
    """A layer, then weights into a leaky integrator that does not fire; `take` sees its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, *labels: Tensor) -> Any:
        v: Any = torch.zeros(x.shape[1], WIDTH)
        u = torch.zeros(x.shape[1], 3)
        seen: list[Tensor] = []
        for x_t in x:
            v, s = lif(v, self.fc1(x_t))
            u = 0.75 * u + self.out(s)
            seen.append(self.take(u, *labels))
        return self.collect(seen, u)

    def take(self, u: Tensor, *labels: Tensor) -> Tensor:
        return u

    def collect(self, seen: list[Tensor], u: Tensor) -> Any:
        return torch.stack(seen)


@readouts()
class MeanOverTime(Stacked):
    """The mean of the stacked spikes."""

    def collect(self, s: Tensor, v: Tensor) -> Any:
        return s.mean(dim=0)


@readouts()
class LastPotential(Stacked):
    """The potential after the last step; the spikes are dropped."""

    def collect(self, s: Tensor, v: Tensor) -> Any:
        return v


@readouts()
class LastSpikes(Stacked):
    """The spikes of the last step."""

    def collect(self, s: Tensor, v: Tensor) -> Any:
        return s[-1]


@readouts()
class FirstSpikeOfStack(Stacked):
    """When a neuron fires first, from the stacked spikes; T where it never does."""

    def collect(self, s: Tensor, v: Tensor) -> Any:
        fired = s.detach() > 0
        never = torch.full_like(v, s.shape[0]).long()
        return torch.where(fired.any(0), fired.to(s).argmax(0), never), s.cumsum(0)


@readouts(free=False, programs=2, differentiable=False)
class FirstSpikeByWhere(Running):
    """The same, kept in the loop as a float."""

    def start(self, like: Tensor) -> Any:
        return torch.full_like(like, -1.0)

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        return torch.where((seen < 0) & (s > 0), torch.full_like(seen, float(t)), seen)


@readouts(free=False, programs=2, differentiable=False)
class FirstSpikeByWrite(Running):
    """The same, the number of the step written through a mask into integers."""

    def start(self, like: Tensor) -> Any:
        return torch.full(like.shape, -1, dtype=torch.long)

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        seen[(seen < 0) & (s > 0)] = t
        return seen


@readouts()
class RunningMaximum(Running):
    """The largest potential so far."""

    def start(self, like: Tensor) -> Any:
        return torch.full_like(like, -float("inf"))

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        return torch.maximum(seen, v)


@readouts(programs=2, free=False)
class LaterSpikesCountMore(Running):
    """Spikes weighted by a function of the step."""

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        return seen + s * 0.5**t


@readouts(sizes=((STEPS, 3), (STEPS, 2)), measured=None)
class LearntWeightsOfSteps(Running):
    """Spikes weighted by a parameter [T]."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0, 1, STEPS))

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        return seen + self.w[t] * s


@readouts(neurons=2)
class MaximumOverTime(Integrated):
    """The largest potential of all steps and when it was, then a softmax."""

    def collect(self, seen: list[Tensor], u: Tensor) -> Any:
        best, when = torch.max(torch.stack(seen, 1), 1)
        return F.log_softmax(best, dim=1), when


@readouts(neurons=3, programs=2, free=False)
class LeakyReadout(Integrated):
    """A leaky integrator behind the spikes: its mean and its last value."""

    def collect(self, seen: list[Tensor], u: Tensor) -> Any:
        return sum(seen) / len(seen), u


@readouts(neurons=3)
class SoftmaxOfEachStep(Integrated):
    """Softmax at each step, added up."""

    def take(self, u: Tensor, *labels: Tensor) -> Tensor:
        return F.softmax(u, dim=1)

    def collect(self, seen: list[Tensor], u: Tensor) -> Any:
        total: Any = 0
        for probability in seen:
            total = total + probability
        return total


@readouts(neurons=3, inputs=labelled, programs=2, free=False)
class LossOfEachStep(Integrated):
    """The cross entropy of each step with labels that are an argument, and its mean."""

    def take(self, u: Tensor, *labels: Tensor) -> Tensor:
        return F.cross_entropy(u, labels[0])

    def collect(self, seen: list[Tensor], u: Tensor) -> Any:
        return sum(seen) / len(seen), u


@readouts(neurons=2, inputs=labelled)
class LossModules(Integrated):
    """Loss modules with smoothed labels and with a target made on the spot, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.entropy, self.squares = nn.CrossEntropyLoss(label_smoothing=0.1), nn.MSELoss()

    def take(self, u: Tensor, *labels: Tensor) -> Tensor:
        target = torch.zeros_like(u).fill_(1.0)
        return 0.875 * self.entropy(u, labels[0]) + 0.125 * self.squares(u, target)


@readouts()
class Concatenated(Running):
    """The spikes of all steps side by side, by `torch.cat` of a list."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros(x.shape[1], WIDTH)
        out = []
        for x_t in x:
            v, s = lif(v, self.fc1(x_t))
            out.append(s.unsqueeze(1))
        return torch.cat(out, dim=1)


@readouts()
class GrownByConcatenation(Running):
    """The record grows by `torch.cat` at each step."""

    def start(self, like: Tensor) -> Any:
        return torch.zeros(0, *like.shape)

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        return torch.cat((seen, s[None]))


@readouts()
class Preallocated(Net):
    """Buffers [B, N, T] and [T, B, N], written by index and by `copy_`."""

    def forward(self, x: Tensor) -> Any:
        T, B, _ = x.shape
        v: Any = torch.zeros(B, WIDTH)
        spikes, potentials = torch.zeros(B, WIDTH, T), torch.empty(T, B, WIDTH)
        for t in range(T):
            v, s = lif(v, self.fc1(x[t]))
            spikes[..., t] = s
            potentials[t].copy_(v)
        return spikes, potentials


@readouts(neurons=2, sizes=((7, 3), (7, 2)))
class Counts(Running):
    """Spikes of a layer are counted at each step, with and without a gradient."""

    def start(self, like: Tensor) -> Any:
        return [], 0

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        counts, total = seen
        return [*counts, s.sum()], total + s.detach().sum(dim=1)


@readouts(neurons=2)
class RatePenalty(Running):
    """A penalty on the mean rate and the potentials of each step, added up."""

    def start(self, like: Tensor) -> Any:
        return torch.zeros_like(like), torch.zeros(())

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        out, penalty = seen
        return out + s, penalty + (s.mean() - 0.1) ** 2 + 1e-3 * v.pow(2).mean()


@readouts()
class Votes(Stacked):
    """Neurons vote in groups; the class is an argmax."""

    def collect(self, s: Tensor, v: Tensor) -> Any:
        count = s.sum(0)
        return F.avg_pool1d(count.unsqueeze(1), 5).squeeze(1), count.argmax(1)


class Results(NamedTuple):
    spikes: Tensor
    potential: Tensor
    steps: int
    name: str


@readouts()
class SeveralResults(Stacked):
    """A NamedTuple with tensors, a number of steps and a name."""

    def collect(self, s: Tensor, v: Tensor) -> Any:
        return Results(s, v, s.shape[0], "layer")


@readouts(sizes=((7, 3), (7, 2)))
class DictOfResults(Running):
    """A dict with a list of tensors, a number and None."""

    def start(self, like: Tensor) -> Any:
        return {"spikes": [], "nothing": None}

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        return {**seen, "spikes": [*seen["spikes"], s], "last": v, "count": t + 1}


@readouts()
class Logged(Running):
    """Rates are formatted, and potentials taken out as lists, which go nowhere."""

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        assert f"step {t}: {s.mean().item():.2f}"
        v.detach().cpu().tolist()
        return seen + s


@readouts(expect="refused", code="capture.value-left-torch")
class ArraysOfNumpy(Running):
    """Potentials are returned as arrays of numpy."""

    def start(self, like: Tensor) -> Any:
        return []

    def take(self, seen: Any, t: int, s: Tensor, v: Tensor) -> Any:
        return [*seen, v.detach().numpy()]


@readouts()
class HandedBack(Stacked):
    """A parameter and a view of the spikes are among the results."""

    def collect(self, s: Tensor, v: Tensor) -> Any:
        return s.permute(1, 0, 2), self.fc1.weight
