"""The dynamics of neurons: decays, currents, thresholds, refractory times, resonance, delays."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Group
from tests.compatibility.neurons import spike

dynamics = Group("dynamics")
CASES = dynamics.cases
DELAYS = [n % 4 for n in range(WIDTH)]


def image(T: int, B: int) -> tuple[Any, ...]:
    return ((torch.randn(T, B, 3, 2, 2) * 1.5).requires_grad_(),)


class Neuron(nn.Module):
    """Runs `step` over [T, B, N] and stacks its spikes; states are in ``self.states(x[0])``."""

    def forward(self, x: Tensor) -> Tensor:
        state = self.initial(x[0])
        out = []
        for x_t in x:
            s, state = self.step(x_t, *state)
            out.append(s)
        return torch.stack(out)

    def initial(self, x: Tensor) -> tuple[Any, ...]:
        return (torch.zeros_like(x),)

    def step(self, x: Tensor, *state: Any) -> tuple[Tensor, tuple[Any, ...]]:
        raise NotImplementedError


class Leaky(Neuron):
    """A decay given by a method, and a soft reset."""

    def decay(self) -> Any:
        return 0.9

    def step(self, x: Tensor, v: Tensor) -> Any:
        v = self.decay() * v + x
        s = spike(v - 1.0)
        return s, (v - s,)


@dynamics()
class NumpyDecay(Leaky):
    """exp(-dt / tau) as numpy computes it: a scalar of numpy times a tensor."""

    def decay(self) -> Any:
        return numpy.exp(-1.0 / 8.0)


@dynamics()
class ExpDecay(Leaky):
    """exp(-dt / tau) of a parameter, computed again in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.tensor(5.0))

    def decay(self) -> Any:
        return torch.exp(-1.0 / self.tau)


@dynamics()
class SigmoidDecay(Leaky):
    """sigmoid(w) of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0))

    def decay(self) -> Any:
        return self.w.sigmoid()


@dynamics()
class ClampDecay(Leaky):
    """A parameter clamped at every step."""

    def __init__(self, value: float = 0.9) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(value))

    def decay(self) -> Any:
        return self.beta.clamp(0, 1)


@dynamics()
class NeuronDecay(Leaky):
    """One decay for each neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def decay(self) -> Any:
        return torch.clamp(self.beta, min=0.0, max=1.0)


@dynamics(inputs=image)
class ChannelDecay(Leaky):
    """One decay for each channel of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1.0, 2.0, 3).view(3, 1, 1))

    def decay(self) -> Any:
        return torch.sigmoid(self.w)


@dynamics(programs=2, free=False)
class DecayTable(Neuron):
    """A list of decays, one for each step, repeated when it ends."""

    decays = (0.5, 0.75, 0.875)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = self.decays[t % 3] * v + x[t]
            s = spike(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out)


@dynamics(sizes=((6, 3), (6, 2)))
class DecayTensor(Neuron):
    """A tensor of decays, indexed by the step."""

    def __init__(self) -> None:
        super().__init__()
        self.decays = nn.Parameter(torch.linspace(0.3, 0.9, 6))

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = self.decays[t] * v + x[t]
            s = spike(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out)


@dynamics(programs=2, free=False)
class DecayPower(Neuron):
    """decay ** t."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            v = v + 0.9**t * x[t]
        return spike(v - 1.0)


@dynamics()
class ParametricLIF(Neuron):
    """v + (x - (v - v_reset)) * sigmoid(w), hard reset to a value."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(-1.0))

    def step(self, x: Tensor, v: Tensor) -> Any:
        v = v + (x - (v + 0.1)) * self.w.sigmoid()
        s = spike(v - 0.5)
        return s, (s * -0.1 + (1.0 - s) * v,)


@dynamics()
class SynapseNew(Neuron):
    """The new current charges the potential."""

    def initial(self, x: Tensor) -> Any:
        return torch.zeros_like(x), torch.zeros_like(x)

    def step(self, x: Tensor, i: Tensor, v: Tensor) -> Any:
        i = 0.8 * i + x
        v = 0.9 * v + i
        s = spike(v - 1.0)
        return s, (i, v * (1 - s))


@dynamics()
class SynapseOld(SynapseNew):
    """The old current charges the potential."""

    def step(self, x: Tensor, i: Tensor, v: Tensor) -> Any:
        new = 0.8 * i + x
        v = 0.9 * v + i
        s = spike(v - 1.0)
        return s, (new, v * (1 - s))


@dynamics()
class Adaptive(SynapseNew):
    """The threshold grows with old spikes."""

    def step(self, x: Tensor, a: Tensor, v: Tensor) -> Any:
        v = 0.9 * v + x
        s = spike(v - (1.0 + 0.2 * a))
        return s, (0.95 * a + s, v - s * (1.0 + 0.2 * a))


@dynamics()
class RefractoryFloat(SynapseNew):
    """A float counts down; the neuron is silent meanwhile."""

    def step(self, x: Tensor, wait: Tensor, v: Tensor) -> Any:
        v = 0.9 * v + x * (wait <= 0)
        s = spike(v - 1.0) * (wait <= 0).to(x.dtype)
        wait = torch.where(s > 0, torch.full_like(wait, 2.0), (wait - 1).clamp(min=0))
        return s, (wait, v * (1 - s))


@dynamics()
class RefractoryInteger(Neuron):
    """An integer counts down, by masked writes."""

    dtype = torch.int64

    def initial(self, x: Tensor) -> Any:
        return torch.zeros(x.shape, dtype=self.dtype), torch.zeros_like(x)

    def step(self, x: Tensor, ref: Tensor, v: Tensor) -> Any:
        v = 0.9 * v + x
        s = spike(v - 1.0) * (ref == 0)
        ref[ref > 0] -= 1
        ref[s > 0] = 2
        return s, (ref, v * (1 - s))


@dynamics()
class RefractoryMask(Neuron):
    """A bool state: the neuron that just fired is silent in the next step."""

    def initial(self, x: Tensor) -> Any:
        return torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x)

    def step(self, x: Tensor, fired: Tensor, v: Tensor) -> Any:
        v = torch.where(fired, torch.zeros_like(v), 0.9 * v + x)
        s = spike(v - 1.0)
        return s, (s > 0, v)


@dynamics()
class SpikeCounter(Neuron):
    """A neuron that fires at most twice, counted in an integer that promotes."""

    def initial(self, x: Tensor) -> Any:
        return torch.zeros(x.shape, dtype=torch.long), torch.zeros_like(x)

    def step(self, x: Tensor, count: Tensor, v: Tensor) -> Any:
        v = 0.9 * v + x
        s = spike(v - 1.0 - 0.5 * count) * (count < 2)
        return s, (count + s.long(), v - s)


@dynamics()
class Resonate(SynapseNew):
    """Two states that rotate."""

    def step(self, x: Tensor, u: Tensor, v: Tensor) -> Any:
        b, w = -0.2, 2.0
        u_new = u + 0.1 * (b * u - w * v + x)
        v_new = v + 0.1 * (w * u + b * v)
        s = spike(u_new - 0.25)
        return s, (u_new, v_new)


@dynamics()
class ResonateComplex(Neuron):
    """A complex state."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.linspace(-1.0, -0.1, WIDTH))
        self.omega = nn.Parameter(torch.linspace(1.0, 4.0, WIDTH))

    def initial(self, x: Tensor) -> Any:
        return (torch.zeros(x.shape, dtype=x.dtype.to_complex()),)

    def step(self, x: Tensor, z: Tensor) -> Any:
        z = z * torch.exp(torch.complex(self.b, self.omega) * 0.1) + 0.5 * x
        return spike(z.real - 0.25), (z,)


@dynamics()
class ResonateReset(ResonateComplex):
    """A complex state that a spike resets; the imaginary part fires."""

    def step(self, x: Tensor, z: Tensor) -> Any:
        z = z + 0.1 * (torch.complex(self.b, self.omega) * z + x)
        s = spike(z.imag - 0.05)
        return s, (z * (1 - s) - 0.1j * s,)


@dynamics()
class TwoCompartments(SynapseNew):
    """A dendrite and a soma that pull at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor([0.3, 0.2]))

    def step(self, x: Tensor, d: Tensor, v: Tensor) -> Any:
        d_new = d + 0.1 * (-d + self.g[0] * (v - d)) + x
        v = v + 0.2 * (-v + torch.sigmoid(self.g)[1] * (d_new - v))
        s = spike(v - 0.1)
        return s, (d_new, v - 0.1 * s)


@dynamics(neurons=2)
class Branches(Neuron):
    """Dendritic branches [B, N, K], each with its own decay, summed into a soma."""

    def __init__(self) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(WIDTH, 3))
        self.proj = nn.Linear(WIDTH, 3 * WIDTH)

    def initial(self, x: Tensor) -> Any:
        return torch.zeros(x.shape[0], WIDTH, 3), torch.zeros_like(x)

    def step(self, x: Tensor, d: Tensor, v: Tensor) -> Any:
        beta = torch.sigmoid(self.tau)
        d = beta * d + (1 - beta) * self.proj(x).view(-1, WIDTH, 3)
        v = 0.9 * v + d.sum(-1)
        s = spike(v - 0.5)
        return s, (d, v * (1 - s))


@dynamics()
class DelayList(nn.Module):
    """The spikes of three steps before, from a list of all spikes."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        spikes = []
        for t in range(x.shape[0]):
            late = spikes[t - 3] if t >= 3 else torch.zeros_like(v)
            v = 0.9 * v + x[t] - 0.5 * late
            s = spike(v - 1.0)
            v = v - s
            spikes.append(s)
        return torch.stack(spikes)


@dynamics()
class DelayDeque(nn.Module):
    """The same from a deque of fixed length."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        queue = deque([torch.zeros_like(v) for _ in range(3)], maxlen=3)
        out = []
        for x_t in x:
            v = 0.9 * v + x_t - 0.5 * queue[0]
            s = spike(v - 1.0)
            v = v - s
            queue.append(s)
            out.append(s)
        return torch.stack(out)


@dynamics()
class DelayRoll(nn.Module):
    """The same from a tensor that is rolled at each step."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        buffer = torch.zeros(3, *v.shape)
        out = []
        for x_t in x:
            v = 0.9 * v + x_t - 0.5 * buffer[-1]
            s = spike(v - 1.0)
            v = v - s
            buffer = torch.roll(buffer, 1, 0)
            buffer[0] = s
            out.append(s)
        return torch.stack(out)


@dynamics()
class DelayCat(nn.Module):
    """The same from a tensor that is shifted by concatenation."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        buffer = torch.zeros(3, *v.shape)
        out = []
        for x_t in x:
            v = 0.9 * v + x_t - 0.5 * buffer[0]
            s = spike(v - 1.0)
            v = v - s
            buffer = torch.cat([buffer[1:], s.unsqueeze(0)])
            out.append(s)
        return torch.stack(out)


@dynamics()
class DelayedInput(nn.Module):
    """Each neuron sees its input some steps late: a gather from the padded sequence."""

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, 0, 3, 0))
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            late = torch.stack([padded[t + 3 - d, :, n] for n, d in enumerate(DELAYS)], -1)
            v = 0.9 * v + late
            s = spike(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out)


@dynamics()
class Quadratic(Neuron):
    """A quadratic charge."""

    def step(self, x: Tensor, v: Tensor) -> Any:
        v = v + 0.2 * (0.5 * (v + 0.1) * (v - 0.8) + x)
        s = spike(v - 0.6)
        return s, (torch.where(s > 0, torch.full_like(v, -0.1), v),)


@dynamics()
class Exponential(Neuron):
    """An exponential charge."""

    def step(self, x: Tensor, v: Tensor) -> Any:
        v = v + 0.2 * (-v + 0.5 * torch.exp((v - 0.8) / 0.5) + x)
        s = spike(v - 1.0)
        return s, (v * (1.0 - s),)


@dynamics()
class Izhikevich(SynapseNew):
    """Two states, a quadratic charge, masked writes as reset."""

    def initial(self, x: Tensor) -> Any:
        return torch.full_like(x, -13.0), torch.full_like(x, -65.0)

    def step(self, x: Tensor, u: Tensor, v: Tensor) -> Any:
        v = v + 0.5 * (0.04 * v**2 + 5 * v + 140 - u + 10 * x)
        u = u + 0.02 * (0.2 * v - u)
        s = spike((v - 30.0) / 30.0)
        v = torch.where(s.bool(), torch.full_like(v, -65.0), v)
        u = u + 8 * s
        return s, (u, v)


@dynamics()
class GLIF(Neuron):
    """Gates between exponential and linear leak, and between hard and soft reset."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(float(i))) for i in (0, 1, -1))

    def initial(self, x: Tensor) -> Any:
        return torch.zeros_like(x), torch.zeros_like(x)

    def step(self, x: Tensor, v: Tensor, s: Tensor) -> Any:
        a, b, c = self.a.sigmoid(), self.b.sigmoid(), self.c.sigmoid()
        leaked = v * (1 - a * (1 - 0.7)) - (1 - a) * 0.05
        current = x * (1 - b * (1 - 0.5))
        v = leaked * (1 - c * s) - (1 - c) * 0.3 * s + current
        s = spike(v - 0.5)
        return s, (v, s)


@dynamics()
class StateDecay(Neuron):
    """The decay is a sigmoid of the potential."""

    def step(self, x: Tensor, v: Tensor) -> Any:
        v = torch.sigmoid(v) * v + x
        s = spike(v - 1.0)
        return s, (v - s,)


@dynamics()
class SpikeDecay(GLIF):
    """The decay depends on the last spike."""

    def step(self, x: Tensor, v: Tensor, s: Tensor) -> Any:
        v = torch.where(s > 0, 0.2 * v, 0.9 * v) + x
        s = spike(v - 1.0)
        return s, (v, s)


@dynamics(neurons=2)
class LinearAfterTrace(nn.Module):
    """A leaky trace of the input, then a linear layer, then a neuron with a trace of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        p = torch.zeros_like(x[0])
        q = torch.zeros_like(x[0])
        r = torch.zeros(x.shape[1], 3)
        out = []
        for x_t in x:
            q = 0.9 * q + 0.1 * x_t
            p = 0.8 * p + 0.2 * q
            u = self.fc(p) + r
            s = spike(u)
            r = 0.65 * r - s.detach()
            out.append(s)
        return torch.stack(out)


@dynamics()
class ProjectedReset(Neuron):
    """The reset takes the potential that is left below or above the threshold's parabola."""

    def step(self, x: Tensor, v: Tensor) -> Any:
        h = 0.5 * v + x
        s = spike(h - 1.0)
        return s, (h - s * (h * h - 1.0),)


@dynamics()
class Complementary(SynapseNew):
    """CLIF: a complementary potential that remembers spikes and deepens the reset."""

    def step(self, x: Tensor, m: Tensor, u: Tensor) -> Any:
        u = u * 0.5 + x
        s = spike(u - 1.0)
        m = m * torch.sigmoid(u / 2.0) + s
        u = u - s * (1.0 + torch.sigmoid(m))
        return s, (m, u)


@dynamics()
class ComplementaryInPlace(SynapseNew):
    """CLIF as its multi-step version is written: ``sigmoid_`` overwrites the carried state."""

    def step(self, x: Tensor, m: Tensor, u: Tensor) -> Any:
        u = u * 0.5 + x
        s = spike(u - 1.0)
        m = m * torch.sigmoid(u / 2.0) + s
        u = u - s * (1.0 + torch.sigmoid_(m))
        return s, (m, u)


@dynamics()
class TwoCompartmentLIF(SynapseNew):
    """TC-LIF: the dendrite reads the soma, the soma the new dendrite."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([[0.2, -0.3]]))

    def step(self, x: Tensor, v1: Tensor, v2: Tensor) -> Any:
        decay = torch.sigmoid(self.beta)
        v1 = v1 - decay[0][0] * v2 + x
        v2 = v2 + decay[0][1] * v1
        s = spike(v2 - 0.5)
        return s, (v1 - 0.3 * s, v2 - 0.5 * s)


@dynamics()
class AdaptiveSE(SynapseNew):
    """SE-adLIF: the adaptation reads the new potential and the new spike."""

    def step(self, x: Tensor, w: Tensor, u: Tensor) -> Any:
        u = 0.9 * u + 0.1 * (x - w)
        s = spike(u - 0.1)
        u = u * (1 - s.detach())
        w = 0.8 * w + 0.2 * (0.5 * u + 0.3 * s)
        return s, (w, u)


@dynamics()
class Ternary(Neuron):
    """Spikes of -1, 0 and 1."""

    def step(self, x: Tensor, v: Tensor) -> Any:
        v = 0.9 * v + x
        s = spike(v - 1.0) - spike(-v - 1.0)
        return s, (v - s,)


@dynamics()
class MultiLevel(Neuron):
    """Spikes of 0 to 4, rounded; the straight-through trick."""

    def step(self, x: Tensor, v: Tensor) -> Any:
        v = 0.75 * v + 2 * x
        soft = torch.clamp(v, 0, 4)
        s = soft + (torch.round(soft) - soft).detach()
        return s, (v - s,)


@dynamics()
class RealSpikes(Neuron):
    """Spikes scaled by a threshold that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.v_th = nn.Parameter(torch.tensor(0.75))

    def step(self, x: Tensor, v: Tensor) -> Any:
        v = 0.9 * v + x
        s = spike(v / self.v_th - 1.0) * self.v_th
        return s, (v - s.detach(),)
