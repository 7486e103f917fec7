"""Convolutions of spikes are marked, and no others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snncc
from snncc.runtime.products import convolution
from tests.passes.between import Between, Two

CHANNELS = 16


def two(between: Between, channels: int = CHANNELS) -> Two:
    """Return two convolutions."""
    first = nn.Conv2d(CHANNELS, channels, 3, padding=1)
    return Two(between, first, nn.Conv2d(channels, channels, 3, padding=1))


SPIKING: dict[str, Between] = {
    "a spike": lambda h, s, x: s,
    "sums of spikes": lambda h, s, x: s + s.flip(0),
    "the largest": lambda h, s, x: F.max_pool2d(s, 2),
    "graded": lambda h, s, x: torch.where(h > 0.2, h, 0.0),
    "gated": lambda h, s, x: s * torch.sigmoid(h),
    "whole numbers": lambda h, s, x: torch.round(h.clamp(0.0, 4.0)),
}
OTHER: dict[str, Between] = {
    "a potential": lambda h, s, x: h,
    "the input": lambda h, s, x: x,
    "a potential and a spike": lambda h, s, x: h + s,
    "no spike": lambda h, s, x: 1.0 - s,
    "a mean": lambda h, s, x: F.avg_pool2d(s, 2),
}


def marked(model: nn.Module, **options: object) -> list[str]:
    """Return the layers that may skip zeros."""
    fast = snncc.compile(model, **options)
    fast(torch.randn(4, 2, CHANNELS, 6, 6))
    plan = fast.plans[0]
    return [x.name.partition("_")[0] for x in plan.layers if x.kernel == "torch or c"]


@pytest.mark.parametrize("name", SPIKING)
def test_convolutions_of_spikes_skip_zeros(name: str) -> None:
    """What is zero wherever nothing fires is worth a count."""
    assert marked(two(SPIKING[name])) == ["second"]


@pytest.mark.parametrize("name", OTHER)
def test_other_convolutions_do_not(name: str) -> None:
    """What has no reason to be zero is not counted."""
    assert marked(two(OTHER[name])) == []


def test_few_channels_are_left_alone() -> None:
    """A filter of few channels has too little to skip."""
    assert marked(two(SPIKING["a spike"], channels=8)) == []


@pytest.mark.parametrize("options", [{"skip_zeros": False}, {"target": "torch"}], ids=str)
def test_it_can_be_turned_off(options: dict[str, object]) -> None:
    """Without the option, and by the reference, convolutions are torch's."""
    assert marked(two(SPIKING["a spike"]), **options) == []


@pytest.mark.parametrize("name", ["a spike", "the largest"])
def test_the_network_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision outputs and gradients agree, and the certificate holds in single."""
    monkeypatch.setattr(convolution.Shape, "pays", lambda shape, density: True)
    torch.manual_seed(0)
    model = two(SPIKING[name])
    x = torch.randn(4, 3, CHANNELS, 10, 10)
    report = snncc.verify(model, snncc.compile(model), x)
    assert report.ok, report

    model.double()
    results = []
    for each in (model, snncc.compile(model)):
        y = each(x.double())
        results.append([y, *torch.autograd.grad((y * y.detach()).sum(), model.parameters())])

    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_plan_says_how() -> None:
    """A plan tells that its promise is weaker, and why."""
    torch.manual_seed(0)
    fast = snncc.compile(two(SPIKING["a spike"]))
    fast(torch.randn(4, 2, CHANNELS, 6, 6))

    assert "1 convolution skips the zeros of spikes" in str(fast)
