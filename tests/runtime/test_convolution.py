"""Convolutions that skip zeros: the values and gradients of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv1d, conv2d

from snncc.runtime.products import convolution
from snncc.runtime.products.convolution import convolve

Convolution = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Skip zeros at any density, and return which kernels were called.

    Winograd's method, whose sums are not exact, is left out.
    """
    called: list[str] = []
    run = convolution._Launch.run

    def note(launch: Any, *tensors: Tensor) -> None:
        called.append("gradient" if launch.backward else "forward")
        run(launch, *tensors)

    monkeypatch.setattr(convolution.Shape, "pays", lambda shape, density: True)
    monkeypatch.setattr(convolution.Shape, "transforms", False)
    monkeypatch.setattr(convolution._Launch, "run", note)
    return called


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run with a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def whole_numbers(*shape: int, density: float = 1.0, dtype: torch.dtype) -> Tensor:
    """Return small whole numbers: sums of their products are exact in any order."""
    return (torch.randint(-4, 5, shape) * (torch.rand(shape) < density)).to(dtype)


def run(layer: Convolution, given: list[Tensor], options: Any, cotangent: Tensor) -> list[Tensor]:
    """Return the result of a convolution and its gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    result = layer(*leaves, *options)
    return [result, *torch.autograd.grad(result, leaves, cotangent)]


def check(x: tuple[int, ...], weight: tuple[int, ...], options: Any, dtype: torch.dtype) -> None:
    """Compare with torch, bit by bit."""
    torch.manual_seed(0)
    given = [
        whole_numbers(*x, density=0.3, dtype=dtype),
        whole_numbers(*weight, dtype=dtype),
        whole_numbers(weight[0], dtype=dtype),
    ]
    reference = conv1d if len(x) == 3 else conv2d
    cotangent = torch.randint(-4, 5, reference(*given, *options).shape).to(dtype)

    expected = run(reference, given, options, cotangent)
    actual = run(convolve, given, options, cotangent)

    assert [torch.equal(a, b) for a, b in zip(actual, expected, strict=True)] == [True] * 4


SHAPES = {
    "one row of filters": ((3, 16, 5, 7), (16, 16, 3, 3), (1, 1)),
    "several rows": ((4, 64, 16, 16), (130, 64, 3, 3), (1, 1)),
    "part of a row": ((3, 17, 9, 11), (33, 17, 3, 3), (1, 1)),
    "strides": ((3, 20, 16, 15), (70, 20, 3, 3), (2, 1)),
    "another stride in each direction": ((3, 16, 12, 13), (40, 16, 5, 3), ((1, 2), (2, 0))),
    "strides beyond the filter": ((3, 16, 33, 33), (16, 16, 2, 3), ((3, 4), 0)),
    "no extent": ((64, 32, 1, 1), (48, 32, 1, 1), ()),
    "shortcut": ((4, 24, 16, 16), (64, 24, 1, 1), (2, 0)),
    "wide filters": ((3, 16, 20, 6), (65, 16, 7, 7), (2, 3)),
    "padding beyond the filter": ((3, 16, 8, 8), (16, 16, 3, 3), (1, 5)),
    "small images": ((9, 128, 4, 4), (96, 128, 3, 3), (1, 1)),
    "one axis": ((5, 32, 40), (32, 32, 3), (1, 1)),
    "one axis, strides": ((5, 32, 40), (20, 32, 4), (3, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients(name: str, dtype: torch.dtype, always: list[str]) -> None:
    """Sums of whole numbers are exact, so all results are equal."""
    check(*SHAPES[name], dtype)

    assert always == ["forward", "gradient"]


def test_threads_share_the_work(threads: int, always: list[str]) -> None:
    """However images and channels are shared out among threads, every sum is complete."""
    check((7, 19, 12, 12), (40, 19, 3, 3), (1, 1), torch.float32)

    assert always == ["forward", "gradient"]


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(4, 9),
    channels=st.integers(16, 40),
    size=st.tuples(st.integers(4, 19), st.integers(4, 19)),
    filters=st.integers(16, 90),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_any_sizes(
    images: int,
    channels: int,
    size: tuple[int, int],
    filters: int,
    taps: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> None:
    """Whatever the sizes are, the results are those of torch."""
    weight = (filters, channels, *taps)
    check((images, channels, *size), weight, (stride, padding), torch.float32)


def test_same_sums_twice() -> None:
    """Rounded sums are the same in each call: nothing depends on which thread is first."""
    torch.manual_seed(0)
    x = torch.randn(6, 32, 16, 16) * (torch.rand(6, 32, 16, 16) < 0.2)
    given = [x, torch.randn(48, 32, 3, 3), torch.randn(48)]
    cotangent = torch.randn(6, 48, 16, 16)
    first = run(convolve, given, (1, 1), cotangent)

    for _ in range(3):
        again = run(convolve, given, (1, 1), cotangent)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


OTHERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any]] = {
    "groups": ((4, 32, 8, 8), (32, 16, 3, 3), (1, 1, 1, 2)),
    "dilation": ((4, 16, 9, 9), (16, 16, 3, 3), (1, 2, 2)),
    "padding by name": ((4, 16, 8, 8), (16, 16, 3, 3), (1, "same")),
    "few channels": ((4, 3, 8, 8), (16, 3, 3, 3), (1, 1)),
    "few filters": ((4, 16, 8, 8), (4, 16, 3, 3), (1, 1)),
    "few pixels": ((2, 16, 4, 4), (16, 16, 3, 3), (1, 1)),
    "no image": ((0, 16, 8, 8), (16, 16, 3, 3), (1, 1)),
    "large strides": ((4, 16, 40, 40), (16, 16, 3, 3), (5, 1)),
    "one axis, padding by name": ((4, 16, 80), (16, 16, 3), (1, "valid")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_are_those_of_torch(name: str, always: list[str]) -> None:
    """What there is no kernel for, or nothing to gain, is left to the library."""
    check(*OTHERS[name], torch.float32)

    assert always == []


def test_no_batch(always: list[str]) -> None:
    """Three axes and a filter of four are one image, two axes and a filter of three one signal."""
    x, weight = torch.randn(16, 9, 9), torch.randn(16, 16, 3, 3)
    signal, taps = x[:, 0], weight[..., 0]

    assert torch.equal(convolve(x, weight), conv2d(x, weight))
    assert torch.equal(convolve(signal, taps), conv1d(signal, taps))
    assert always == []


def test_channels_last_memory_is_left_to_the_library(always: list[str]) -> None:
    """The kernels read planes."""
    x = torch.randn(4, 16, 8, 8).to(memory_format=torch.channels_last)
    weight = torch.randn(16, 16, 3, 3)

    assert torch.equal(convolve(x, weight), conv2d(x, weight))
    assert always == []


def test_half_precision_by_autocast(always: list[str]) -> None:
    """Under autocast the library computes in the type that it is told to."""
    x, weight = torch.randn(4, 16, 8, 8), torch.randn(16, 16, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(x, weight).dtype is torch.bfloat16
    assert always == []


def test_a_mismatch_is_torch_s_error() -> None:
    """Sizes that do not fit are refused in torch's words."""
    with pytest.raises(RuntimeError, match="expected input"):
        convolve(torch.randn(4, 16, 8, 8), torch.randn(16, 32, 3, 3))
    with pytest.raises(RuntimeError, match="bias"):
        convolve(torch.randn(4, 16, 8, 8), torch.randn(16, 16, 3, 3), torch.randn(15))
    with pytest.raises(RuntimeError, match="bias"):
        convolve(torch.randn(4, 16, 8, 8), torch.randn(16, 16, 3, 3), torch.randn(16).double())


def test_gradient_of_the_gradient() -> None:
    """A gradient that is differentiated again is torch's."""
    torch.manual_seed(0)
    x = whole_numbers(4, 16, 8, 8, density=0.3, dtype=torch.float64)
    weight = whole_numbers(16, 16, 3, 3, dtype=torch.float64)
    found = []
    for layer in (conv2d, convolve):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        y = layer(*leaves)
        first = torch.autograd.grad((y * y).sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum((g * g).sum() for g in first), leaves))

    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nan_and_infinity_of_the_input_spread() -> None:
    """They are not zero: they reach the outputs that they reach in torch."""
    x, weight = torch.zeros(4, 16, 8, 8), torch.ones(16, 16, 3, 3)
    x[1, 3, 2, 2], x[2, 5, 7, 7] = torch.nan, torch.inf

    torch.testing.assert_close(
        convolve(x, weight, None, 1, 1), conv2d(x, weight, None, 1, 1), equal_nan=True
    )


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_zero_times_infinity_is_nan(value: float) -> None:
    """Also where a weight or a cotangent is not finite, results are those of torch."""
    x, weight = torch.zeros(4, 16, 8, 8), torch.ones(16, 16, 1, 1)
    weight[0, 0] = value
    y = convolve(x, weight)

    assert y[:, 0].isnan().all()
    assert not y[:, 1:].any()

    weight = torch.ones(16, 16, 1, 1, requires_grad=True)
    cotangent = torch.ones(4, 16, 8, 8)
    cotangent[0, 3, 2, 2] = value
    (gradient,) = torch.autograd.grad(convolve(x, weight), weight, cotangent)

    assert gradient[3].isnan().all()
    assert not gradient[:3].any()


def test_only_gradients_that_are_asked_for(always: list[str]) -> None:
    """A frozen filter has no gradient, and its kernel does not run."""
    x = torch.ones(4, 16, 8, 8, requires_grad=True)
    convolve(x, torch.ones(16, 16, 3, 3)).sum().backward()

    assert x.grad is not None
    assert always == ["forward"]


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_density_is_counted(density: float) -> None:
    """A sample of a large tensor tells its density."""
    torch.manual_seed(0)
    x = (torch.rand(8, 64, 32, 32) < density).float()

    assert convolution.density(x) == pytest.approx(density, abs=0.02)


def test_density_of_nothing() -> None:
    """An empty tensor has nothing to skip."""
    assert convolution.density(torch.empty(0, 3)) == 0.0
