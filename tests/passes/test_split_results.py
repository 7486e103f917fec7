"""Functions with several results become neurons, where their gradient is linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.errors import UnsupportedError


def charge(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the potential and the spike of one step."""
    h = v * 0.5 + x
    return h, (h >= 1.0).to(h)


class Step(torch.autograd.Function):
    """Spike and potential after the reset, of the potential before."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h, s = charge(v, x)
        ctx.save_for_backward(h, s)
        return s, h * (1.0 - s)

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
        h, s = ctx.saved_tensors
        grad_h = grad_s / (1.0 + (4.0 * (h - 1.0)) ** 2) + grad_v * (1.0 - s)
        return grad_h * 0.5, grad_h


class Differences(Step):
    """A backward with differences and signs, in which one argument sees one result only."""

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
        h, s = ctx.saved_tensors
        slope = torch.sigmoid(h - 1.0)
        return -(grad_v - grad_s * slope) * 0.5, (1.0 - s) * grad_v


class OnlySpike(Step):
    """A backward that leaves the reset out."""

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
        (h, _) = ctx.saved_tensors
        grad_h = grad_s / (1.0 + h.abs())
        return grad_h * 0.5, grad_h


class Marked(Step):
    """The spike is said to have no gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h, s = charge(v, x)
        ctx.save_for_backward(h, s)
        ctx.mark_non_differentiable(s)
        return s, h - s


class Clipped(Step):
    """A backward that clips the cotangent of the spike."""

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * grad_v, grad_s.clamp(-0.1, 0.1) + grad_v


class Squared(Step):
    """A backward that multiplies cotangents."""

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * grad_v, grad_s * grad_v


class Shifted(Step):
    """A backward with a gradient where there is no cotangent."""

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor]:
        (h, _) = ctx.saved_tensors
        return 0.5 * grad_v, grad_s + h


class Net(nn.Module):
    """A linear layer in front of neurons that are one Function a step."""

    def __init__(self, step: type[Step]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], 8, dtype=x.dtype)
        out = []
        for x_t in x:
            s, v = self.step.apply(v, self.linear(x_t))
            out.append(s + 0.1 * v)
        return torch.stack(out)


def gradients(run: Any, parameters: list[Tensor], x: Tensor) -> list[Tensor]:
    """Return the result of a run, then its gradients."""
    leaf = x.clone().requires_grad_()
    y = run(leaf)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    return [y, *torch.autograd.grad(y, [leaf, *parameters], cotangent)]


@pytest.mark.parametrize("step", [Step, Differences, OnlySpike, Marked])
def test_a_step_becomes_a_neuron(step: type[Step]) -> None:
    """Spikes, potentials and gradients are those of the serial code."""
    torch.manual_seed(0)
    model = Net(step).double()
    fast = snncc.compile(model)
    x = torch.randn(9, 5, 6, dtype=torch.float64) * 2
    expected = gradients(model, list(model.parameters()), x)
    actual = gradients(fast, list(model.parameters()), x)

    assert bool((expected[0] > 0.9).any())
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert str(fast).count("fused time") == 1
    assert snncc.verify(model, fast, x).ok


@pytest.mark.parametrize("step", [Clipped, Squared, Shifted])
def test_other_gradients_stay_whole(step: type[Step]) -> None:
    """A gradient that is no sum of shares is not taken apart."""
    torch.manual_seed(0)
    model, x = Net(step).double(), torch.randn(9, 5, 6, dtype=torch.float64) * 2
    with pytest.raises(UnsupportedError, match="has several results"):
        snncc.compile(model)(x)

    fast = snncc.compile(model, fallback="serial")
    expected = gradients(model, list(model.parameters()), x)
    torch.testing.assert_close(gradients(fast, list(model.parameters()), x), expected)


def test_outside_of_a_loop() -> None:
    """A Function that prepares an input is split as well, and its results may be used twice."""

    class Prepared(Net):
        def forward(self, x: Tensor) -> Tensor:
            s, v = Step.apply(x, x)
            return super().forward(s + v * v)

    torch.manual_seed(0)
    model = Prepared(Step).double()
    x = torch.randn(9, 5, 6, dtype=torch.float64) * 2
    expected = gradients(model, list(model.parameters()), x)
    actual = gradients(snncc.compile(model), list(model.parameters()), x)

    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
