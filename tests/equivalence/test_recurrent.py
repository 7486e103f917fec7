"""Recurrent spiking networks: compiled loops against the serial code, values and gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import snncc
from tests import recurrent_models as models
from tests.recurrent_models import N

# Gradients add the same terms in another order; the sums have a few hundred terms.  In a half type
# the serial code rounds each term and each sum, and kernels neither: eight roundings.
GRADIENT = {
    torch.float32: 2e-4,
    torch.float64: 1e-9,
    torch.float16: 8 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 8 * torch.finfo(torch.bfloat16).eps,
}


@dataclass(frozen=True)
class Case:
    """A network, its input, and whether its forward pass is bitwise."""

    make: Callable[[], nn.Module]
    shape: Callable[[int, int], tuple[int, ...]] = lambda T, B: (T, B, N)
    exact: bool = True
    least_batch: int = 0


def _images(T: int, B: int) -> tuple[int, ...]:
    return (T, B, 4, 3, 5)


CASES = {
    "own spikes": Case(models.OwnSpikes),
    "masked weight": Case(models.Masked),
    "left weight": Case(models.Columns),
    "two layers": Case(models.Coupled),
    "lateral inhibition": Case(models.Inhibited),
    "membrane norm": Case(lambda: models.Normed(nn.BatchNorm1d(N)), least_batch=2),
    "layer norm": Case(lambda: models.Normed(nn.LayerNorm(N))),
    "adaptive": Case(models.Adaptive),
    "convolution": Case(models.Convolved, _images),
    "grouped convolution": Case(lambda: models.Convolved(4), _images),
    "attention": Case(models.Attentive),
    "dropout and noise": Case(models.Dropped),
    "delay": Case(models.Delayed),
    "winner": Case(models.Winner),
    "refractory": Case(models.Refractory),
    "gates": Case(models.Gated, exact=False),
    "cells": Case(models.Cells, exact=False),
    "numbers of steps": Case(models.Stepped),
    "batch first, backwards": Case(models.BatchFirst, lambda T, B: (B, T, N)),
}


def run(model: Any, x: Tensor, leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return the results and the gradients of a weighted sum of them."""
    torch.manual_seed(1)
    results = [y for y in pytree.tree_leaves(model(x)) if isinstance(y, Tensor)]
    live = [y for y in results if y.requires_grad]
    loss = sum((y * _weights(y)).sum() for y in live)
    assert isinstance(loss, Tensor)
    return results, list(torch.autograd.grad(loss, leaves, allow_unused=True))


def _weights(y: Tensor) -> Tensor:
    return torch.linspace(-1, 1, max(y.numel(), 1), dtype=y.dtype)[: y.numel()].reshape(y.shape)


def assert_equal(expected: list[Tensor], actual: list[Tensor], *, exact: bool) -> None:
    """Assert that results are equal, bit by bit where that is promised."""
    for a, b in zip(expected, actual, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.requires_grad == b.requires_grad
        if exact:
            assert torch.equal(a.nan_to_num(), b.nan_to_num())
        else:
            torch.testing.assert_close(b, a)


def assert_gradients(
    expected: list[Tensor | None], actual: list[Tensor | None], dtype: torch.dtype
) -> None:
    """Assert that gradients are equal up to the order of sums."""
    scale = max((float(g.abs().max()) for g in expected if g is not None and g.numel()), default=1)
    for g, h in zip(expected, actual, strict=True):
        a, b = (torch.zeros(()) if x is None else x for x in (g, h))
        bound = GRADIENT[dtype] * max(scale, 1.0)
        assert math.isfinite(scale)
        torch.testing.assert_close(b.expand(a.shape) if a.dim() else b, a.expand_as(b),
                                   rtol=GRADIENT[dtype], atol=bound, check_dtype=False)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_loop_is_the_serial_code(name: str, dtype: torch.dtype) -> None:
    """Values, gradients and buffers are those of the serial code, at several sizes."""
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make().to(dtype)
    twin = copy.deepcopy(model)
    fast = snncc.compile(twin)
    for T, B in ((5, 3), (9, 4), (1, 2), (6, 1), (3, 0)):
        if case.least_batch > B:
            continue
        x = (torch.randn(case.shape(T, B), dtype=dtype) * 1.5).requires_grad_()
        expected, wanted = run(model, x, [x, *model.parameters()])

        actual, found = run(fast, x, [x, *twin.parameters()])

        assert_equal(expected, actual, exact=case.exact)
        assert_gradients(wanted, found, dtype)
        assert_equal(list(model.buffers()), list(twin.buffers()), exact=True)
        with torch.no_grad():
            torch.manual_seed(1)
            again = [y for y in pytree.tree_leaves(fast(x)) if isinstance(y, Tensor)]
            torch.manual_seed(1)
            pytree.tree_leaves(model(x))
        assert_equal([y.detach() for y in expected], again, exact=case.exact)
    plan = fast.plans[0]
    lines = [layer for layer in plan.layers if layer.kind == "recurrent"]
    assert [line.form for line in lines] == ["step by step, fused"]
    assert (lines[0].numerics is snncc.Numerics.BITWISE) == case.exact


@pytest.mark.parametrize("name", CASES)
def test_loop_is_verified(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass is validated, the gradient of the loop too, and the certificate holds."""
    monkeypatch.setenv("SNNCC_VALIDATE", "1")
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make().double()
    fast = snncc.compile(model)
    x = (torch.randn(case.shape(6, 3), dtype=torch.float64) * 1.5).requires_grad_()

    report = snncc.verify(model, fast, x)

    assert report.ok, report
    assert any(c.part == "kernel" and "grad" in c.name for c in report.comparisons)
