"""Results of a neuron require gradients where those of the serial code do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import snncc
from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    State,
    Unary,
    Var,
)
from snncc.nn import ATan
from snncc.passes.gradients.find_histories import find_histories


def test_histories_of_a_recurrence() -> None:
    """Comparisons and detached values have none; a state has its update's."""
    recurrence = Recurrence(
        name="lif",
        inputs=(Input("x", Rank.STEP), Input("noise", Rank.STEP)),
        states=(State("v", Const(0.0), "h"), State("count", Const(0.0), "total")),
        lets=(
            Let("h", Binary(Op.ADD, Var("v"), Var("x"))),
            Let("fired", Binary(Op.GT, Var("h"), Const(1.0))),
            Let("s", Unary(Op.FLOAT, Var("fired"))),
            Let("floor", Unary(Op.FLOOR, Var("h"))),
            Let("cut", Detach(Var("h"))),
            Let("total", Binary(Op.ADD, Var("count"), Var("s"))),
        ),
        outputs=("s", "floor", "cut", "noise"),
    )

    assert find_histories(recurrence, ["x"]) == {"x", "v", "h", "floor"}


def _run(readout: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    spike = ATan()

    def run(x: Tensor) -> tuple[Tensor, ...]:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            h = 0.5 * v + x[t]
            s = spike(h - 1.0)
            v = h * (1.0 - s)
            out.append(readout(h, s))
        return torch.stack(out), v

    return run


@pytest.mark.parametrize(
    "readout",
    [
        pytest.param(lambda h, s: s, id="spike"),
        pytest.param(lambda h, s: (h > 1.0).to(h.dtype), id="comparison"),
        pytest.param(lambda h, s: h.detach(), id="detached"),
        pytest.param(lambda h, s: torch.floor(h), id="floor"),
        pytest.param(lambda h, s: torch.where(h > 1.0, s.detach(), 0.5), id="of constants"),
    ],
)
@pytest.mark.parametrize("wanted", [True, False])
def test_results_require_gradients_as_in_serial_code(
    readout: Callable[[Tensor, Tensor], Tensor], wanted: bool
) -> None:
    """A caller may ask each result whether it has a gradient."""
    run = _run(readout)
    x = torch.randn(6, 2, 3, requires_grad=wanted)

    expected, actual = run(x), snncc.compile(run)(x)

    assert [y.requires_grad for y in actual] == [y.requires_grad for y in expected]


def test_gradients_beside_a_constant_result() -> None:
    """A result without gradient takes nothing from those of the others."""
    run = _run(lambda h, s: (h > 1.0).to(h.dtype))
    x, twin = (torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0)) for _ in range(2))

    run(x.requires_grad_())[1].sum().backward()
    snncc.compile(run)(twin.requires_grad_())[1].sum().backward()

    assert x.grad is not None
    assert twin.grad is not None
    torch.testing.assert_close(twin.grad, x.grad, rtol=1e-6, atol=1e-6)  # sums in another order
