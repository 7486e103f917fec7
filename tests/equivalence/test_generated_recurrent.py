"""Generated recurrent networks: compiled against eager, forward and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

import snncc
from tests.generated_recurrent import (
    GeneratedRecurrent,
    RecurrentDesign,
    make_inputs,
    recurrent_designs,
)

# Gradients sum the same terms in another order; these sums have at most a few hundred terms.
GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-9}


def run(model: Any, inputs: tuple[Tensor, ...], parameters: list[Tensor]) -> tuple[Any, Any]:
    """Return outputs and the gradients of a fixed weighting of them."""
    torch.manual_seed(3)
    outputs = [y for y in pytree.tree_leaves(model(*inputs)) if isinstance(y, Tensor)]
    live = [y for y in outputs if y.requires_grad]
    if not live:
        return outputs, []
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape) for y in live]
    loss = sum((y * w).sum() for y, w in zip(live, weights, strict=True))
    assert isinstance(loss, Tensor)
    return outputs, list(torch.autograd.grad(loss, [*inputs, *parameters], allow_unused=True))


def assert_same(design: RecurrentDesign, seed: int, target: str) -> None:
    """Assert that eager and compiled agree on one design, at two sizes."""
    torch.manual_seed(seed)
    model = GeneratedRecurrent(design)
    twin = copy.deepcopy(model)
    fast = snncc.compile(twin, target=target, fallback="serial")
    for length, batch in ((design.length, design.batch), (design.length + 2, design.batch + 1)):
        sized = RecurrentDesign(**{**vars(design), "length": length, "batch": batch})
        inputs = make_inputs(sized, seed)
        expected, wanted = run(model, inputs, list(model.parameters()))

        actual, found = run(fast, inputs, list(twin.parameters()))

        for a, b in zip(expected, actual, strict=True):
            assert (a.shape, a.dtype, a.requires_grad) == (b.shape, b.dtype, b.requires_grad)
            if design.bitwise and target == "c" and _is_exact(fast):
                assert torch.equal(a, b)
            else:
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
        assert_gradients(wanted, found, design.dtype)


def _is_exact(fast: Any) -> bool:
    return all(plan.numerics is snncc.Numerics.BITWISE for plan in fast.plans)


def assert_gradients(wanted: list[Any], found: list[Any], dtype: torch.dtype) -> None:
    """Assert that gradients agree relative to the largest of them."""
    scale = max((float(g.abs().max()) for g in wanted if g is not None and g.numel()), default=1.0)
    for a, b in zip(wanted, found, strict=True):
        left = torch.zeros(()) if a is None else a
        right = torch.zeros(()) if b is None else b
        bound = GRADIENT[dtype]
        torch.testing.assert_close(
            *torch.broadcast_tensors(right, left),
            rtol=bound,
            atol=bound * max(scale, 1.0),
            check_dtype=False,
        )


@settings(deadline=None, max_examples=6)
@given(recurrent_designs, st.integers(0, 1000))
def test_generated_recurrent_network(design: RecurrentDesign, seed: int) -> None:
    """The compiled loop computes what the serial code computes."""
    assert_same(design, seed, "c")


@settings(deadline=None, max_examples=4)
@given(recurrent_designs, st.integers(0, 1000))
def test_generated_recurrent_network_validates(design: RecurrentDesign, seed: int) -> None:
    """Every pass keeps the values, and the adjoint of the loop is its gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNNCC_VALIDATE", "1")
        assert_same(design, seed, "torch")
