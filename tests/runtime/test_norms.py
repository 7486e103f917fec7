"""Norms with statistics of each step: what a loop of torch's norms gives, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.nn import ATan
from snncc.runtime.norms import per_step as norms

CHANNELS = 3


class Normed(nn.Module):
    """A norm in front of each step of a neuron."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.spike = ATan(2.0)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            h = 0.5 * v + self.norm(x_t)
            s = self.spike(h - 0.3)
            v = h - 0.3 * s
            out.append(s + 0.1 * v)
        return torch.stack(out)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the lengths of the sequences that were normalised at once."""
    lengths: list[int] = []
    apply = norms._Norm.apply

    def note(x: Tensor, *rest: Any) -> Any:
        lengths.append(x.shape[0])
        return apply(x, *rest)

    monkeypatch.setattr(norms._Norm, "apply", note)
    return lengths


def results(model: Any, run: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
    """Return what a training step gives and leaves."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(1)
    y = run(x)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(y, [x, *parameters], torch.randn_like(y))
    return [y.detach(), *grads, *(b.clone() for b in model.buffers())]


def compare(norm: Callable[[], nn.Module], x: Tensor) -> None:
    """Compare with the serial code, twice: running statistics go on."""
    eager, twin = (Normed(norm()).to(x.dtype).train() for _ in range(2))
    twin.load_state_dict(eager.state_dict())
    fast = snncc.compile(twin)
    for _ in range(3):
        expected, actual = results(eager, eager, x), results(twin, fast, x)
        grads = slice(1, 2 + len(list(eager.parameters())))
        for a, b in zip(expected[grads], actual[grads], strict=True):
            # Kernels take the sums of gradients in an order of their own.
            near = {"rtol": 1e-5, "atol": 1e-4} if x.dtype is torch.float32 else {}
            torch.testing.assert_close(a, b, **(near or {"rtol": 0, "atol": 0}))
        del expected[grads], actual[grads]
        assert [torch.equal(a, b) for a, b in zip(expected, actual, strict=True)] == [
            True for _ in expected
        ]


NORMS: dict[str, Callable[[], nn.Module]] = {
    "images": lambda: nn.BatchNorm2d(CHANNELS),
    "another momentum": lambda: nn.BatchNorm2d(CHANNELS, momentum=0.3, eps=1e-3),
    "no parameters": lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    "no statistics kept": lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_images(name: str, dtype: torch.dtype, taken: list[int]) -> None:
    """Values, gradients and running statistics are those of the serial code."""
    torch.manual_seed(0)
    compare(NORMS[name], torch.randn(6, 4, CHANNELS, 5, 7, dtype=dtype))

    assert set(taken) == {6}


@pytest.mark.parametrize("shape", [(5, 8, CHANNELS), (5, 4, CHANNELS, 6)], ids=["rows", "one axis"])
def test_norms_of_rows(shape: tuple[int, ...], taken: list[int]) -> None:
    """Features with one axis or none are normalised the same way."""
    torch.manual_seed(0)
    compare(lambda: nn.BatchNorm1d(CHANNELS), torch.randn(shape))

    assert set(taken) == {5}


def test_strided_steps(taken: list[int]) -> None:
    """A sequence that is a view of batch-first memory is left to the loop."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, CHANNELS, 5, 5).transpose(0, 1)
    compare(lambda: nn.BatchNorm2d(CHANNELS), x)

    assert taken == []


def test_average_of_all_batches_is_left_to_the_loop(taken: list[int]) -> None:
    """Without a momentum each step has a factor of its own."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(CHANNELS, momentum=None)
    model = Normed(norm)
    model(torch.randn(6, 4, CHANNELS, 5, 5))

    assert taken == []


def test_one_value_is_refused_as_in_torch() -> None:
    """There are no statistics of one value."""
    model = snncc.compile(Normed(nn.BatchNorm1d(CHANNELS)))
    model(torch.randn(5, 2, CHANNELS))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(5, 1, CHANNELS))


def test_gradient_of_the_gradient() -> None:
    """A norm can be differentiated twice, here without a neuron behind it."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, CHANNELS, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(CHANNELS, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(CHANNELS, dtype=torch.float64, requires_grad=True)
    ours = norms._Norm.apply(x, None, None, weight, bias, True, 0.1, 1e-5)
    steps = [nn.functional.batch_norm(x_t, None, None, weight, bias, True) for x_t in x]
    found = []
    for y in (torch.stack(steps), ours):
        first = torch.autograd.grad((y**3).sum(), [x, weight, bias], create_graph=True)
        found.append(torch.autograd.grad(sum((g * g).sum() for g in first), [x, weight, bias]))

    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
