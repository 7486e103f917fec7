"""Generated serial networks: compiled against eager, forward and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

import snncc
from tests.generated import Design, GeneratedNetwork, designs, make_input

# Gradients sum the same terms in another order; these sums have at most a few hundred terms.
GRADIENT = {torch.float32: 2e-5, torch.float64: 1e-12}


def run(model: Any, x: Tensor, parameters: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """Return outputs and the gradients of a fixed weighting of them."""
    outputs = [y for y in pytree.tree_leaves(model(x)) if isinstance(y, Tensor)]
    live = [y for y in outputs if y.requires_grad]
    if not live:
        return outputs, []
    weights = [torch.linspace(-1, 1, max(y.numel(), 1), dtype=y.dtype) for y in live]
    loss = sum(
        (y * w[: y.numel()].reshape(y.shape)).sum() for y, w in zip(live, weights, strict=True)
    )
    assert isinstance(loss, Tensor)
    return outputs, list(torch.autograd.grad(loss, [x, *parameters], allow_unused=True))


def assert_same(design: Design, target: str, seed: int) -> None:
    """Assert that eager and compiled agree on one design."""
    torch.manual_seed(seed)
    model = GeneratedNetwork(design)
    fast = snncc.compile(model, target=target)
    parameters = list(model.parameters())
    x = make_input(design, seed)
    expected, expected_gradients = run(model, x, parameters)

    actual, gradients = run(fast, x, parameters)

    for a, b in zip(expected, actual, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if design.bitwise:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(b, a)
    for a, b in zip(expected_gradients, gradients, strict=True):
        a = torch.zeros(()) if a is None else a
        b = torch.zeros(()) if b is None else b
        bound = GRADIENT[design.dtype]
        scale = float(a.abs().max()) if a.numel() else 0.0
        torch.testing.assert_close(b, a.expand_as(b), rtol=bound, atol=bound * max(scale, 1.0))


@settings(deadline=None, max_examples=40)
@given(designs, st.integers(0, 1000))
def test_generated_network_on_c(design: Design, seed: int) -> None:
    """The C kernels compute what the serial code computes."""
    assert_same(design, "c", seed)


@settings(deadline=None, max_examples=60)
@given(designs, st.integers(0, 1000))
def test_generated_network_on_reference(design: Design, seed: int) -> None:
    """The reference target computes what the serial code computes."""
    assert_same(design, "torch", seed)


@pytest.mark.parametrize("output", ["stack", "sum", "last", "max", "two"])
def test_one_compilation_serves_other_sizes(output: str) -> None:
    """After a second recording, time and batch are free."""
    design = Design("subtract", False, "class", "scalar", False, False, 0, output, True, True,
                    torch.float64, 5, 3, 4)  # fmt: skip
    model = GeneratedNetwork(design)
    fast = snncc.compile(model)
    for length, batch in [(5, 3), (7, 2), (3, 5), (2, 1), (9, 4), (1, 2)]:
        x = torch.randn(length, batch, 4, dtype=torch.float64)

        expected, actual = pytree.tree_leaves(model(x)), pytree.tree_leaves(fast(x))

        for a, b in zip(expected, actual, strict=True):
            torch.testing.assert_close(b, a)
    assert len(fast.plans) == 1
