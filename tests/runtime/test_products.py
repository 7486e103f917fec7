"""Linear layers over whole sequences: the values and gradients of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from snncc.runtime import memory
from snncc.runtime.products import linear as products
from snncc.runtime.products.skipping import Costs

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run with a number of threads; three do not divide the rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def whole_numbers(*shape: int) -> Tensor:
    """Return small whole numbers: sums of their products are exact in any order."""
    return torch.randint(-4, 5, shape).float()


def arguments(steps: int, batch: int = 7) -> list[Tensor]:
    """Return the rows of a large layer, its weight and its bias."""
    torch.manual_seed(0)
    given = [whole_numbers(steps, batch, 40), whole_numbers(6, 40), whole_numbers(6)]
    assert given[0].nbytes >= memory.SMALLEST
    return [tensor.requires_grad_() for tensor in given]


def run(layer: Layer, given: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Return the result of a layer and its gradients."""
    result = layer(*given)
    return [result, *torch.autograd.grad(result, given, cotangent)]


@pytest.mark.parametrize("steps", [1024, 1025], ids=["even", "odd"])
@pytest.mark.parametrize("is_expanded", [False, True], ids=["dense", "expanded"])
def test_gradients(threads: int, steps: int, is_expanded: bool) -> None:
    """However rows are shared out among threads, every gradient is exact."""
    given = arguments(steps)
    cotangent = torch.ones(()).expand(steps, 7, 6) if is_expanded else whole_numbers(steps, 7, 6)

    expected = run(torch_linear, given, cotangent)
    actual = run(products.linear, given, cotangent)

    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert type(actual[0].grad_fn) is not type(expected[0].grad_fn)


def test_batch_first_memory_is_kept() -> None:
    """A view of batch-first memory gives a view of batch-first memory."""
    x, weight, bias = arguments(7, batch=1024)
    swapped = x.transpose(0, 1)

    result = products.linear(swapped, weight, bias)

    assert torch.equal(result, torch_linear(swapped, weight, bias))
    assert result.transpose(0, 1).is_contiguous()


def test_unneeded_gradients_are_not_computed() -> None:
    """A frozen weight and an input without gradient get none."""
    x, weight, bias = arguments(1024)
    result = products.linear(x.detach(), weight.detach(), bias)
    result.backward(torch.ones_like(result))

    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.full((6,), 1024.0 * 7))
    assert weight.grad is None


def test_second_derivative() -> None:
    """The gradient can be differentiated again, like that of torch."""
    given = arguments(1024)
    seconds = []
    for layer in (torch_linear, products.linear):
        result = layer(*given)
        (first,) = torch.autograd.grad((result**2).sum(), given[0], create_graph=True)
        seconds.append(torch.autograd.grad(first.sum(), given[1])[0])

    assert torch.equal(seconds[0], seconds[1])


def test_small_layers_are_left_to_torch() -> None:
    """Without anything to gain from the pool the layer is torch's own."""
    result = products.linear(whole_numbers(4, 3, 40), *arguments(1024)[1:])

    assert result.grad_fn is not None
    assert "_Linear" not in result.grad_fn.name()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_zeros_are_skipped_where_most_are(
    threads: int, dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spikes, in any order of time and batch, give what torch gives, gradients included."""
    torch.manual_seed(0)
    taken: list[bool] = []
    multiply = products.multiply_rows
    monkeypatch.setattr(
        products, "multiply_rows", lambda *a, **k: (taken.append(True), multiply(*a, **k))
    )
    monkeypatch.setattr(products, "_COSTS", Costs(1.0, 0, 1e7))
    spikes = (torch.rand(300, 37, 200) < 0.1).to(dtype)
    weight = torch.randint(-4, 5, (30, 200)).to(dtype).requires_grad_()
    offset = torch.randint(-4, 5, (30,)).to(dtype).requires_grad_() if bias else None
    cotangent = torch.randint(-4, 5, (300, 37, 30)).to(dtype)
    leaves = [t for t in (weight, offset) if t is not None]
    for x in (spikes, spikes.transpose(0, 1).contiguous().transpose(0, 1)):
        results = []
        for layer in (torch_linear, products.linear):
            y = layer(x, weight, offset)
            results.append([y, *torch.autograd.grad(y, leaves, cotangent)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert taken == [True, True]
    for dense in (spikes + 1, spikes[:10]):
        assert torch.equal(products.linear(dense, weight), torch_linear(dense, weight))
    assert taken == [True, True]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinite_weights_of_silent_inputs_count(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero times infinity is no zero."""
    monkeypatch.setattr(products, "_COSTS", Costs(1.0, 0, 0))
    spikes = (torch.rand(300, 37, 200) < 0.1).float()
    spikes[..., 5] = 0.0
    weight = torch.ones(30, 200)
    weight[3, 5] = value

    torch.testing.assert_close(
        products.linear(spikes, weight), torch_linear(spikes, weight), equal_nan=True
    )
