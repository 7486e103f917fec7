"""Recurrent loops that are run by rows of the batch, against the serial code."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import snncc
from snncc.runtime.loops import plan as loop_plan
from snncc.runtime.loops import row_loop
from snncc.runtime.loops.row_plan import RowPlan
from tests import recurrent_models as models
from tests.equivalence.test_generated_recurrent import assert_same
from tests.generated_recurrent import RecurrentDesign, row_designs
from tests.recurrent_models import N

# The plans of loops that were planned: forward under False, reverse under True.
Plans = dict[bool, list[RowPlan | None]]


@contextmanager
def small_blocks() -> Iterator[Plans]:
    """Note plans; cut small loops into blocks for several threads too."""
    found: Plans = {False: [], True: []}
    find = row_loop.find_rows

    def noted(plan: Any, *rest: Any) -> RowPlan | None:
        rows = find(plan, *rest)
        found[plan.sketch.loop.reverse].append(rows)
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_plan, "find_rows", noted)
        patch.setattr(row_loop, "LEAST_WORK", 1)
        patch.setattr(row_loop, "_BLOCK_BYTES", 256)
        yield found


@pytest.fixture
def plans() -> Iterator[Plans]:
    with small_blocks() as found:
        yield found


def run(model: Callable[..., Any], x: Tensor, parameters: Any) -> list[Tensor]:
    """Return the first result, and gradients of it."""
    y = model(x)
    y = y[0] if isinstance(y, tuple) else y
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    leaves = [x, *parameters]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True)]


@settings(deadline=None, max_examples=12)
@given(row_designs, st.integers(0, 1000))
def test_generated_network_by_rows(design: RecurrentDesign, seed: int) -> None:
    """Blocks of rows compute what the serial code computes, forward and backward."""
    with small_blocks():
        assert_same(design, seed, "c")


@pytest.mark.parametrize(
    "make",
    [models.OwnSpikes, models.Masked, models.Coupled, models.Adaptive, models.Delayed],
)
def test_gradients_are_computed_by_rows(make: Callable[[], nn.Module], plans: Plans) -> None:
    """Where steps see rows apart the reverse loop is one call, in blocks."""
    torch.manual_seed(0)
    model = make().double()
    fast = snncc.compile(copy.deepcopy(model), num_threads=3)
    x = (torch.randn(7, 13, N, dtype=torch.float64) * 2).requires_grad_()

    expected, actual = (run(m, x, m.parameters()) for m in (model, fast))

    assert torch.equal(actual[0], expected[0])
    for a, b in zip(expected[1:], actual[1:], strict=True):
        torch.testing.assert_close(b, a)
    (rows,) = {(r.blocks, r.threads) if r else None for r in plans[True]}
    assert rows == (3, 3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: models.Normed(nn.LayerNorm(N)), (5, 4, N)),
        (models.Convolved, (5, 4, 4, 3, 5)),
        (models.Attentive, (5, 4, N)),
        (models.Columns, (5, 4, N)),
    ],
    ids=["norm", "convolution", "attention", "batch last"],
)
def test_other_steps_are_run_one_by_one(
    make: Callable[[], nn.Module], shape: tuple[int, ...], plans: Plans
) -> None:
    """Whatever else a step does, torch does it."""
    torch.manual_seed(0)
    model = make()
    x = torch.randn(shape, requires_grad=True)
    fast = snncc.compile(copy.deepcopy(model))

    torch.testing.assert_close(run(fast, x, fast.parameters()), run(model, x, model.parameters()))
    assert not any(plans[True])


class Wide(nn.Module):
    """Enough neurons for sums that libraries take in one order, and feedback with a bias or not."""

    def __init__(self, n: int = 48, *, bias: bool = False, weight: Tensor | None = None) -> None:
        super().__init__()
        self.back = nn.Linear(n, n, bias=bias)
        if weight is not None:
            self.back.weight = nn.Parameter(weight)
        self.fire = models.Recurrent(n).fire

    def forward(self, x: Tensor) -> Tensor:
        v = s = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = 0.9 * v + x[t] + self.back(s)
            s = self.fire(v - 1.0)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


@pytest.mark.parametrize("bias", [False, True])
def test_forward_is_bitwise_by_rows_or_not(bias: bool, plans: Plans) -> None:
    """Sizes for which torch adds in the kernel's order are run by rows; others are not."""
    torch.manual_seed(0)
    model = Wide(bias=bias)
    fast = snncc.compile(copy.deepcopy(model))
    for T, B in ((6, 24), (9, 5), (4, 1), (3, 40)):
        x = torch.randn(T, B, 48) * 2
        assert torch.equal(fast(x), model(x))
    if not any(plans[False]):
        pytest.skip("torch adds in another order here")


def test_precision_of_products_may_change_between_calls() -> None:
    """A product that torch is allowed to take in fewer bits is torch's, also after other calls."""
    torch.manual_seed(0)
    model = Wide()
    fast = snncc.compile(copy.deepcopy(model))
    x = torch.randn(6, 24, 48) * 2
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium", "highest"):
            torch.set_float32_matmul_precision(precision)
            assert torch.equal(fast(x), model(x))
    finally:
        torch.set_float32_matmul_precision(before)


def test_results_do_not_depend_on_threads(plans: Plans) -> None:
    """The gradient of the input has the same bits for any number of threads."""
    torch.manual_seed(0)
    model = Wide()
    x = (torch.randn(6, 25, 48) * 2).requires_grad_()
    results = []
    for threads in (1, 2, 3):
        fast = snncc.compile(copy.deepcopy(model), num_threads=threads)
        results.append(run(fast, x, []))

    assert {r.threads for r in plans[True] if r} == {1, 2, 3}
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinite_weights_of_silent_neurons_count(value: float, plans: Plans) -> None:
    """Zero times infinity is no zero: a neuron that never fires makes the others NaN."""
    torch.manual_seed(0)
    model = Wide()
    with torch.no_grad():
        model.back.weight[3, 5] = value
    x = torch.randn(4, 24, 48, requires_grad=True)
    fast = snncc.compile(copy.deepcopy(model))

    for a, b in zip(run(model, x, []), run(fast, x, []), strict=True):
        torch.testing.assert_close(b, a, equal_nan=True)
    assert any(plans[True])


def test_weights_that_are_views(plans: Plans) -> None:
    """A weight that starts anywhere in memory, or whose rows have gaps, is the same weight."""
    torch.manual_seed(0)
    wide = torch.randn(48, 50)
    odd = torch.randn(48 * 48 + 1)[1:].view(48, 48)
    x = (torch.randn(5, 24, 48) * 2).requires_grad_()
    for weight in (wide[:, 1:49], odd, wide[:, :48].t()):
        model = Wide(weight=weight)
        fast = snncc.compile(model)
        expected, actual = (run(m, x, [model.back.weight]) for m in (model, fast))

        assert torch.equal(actual[0], expected[0])
        torch.testing.assert_close(actual[1:], expected[1:])
    assert any(plans[True])


def test_weights_may_change_between_calls(plans: Plans) -> None:
    """An optimizer that writes into the weights is seen by the next call."""
    torch.manual_seed(0)
    model = Wide()
    fast = snncc.compile(model)
    x = torch.randn(5, 24, 48) * 2
    first = fast(x)
    with torch.no_grad():
        model.back.weight.mul_(-2.0)

    assert not torch.equal(fast(x), first)
    assert torch.equal(fast(x), model(x))
    assert any(plans[True]) or any(plans[False])
