"""Random serial networks with feedback across neurons, for end-to-end property tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.generated import SpikeGE, bound_spike, straight_through


@dataclass(frozen=True)
class RecurrentDesign:
    """What one generated network looks like."""

    feedback: tuple[str, ...]
    source: str
    delay: int
    reset: str
    spike: str
    decay: str
    adaptive: bool
    synapse: bool
    late: bool
    second: str
    start: str
    output: str
    dtype: torch.dtype
    length: int
    batch: int
    features: int

    @property
    def bitwise(self) -> bool:
        """Whether the forward is the same float operations in the same order."""
        return self.spike != "straight_through"


# What a design is drawn from.
CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "feedback": st.lists(
        st.sampled_from(["linear", "matrix", "mean", "sum", "norm", "dropout", "attention", "max"]),
        min_size=1,
        max_size=3,
    ).map(tuple),
    "source": st.sampled_from(["spikes", "potential", "detached", "both"]),
    "delay": st.integers(0, 2),
    "reset": st.sampled_from(["zero", "subtract", "none", "where"]),
    "spike": st.sampled_from(["class", "bound", "straight_through"]),
    "decay": st.sampled_from(["constant", "scalar", "channel", "per_step"]),
    "adaptive": st.booleans(),
    "synapse": st.booleans(),
    "late": st.booleans(),
    "second": st.sampled_from(["none", "up", "coupled"]),
    "start": st.sampled_from(["zeros", "number", "given", "learned"]),
    "output": st.sampled_from(["stack", "last", "two", "sum", "potential"]),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
    "length": st.integers(5, 8),
    "batch": st.integers(1, 4),
    "features": st.integers(1, 5),
}
recurrent_designs = st.builds(RecurrentDesign, **CHOICES)
# Rows that only products and elementwise operators see, and enough of them for blocks.
row_designs = st.builds(
    RecurrentDesign,
    **CHOICES
    | {
        "feedback": st.sampled_from([("linear",), ("matrix",), ("linear", "matrix")]),
        "batch": st.integers(1, 13),
        "features": st.sampled_from([1, 7, 16, 33, 70]),
    },
)


class GeneratedRecurrent(nn.Module):
    """One or two recurrent layers in serial code, as a `RecurrentDesign` says."""

    def __init__(self, design: RecurrentDesign) -> None:
        super().__init__()
        self.design = design
        n = design.features
        self.linear = nn.Linear(n, n)
        self.matrix = nn.Parameter(torch.randn(n, n) * 0.5)
        self.norm = nn.LayerNorm(n)
        self.up, self.down = nn.Linear(n, n), nn.Linear(n, n, bias=False)
        initial = torch.linspace(-1.0, 1.0, n) if design.decay == "channel" else torch.tensor(0.25)
        self.w = nn.Parameter(initial)
        self.v0 = nn.Parameter(torch.randn(n) * 0.3)
        self.to(design.dtype)

    def feed(self, kind: str, x: Tensor) -> Tensor:
        """Return what one kind of feedback makes of the activity of the layer."""
        match kind:
            case "linear":
                return self.linear(x)
            case "matrix":
                return x @ self.matrix
            case "mean":
                return -0.5 * x.mean(-1, keepdim=True)
            case "sum":
                return 0.125 * (x.sum(1, keepdim=True) - x)
            case "norm":
                return 0.25 * self.norm(x)
            case "dropout":
                return F.dropout(0.5 * x, 0.5, self.training)
            case "attention":
                return 0.5 * torch.softmax(x @ x.transpose(0, 1), -1) @ x
            case _:
                return -0.25 * x.max(dim=1, keepdim=True).values

    def fire(self, u: Tensor) -> Tensor:
        match self.design.spike:
            case "class":
                return SpikeGE.apply(u)
            case "bound":
                return bound_spike(u)
            case _:
                return straight_through(u)

    def decay(self, t: int) -> Any:
        match self.design.decay:
            case "constant":
                return 0.75
            case "per_step":
                return 0.5 ** (t + 1)
            case _:
                return torch.sigmoid(self.w)

    def reset(self, v: Tensor, s: Tensor) -> Tensor:
        match self.design.reset:
            case "zero":
                return v * (1.0 - s)
            case "where":
                return torch.where(s > 0, torch.full_like(v, -0.25), v)
            case "subtract":
                return v - s.detach()
            case _:
                return v

    def source(self, v: Any, s: Tensor) -> Tensor:
        match self.design.source:
            case "spikes":
                return s
            case "potential":
                return v + 0.0 * s
            case "detached":
                return s.detach()
            case _:
                return s + 0.25 * v

    def started(self, x: Tensor, given: Tensor) -> Any:
        match self.design.start:
            case "number":
                return 0.0
            case "given":
                return given
            case "learned":
                return self.v0.expand_as(x[0])
            case _:
                return torch.zeros_like(x[0])

    def forward(self, x: Tensor, given: Tensor) -> Any:
        d = self.design
        zeros = torch.zeros_like(x[0])
        v, s, s2, v2, i, a = self.started(x, given), zeros, zeros, zeros, zeros, zeros
        queue = [zeros] * d.delay
        current, total = zeros, zeros
        spikes, potentials = [], []
        for t in range(x.shape[0]):
            seen = queue[0] if d.delay else self.source(v, s)
            if not d.late:
                current = sum(self.feed(kind, seen) for kind in d.feedback)
            drive = x[t] + current
            if d.second == "coupled":
                drive = drive + self.down(s2)
            if d.synapse:
                i = 0.5 * i + drive
                drive = i
            v = self.decay(t) * v + drive
            s = self.fire(v - 1.0 - a if d.adaptive else v - 0.5)
            potentials.append(v)
            v = self.reset(v, s)
            a = 0.5 * a + 0.25 * s
            queue = [*queue[1:], self.source(v, s)] if d.delay else queue
            if d.second != "none":
                v2 = 0.5 * v2 + self.up(s)
                s2 = self.fire(v2 - 0.25)
                v2 = v2 - 0.25 * s2
            if d.late:
                current = sum(self.feed(kind, self.source(v, s)) for kind in d.feedback)
            total = total + s + s2
            spikes.append(s2 if d.second != "none" else s)
        return self.collect(spikes, potentials, total, v)

    def collect(self, spikes: list[Tensor], potentials: list[Tensor], total: Tensor, v: Any) -> Any:
        match self.design.output:
            case "stack":
                return torch.stack(spikes)
            case "sum":
                return total
            case "last":
                return v
            case "potential":
                return torch.stack(potentials, dim=1)
            case _:
                return torch.stack(spikes), v


def make_inputs(design: RecurrentDesign, seed: int) -> tuple[Tensor, Tensor]:
    """Return multiples of 1/8, so that ties with the threshold happen: input and a start."""
    generator = torch.Generator().manual_seed(seed)
    shape = (design.length, design.batch, design.features)
    x = torch.randint(-8, 17, shape, generator=generator) / 8
    v = torch.randint(-8, 9, shape[1:], generator=generator) / 8
    return x.to(design.dtype).requires_grad_(), v.to(design.dtype).requires_grad_()
