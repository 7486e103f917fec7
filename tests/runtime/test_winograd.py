"""Gradients of convolutions by Winograd's method: those of torch, but for roundings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from snncc.runtime.products import convolution, winograd
from snncc.runtime.products.convolution import convolve

Pair = tuple[int, int]


def by_torch(cotangent: Tensor, weight: Tensor, size: Pair, padding: Pair) -> Tensor:
    """Return the gradient of the input as the library computes it."""
    x = cotangent.new_zeros((cotangent.shape[0], weight.shape[1], *size)).requires_grad_()
    y = conv2d(x, weight, None, 1, padding)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    return gradient


def operands(images: int, channels: int, filters: int, size: Pair, padding: Pair) -> list[Tensor]:
    """Return a cotangent and filters in double precision."""
    torch.manual_seed(0)
    out = [n + 2 * pad - 2 for n, pad in zip(size, padding, strict=True)]
    return [
        torch.randn((images, filters, *out), dtype=torch.float64),
        torch.randn((filters, channels, 3, 3), dtype=torch.float64),
    ]


def check(images: int, channels: int, filters: int, size: Pair, padding: Pair) -> None:
    """Compare with torch in double precision.

    Roundings are relative to what the largest cotangent gives with all weights of a channel.
    """
    exact = operands(images, channels, filters, size, padding)
    for dtype in (torch.float64, torch.float32):
        cotangent, weight = (t.to(dtype) for t in exact)
        expected = by_torch(cotangent.double(), weight.double(), size, padding)
        actual = winograd.input_gradient(cotangent, weight, size, padding)
        largest = float(cotangent.abs().max() * weight.abs().sum((0, 2, 3)).max())

        assert actual is not None
        assert actual.dtype is dtype
        assert float((actual - expected).abs().max()) < 4 * torch.finfo(dtype).eps * largest


SHAPES = {
    "whole tiles": (4, 64, 64, (32, 32), (1, 1)),
    "one tile in each image": (9, 33, 130, (4, 4), (1, 1)),
    "parts of tiles": (3, 20, 33, (9, 11), (1, 1)),
    "less than a tile": (5, 16, 17, (1, 3), (2, 0)),
    "no padding": (2, 17, 40, (13, 30), (0, 0)),
    "padding beyond the filter": (2, 40, 70, (4, 6), (3, 4)),
    "a narrow image": (2, 32, 16, (40, 1), (1, 1)),
    "a wide image": (1, 16, 16, (3, 700), (1, 1)),
    "few channels": (2, 3, 5, (6, 6), (1, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_values(name: str) -> None:
    """Channels, filters and sizes need not fill vectors and tiles."""
    check(*SHAPES[name])


@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 4),
    channels=st.integers(1, 70),
    filters=st.integers(1, 70),
    size=st.tuples(st.integers(3, 19), st.integers(3, 19)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_any_sizes(images: int, channels: int, filters: int, size: Pair, padding: Pair) -> None:
    """Whatever the sizes are, the gradient is that of torch."""
    check(images, channels, filters, size, padding)


def test_no_images() -> None:
    """The gradient of nothing is empty."""
    gradient = winograd.input_gradient(
        torch.zeros(0, 16, 8, 8), torch.zeros(16, 32, 3, 3), (8, 8), (1, 1)
    )

    assert gradient is not None
    assert gradient.shape == (0, 32, 8, 8)


def test_same_bits_with_any_number_of_threads() -> None:
    """How tiles are shared out among threads changes no sum."""
    cotangent, weight = operands(7, 40, 80, (12, 20), (1, 1))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 5, 1):
            torch.set_num_threads(threads)
            found.append(winograd.input_gradient(cotangent, weight, (12, 20), (1, 1)))
    finally:
        torch.set_num_threads(before)

    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_left_to_the_library(value: float, place: int) -> None:
    """One value would spoil its tile: torch says how far it reaches."""
    given = [t.float() for t in operands(4, 16, 32, (12, 12), (1, 1))]
    given[place].view(-1)[1234] = value
    assert winograd.input_gradient(*given, (12, 12), (1, 1)) is None

    x = torch.zeros(4, 16, 12, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(convolve(x, given[1], None, 1, 1), x, given[0])
    expected = by_torch(*given, (12, 12), (1, 1))

    torch.testing.assert_close(gradient, expected, equal_nan=True, rtol=0, atol=0)
    assert bool(expected.isfinite().any())


def test_overflow_of_transforms_is_left_to_the_library() -> None:
    """A sum of values may overflow where no product does."""
    cotangent, weight = (t.float() for t in operands(2, 16, 16, (8, 8), (1, 1)))
    cotangent[0, 0, 2, 2], cotangent[0, 0, 2, 4] = 3e38, -3e38
    weight[0] = 0.1

    assert bool(by_torch(cotangent, weight, (8, 8), (1, 1)).isfinite().all())
    assert winograd.input_gradient(cotangent, weight, (8, 8), (1, 1)) is None


def test_convolutions_choose_it_by_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, other filters, and too little to transform are left to the library."""
    asked: list[torch.Size] = []
    run = winograd.input_gradient

    def note(cotangent: Tensor, *rest: object) -> Tensor | None:
        asked.append(cotangent.shape)
        return run(cotangent, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(winograd, "input_gradient", note)
    monkeypatch.setattr(winograd, "_has_registers", lambda: True)
    monkeypatch.setattr(convolution.Shape, "pays", lambda shape, density: False)

    def chosen(weight: tuple[int, ...], options: tuple[int, ...] = (1, 1), size: int = 16) -> bool:
        asked.clear()
        x = torch.ones(4, weight[1] * (options[3] if len(options) > 3 else 1), size, size)
        convolve(x.requires_grad_(), torch.ones(weight), None, *options).sum().backward()
        return bool(asked)

    assert chosen((32, 32, 3, 3))
    assert not chosen((32, 32, 3, 3), (2, 1))
    assert not chosen((32, 32, 3, 3), (1, 1, 2))
    assert not chosen((32, 16, 3, 3), (1, 1, 1, 2))
    assert not chosen((32, 32, 5, 5))
    assert not chosen((32, 32, 1, 1), (1, 0))
    assert not chosen((32, 8, 3, 3))
    assert not chosen((32, 32, 3, 3), (1, 0), size=3)


def test_layouts_of_cotangents_and_filters() -> None:
    """A cotangent that is one number for all, and filters with channels last, are packed first."""
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    weight = torch.randn(32, 32, 3, 3).to(memory_format=torch.channels_last)
    (actual,) = torch.autograd.grad(convolve(x, weight, None, 1, 1).sum(), x)
    (expected,) = torch.autograd.grad(conv2d(x, weight, None, 1, 1).sum(), x)

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
