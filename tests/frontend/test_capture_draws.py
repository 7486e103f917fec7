"""Random numbers: the same ones, in the same places, and the generator where the user left it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snncc.errors import SnnccError
from snncc.frontend.capture import capture
from tests.frontend.recordings import check, names, randn

Function = Callable[[Tensor], Any]

LAYOUTS: dict[str, Function] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1),
    "permuted": lambda x: x.permute(2, 0, 3, 1),
    "channels-last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: x[:, ::2, 1:],
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
}
DRAWS: dict[str, Function] = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout-none-kept": lambda x: F.dropout(x, 1.0),
    "dropout-all-kept": lambda x: F.dropout(x, 0.0) * 2,
    "dropout-evaluation": lambda x: F.dropout(x, 0.5, training=False) * 2,
    "dropout-in-place": lambda x: F.dropout(x * 2, 0.3, inplace=True),
    "dropout-builtin": lambda x: torch.dropout(x, 0.3, True),
    "dropout2d": lambda x: F.dropout2d(x, 0.4),
    "feature-dropout": lambda x: torch.feature_dropout(x, 0.4, True),
    "feature-alpha-dropout": lambda x: F.feature_alpha_dropout(x, 0.4, training=True),
    "alpha-dropout": lambda x: F.alpha_dropout(x, 0.4, training=True),
    "rand-like": lambda x: x + torch.rand_like(x),
    "rand-like-of-other-type": lambda x: x + torch.rand_like(x, dtype=torch.float64),
    "randn-like": lambda x: x + torch.randn_like(x),
    "randint-like": lambda x: x + torch.randint_like(x, 3, 7) + torch.randint_like(x, high=2),
    "bernoulli": lambda x: torch.bernoulli(torch.sigmoid(x)) * x,
    "bernoulli-of-a-number": lambda x: torch.bernoulli(x.detach(), 0.3) * x,
    "uniform": lambda x: x * torch.empty_like(x).uniform_(-1.0, 1.0),
    "normal": lambda x: x * torch.zeros_like(x).normal_(),
    "exponential": lambda x: x * torch.empty(x.shape).exponential_(),
    "part": lambda x: _fill_part(x.clone()),
}


def _fill_part(x: Tensor) -> Tensor:
    x[:, 0].uniform_()
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_the_same(name: str, layout: str) -> None:
    """Values, gradients and the next random number are those of the model, for each layout."""
    check(lambda x: DRAWS[name](LAYOUTS[layout](x)), randn(4, 3, 6, 5))


def test_noise_is_recorded_apart() -> None:
    """A mask does not depend on what it is multiplied with."""
    tape = check(lambda x: F.dropout(x * 2, 0.3), randn(4, 3))

    assert names(tape) == ["mul", "draw", "div", "mul"]


def test_impossible_probability_is_not_a_number() -> None:
    """What torch refuses does not pass for a spike."""
    tape = capture(lambda x: torch.bernoulli(x), (torch.rand(3),), {})
    (values,) = torch.fx.GraphModule(torch.nn.Module(), tape.graph)(torch.tensor([0.5, 1.5, -1.0]))

    assert values.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2 if torch.rand(()) > 0.5 else x,
        lambda x: x * torch.rand(1).item(),
        lambda x: x if torch.bernoulli(torch.tensor(0.5)) else -x,
    ],
)
def test_random_number_that_steers_is_refused(function: Function) -> None:
    """The number drawn while recording would be drawn for good."""
    with pytest.raises(SnnccError) as caught:
        capture(function, (torch.rand(3),), {})

    assert caught.value.code in ("capture.tensor-dependent-branch", "capture.value-left-torch")
