"""Loops whose steps have modules of their own are loops; equal layers are not."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.frontend.capture import capture
from snncc.frontend.reroll import reroll

STEPS = 5


class NormOfEachStep(nn.Module):
    """Takes the norm of a step by an index from a list."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__()
        self.indices = indices
        self.norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(STEPS))

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for t in range(STEPS):
            v = 0.5 * v + self.norms[self.indices[t]](x[t])
        return v


class TwoNorms(NormOfEachStep):
    """Takes two norms at a step, one from each end of the list."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for t in range(STEPS):
            v = 0.5 * v + self.norms[t](x[t]) + self.norms[STEPS - 1 - t](x[t])
        return v


class Layers(nn.Module):
    """Equal residual layers before and behind a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = x.mean(0)
        for layer in self.layers:
            h = h + torch.relu(layer(h))
        v = torch.zeros_like(h)
        for x_t in x:
            v = 0.5 * v + x_t + h
        for layer in self.layers:
            v = v + torch.relu(layer(v))
        return v


def lengths(model: nn.Module) -> list[int]:
    """Return the lengths of the loops that a model is rolled into."""
    return [
        loop.trip.seen for loop in reroll(capture(model, (torch.randn(STEPS, 4, 3),), {})).loops
    ]


MODELS = {
    "up": NormOfEachStep(range(STEPS)),
    "down": NormOfEachStep(range(STEPS - 1, -1, -1)),
    "crossing": TwoNorms(range(STEPS)),
}


@pytest.mark.parametrize("name", MODELS)
def test_statistics_are_put_back(name: str) -> None:
    """Each norm has its statistics in its own buffers after each call."""
    torch.manual_seed(0)
    model = MODELS[name]
    twin = copy.deepcopy(model)
    fast = snncc.compile(twin)
    for _ in range(2):
        x = torch.randn(STEPS, 4, 3)

        torch.testing.assert_close(fast(x), model(x))
        for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_each_step_has_a_module() -> None:
    """The steps are one loop, in either order."""
    assert lengths(MODELS["up"]) == lengths(MODELS["down"]) == [STEPS]


def test_a_norm_that_comes_again_is_no_step() -> None:
    """Statistics that the last step changes again would be those of the first step alone."""
    assert lengths(NormOfEachStep([0, 1, 2, 3, 0])) == []
    assert lengths(NormOfEachStep([0, 1, 2, 3, 0]).eval()) == [STEPS]


def test_norms_that_cross_are_no_steps() -> None:
    """A step would read statistics that another step has changed."""
    assert STEPS not in lengths(MODELS["crossing"])


def test_equal_layers_are_no_steps() -> None:
    """Layers that look the same carry a value, but read no input."""
    assert lengths(Layers()) == [STEPS]
