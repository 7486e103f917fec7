"""Networks around the neurons: feedback, skips, convolutions, attention, norms, masks, codes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Group
from tests.compatibility.neurons import Net, lif, spike

networks = Group("networks")
CASES = networks.cases

STEPS = 6
CHANNELS = 3


def video(T: int, B: int) -> tuple[Any, ...]:
    return (torch.randn(T, B, CHANNELS, 4, 4).requires_grad_(),)


def image(T: int, B: int) -> tuple[Any, ...]:
    return (torch.rand(B, WIDTH).requires_grad_(),)


def tokens(T: int, B: int) -> tuple[Any, ...]:
    return (torch.randn(T, B, 4, 6).requires_grad_(),)


def words(T: int, B: int) -> tuple[Any, ...]:
    return (torch.randint(11, (B, T)),)


def of_lengths(T: int, B: int) -> tuple[Any, ...]:
    return torch.randn(T, B, WIDTH).requires_grad_(), torch.randint(1, T + 1, (B,))


class Layer(nn.Module):
    """A layer with its own loop over [T, B, *]."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v, s = lif(v, x[t])
            out.append(s)
        return torch.stack(out)


class Stacked(Net):
    """Runs `step(x_t, *state)` from zeros in ``self.states(x[0])`` and stacks its spikes."""

    def forward(self, x: Tensor) -> Tensor:
        state = self.states(x[0])
        out = []
        for x_t in x:
            s, *state = self.step(x_t, *state)
            out.append(s)
        return torch.stack(out)

    def states(self, x: Tensor) -> list[Any]:
        return [0.0]

    def step(self, x: Tensor, *state: Any) -> tuple[Tensor, ...]:
        raise NotImplementedError


@networks(neurons=0, programs=2, free=False, measured=None)
class BusySamplesExciteAll(Stacked):
    """The potentials of the samples that fire most, taken by a mask, act on all samples."""

    def step(self, x: Tensor, v: Any) -> tuple[Tensor, ...]:
        v, s = lif(v, self.fc1(x))
        busy = s.sum(1) > WIDTH // 4
        return s, v + 0.125 * v[busy].sum(0)


@networks(neurons=0)
class RecurrentWeights(Stacked):
    """The spikes of the step before come back through weights."""

    def states(self, x: Tensor) -> list[Any]:
        return [torch.zeros_like(x), torch.zeros_like(x)]

    def step(self, x: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        v, s = lif(v, self.fc1(x) + 0.5 * self.fc2(s))
        return s, v, s


@networks(neurons=0, inputs=video)
class RecurrentConvolution(nn.Module):
    """Spikes come back through a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.back = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        v = s = torch.zeros(x.shape[1], 4, *x.shape[3:])
        for x_t in x:
            v, s = lif(v, self.conv(x_t) + self.back(s))
        return v + s


@networks(neurons=0)
class FeedbackFromLaterLayer(Stacked):
    """The second layer's spikes drive the first layer one step later."""

    def states(self, x: Tensor) -> list[Any]:
        return [torch.zeros_like(x)] * 3

    def step(self, x: Tensor, u: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        u, r = lif(u, x + 0.5 * self.fc1(s))
        v, s = lif(v, self.fc2(r))
        return r, u, v, s


@networks(neurons=0)
class LateralInhibition(Stacked):
    """Every spike of a layer inhibits its neighbours, by a sum over the layer."""

    def states(self, x: Tensor) -> list[Any]:
        return [torch.zeros_like(x), torch.zeros_like(x)]

    def step(self, x: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        v, s = lif(v, self.fc1(x) - 0.125 * (s.sum(1, keepdim=True) - s))
        return s, v, s


@networks(neurons=0)
class WinnerTakesAll(Stacked):
    """The largest potential alone may fire, by argmax and one-hot."""

    def states(self, x: Tensor) -> list[Any]:
        return [torch.zeros_like(x)]

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        v = 0.5 * v + self.fc1(x)
        s = spike(v - 0.25) * F.one_hot(v.argmax(-1), v.shape[-1])
        return s, v - s


@networks(neurons=0, programs=2, free=False, measured=None)
class Autoregressive(Stacked):
    """The output of a step is the input of the next."""

    def states(self, x: Tensor) -> list[Any]:
        return [torch.zeros_like(x), x]

    def step(self, x: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        v, y = lif(v, 2.0 * self.fc1(y) + 0.5)
        return y, v, y


@networks(neurons=3)
class SkipConnection(Net):
    """Spikes skip a layer, step by step."""

    def forward(self, x: Tensor) -> Tensor:
        v: list[Any] = [0.0, 0.0, 0.0]
        out = torch.zeros_like(x[0])
        for x_t in x:
            v[0], s0 = lif(v[0], self.fc1(x_t))
            v[1], s1 = lif(v[1], self.fc2(s0))
            v[2], s2 = lif(v[2], self.fc1(s1) + s0)
            out = out + s2
        return out


@networks(neurons=5, inputs=video)
class SpikesAddedInPlace(nn.Module):
    """Residual blocks whose spikes are summed in place: values above one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.neuron = Layer()

    def forward(self, x: Tensor) -> Tensor:
        T, B, *sizes = x.shape
        identity = self.neuron(x)
        for _ in range(2):
            out = self.neuron(self.conv1(identity.flatten(0, 1)).reshape(T, B, *sizes))
            out = self.neuron(self.conv2(out.flatten(0, 1)).view(T, B, *sizes))
            out += identity
            identity = out
        return out


@networks(neurons=2)
class SharedWeights(Net):
    """Two layers share their weights, one of them transposed."""

    def forward(self, x: Tensor) -> Tensor:
        u = v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            u, s = lif(u, self.fc1(x_t))
            v, s = lif(v, F.linear(s, self.fc1.weight.t()))
            out.append(s)
        return torch.stack(out)


@networks(neurons=3, inputs=video)
class ConvolutionAndPooling(nn.Module):
    """Convolution, two kinds of pooling, flatten, classifier, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.pool, self.average = nn.MaxPool2d(2), nn.AvgPool2d(2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        u = v = w = total = 0.0
        for t in range(x.size(0)):
            u, s = lif(u, 2.0 * self.pool(self.conv(x[t])))
            v, s = lif(v, 4.0 * self.average(s))
            w, s = lif(w, 2.0 * self.fc(torch.flatten(s, 1)))
            total = total + s
        return total / x.size(0)


@networks(neurons=3, inputs=video)
class Convolutions(nn.Module):
    """Depthwise and dilated, strided, transposed convolution, and upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3, bias=False)
        self.down = nn.Conv2d(6, 4, 2, stride=2)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        u = v = w = 0.0
        out = []
        for x_t in x:
            u, s = lif(u, 2.0 * self.depth(x_t))
            v, s = lif(v, 2.0 * self.down(s))
            w, s = lif(w, 4.0 * self.up(F.interpolate(s, scale_factor=2.0, mode="nearest")))
            out.append(s.mean((2, 3)))
        return torch.stack(out, 1)


@networks(neurons=4, inputs=tokens)
class TokenAttention(nn.Module):
    """Attention over tokens in each step, of spiking queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        m: list[Any] = [0.0] * 4
        out = []
        for x_t in x:
            m[0], q = lif(m[0], 2.0 * self.q(x_t))
            m[1], k = lif(m[1], 2.0 * self.k(x_t))
            m[2], v = lif(m[2], 2.0 * self.v(x_t))
            m[3], s = lif(m[3], 4.0 * self.out(q @ k.transpose(-2, -1) @ v))
            out.append(s)
        return torch.stack(out)


@networks(inputs=tokens)
class SoftmaxAttention(nn.Module):
    """`nn.MultiheadAttention` and torch's own attention in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            h, _ = self.attend(x_t, x_t, x_t)
            v, s = lif(v, h + F.scaled_dot_product_attention(x_t, x_t, x_t))
            out.append(s)
        return torch.stack(out)


@networks(neurons=2, inputs=tokens)
class AttentionOfMergedSteps(nn.Module):
    """Heads of attention on tokens of all steps, merged into the batch, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(6, 18, bias=False), nn.BatchNorm1d(18)
        self.neuron = Layer()

    def forward(self, x: Tensor) -> Tensor:
        T, B, n, C = x.shape
        h = self.norm(self.qkv(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        s = self.neuron(h.reshape(T, B, n, 3 * C).contiguous())
        q, k, v = s.reshape(T, B, n, 3, 2, C // 2).permute(3, 0, 1, 4, 2, 5)
        h = (q @ k.transpose(-2, -1) @ v).transpose(2, 3).reshape(T, B, n, C)
        return self.neuron(h).mean((0, 2)) + x.mean((0, 2))


@networks(neurons=2)
class AttentionOverTime(Net):
    """Each step attends to all steps, between two loops over time."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = Layer()

    def forward(self, x: Tensor) -> Tensor:
        s = self.neuron(x)
        q, k = self.fc1(s).transpose(0, 1), self.fc2(s).transpose(0, 1)
        attention = torch.softmax(q @ k.transpose(1, 2) / 2.0, -1)
        return self.neuron(torch.einsum("bts,sbn->tbn", attention, s) + x)


@networks(sizes=((STEPS, 3), (STEPS, 2)), measured=None)
class WeightsOfSteps(nn.Module):
    """A weight for each step, computed from all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(STEPS, STEPS)
        self.neuron = Layer()

    def forward(self, x: Tensor) -> Tensor:
        score = torch.sigmoid(self.fc(x.mean(-1).t())).t()
        return self.neuron(2.0 * x * score.unsqueeze(-1))


@networks()
class CausalConvolutionOverTime(nn.Module):
    """A causal convolution over time in front of the neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3)
        self.neuron = Layer()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(F.pad(x.permute(1, 2, 0), (2, 0)))
        return self.neuron(h.permute(2, 0, 1))


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc1.bias = None  # a norm takes it away: its gradient is nothing but rounding
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v, s = lif(v, self.norm(self.fc1(x_t)))
            out.append(s)
        return torch.stack(out)


@networks()
class BatchNormEachStep(Normed):
    """BatchNorm in training, in each step: T statistics, T updates of the running ones."""


@networks(training=False)
class BatchNormEvaluated(Normed):
    """BatchNorm in evaluation, in each step."""


@networks(inputs=video)
class BatchNormMerged(nn.Module):
    """BatchNorm in training over all steps at once, merged into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.neuron = Layer()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x.flatten(0, 1).contiguous())
        return self.neuron(y.view(*x.shape[:2], *y.shape[1:]))


@networks(inputs=image)
class BatchNormOfStaticInput(Normed):
    """BatchNorm of the same image in each step: T updates by the same statistics."""

    def forward(self, x: Tensor) -> Tensor:
        v = total = torch.zeros_like(x)
        for _ in range(STEPS):
            v, s = lif(v, self.norm(self.fc1(x)))
            total = total + s
        return total


@networks(neurons=0)
class BatchNormOfPotential(Normed):
    """BatchNorm in training inside of the recurrence."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v = self.norm(0.5 * v + x_t)
            s = spike(v - 0.5)
            v = v - s
            out.append(s)
        return torch.stack(out)


@networks(neurons=3, inputs=video, free=False)
class OtherNorms(nn.Module):
    """Group, layer and instance norm in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 4, 1)
        self.group, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm([4, 4, 4])
        self.instance = nn.InstanceNorm2d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        u = v = w = 0.0
        out = []
        for x_t in x:
            u, s = lif(u, self.group(self.conv(x_t)))
            v, s = lif(v, self.layer(s))
            w, s = lif(w, self.instance(s))
            out.append(s)
        return torch.stack(out)


@networks(neurons=2)
class DropoutEachStep(Net):
    """A fresh mask in each step."""

    def forward(self, x: Tensor) -> Tensor:
        u = v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            u, s = lif(u, self.fc1(F.dropout(x_t, 0.25, self.training)))
            v, s = lif(v, 2.0 * self.fc2(F.dropout(s, 0.5, self.training)))
            out.append(s)
        return torch.stack(out)


@networks()
class DropoutOnce(Net):
    """One mask for all steps, drawn before the loop."""

    def forward(self, x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones(x.shape[1], WIDTH), 0.5, self.training)
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v, s = lif(v, self.fc1(x_t) * mask)
            out.append(s)
        return torch.stack(out)


def drop_mask(model: Any) -> None:
    model.mask = None


@networks(programs=2, reset=drop_mask)
class DropoutUntilReset(Net):
    """The mask is made at the first step and kept, also by the next call, until it is reset."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            if self.mask is None:
                self.mask = F.dropout(torch.ones_like(x_t), 0.5, training=True)
            v, s = lif(v, self.fc1(x_t * self.mask))
            out.append(s)
        return torch.stack(out)


@networks(inputs=image)
class DropoutOfStaticInput(Net):
    """A fresh mask in each step on the same image."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        v = total = torch.zeros_like(x)
        for _ in range(STEPS):
            v, s = lif(v, 2.0 * self.fc1(self.drop(x)))
            total = total + s
        return total


@networks(inputs=video)
class DropPath(nn.Module):
    """Whole channels and whole samples are dropped in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Dropout2d(0.25)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            keep = torch.empty(x_t.shape[0], 1, 1, 1).bernoulli_(0.75)
            v, s = lif(v, 2.0 * self.conv(self.drop(x_t)) * keep / 0.75)
            out.append(s)
        return torch.stack(out)


@networks(inputs=image)
class PoissonCode(Net):
    """An image is compared with fresh noise in each step."""

    def forward(self, x: Tensor) -> Tensor:
        v = total = torch.zeros_like(x)
        for _ in range(STEPS):
            noise = torch.rand(x.size(), device=x.device)
            v, s = lif(v, 2.0 * self.fc1(torch.le(noise, x.abs()).to(x) * torch.sign(x)))
            total += s
        return total / STEPS


@networks(inputs=image)
class RateCode(Net):
    """The whole spike train is drawn before the loop."""

    def forward(self, x: Tensor) -> Tensor:
        train = torch.bernoulli(x.detach().clamp(0, 1).repeat(STEPS, 1, 1))
        v = total = torch.zeros_like(x)
        for t in range(STEPS):
            v, s = lif(v, 2.0 * self.fc1(train[t]))
            total = total + s
        return total


@networks(inputs=image)
class LatencyCode(Net):
    """Each input fires once, the larger the earlier: its time is compared with the step."""

    def forward(self, x: Tensor) -> Tensor:
        when = ((1 - x.clamp(0, 1)) * (STEPS - 1)).round()
        v = torch.zeros_like(x)
        out = []
        for t in range(STEPS):
            v, s = lif(v, 4.0 * self.fc1((when == t).to(x)))
            out.append(s)
        return torch.stack(out)


@networks()
class StochasticSpikes(Stacked):
    """Noise on the potential, and spikes that are drawn."""

    def states(self, x: Tensor) -> list[Any]:
        return [torch.zeros_like(x)]

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        v = 0.5 * v + self.fc1(x) + 0.125 * torch.randn_like(v)
        s = (torch.rand_like(v) < torch.sigmoid(v)).to(v)
        return s * v, v - s * (0.5 + torch.rand_like(v))


@networks(neurons=2)
class SpikingAndNot(Net):
    """Layers with and without spikes side by side, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.ann = nn.Sequential(nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, WIDTH), nn.GELU())
        self.both = nn.Linear(2 * WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        u = v = 0.0
        out = []
        for x_t in x:
            u, s = lif(u, x_t)
            v, s = lif(v, 4.0 * self.both(torch.cat([s, self.ann(x_t)], dim=1)))
            out.append(F.softplus(s) + torch.tanh(v))
        return torch.stack(out)


@networks()
class Heads(nn.Module):
    """One projection, taken apart by chunk and split, put together by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, 9)

    def forward(self, x: Tensor) -> Tensor:
        u = v = w = 0.0
        out = []
        for x_t in x:
            a, b, c = (2.0 * self.fc(x_t)).chunk(3, dim=-1)
            u, a = lif(u, a)
            v, b = lif(v, b * a)
            w, c = lif(w, c + b)
            d, e = torch.split(torch.cat([a, b, c], -1), [4, 5], -1)
            out.append(torch.cat([e, d], -1))
        return torch.stack(out)


@networks(inputs=words)
class Embedded(Net):
    """Words are embedded in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[0], WIDTH)
        out = []
        for t in range(x.shape[1]):
            v, s = lif(v, self.embed(x[:, t]))
            out.append(s)
        return torch.stack(out, 1)


@networks(inputs=of_lengths, programs=2, free=False)
class SequencesOfSeveralLengths(Net):
    """A mask made of lengths stops the neurons of a sample that has ended."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            alive = (t < lengths).to(x).unsqueeze(-1)
            h = alive * (0.5 * v + self.fc1(x[t])) + (1 - alive) * v
            s = spike(h - 0.25) * alive
            v = h - s
            out.append(s)
        return torch.stack(out)


@networks()
class QuantizedWeights(Net):
    """Weights are rounded in the loop, with a straight-through gradient."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            w = self.fc1.weight
            scale = w.abs().max() / 7
            rounded = torch.round(w / scale).clamp(-8, 7) * scale
            v, s = lif(v, 2.0 * F.linear(x_t, w + (rounded - w).detach()))
            out.append(s)
        return torch.stack(out)


@networks(sizes=((STEPS, 3), (STEPS, 2)), measured=None)
class BatchNormOfEachStep(Net):
    """One BatchNorm for each step, taken from a list by index."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1.bias = None
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(STEPS))

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v, s = lif(v, self.norms[t](self.fc1(x[t])))
            out.append(s)
        return torch.stack(out)


@networks(sizes=((STEPS, 3), (STEPS, 2)), measured=None)
class WeightsOfEachStep(nn.Module):
    """One layer of weights for each step, from `zip(x, self.layers)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(STEPS))

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t, layer in zip(x, self.layers, strict=True):
            v, s = lif(v, layer(x_t))
            out.append(s)
        return torch.stack(out)


@networks(sizes=((STEPS, 3), (STEPS, 2)), measured=None)
class ParametersOfEachStep(Net):
    """A threshold for each step from a ParameterList, and decays from a parameter [T]."""

    def __init__(self) -> None:
        super().__init__()
        self.v_th = nn.ParameterList(torch.tensor(0.5 + 0.1 * t) for t in range(STEPS))
        self.decay = nn.Parameter(torch.linspace(-1.0, 1.0, STEPS))

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            h = torch.sigmoid(self.decay[t]) * v + self.fc1(x[t])
            s = spike(h - self.v_th[t])
            v = h - s * self.v_th[t]
            out.append(s)
        return torch.stack(out)


class StepNeuron(nn.Module):
    """A neuron of one step, with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(WIDTH))
        self.v_th = nn.Parameter(torch.rand(()))

    def forward(self, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.sigmoid(self.w) * v + x
        s = spike(h - self.v_th)
        return h * (1.0 - s), s


@networks(sizes=((STEPS, 3), (STEPS, 2)), measured=None)
class NeuronsOfEachStep(Net):
    """One neuron module for each step, with learnt decays and thresholds."""

    def __init__(self) -> None:
        super().__init__()
        self.neurons = nn.ModuleList(StepNeuron() for _ in range(STEPS))

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v, s = self.neurons[t](v, self.fc1(x[t]))
            out.append(s)
        return torch.stack(out)
