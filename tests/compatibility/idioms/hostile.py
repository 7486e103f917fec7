"""Code that resists: what cannot be compiled exactly is refused by name, what can is right."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.compatibility.case import WIDTH, Group, Model
from tests.compatibility.neurons import Net, lif, spike

hostile = Group("hostile")
CASES = hostile.cases


def constants(T: int, B: int) -> tuple[Any, ...]:
    return (torch.randn(T, B, WIDTH) * 1.5,)


def halves(T: int, B: int) -> tuple[Any, ...]:
    return (torch.randn(T, B, WIDTH, dtype=torch.bfloat16).requires_grad_(),)


class Layer(Net):
    """A layer of neurons, as a base for what follows."""

    def step(self, x: Tensor, v: Any) -> tuple[Any, Any]:
        return lif(v, self.fc1(x))

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v, s = self.step(x_t, v)
            out.append(s)
        return torch.stack(out)


@hostile(expect="refused", code="capture.tensor-hook")
class TensorHook(Layer):
    """A gradient hook of a tensor in the loop."""

    def step(self, x: Tensor, v: Any) -> Any:
        v, s = super().step(x, v)
        v.register_hook(lambda g: g.clamp(-1, 1))
        return v, s


@hostile()
class ForwardHooks(Layer):
    """Hooks of a module that change its arguments and its result."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1.register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
        self.fc1.register_forward_hook(lambda module, args, y: y * 2)


@hostile(expect="refused", code="capture.tensor-hook", located=False)
class BackwardHook(Layer):
    """A backward hook of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1.register_full_backward_hook(lambda module, gi, go: tuple(g * 0.5 for g in gi))


@hostile()
class ParameterHook(Layer):
    """A gradient hook of a parameter, made in the constructor: it fires as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1.weight.register_hook(lambda g: g * 0.5)


@hostile()
class WeightNorm(Layer):
    """The weight is computed from two parameters at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.utils.parametrizations.weight_norm(self.fc1)


def _double(x: Tensor) -> Tensor:
    return x * 2


@hostile(expect="refused", code="capture.unrecorded-operator")
class Scripted(Layer):
    """A function of TorchScript in the step."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.double = torch.jit.script(_double)

    def step(self, x: Tensor, v: Any) -> Any:
        return super().step(self.double(x), v)


@hostile(expect="refused", code="capture.parameter-inside")
class ParameterMadeInLoop(Layer):
    """A parameter is made anew in each step."""

    def step(self, x: Tensor, v: Any) -> Any:
        self.fc1.bias = nn.Parameter(self.fc1.bias * 0.9)
        return super().step(x, v)


@hostile(neurons=0, differentiable=False)
class LocalRule(Layer):
    """A weight learns by a local rule in each step, in place, without gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)

    def step(self, x: Tensor, v: Any) -> Any:
        v, s = super().step(x, v)
        self.fc1.weight += 0.01 * torch.einsum("bi,bj->ij", s, x)
        return v, s


def call_by_call(model: Any) -> Model:
    """The training script that has the gradients of one call before the next."""

    @torch.enable_grad()
    def run(x: Tensor) -> list[Any]:
        y = model(x.detach())
        beta = dict(model.named_parameters())["beta"]
        return [y.detach(), *torch.autograd.grad((y * y).sum() + y.sum(), beta)]

    return run


@hostile(script=call_by_call, differentiable=False, measured=None)
class ClampedInForward(Layer):
    """A parameter is clamped in place at the start of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.beta.clamp_(0.0, 1.0)
        return super().forward(x)

    def step(self, x: Tensor, v: Any) -> Any:
        return super().step(x, self.beta * v)


@hostile(expect="refused", code="capture.tensor-dependent-branch")
class BranchOnPotential(Layer):
    """A branch on the largest potential."""

    def step(self, x: Tensor, v: Any) -> Any:
        v, s = super().step(x, v)
        return (v * 0.5, s) if v.max() > 0.5 else (v, s)


@hostile(expect="refused", code="capture.tensor-dependent-branch")
class UntilEnoughSpikes(Layer):
    """Runs until enough neurons have fired."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros_like(x[0])
        count = torch.zeros(())
        while count < 3:
            v, s = self.step(x[0] + 1, v)
            count = count + s.sum()
        return v


@hostile(expect="refused", code="capture.value-left-torch")
class NumberComesBack(Layer):
    """A number that left by `.item()` scales the potential."""

    def step(self, x: Tensor, v: Any) -> Any:
        v, s = super().step(x, v)
        return v * (1.0 - s.mean().item()), s


@hostile(expect="refused", code="capture.backward-inside")
class BackwardInLoop(Layer):
    """A backward pass in each step."""

    def step(self, x: Tensor, v: Any) -> Any:
        v, s = super().step(x, v.detach())
        s.sum().backward(retain_graph=True)
        return v, s


@hostile(expect="refused", code="capture.backward-inside")
class WritesGradients(Layer):
    """Gradients are written by hand."""

    def step(self, x: Tensor, v: Any) -> Any:
        self.fc1.weight.grad = torch.zeros_like(self.fc1.weight)
        return super().step(x, v)


@hostile(expect="refused", code="unsupported.function-transform")
class Vmapped(Layer):
    """`torch.vmap` in the step."""

    def step(self, x: Tensor, v: Any) -> Any:
        return super().step(torch.vmap(lambda row: row * 2 + 1)(x), v)


@hostile()
class FunctionalCall(Layer):
    """`torch.func.functional_call` with other parameters in the step."""

    def step(self, x: Tensor, v: Any) -> Any:
        scaled = {k: p * 2.0 for k, p in self.fc1.named_parameters()}
        return lif(v, torch.func.functional_call(self.fc1, scaled, (x,)))


@hostile()
class Checkpointed(Layer):
    """Each step is a checkpoint."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v, s = checkpoint(self.step, x_t, v, use_reentrant=False)
            out.append(s)
        return torch.stack(out)


@hostile(inputs=constants)
class WritesItsInput(Layer):
    """The spikes are written over the argument."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v, s = self.step(x[t].clone(), v)
            x[t] = s.detach()
            out.append(s)
        return torch.stack(out)


@hostile()
class SwappedStates(Layer):
    """Two states change places in a dict at each step."""

    def forward(self, x: Tensor) -> Any:
        state = {"a": torch.zeros_like(x[0]), "b": torch.ones_like(x[0])}
        out = []
        for x_t in x:
            v, s = self.step(x_t, state["a"])
            state = {"a": state["b"], "b": v}
            out.append(s)
        return torch.stack(out)


@hostile()
class Generator(Layer):
    """The loop is in a generator."""

    def steps(self, x: Tensor) -> Iterator[Tensor]:
        v: Any = torch.zeros_like(x[0])
        for x_t in x:
            v, s = self.step(x_t, v)
            yield s

    def forward(self, x: Tensor) -> Any:
        return torch.stack(list(self.steps(x)))


@hostile(expect="refused", code="unsupported.no-time-loop")
class Recursion(Layer):
    """The loop is a recursion over the steps."""

    def run(self, x: Tensor, t: int, v: Any) -> list[Tensor]:
        if t == x.shape[0]:
            return []
        v, s = self.step(x[t], v)
        return [s, *self.run(x, t + 1, v)]

    def forward(self, x: Tensor) -> Any:
        return torch.stack(self.run(x, 0, torch.zeros_like(x[0])))


@hostile(expect="refused", code="capture.unrecorded-tensor")
class StepInThread(Layer):
    """Each step runs in a thread of its own."""

    def step(self, x: Tensor, v: Any) -> Any:
        results: list[Any] = []
        worker = threading.Thread(target=lambda: results.append(Layer.step(self, x, v)))
        worker.start()
        worker.join()
        return results[0]


@hostile()
class WithoutGradientRegion(Layer):
    """A part of the step is under `torch.no_grad`."""

    def step(self, x: Tensor, v: Any) -> Any:
        with torch.no_grad():
            trace = 0.5 * v + self.fc2(x)
        return lif(v, self.fc1(x) - 0.125 * trace)


@hostile(neurons=2, programs=2, free=False)
class GradientOfLastSteps(Layer):
    """Only the last three steps have a gradient."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            with torch.set_grad_enabled(t >= x.shape[0] - 3):
                v, s = self.step(x[t], v)
            out.append(s)
        return torch.stack(out)


@hostile(neurons=1, programs=2, free=False, sizes=((9, 3), (12, 2)), measured=None)
class DetachedEveryThirdStep(Layer):
    """The potential is detached at every third step."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            if t % 3 == 0:
                v = v.detach()
            v, s = self.step(x[t], v)
            out.append(s)
        return torch.stack(out)


@hostile()
class AsksForGradient(Layer):
    """The first state is made to require a gradient, in the old way."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.autograd.Variable(torch.zeros(x.shape[1:]))
        v.requires_grad = True
        out = []
        for x_t in x:
            v, s = self.step(x_t, v)
            out.append(s)
        return torch.stack(out)


@hostile()
class FallsBack(Layer):
    """An exception of torch is caught in the step."""

    def step(self, x: Tensor, v: Any) -> Any:
        try:
            return super().step(x @ torch.ones(5, 5), v)
        except RuntimeError:
            return super().step(x, v)


@hostile(expect="refused", code="unsupported.tensor-kind")
class SparseInput(Layer):
    """The input of a step is made sparse."""

    def step(self, x: Tensor, v: Any) -> Any:
        return lif(v, torch.sparse.mm(x.to_sparse(), self.fc1.weight))


@hostile(neurons=0)
class ListOperators(Layer):
    """Operators on lists of states, `torch._foreach_mul`."""

    def forward(self, x: Tensor) -> Any:
        v = [torch.zeros_like(x[0]), torch.zeros_like(x[0])]
        out = []
        for x_t in x:
            v = [u + self.fc1(x_t) for u in torch._foreach_mul(v, 0.5)]
            out.append(spike(v[0] - 0.5) + v[1])
        return torch.stack(out)


@hostile()
class StateInClosure(Layer):
    """The state is a variable of the surrounding function."""

    def forward(self, x: Tensor) -> Any:
        v: Any = torch.zeros_like(x[0])

        def tick(x_t: Tensor) -> Any:
            nonlocal v
            v, s = self.step(x_t, v)
            return s

        return torch.stack([tick(x_t) for x_t in x])


@hostile(programs=2, free=False)
class NumbersOfSteps(Layer):
    """Integers times a number of the step, a power and a bound of the step."""

    def forward(self, x: Tensor) -> Any:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            n = (x[t] > 0).long() * 0.5**t + (x[t] > 0.5).int() * t
            v = 0.5 * v + n + x[t].abs() ** (t / 2) + x[t].clamp(-0.125 * t, 1.0)
            s = spike(v - 0.5)
            v = v - s
            out.append(s)
        return torch.stack(out)


@hostile(neurons=3)
class Rearranged(nn.Module):
    """Operators that move, sort, choose and reduce, between the neurons of a step."""

    def forward(self, x: Tensor) -> Tensor:
        a = b = c = 0.0
        out = []
        for x_t in x:
            y = torch.cumsum(x_t, 1) + torch.flip(x_t, (1,)) + torch.roll(x_t, 1, 1)
            a, s = lif(a, y)
            top, where = torch.topk(s + x_t, 2, dim=-1)
            best, index = (s * x_t).max(dim=1, keepdim=True)
            y = top.repeat(1, WIDTH // 2) + best.expand(-1, WIDTH) + where.to(x_t).mean() + index
            b, s = lif(b, y.sort(dim=1, descending=True)[0] - 10.0)
            keep = torch.any(s > 0, dim=1, keepdim=True) & ~torch.all(s > 0, dim=1, keepdim=True)
            y = s.gather(1, x_t.argsort(1)) * keep + s.argmax(1, keepdim=True) % 2
            c, s = lif(c, y.unfold(1, 2, 2).flatten(1) + y.narrow(1, 0, 1))
            out.append(s)
        return torch.stack(out)
