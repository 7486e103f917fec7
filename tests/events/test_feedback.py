"""Queues of spikes with feedback of the step before, and with sums of spikes before a weight."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from tests.events.models import Recurrent, Wired, dyadic, spikes

WIDE = 1000
FEEDBACK = ["plain", "recurrent", "feedback", "summed", "weighted", "joined"]


def compiled(model: Any, **options: Any) -> Any:
    """Return a model that runs as a queue of spikes, by the reference."""
    return snncc.compile(model, mode="async", **{"target": "torch", **options})


def slopes(y: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        y.sum(), [*model.parameters()], allow_unused=True, materialize_grads=True
    )


def require_kernels(model: nn.Module, x: Tensor, **options: Any) -> None:
    """Compare kernels with the reference: results and counts bit by bit, gradients closely."""
    seen = []
    for target in ("torch", "c"):
        fast = compiled(model, target=target, **options)
        torch.manual_seed(0)
        y = fast(x)
        seen.append((y, slopes(y, model), fast.last_events))

    assert torch.equal(seen[0][0], seen[1][0])
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-9, atol=1e-9)
    assert all(torch.equal(seen[0][2][name], seen[1][2][name]) for name in seen[0][2])


def drawn(seed: int, kinds: list[str]) -> tuple[nn.Module, Tensor]:
    rng = random.Random(seed)
    model = Wired([rng.choice(kinds) for _ in range(rng.randint(1, 3))], rng)
    return dyadic(model, rng), spikes(rng, rng.randint(4, 6), 3, 4)


@pytest.mark.parametrize("seed", range(8))
def test_feedback_in_wide_groups_is_the_serial_code(seed: int) -> None:
    """A chain with weights on the spikes of the step before is the layered network.

    Outputs and gradients, those of recurrent weights included, with both resets, and spikes before
    the first step.
    """
    model, x = drawn(seed, FEEDBACK)

    expected, found = model(x), compiled(model, group_size=WIDE)(x)

    assert torch.equal(found, expected)
    torch.testing.assert_close(slopes(found, model), slopes(expected, model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (10, {"group_size": 1}),
        (11, {"group_size": 2, "stop": 1, "prioritize_input": False}),
        (12, {"group_size": 1, "order": "random", "refractory_dropout": 0.5}),
    ],
)
def test_kernels_are_the_reference(seed: int, options: dict[str, Any]) -> None:
    """Feedback, and sums of spikes and of the frame before a weight, in kernels."""
    model, x = drawn(seed, [*FEEDBACK, "skip"])

    require_kernels(model, x, **options)


def test_verify_proves_feedback() -> None:
    """Layers, matrices, kernels and wide groups of a recurrent layer are compared."""
    model = dyadic(Recurrent(), random.Random(0))
    x = spikes(random.Random(0), 6, 2, 4)

    report = snncc.verify(model, compiled(model, target="c", group_size=2), x)

    assert report.ok
    assert any(c.name.startswith("all spikes at once") for c in report.comparisons)
