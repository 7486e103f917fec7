"""What a spike does to the potential: to which value it is reset, when, how it is written."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Group, Model
from tests.compatibility.neurons import spike

resets = Group("resets")
CASES = resets.cases


class Layer(nn.Module):
    """A weight and leaky neurons; `reset` makes the carried potential from that which fired."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.v_reset = nn.Parameter(torch.linspace(-0.5, 0.25, WIDTH))
        self.v_threshold = nn.Parameter(torch.linspace(0.5, 1.0, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            h = 0.75 * v + self.fc(x_t)
            s = self.fire(h)
            v = self.reset(h, s)
            out.append(s)
        return torch.stack(out), v

    def fire(self, h: Tensor) -> Tensor:
        return spike(h - 0.75)

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        raise NotImplementedError


class Carried(Layer):
    """`step` takes and returns the potential and the spikes, which the next step reads."""

    def forward(self, x: Tensor) -> Tensor:
        v = s = torch.zeros(x.shape[1:])
        out = []
        for x_t in x:
            v, s = self.step(self.fc(x_t), v, s)
            out.append(s)
        return torch.stack(out), v

    def step(self, x: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@resets()
class Hard(Layer):
    """To zero, by a factor."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h * (1.0 - s)


@resets()
class HardDetached(Layer):
    """To zero, by a factor without a gradient."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h * (1.0 - s.detach())


@resets()
class HardBeforeDecay(Carried):
    """To zero by the spike before, then decay: `(1 - s) * mem * decay + x`."""

    def step(self, x: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        v = (1.0 - s) * v * 0.75 + x
        return v, spike(v - 0.75)


@resets()
class ToThresholdThenDecay(Layer):
    """To the threshold, and the decay comes after: `(s * v_th + (1 - s) * u) * alpha`."""

    def forward(self, x: Tensor) -> Tensor:
        u = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            u = u + self.fc(x_t)
            s = spike(u - 0.5)
            u = (s * 0.5 + (1.0 - s) * u) * 0.75
            out.append(s)
        return torch.stack(out)


@resets()
class ResidualAboveThreshold(Layer):
    """Where it fires, what is above the threshold remains."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return s * F.relu(h - 0.75) + (1.0 - s) * h


@resets()
class ToLearntValue(Layer):
    """To a parameter, one value for each neuron."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return s * self.v_reset + (1.0 - s) * h


@resets()
class ToLearntValueByWhere(Layer):
    """To a parameter by `torch.where`, through which spikes have no gradient."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return torch.where(s.bool(), self.v_reset, h)


@resets()
class ToRandomValue(Layer):
    """To a value drawn at every step."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return torch.where(s > 0, 0.5 * torch.rand_like(h), h)


@resets()
class Soft(Layer):
    """By subtraction of the threshold."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - s * 0.75


@resets()
class SoftDetached(Layer):
    """By subtraction, without the gradient of the spike."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - s.detach() * 0.75


class LearntThreshold(Layer):
    def fire(self, h: Tensor) -> Tensor:
        return spike(h - self.v_threshold)


@resets()
class SoftLearntThreshold(LearntThreshold):
    """By subtraction of a threshold that is learnt."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - s * self.v_threshold


@resets()
class SoftThresholdDetached(LearntThreshold):
    """The threshold is detached in the reset, the spike is not."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - s * self.v_threshold.detach()


@resets()
class SoftSpikeDetached(LearntThreshold):
    """The spike is detached in the reset, the learnt threshold is not."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - s.detach() * self.v_threshold


@resets()
class Multiples(Layer):
    """Spikes count how often the threshold fits; that many thresholds are subtracted."""

    def fire(self, h: Tensor) -> Tensor:
        soft = (h / 0.5).clamp(0.0, 4.0)
        return soft + (soft.floor() - soft).detach()

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - 0.5 * s


@resets()
class DelayedRecomputed(Layer):
    """By one step, from the spike function of the potential before, detached, twice in a step."""

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            reset = spike(mem - 0.75).detach()
            mem = 0.75 * mem + self.fc(x_t) - reset * 0.75
            out.append(spike(mem - 0.75))
        return torch.stack([*out, mem])


@resets()
class DelayedMaskedWrite(Layer):
    """By one step, written into zeros through the mask of the potential before."""

    def forward(self, x: Tensor) -> Tensor:
        mem, syn = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        out = []
        for x_t in x:
            above = mem - 0.75
            out.append(spike(above))
            rst, c = torch.zeros_like(mem), above > 0
            rst[c] = torch.ones_like(mem)[c]
            mem, syn = 0.875 * mem + syn - rst, 0.75 * syn + self.fc(x_t)
        return torch.stack(out)


@resets()
class DelayedSoft(Carried):
    """By one step, from the spike that is carried, with its gradient."""

    def step(self, x: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.75 * (v - 0.75 * s) + x
        return v, spike(v - 0.75)


@resets()
class DelayedHard(Carried):
    """By one step to zero: the new input is lost as well."""

    def step(self, x: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        v = (0.75 * v + x) * (1.0 - s.detach())
        return v, spike(v - 0.75)


@resets()
class ByWhere(Layer):
    """To zero by `torch.where` and a comparison of its own."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return torch.where(h > 0.75, torch.zeros_like(h), h)


@resets()
class MaskedFill(Layer):
    """`masked_fill` with the spikes as mask."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h.masked_fill(s.bool(), -0.25)


@resets()
class MaskedWrite(Layer):
    """`v[s > 0] = 0` in place, into the potential that fired."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        h[s > 0] = 0.0
        return h


@resets(neurons=0)
class MaskedWriteOfValues(Layer):
    """`v[c] = other[c]`: the values of another tensor at the places that fired."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        c = s.detach().bool()
        h = h.clone()
        h[c] = self.v_reset.expand_as(h)[c]
        return h


@resets()
class InPlaceSubtraction(Layer):
    """`v -= s` in place."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        h -= 0.75 * s
        return h


@resets()
class InPlaceFactor(Layer):
    """`v *= 1 - s` in place."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        h *= 1.0 - s
        return h


@resets()
class WithoutGradientInPlace(Layer):
    """Zeros are written under `torch.no_grad`: the gradient passes as if they were not."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        with torch.no_grad():
            h[s > 0] = 0.0
        return h


@resets()
class NoReset(Layer):
    """None: a leaky integrator that fires."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h


@resets()
class BothStates(Layer):
    """A spike resets the synaptic current as well."""

    def forward(self, x: Tensor) -> Tensor:
        i = v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            i = 0.5 * i + self.fc(x_t)
            v = 0.75 * v + i
            s = spike(v - 0.75)
            i, v = i * (1.0 - s), v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


class Clipped(Layer):
    def fire(self, h: Tensor) -> Tensor:
        return F.relu(h - self.v_threshold)


@resets()
class ClippedByMinimum(Clipped):
    """P2: the potential is clipped at a learnt threshold, what is above it is sent on."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return torch.minimum(h, self.v_threshold)


@resets()
class ClippedBySubtraction(Clipped):
    """P2 as `h - relu(h - v_th)`; what is sent on is rounded to sixteen levels."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            h = torch.sigmoid(self.v_reset) * v + self.fc(x_t)
            s = self.fire(h)
            v = h - s
            out.append(s + ((4.0 * s).round().clamp(0, 15) / 4.0 - s).detach())
        return torch.stack(out)


@resets()
class ClippedOnline(Clipped):
    """P2 with `v.detach()` in the charge: no gradient goes back in time."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            h = torch.sigmoid(self.v_reset) * v.detach() + self.fc(x_t)
            s = self.fire(h)
            v = h - s
            out.append(s)
        return torch.stack(out)


@resets()
class DetachedCharge(Layer):
    """`v.detach()` in the charge on purpose: the gradient is local in time."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v = 0.75 * v.detach() + self.fc(x_t)
            s = spike(v - 0.75)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out), v


class State(NamedTuple):
    v: Tensor
    s: Tensor


@resets()
class DetachedInPlace(Layer):
    """`state.s.detach_()` on a member of a NamedTuple, after it was recorded."""

    def forward(self, x: Tensor) -> Tensor:
        state = State(torch.zeros_like(x[0]), torch.zeros_like(x[0]))
        potentials = []
        for x_t in x:
            v = 0.75 * state.v * (1.0 - state.s) + self.fc(x_t)
            state = State(v, spike(v - 0.75))
            state.s.detach_()
            potentials.append(state.v + state.s)
        return torch.stack(potentials)


@resets()
class TemporaryDetachedInPlace(Layer):
    """`(s - g).detach_() + g`: a temporary is detached in place."""

    def fire(self, h: Tensor) -> Tensor:
        g = torch.sigmoid(4.0 * (h - 0.75))
        return ((h >= 0.75).to(h) - g).detach_() + g

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - s


@resets(programs=2)
class AddedInPlace(Layer):
    """`self.v += x` on a state that is a number first, and `s += x` on the recorded spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.v = 0.0
        out = []
        for x_t in x:
            self.v += self.fc(x_t)
            s = spike(self.v - 0.75)
            self.v -= s
            s = s * 1.0
            s += x_t
            out.append(s)
        return torch.stack(out)


def constrained(model: Any) -> Model:
    """The training script that moves parameters between calls, and clamps them in place."""

    @torch.enable_grad()
    def run(x: Tensor) -> list[Any]:
        results = []
        for rate in (0.5, 0.25):
            y, _ = model(x.detach())
            threshold = dict(model.named_parameters())["v_threshold"]
            (gradient,) = torch.autograd.grad((y * y).sum(), threshold)
            results += [y.detach(), gradient]
            with torch.no_grad():
                threshold -= rate * gradient
            threshold.data.clamp_(0.25, 0.75)
        return results

    return run


@resets(script=constrained, differentiable=False, measured=None)
class ConstrainedThreshold(LearntThreshold):
    """An optimiser moves the threshold and clamps it in place between calls."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - s * self.v_threshold


@resets(neurons=2)
class SharedThreshold(LearntThreshold):
    """Two layers share their threshold, and `parameters` is overridden."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(WIDTH, WIDTH)

    def parameters(self, recurse: bool = True) -> Any:
        return [self.fc.weight, self.v_threshold]

    def forward(self, x: Tensor) -> Tensor:
        u = v = torch.zeros_like(x[0])
        for x_t in x:
            h = 0.75 * u + self.fc(x_t)
            s = self.fire(h)
            u = h - s * self.v_threshold
            h = 0.5 * v + self.fc2(s)
            v = h - self.fire(h) * self.v_threshold
        return v


class ResetSpike(torch.autograd.Function):
    """Fires and resets in one Function: returns the spikes and the potential."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return torch.where(h > 0.75, torch.zeros_like(h), h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return grad * (h <= 0.75) * 0.5


@resets()
class ResetFunction(Layer):
    """The reset is a Function with a gradient of its own."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return ResetSpike.apply(h)  # type: ignore[no-any-return]
