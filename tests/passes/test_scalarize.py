"""What a neuron reads and makes besides float tensors: constants in a Function, integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc


class Above(torch.autograd.Function):
    """Compares with a tensor that it makes itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        return torch.gt(x, torch.as_tensor(0.0)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, alpha = ctx.saved_tensors
        return grad / (alpha * x.abs() + torch.ones(())).pow(2), None


class Constants(nn.Module):
    """Parameters of the neuron are tensors without dimensions, of floats and of integers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.gain = torch.tensor(3, dtype=dtype)
        self.shift = torch.tensor([1, 0, 2, 1], dtype=dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v = v + 0.25 * (self.gain * x_t - v / self.gain) - self.shift
            s = Above.apply(v - 1.0, torch.as_tensor(10.0))
            v = v - s
            out.append(s)
        return torch.stack(out), v


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float16, torch.float64])
def test_constants_and_integers(dtype: torch.dtype) -> None:
    """They are floats in the kernel, as torch promotes them; a larger float type is not."""
    model = Constants(dtype)
    if dtype == torch.float64:
        x = torch.randn(6, 2, 4)
        fast = snncc.compile(model)
        pairs = zip(fast(x), model(x), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert [layer.kind for layer in fast.plans[0].layers] == ["recurrent"]
        return
    fast = snncc.compile(model)
    for T, B in ((6, 2), (9, 5)):
        x = torch.randn(T, B, 4, requires_grad=True)
        weights = torch.randn(B, 4)

        expected, actual = model(x), fast(x)

        assert [torch.equal(a, b) for a, b in zip(actual, expected, strict=True)] == [True, True]
        before = torch.autograd.grad((expected[1] * weights).sum() + expected[0].sum(), x)[0]
        after = torch.autograd.grad((actual[1] * weights).sum() + actual[0].sum(), x)[0]
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)  # sums in another order
    assert [layer.kind for layer in fast.plans[0].layers] == ["neuron"]
