"""What stays one step after another: operators with several results, shapes of initial values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import snncc


class Ranked(nn.Module):
    """Takes the largest values of each step, and where they are."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros_like(x[0])
        values, last = [], None
        for x_t in x:
            v = 0.5 * v + x_t
            top, last = v.topk(2, dim=1)
            values.append(top)
        return torch.stack(values), last


class Mixing(nn.Module):
    """The first value of the shape of the states is computed from them, outside of the mixing."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = x[0, :, 2:].tanh()
        memory = torch.zeros_like(v)
        out = []
        for t in range(x.shape[0]):
            out.append(v - 1.0)
            cell = self.mix(torch.cat([x[t, :, :4], v], 1))
            memory = memory * cell[:, :4].sigmoid() + cell[:, 4:]
            v = memory.tanh()
        return torch.stack(out), memory


def test_results_taken_one_by_one() -> None:
    """An operator with several results is mapped over time with its results."""
    model = Ranked()
    fast = snncc.compile(model)
    for T, B in ((6, 2), (8, 3)):
        x = torch.randn(T, B, 5)

        assert all(torch.equal(a, b) for a, b in zip(model(x), fast(x), strict=True))
    assert [layer.kind for layer in fast.plans[0].layers] == ["neuron", "mapped"]


def test_initial_value_of_a_later_shape() -> None:
    """A serial loop fills its states before anything of their shape was computed in it."""
    model = Mixing()
    fast = snncc.compile(model, fallback="serial")
    for T, B in ((6, 2), (8, 3)):
        x = torch.randn(T, B, 6)

        for actual, expected in zip(fast(x), model(x), strict=True):
            torch.testing.assert_close(actual, expected)
