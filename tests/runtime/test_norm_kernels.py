"""Kernels of norms in training: the bits of torch forward, its gradients but for roundings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from snncc.runtime.norms import kernels as norm_kernels
from snncc.runtime.norms import per_step as norms
from snncc.runtime.norms.kernels import Norm

Given = dict[str, Tensor | None]
NAMES = ("weight", "bias", "running_mean", "running_var")

pytestmark = pytest.mark.skipif(
    not norm_kernels.agrees(torch.float32), reason="torch adds in another order here"
)


def operands(channels: int, names: tuple[str, ...] = NAMES) -> Given:
    """Return one number for each channel under some of the names."""
    return {name: torch.rand(channels) + 0.5 if name in names else None for name in NAMES}


def by_torch(x: Tensor, given: Given, momentum: float = 0.1, eps: float = 1e-5) -> list[Tensor]:
    """Return what torch makes of all steps, and the running statistics behind them."""
    twins = {name: None if t is None else t.clone() for name, t in given.items()}
    options: Any = (*twins.values(), True, momentum, eps)
    steps = [torch.native_batch_norm(x_t, *options) for x_t in x]
    kept = [t for name, t in twins.items() if t is not None and name.startswith("running")]
    return [*map(torch.stack, zip(*steps, strict=True)), *kept]


def by_kernel(x: Tensor, given: Given, momentum: float = 0.1, eps: float = 1e-5) -> list[Tensor]:
    """Return the same as the kernel computes it."""
    twins = {name: None if t is None else t.clone() for name, t in given.items()}
    results = Norm(*twins.values(), momentum, eps).forward(x)
    kept = [t for name, t in twins.items() if t is not None and name.startswith("running")]
    return [*results, *kept]


def assert_same_bits(a: list[Tensor], b: list[Tensor]) -> None:
    """Compare values, which may be NaN."""
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 3),
    images=st.integers(1, 6),
    channels=st.integers(2, 40),
    pixels=st.integers(2, 70),
    momentum=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_forward_has_the_bits_of_torch(
    steps: int, images: int, channels: int, pixels: int, momentum: float, seed: int
) -> None:
    """Whatever the sizes are, values, statistics and running statistics are equal."""
    torch.manual_seed(seed)
    x = torch.randn(steps, images, channels, pixels) * 4 - 1
    given = operands(channels)

    assert_same_bits(by_kernel(x, given, momentum), by_torch(x, given, momentum))


@pytest.mark.parametrize(
    "names", [(), ("weight",), ("bias",), ("weight", "bias"), ("running_mean", "running_var")]
)
def test_parts_may_be_missing(names: tuple[str, ...]) -> None:
    """A norm may have no parameters, and keep no statistics."""
    torch.manual_seed(0)
    x, given = torch.randn(2, 3, 20, 6, 7), operands(20, names)

    assert_same_bits(by_kernel(x, given), by_torch(x, given))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, 0.0])
def test_values_that_spoil_a_channel(value: float) -> None:
    """What is not finite, or overflows, spreads as in torch; a constant channel has no variance."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 18, 5, 5)
    x[0, :, 1] = 0.25
    x[1, 2, 17, 4, 4] = value
    given = operands(18)

    assert_same_bits(by_kernel(x, given), by_torch(x, given))
    assert_same_bits(by_kernel(x, given, eps=0.0), by_torch(x, given, eps=0.0))


@pytest.mark.parametrize("shape", [(2, 3, 17, 5, 7), (4, 4, 32, 16, 16), (1, 2, 3, 4)])
@pytest.mark.parametrize("wanted", [True, False])
def test_gradients(shape: tuple[int, ...], wanted: bool) -> None:
    """Gradients are those of a norm in double precision."""
    torch.manual_seed(0)
    x, cotangent = torch.randn(shape) * 2 + 1, torch.randn(shape)
    given = operands(shape[2], ("weight", "bias"))
    _, means, deviations = by_kernel(x, given)
    actual = norm_kernels.backward(
        cotangent, x, given["weight"], (means, deviations), wanted=wanted
    )

    leaves = [t.double().requires_grad_() for t in (x, given["weight"], given["bias"])]  # type: ignore[union-attr]
    y = torch.stack([batch_norm(x_t, None, None, *leaves[1:], True) for x_t in leaves[0]])
    expected = torch.autograd.grad(y, leaves, cotangent.double())

    assert (actual[0] is not None) == wanted
    for a, b in zip(actual, expected, strict=True):
        if a is not None:
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5 * float(b.abs().max()))


def test_same_bits_with_any_number_of_threads() -> None:
    """How channels are shared out among threads changes no sum."""
    torch.manual_seed(0)
    x, cotangent, given = torch.randn(2, 5, 50, 40), torch.randn(2, 5, 50, 40), operands(50)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results = by_kernel(x, given)
            statistics = (results[1], results[2])
            grads = norm_kernels.backward(cotangent, x, given["weight"], statistics, wanted=True)
            found.append([*results, *grads])
    finally:
        torch.set_num_threads(before)

    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return of each call of a kernel whether it was the gradient."""
    found: list[bool] = []
    run = norm_kernels._launch

    def note(*args: Any, backward: bool) -> None:
        found.append(backward)
        run(*args, backward=backward)

    monkeypatch.setattr(norm_kernels, "_launch", note)
    return found


def test_a_norm_of_one_step(launched: list[bool]) -> None:
    """A norm over all steps is one kernel forward and one backward."""
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(20)
    running = [t for t in (norm.running_mean, norm.running_var) if t is not None]
    x, cotangent = torch.randn(6, 20, 5, 5), torch.randn(6, 20, 5, 5)
    found = []
    for layer in (batch_norm, norms.norm):
        leaves = [t.detach().clone().requires_grad_() for t in (x, norm.weight, norm.bias)]
        kept = [t.clone() for t in running]
        y = layer(leaves[0], *kept, *leaves[1:], True, 0.1)
        found.append(([y, *kept], torch.autograd.grad(y, leaves, cotangent)))

    assert_same_bits(*(results for results, _ in found))
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert launched == [False, True]


def test_only_gradients_that_are_asked_for(launched: list[bool]) -> None:
    """An input without a gradient and frozen parameters have none."""
    x, weight = torch.randn(6, 20, 5, 5), torch.ones(20, requires_grad=True)
    norms.norm(x, None, None, weight, torch.zeros(20), True).sum().backward()

    assert weight.grad is not None
    assert x.grad is None
    assert launched == [False, True]


def test_running_statistics_do_not_count_their_changes() -> None:
    """As in torch: its norms keep running statistics, and may take turns with the kernel."""
    layer, x = nn.BatchNorm2d(20), torch.randn(6, 20, 5, 5)
    parameters = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    assert isinstance(layer.running_mean, Tensor)
    version = layer.running_mean._version
    by_torch = norms.norm(x.transpose(-1, -2), *parameters, True)
    by_kernel = norms.norm(x, *parameters, True)
    (by_torch.square().sum() + by_kernel.square().sum()).backward()

    assert layer.running_mean._version == version


OTHERS: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "rows": (torch.randn(6, 20), {}),
    "one pixel": (torch.randn(6, 20, 1, 1), {}),
    "one channel": (torch.randn(6, 1, 5, 5), {}),
    "channels last": (torch.randn(6, 20, 5, 5).to(memory_format=torch.channels_last), {}),
    "strided": (torch.randn(6, 20, 10, 5)[:, :, ::2], {}),
    "evaluation": (torch.randn(6, 20, 5, 5), {"training": False}),
    "half precision": (torch.randn(6, 20, 5, 5).bfloat16(), {}),
    "nothing": (torch.randn(0, 20, 5, 5), {"training": False}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_norms_are_those_of_torch(name: str, launched: list[bool]) -> None:
    """What the kernel does not serve is left to torch."""
    x, options = OTHERS[name]
    kept = [torch.zeros(x.shape[1]), torch.ones(x.shape[1])]
    twins = [t.clone() for t in kept]
    options = {"training": True} | options

    assert_same_bits(
        [norms.norm(x, *kept, **options), *kept], [batch_norm(x, *twins, **options), *twins]
    )
    assert launched == []


def test_a_mismatch_is_torch_s_error() -> None:
    """Sizes that do not fit are refused in torch's words."""
    with pytest.raises(RuntimeError, match="weight"):
        norms.norm(torch.randn(6, 20, 5, 5), None, None, torch.ones(19), None, True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norms.norm(torch.randn(1, 20, 1, 1), None, None, None, None, True)
