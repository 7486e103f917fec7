"""How a spike and its surrogate gradient are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Group, Model
from tests.compatibility.neurons import Net, Spike

spikes = Group("spikes")
CASES = spikes.cases

lens = 0.5  # a global of the published code that this kind of spike comes from


def dyadic(T: int, B: int) -> tuple[Any, ...]:
    """Return inputs with which potentials are exact and meet the threshold."""
    return ((torch.randint(-4, 9, (T, B, WIDTH)) / 4).requires_grad_(),)


class Layer(Net):
    """A leaky integrate-and-fire layer around a spike function, with a soft reset."""

    def fire(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], WIDTH)
        out = []
        for x_t in x:
            h = 0.5 * v + self.fc1(x_t)
            s = self.fire(h)
            v = h - s
            out.append(s)
        return torch.stack(out)


class Rectangle(torch.autograd.Function):
    """A rectangle whose width is a global."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.gt(0.0).float().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        inside = abs(x) < lens
        return grad * inside.float().to(x.dtype)


@spikes()
class AppliedByClass(Layer):
    """`Function.apply` is called in the loop."""

    def fire(self, h: Tensor) -> Tensor:
        return Rectangle.apply(h - 1.0)


act_fun = Rectangle.apply


@spikes()
class BoundAtImport(Layer):
    """`act_fun = Function.apply` at the top of the module."""

    def fire(self, h: Tensor) -> Tensor:
        return act_fun(h - 1.0)


@spikes()
class BoundInInit(Layer):
    """`self.act = Function.apply` in `__init__`."""

    def __init__(self) -> None:
        super().__init__()
        self.act = Rectangle.apply

    def fire(self, h: Tensor) -> Tensor:
        return self.act(h - 1.0)


@spikes()
class ChosenByEval(Layer):
    """The function is chosen by name with `eval`."""

    def __init__(self) -> None:
        super().__init__()
        self.act = eval("Rectangle").apply

    def fire(self, h: Tensor) -> Tensor:
        return self.act(h - 1.0)


class Sigmoid(nn.Module):
    """A surrogate as a module with a hyper-parameter."""

    class Heaviside(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
            if x.requires_grad:
                ctx.save_for_backward(x)
                ctx.alpha = alpha
            return (x >= 0).to(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
            result = None
            if ctx.needs_input_grad[0]:
                y = (ctx.saved_tensors[0] * ctx.alpha).sigmoid_()
                result = grad * (1.0 - y) * y * ctx.alpha
            return result, None

    def __init__(self, alpha: float = 4.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return self.Heaviside.apply(x, self.alpha)


@spikes()
class SurrogateModule(Layer):
    """A surrogate module; `ctx` keeps a number and asks which gradients are needed."""

    def __init__(self) -> None:
        super().__init__()
        self.surrogate = Sigmoid()

    def fire(self, h: Tensor) -> Tensor:
        return self.surrogate(h - 1.0)


def fast_sigmoid(slope: float) -> Callable[[Tensor], Tensor]:
    class FastSigmoid(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            ctx.slope = slope
            return (x > 0).to(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad.clone() / (ctx.slope * torch.abs(x) + 1.0) ** 2

    def inner(x: Tensor) -> Tensor:
        return FastSigmoid.apply(x)

    return inner


@spikes()
class Closure(Layer):
    """A function that returns a function around a Function made on the spot."""

    def __init__(self) -> None:
        super().__init__()
        self.spike_grad = fast_sigmoid(25.0)

    def fire(self, h: Tensor) -> Tensor:
        return self.spike_grad(h - 1.0)


@spikes()
class StraightThrough(Layer):
    """`(hard - soft).detach() + soft`."""

    def fire(self, h: Tensor) -> Tensor:
        soft = torch.sigmoid(4.0 * (h - 1.0))
        hard = (h >= 1.0).to(h)
        return (hard - soft).detach() + soft


@spikes()
class StraightThroughClamp(Layer):
    """`soft - soft.detach() + hard`, where the soft spike is a clamp."""

    def fire(self, h: Tensor) -> Tensor:
        soft = torch.clamp(h, 0.0, 1.0)
        return soft - soft.detach() + (h > 1.0).to(h).detach()


@spikes()
class WithoutGradientBranch(Layer):
    """The hard spike is computed under `torch.no_grad`."""

    def fire(self, h: Tensor) -> Tensor:
        soft = torch.tanh(h - 1.0)
        with torch.no_grad():
            rest = torch.sign(torch.relu(h - 1.0)) - soft
        return soft + rest


class Width(torch.autograd.Function):
    """Has gradients for its input and for the width of its surrogate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: Tensor) -> Tensor:
        ctx.save_for_backward(x, width)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, width = ctx.saved_tensors
        mask = (width - x.abs()).clamp(min=0.0)
        return grad * mask / (width * width), (grad * x * mask).sum()


@spikes(grad_tolerance=1e-6)
class LearnableWidth(Layer):
    """The width of the surrogate is a parameter, with a gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor(1.5))

    def fire(self, h: Tensor) -> Tensor:
        return Width.apply(h - 1.0, self.width)


class Several(torch.autograd.Function):
    """Takes tensors, numbers and a flag."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, threshold: Tensor, alpha: float, hard: bool, name: str
    ) -> Tensor:
        ctx.save_for_backward(v, threshold)
        ctx.alpha, ctx.hard, ctx.kind = alpha, hard, name
        return torch.ge(v, threshold).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        v, threshold = ctx.saved_tensors
        x = v - threshold
        assert ctx.kind == "atan"
        slope = ctx.alpha / 2 / (1 + (math.pi / 2 * ctx.alpha * x).pow(2))
        total = -(grad * slope) if ctx.hard else None
        return grad * slope, total.sum_to_size(threshold.shape), None, None, None


@spikes()
class SeveralArguments(Layer):
    """A Function of potential, threshold parameter, number, flag and name."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def fire(self, h: Tensor) -> Tensor:
        return Several.apply(h, self.threshold, 2.0, True, "atan")


class Zif(torch.autograd.Function):
    """Saves its hyper-parameter as a tensor and reads it with `.item()`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: float) -> Tensor:
        out = (x > 0).to(x.dtype)
        ctx.save_for_backward(x, out, torch.tensor([gamma]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, _, others = ctx.saved_tensors
        gamma = others[0].item()
        slope = (1 / gamma) * (1 / gamma) * ((gamma - x.abs()).clamp(min=0))
        return grad * slope, None


@spikes()
class ItemInBackward(Layer):
    """`.item()` on a constant in the backward of the spike."""

    def fire(self, h: Tensor) -> Tensor:
        return Zif.apply(h - 1.0, 1.0)


class SurrGradSpike(torch.autograd.Function):
    """Has its scale on the class and writes ones where there is a spike."""

    scale = 10.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = torch.zeros_like(x)
        out[x > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        clone = grad.clone()
        return clone / (SurrGradSpike.scale * torch.abs(x) + 1.0) ** 2


spike_fn = SurrGradSpike.apply


@spikes()
class ScaleOnClass(Layer):
    """A masked write in forward; the scale of the surrogate is an attribute of the class."""

    def fire(self, h: Tensor) -> Tensor:
        return spike_fn(h - 1.0)


def annealed(model: Any) -> Model:
    """The script that makes the surrogate steeper from call to call."""

    @torch.enable_grad()
    def run(x: Tensor) -> Any:
        results = []
        for scale in (5.0, 10.0, 20.0):
            SurrGradSpike.scale = scale
            y = model(x.detach())
            results += [y.detach(), *torch.autograd.grad(y.sum(), list(model.parameters())[:2])]
        SurrGradSpike.scale = 10.0
        return results

    return run


@spikes(script=annealed, programs=3, differentiable=False, measured=None)
class ScaleIsChanged(ScaleOnClass):
    """The attribute of the class is changed between calls."""


class NewStyle(torch.autograd.Function):
    """Sets its context up apart from forward."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.clamp(1.0 - x.abs(), min=0)


@spikes()
class SetupContext(Layer):
    """A Function with `setup_context`."""

    def fire(self, h: Tensor) -> Tensor:
        return NewStyle.apply(h - 1.0)


@spikes()
class SameFunctionTwice(Layer):
    """Two spikes of one potential, with different thresholds, added up."""

    def fire(self, h: Tensor) -> Tensor:
        return Spike.apply(h - 1.0) + 0.5 * Spike.apply(h - 2.0)


@spikes()
class Ternary(Layer):
    """Spikes of both signs."""

    def fire(self, h: Tensor) -> Tensor:
        return Spike.apply(h - 1.0) - Spike.apply(-h - 1.0)


class Quantized(torch.autograd.Function):
    """Rounds to an integer number of spikes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: int) -> Tensor:
        ctx.most = most
        ctx.save_for_backward(x)
        return torch.round(torch.clamp(x, min=0, max=most))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad = grad.clone()
        grad[x < 0] = 0
        grad[x > ctx.most] = 0
        return grad, None


@spikes()
class IntegerSpikes(Layer):
    """As many spikes as the potential is high, up to four: round, clamp, masked gradient."""

    def fire(self, h: Tensor) -> Tensor:
        return Quantized.apply(h, 4)


@spikes()
class IntegerStraightThrough(Layer):
    """The same by a straight-through estimator, with `floor`."""

    def fire(self, h: Tensor) -> Tensor:
        soft = torch.clamp(h, 0, 4)
        return soft + (torch.floor(soft + 0.5) - soft).detach()


@spikes()
class GradedSpikes(Layer):
    """A spike carries the potential that made it."""

    def fire(self, h: Tensor) -> Tensor:
        return h * Spike.apply(h - 1.0)


class Exact(nn.Module):
    """A layer without weights: dyadic inputs give exact ties."""

    def fire(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v = 0.5 * v + x_t
            s = self.fire(v)
            v = v - s
            out.append(s)
        return torch.stack(out)


@spikes(inputs=dyadic, differentiable=False)
class GreaterWithTies(Exact):
    """`v > 1`, with potentials that are exactly 1; no surrogate."""

    def fire(self, h: Tensor) -> Tensor:
        return (h > 1.0).float().to(h)


@spikes(inputs=dyadic, differentiable=False)
class GreaterEqualWithTies(Exact):
    """`v >= 1`, with potentials that are exactly 1; no surrogate."""

    def fire(self, h: Tensor) -> Tensor:
        return torch.ge(h, 1.0).type(h.dtype)


@spikes(inputs=dyadic, differentiable=False)
class HeavisideWithTies(Exact):
    """`torch.heaviside` with a value of its own at the threshold."""

    def fire(self, h: Tensor) -> Tensor:
        return torch.heaviside((h - 1.0).detach(), torch.tensor(0.5))


@spikes(inputs=dyadic, differentiable=False)
class SignWithTies(Exact):
    """`(sign(v - 1) + 1) / 2`, a half at the threshold."""

    def fire(self, h: Tensor) -> Tensor:
        return (torch.sign(h - 1.0) + 1.0) / 2.0


class StepFunction(torch.autograd.Function):
    """Computes charge, spike and reset in one Function with two results."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, x: Tensor, decay: float) -> tuple[Tensor, Tensor]:
        h = v * decay + x
        s = (h >= 1.0).to(h)
        ctx.save_for_backward(h, s)
        ctx.decay = decay
        return s, h * (1.0 - s)

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor, None]:
        h, s = ctx.saved_tensors
        grad_h = grad_s / (1.0 + (4.0 * (h - 1.0)) ** 2) + grad_v * (1.0 - s)
        return grad_h * ctx.decay, grad_h, None


@spikes()
class StepAsFunction(Net):
    """The whole step of the neuron is a Function with two results."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], WIDTH)
        out = []
        for x_t in x:
            s, v = StepFunction.apply(v, self.fc1(x_t), 0.5)
            out.append(s)
        return torch.stack(out)


class Sequence(torch.autograd.Function):
    """Has the loop over time inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for x_t in x:
            v = 0.5 * v + x_t
            out.append((v > 1.0).to(v))
            v = v - out[-1]
        ctx.save_for_backward(x)
        return torch.stack(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1.0 + x.abs())


@spikes(expect="refused", code="unsupported.no-time-loop")
class LoopInFunction(Net):
    """The loop over time is inside a Function with a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return Sequence.apply(self.fc1(x))
