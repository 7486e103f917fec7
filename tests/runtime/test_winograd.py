"""Gradients of convolutions by Winograd's method: those of torch, but for roundings."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from snncc.runtime.products import winograd
from snncc.runtime.products.convolution import convolve

Pair = tuple[int, int]


def gradients(
    layer: Callable[..., Tensor], x: Tensor, weight: Tensor, cotangent: Tensor, padding: Pair
) -> tuple[Tensor, ...]:
    """Return the gradients of the input and of the filters of a convolution."""
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    return torch.autograd.grad(layer(*leaves, None, 1, padding), leaves, cotangent)


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

    Roundings are relative to what the largest values of tiles give with one another.
    """
    exact = operands(images, channels, filters, size, padding)
    x = torch.randn((images, channels, *size), dtype=torch.float64)
    tiles = images * math.prod(-(-n // 4) for n in exact[0].shape[2:])
    for dtype in (torch.float64, torch.float32):
        cotangent, weight, given = (t.to(dtype) for t in (*exact, x))
        wide = [t.double() for t in (given, weight, cotangent)]
        expected = gradients(conv2d, *wide, padding)
        actual = (
            winograd.input_gradient(cotangent, weight, size, padding),
            winograd.weight_gradient(cotangent, given, padding),
        )
        largest = float(cotangent.abs().max())
        scales = (
            largest * float(weight.abs().sum((0, 2, 3)).max()),
            largest * float(given.abs().max()) * 16 * tiles,
        )
        for result, reference, scale in zip(actual, expected, scales, strict=True):
            assert result is not None
            assert result.dtype is dtype
            error = float((result - reference).abs().max())
            assert error < 4 * torch.finfo(dtype).eps * scale


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
    """The gradient of nothing is empty, and nothing adds up to zero."""
    cotangent, x = torch.zeros(0, 16, 8, 8), torch.zeros(0, 32, 8, 8)
    of_x = winograd.input_gradient(cotangent, torch.zeros(16, 32, 3, 3), (8, 8), (1, 1))
    of_weight = winograd.weight_gradient(cotangent, x, (1, 1))

    assert of_x is not None
    assert of_x.shape == x.shape
    assert of_weight is not None
    assert torch.equal(of_weight, torch.zeros(16, 32, 3, 3))


@pytest.mark.parametrize("size", [(12, 20), (33, 47)], ids=["one round", "several rounds"])
def test_same_bits_with_any_number_of_threads(size: Pair) -> None:
    """How tiles and channels are shared out among threads changes no sum."""
    cotangent, weight = operands(7, 40, 80, size, (1, 1))
    x = torch.randn(7, 40, *size, dtype=torch.float64)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 5, 1):
            torch.set_num_threads(threads)
            of_x = winograd.input_gradient(cotangent, weight, size, (1, 1))
            found.append((of_x, winograd.weight_gradient(cotangent, x, (1, 1))))
    finally:
        torch.set_num_threads(before)

    assert all(torch.equal(*pair) for other in found for pair in zip(found[0], other, strict=True))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", ["input", "weight", "cotangent"])
def test_what_is_not_finite_is_left_to_the_library(value: float, place: str) -> None:
    """One value would spoil its tile: torch says how far it reaches."""
    cotangent, weight = (t.float() for t in operands(4, 16, 32, (12, 12), (1, 1)))
    given = {"input": torch.randn(4, 16, 12, 12), "weight": weight, "cotangent": cotangent}
    given[place].view(-1)[1234] = value
    x = given["input"]
    of_x = winograd.input_gradient(cotangent, weight, (12, 12), (1, 1))
    of_weight = winograd.weight_gradient(cotangent, x, (1, 1))
    expected = gradients(conv2d, x, weight, cotangent, (1, 1))

    assert (of_x is None) == (place != "input")
    assert (of_weight is None) == (place != "weight")
    for a, b in zip(gradients(convolve, x, weight, cotangent, (1, 1)), expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-3)


def test_overflow_of_transforms_is_left_to_the_library() -> None:
    """A sum of values may overflow where no product does."""
    cotangent, weight = (t.float() for t in operands(2, 16, 16, (8, 8), (1, 1)))
    cotangent[0, 0, 2, 2], cotangent[0, 0, 2, 4] = 3e38, -3e38
    weight[0] = 0.1
    x = torch.full((2, 16, 8, 8), 1e-3)
    expected = gradients(conv2d, x, weight, cotangent, (1, 1))

    assert all(bool(gradient.isfinite().all()) for gradient in expected)
    assert winograd.input_gradient(cotangent, weight, (8, 8), (1, 1)) is None
    assert winograd.weight_gradient(cotangent, x, (1, 1)) is None


def chosen(
    weight: tuple[int, ...], options: tuple[int, ...] = (1, 1), size: int = 16, density: float = 1.0
) -> list[str]:
    """Return the gradients of a convolution that are computed by this method."""
    torch.manual_seed(0)
    groups = options[3] if len(options) > 3 else 1
    x = (torch.rand(4, weight[1] * groups, size, size) < density).float().requires_grad_()
    y = convolve(x, torch.ones(weight, requires_grad=True), None, *options)
    CALLED.clear()
    y.sum().backward()
    return sorted(CALLED)


CALLED: list[str] = []


def test_convolutions_choose_it_by_sizes_and_density(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, other filters, and too little to transform are left to the library."""
    run = winograd._Launch.run

    def note(launch: winograd._Launch, *rest: object) -> bool:
        CALLED.append(launch.of)
        return run(launch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(winograd._Launch, "run", note)
    monkeypatch.setattr(winograd, "_has_registers", lambda: True)

    assert chosen((64, 64, 3, 3)) == ["input", "weight"]
    assert chosen((64, 64, 3, 3), density=0.1) == ["input"]
    assert chosen((32, 32, 3, 3), (2, 1)) == []
    assert chosen((32, 32, 3, 3), (1, 1, 2)) == []
    assert chosen((32, 16, 3, 3), (1, 1, 1, 2)) == []
    assert chosen((32, 32, 5, 5)) == []
    assert chosen((32, 32, 1, 1), (1, 0)) == []
    assert chosen((32, 8, 3, 3)) == []
    assert chosen((32, 32, 3, 3), (1, 0), size=3) == []

    monkeypatch.setattr(winograd, "_has_registers", lambda: False)
    assert chosen((64, 64, 3, 3)) == []


def test_layouts_of_cotangents_and_filters() -> None:
    """A cotangent that is one number for all, and filters with channels last, are packed first."""
    x = torch.randn(4, 32, 16, 16)
    weight = torch.randn(32, 32, 3, 3).to(memory_format=torch.channels_last)
    cotangent = torch.ones(()).expand(4, 32, 16, 16)
    actual = gradients(convolve, x, weight, cotangent, (1, 1))

    for a, b in zip(actual, gradients(conv2d, x, weight, cotangent, (1, 1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
