"""Random serial networks, written as users write them, for end-to-end property tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


class SpikeGE(torch.autograd.Function):
    """Fires at or above zero; arctangent surrogate."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return g / (1 + (math.pi * u) ** 2)


class SpikeGT(torch.autograd.Function):
    """Fires above zero, written with a masked write; fast-sigmoid surrogate."""

    scale = 2.0

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        out = torch.zeros_like(u)
        out[u > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return g.clone() / (SpikeGT.scale * u.abs() + 1.0) ** 2


def straight_through(u: Tensor) -> Tensor:
    """Return a step whose gradient is a sigmoid's, by the detach trick."""
    soft = torch.sigmoid(4.0 * u)
    return ((u > 0).to(u.dtype) - soft).detach() + soft


# Bound at import, as much published code does.
bound_spike = SpikeGE.apply


@dataclass(frozen=True)
class Design:
    """What one generated network looks like."""

    reset: str
    detach_reset: bool
    spike: str
    decay: str
    synapse: bool
    adaptive: bool
    axis: int
    output: str
    linear: bool
    lazy_state: bool
    dtype: torch.dtype
    length: int
    batch: int
    features: int

    @property
    def bitwise(self) -> bool:
        """Whether the forward is the same float operations in the same order."""
        return not self.linear and self.spike != "straight_through" and self.decay != "per_step"


designs = st.builds(
    Design,
    reset=st.sampled_from(["zero", "value", "subtract", "none", "delayed", "clip"]),
    detach_reset=st.booleans(),
    spike=st.sampled_from(["class", "bound", "masked", "straight_through"]),
    decay=st.sampled_from(["constant", "scalar", "channel", "clamped", "per_step"]),
    synapse=st.booleans(),
    adaptive=st.booleans(),
    axis=st.sampled_from([0, 1, -1]),
    output=st.sampled_from(
        ["stack", "stack_last", "sum", "mean", "last", "max", "two", "potential"]
    ),
    linear=st.booleans(),
    lazy_state=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    length=st.integers(1, 6),
    batch=st.integers(0, 3),
    features=st.integers(1, 5),
)


class GeneratedNetwork(nn.Module):
    """One recurrent layer in serial code, as a `Design` says."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        n = design.features
        initial = torch.linspace(-1.0, 1.0, n) if design.decay == "channel" else torch.tensor(0.25)
        self.w = nn.Parameter(initial)
        self.fc = nn.Linear(n, n) if design.linear else nn.Identity()
        self.to(design.dtype)

    def fire(self, u: Tensor) -> Tensor:
        match self.design.spike:
            case "class":
                return SpikeGE.apply(u)
            case "bound":
                return bound_spike(u)
            case "masked":
                return SpikeGT.apply(u)
            case _:
                return straight_through(u)

    def decay(self, t: int) -> Any:
        match self.design.decay:
            case "constant":
                return 0.75
            case "clamped":
                return self.w.clamp(0.0, 1.0)
            case "per_step":
                return 0.5 ** (t + 1)
            case _:
                return torch.sigmoid(self.w)

    def reset(self, v: Tensor, s: Tensor) -> Tensor:
        r = s.detach() if self.design.detach_reset else s
        match self.design.reset:
            case "zero":
                return v * (1.0 - r)
            case "value":
                return torch.where(r > 0, torch.full_like(v, -0.25), v)
            case "subtract":
                return v - r * 1.0
            case "clip":
                return torch.minimum(v, torch.ones_like(v))
            case _:
                return v

    def at(self, x: Tensor, t: int) -> Tensor:
        match self.design.axis:
            case 0:
                return x[t]
            case 1:
                return x[:, t]
            case _:
                return x[..., t]

    def forward(self, x: Tensor) -> Any:
        d = self.design
        v = s = None if d.lazy_state else torch.zeros_like(self.at(x, 0))
        i = torch.zeros_like(self.at(x, 0))
        a = torch.zeros_like(i)
        total = torch.zeros_like(i)
        spikes, potentials = [], []
        for t in range(x.shape[d.axis]):
            current = self.fc(self.at(x, t))
            if v is None or s is None:
                v, s = torch.zeros_like(current), torch.zeros_like(current)
            if d.synapse:
                i = 0.5 * i + current
                current = i
            v = self.decay(t) * v + current
            if d.reset == "delayed":
                v = v - (s.detach() if d.detach_reset else s)
            s = self.fire(v - 1.0 - a if d.adaptive else v - 1.0)
            potentials.append(v)
            v = self.reset(v, s)
            a = 0.5 * a + 0.25 * s
            total = total + s
            spikes.append(s)
        return self.collect(spikes, potentials, total, v)

    def collect(self, spikes: list[Tensor], potentials: list[Tensor], total: Tensor, v: Any) -> Any:
        match self.design.output:
            case "stack":
                return torch.stack(spikes)
            case "stack_last":
                return torch.stack(spikes, dim=-1)
            case "sum":
                return total
            case "mean":
                return torch.stack(spikes).mean(0)
            case "last":
                return v
            case "max":
                return torch.stack(potentials).max(0).values
            case "potential":
                return torch.stack(potentials, dim=1)
            case _:
                return torch.stack(spikes), v


def make_input(design: Design, seed: int) -> Tensor:
    """Return multiples of 1/8, so that ties with the threshold happen, in the design's layout."""
    generator = torch.Generator().manual_seed(seed)
    shape = [design.batch, design.features]
    shape.insert(design.axis if design.axis >= 0 else 2, design.length)
    x = torch.randint(-8, 17, shape, generator=generator) / 8
    return x.to(design.dtype).requires_grad_()
