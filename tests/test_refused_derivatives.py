"""Derivatives that a compiled model does not have are refused in each mode and on each target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.errors import UnsupportedError
from snncc.nn import LIF

FORMS = [
    {"mode": "fused"},
    {"mode": "fused", "target": "torch"},
    {"mode": "scan", "chunk": 4},
    {"mode": "parallel_reset", "chunk": 4},
    {"mode": "parallel_reset", "target": "torch"},
    {"mode": "auto"},
    {"mode": "fpt"},
    {"mode": "fpt", "sweeps": 3},
    {"mode": "dynamic_decay"},
]
TRANSFORMS = {
    "vmap": lambda f, x: torch.vmap(f)(x[None]),
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
}


class Net(nn.Module):
    """A layer with statistics, which a recording restores in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.neuron = nn.Linear(5, 3), nn.BatchNorm1d(3), LIF(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(torch.stack([self.norm(self.linear(x_t)) for x_t in x]))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_gradient_penalty_is_refused(form: dict[str, Any]) -> None:
    """The gradient of a gradient would lack terms, beside others that are there."""
    model = Net().eval()
    x = torch.randn(20, 4, 5, requires_grad=True)
    fast = snncc.compile(model, **form)
    y = fast(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)

    with pytest.raises(UnsupportedError) as error:
        (gradient.square().sum() + y.sum()).backward()
    assert error.value.code == "unsupported.double-backward"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("is_recorded", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_function_transforms_are_refused(transform: str, is_recorded: bool) -> None:
    """Before anything is recorded too, where the parts of a transform have no memory to follow."""
    x = torch.randn(4, 2, 5)
    fast = snncc.compile(Net(), example_inputs=(x,) if is_recorded else None)

    with pytest.raises(UnsupportedError, match=r"transformed by torch\.func") as error:
        TRANSFORMS[transform](fast, x)
    assert error.value.code == "unsupported.function-transform"


def test_first_call_with_a_tangent_is_refused() -> None:
    """Forward-mode derivatives are refused by name, not by the first operator without them."""
    x = torch.randn(4, 2, 5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))

        with pytest.raises(UnsupportedError, match="forward-mode"):
            snncc.compile(Net())(dual)
