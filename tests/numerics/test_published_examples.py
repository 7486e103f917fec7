"""Small worked examples of published neurons: eager and compiled give the hand-checked numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc

Model = Callable[[Tensor], Any]


def both(model: Model) -> list[Model]:
    """Return the model as it is, compiled to C, and compiled to the reference."""
    return [model, snncc.compile(model), snncc.compile(model, target="torch")]


def rows(*values: float) -> Tensor:
    """Return a sequence of one neuron, [T, 1], in float64."""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def close(actual: Tensor, *expected: float) -> None:
    """Assert equality to the six digits that the examples are given with."""
    torch.testing.assert_close(actual.flatten().detach(), rows(*expected).flatten(),
                               rtol=2e-5, atol=2e-6)  # fmt: skip


class Rectangle(torch.autograd.Function):
    """Fires at or above zero; surrogate of height 1 within half a unit."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return g * (u.abs() < 0.5).to(u.dtype)


class SigmoidFour(torch.autograd.Function):
    """Fires at or above zero; surrogate is the derivative of sigmoid(4 u)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        p = torch.sigmoid(4.0 * u)
        return g * 4.0 * p * (1.0 - p)


class TemporalFusion(nn.Module):
    """Hard reset that acts at the next charge; Li et al. 2024, equations 1 and 2, rest = 0."""

    def __init__(self, k: float, th: float, spike: Any, detach: bool) -> None:
        super().__init__()
        self.k, self.th, self.spike, self.detach = k, th, spike, detach

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros_like(x[0])
        y = torch.zeros_like(x[0])
        vs, ys = [], []
        for t in range(x.shape[0]):
            r = y.detach() if self.detach else y
            v = self.k * v * (1.0 - r) + x[t]
            y = self.spike.apply(v - self.th)
            vs.append(v)
            ys.append(y)
        return torch.stack(vs), torch.stack(ys)


@pytest.mark.parametrize(
    ("spike", "detach", "expected"),
    [
        (Rectangle, False, (0.924316, -0.484375, -0.125, 2.0)),
        (Rectangle, True, (0.875, -0.5, 0.25, 2.0)),
        (SigmoidFour, False, (0.859793, -0.495584, -0.0353256, 1.5729)),
        (SigmoidFour, True, (0.815015, -0.5, 0.196612, 1.5729)),
    ],
    ids=["rectangle", "rectangle-detached", "sigmoid", "sigmoid-detached"],
)
def test_temporal_fusion(spike: Any, detach: bool, expected: tuple[float, ...]) -> None:
    """Dyadic numbers, with a potential exactly at the threshold at t = 1."""
    for model in both(TemporalFusion(0.25, 0.5, spike, detach)):
        x = rows(0.375, 0.40625, 0.75, 0.25).requires_grad_()
        v, y = model(x)
        (y * rows(1.0, -0.5, 0.25, 2.0)).sum().backward()

        assert v.flatten().tolist() == [0.375, 0.5, 0.75, 0.25]
        assert y.flatten().tolist() == [0.0, 1.0, 1.0, 0.0]
        assert x.grad is not None
        close(x.grad, *expected)


class SoftReset(nn.Module):
    """The serial neuron of the fixed-point method: soft reset, charge decays what is left."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.detach = detach

    def forward(self, c: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.zeros_like(c[0])
        s = torch.zeros_like(c[0])
        us, ss = [], []
        for c_t in c:
            u = 0.5 * (u - (s.detach() if self.detach else s)) + c_t
            s = SigmoidFour.apply(u - 1.0)
            us.append(u)
            ss.append(s)
        return torch.stack(us), torch.stack(ss)


@pytest.mark.parametrize(
    ("detach", "expected"),
    [
        (False, (0.274968, -0.5, 0.397354, 1.88003)),
        (True, (0.454131, 0.0683134, 1.13663, 1.88003)),
    ],
    ids=["full", "detached"],
)
def test_soft_reset(detach: bool, expected: tuple[float, ...]) -> None:
    """Potentials, spikes and both gradients of the fixed-point method's serial reference."""
    for model in both(SoftReset(detach)):
        c = rows(1.5, 0.75, 0.75, 0.75).requires_grad_()
        u, s = model(c)
        (s * rows(1.0, -0.5, 0.25, 2.0)).sum().backward()

        assert u.flatten().tolist() == [1.5, 1.0, 0.75, 1.125]
        assert s.flatten().tolist() == [1.0, 1.0, 0.0, 1.0]
        assert c.grad is not None
        close(c.grad, *expected)


class RoundClip(torch.autograd.Function):
    """Integer spikes 0..4; the gradient passes where 0 <= h <= 4."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return torch.round(h).clamp(0.0, 4.0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return torch.where((h >= 0) & (h <= 4), g, torch.zeros_like(g))


class DynamicDecay(nn.Module):
    """Input-dependent decay, no reset, integer spikes; equations 9 to 12 of arXiv 2602.01133."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[[0.0, 0.0, 0.5, -0.25]]], dtype=torch.float64))
        self.b = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        padded = torch.cat([x.new_zeros(3, 1), x])
        gate = torch.nn.functional.conv1d(padded.t().unsqueeze(0), self.w, self.b)[0].t()
        alpha = torch.sigmoid(gate) ** 4.0
        h = torch.zeros_like(x[0])
        hs, ss = [], []
        for t in range(x.shape[0]):
            h = alpha[t] * h + (1.0 - alpha[t]) * x[t]
            hs.append(h)
            ss.append(RoundClip.apply(h))
        return torch.sigmoid(gate), alpha, torch.stack(hs), torch.stack(ss)


def test_dynamic_decay() -> None:
    """Decays, potentials, integer spikes, and gradients of input, gate weights and gate bias."""
    for model in both(DynamicDecay()):
        x = rows(1.0, 2.5, -0.5, 3.0).requires_grad_()
        sigma, alpha, h, s = model(x)
        loss = (s * rows(1.0, -0.5, 0.25, 2.0)).sum()
        gx, gw, gb = torch.autograd.grad(loss, [x, *model.parameters()])  # type: ignore[attr-defined]

        close(sigma, 0.679179, 0.705785, 0.914901, 0.5)
        close(alpha, 0.212783, 0.248136, 0.700642, 0.0625)
        close(h, 0.787217, 2.075, 1.30415, 2.89401)
        assert s.flatten().tolist() == [1.0, 2.0, 1.0, 3.0]
        close(gx, 0.864453, -0.0929054, -0.157296, 1.98099)
        close(gw, -0.423962, -0.829608, 0.906394, -1.34735)
        close(gb, -0.33198)


class HDLIF(nn.Module):
    """Graded spikes, P2 reset, decay and threshold of their own at each step."""

    def __init__(self, online: bool, quantized: bool = False) -> None:
        super().__init__()
        self.online, self.quantized = online, quantized
        self.a = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, current: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros_like(current[0])
        vs, ss = [], []
        for t in range(current.shape[0]):
            if self.online:
                v = v.detach()
            m = torch.sigmoid(self.a[t]) * v + current[t]
            s = torch.relu(m - torch.sigmoid(self.b[t]))
            v = m - s
            vs.append(v)
            if self.quantized:
                s = (torch.clamp(torch.round(s * 4.0), 0.0, 15.0) / 4.0 - s).detach() + s
            ss.append(s)
        return torch.stack(vs), torch.stack(ss)


@pytest.mark.parametrize(
    ("online", "expected"),
    [(True, (0.0, -0.5, 0.0, 2.0)), (False, (-0.25, -0.5, 1.0, 2.0))],
    ids=["online", "full"],
)
def test_hd_lif(online: bool, expected: tuple[float, ...]) -> None:
    """Potentials, graded spikes and both gradients of HD-LIF."""
    for model in both(HDLIF(online)):
        current = rows(0.25, 1.0, -0.5, 1.5).requires_grad_()
        v, s = model(current)
        (s * rows(1.0, -0.5, 0.25, 2.0)).sum().backward()

        assert v.flatten().tolist() == [0.25, 0.5, -0.25, 0.5]
        assert s.flatten().tolist() == [0.0, 0.625, 0.0, 0.875]
        assert current.grad is not None
        close(current.grad, *expected)


def test_hd_lif_quantized() -> None:
    """The 4-bit output rounds half to even: 2.5 to 2, 3.5 to 4."""
    for model in both(HDLIF(online=True, quantized=True)):
        _, s = model(rows(0.25, 1.0, -0.5, 1.5))

        assert s.flatten().tolist() == [0.0, 0.5, 0.0, 1.0]


class MembraneNormHDLIF(nn.Module):
    """HD-LIF whose potential is normalised at each step with fixed statistics."""

    def __init__(self) -> None:
        super().__init__()
        values = {
            "gamma": [1.2, 0.8, -1.0, 1.5],
            "delta": [0.1, 0.0, 0.2, -0.1],
            "mu": [0.1, 0.3, 0.2, 0.5],
            "var": [0.25, 0.16, 0.09, 0.36],
        }
        for name, numbers in values.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float64))

    def forward(self, current: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros_like(current[0])
        ms, ss = [], []
        for t in range(current.shape[0]):
            m = 0.5 * v + current[t]
            r = torch.sqrt(self.var[t] + 1e-5)
            normalised = self.gamma[t] * (m - self.mu[t]) / r + self.delta[t]
            m = 0.5 * m + 0.5 * normalised
            s = torch.relu(m - 0.5)
            v = m - s
            ms.append(m)
            ss.append(s)
        return torch.stack(ms), torch.stack(ss)


def test_membrane_norm() -> None:
    """Potentials and spikes of Mem-BN HD-LIF, negative scale included."""
    for model in both(MembraneNormHDLIF()):
        m, s = model(rows(0.25, 1.0, -0.5, 1.5))

        close(m, 0.354996, 1.46622, 0.724958, 2.38748)
        close(s, 0.0, 0.96622, 0.224958, 1.88748)
