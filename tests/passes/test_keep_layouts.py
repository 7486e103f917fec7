"""Operators that round by how their operands lie in memory get them as in the serial code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import snncc

OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda y: y.sum(1),
    "sum of all": lambda y: y.sum(),
    "mean of a view": lambda y: y.transpose(1, 2).mean(-1),
    "variance": lambda y: y.var(1),
    "norm": lambda y: y.norm(dim=-1),
    "product": lambda y: y @ y.transpose(1, 2),
    "product of names": lambda y: torch.einsum("btn,bsn->bts", y, y),
    "sigmoid": lambda y: (2 * y).sigmoid(),
    "layer": lambda y: F.gelu(y),
    "batch norm": lambda y: F.batch_norm(y.transpose(1, 2), None, None, training=True),
}


def _stacked(x: Tensor, operator: Callable[[Tensor], Tensor], dim: int) -> Tensor:
    """Apply an operator to potentials stacked along an axis, [B, T, N]."""
    v, out = torch.zeros_like(x[0]), []
    for x_t in x:
        v = 0.9 * v + x_t
        out.append(v)
    y = torch.stack(out, dim)
    return operator(y.transpose(1, 2) if dim == 2 else y)


def _copied(x: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
    return operator(_stacked(x, lambda y: y, 0).permute(1, 0, 2).contiguous())


def _copied_in_loop(x: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
    total: Tensor | float = 0.0
    for x_t in x.unflatten(1, (1, -1)):
        total = 0.5 * total + operator(x_t.transpose(1, 2).contiguous())
    return torch.as_tensor(total)


def _copied_in_recurrence(x: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
    v = torch.zeros_like(x[0]).unsqueeze(0)
    for x_t in x:
        h = 0.9 * v + x_t
        v = h - 0.01 * torch.tanh(operator(h.transpose(1, 2).contiguous())).mean()
    return v


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_operator_behind_a_loop(operator: Callable[[Tensor], Tensor]) -> None:
    """Whatever axis steps are stacked along, results are those of the serial code, bit by bit."""
    x = torch.randn(7, 5, 19, generator=torch.Generator().manual_seed(0))
    for dim in (0, 1, 2):
        fast = snncc.compile(_stacked, target="torch")
        with torch.no_grad():
            assert torch.equal(_stacked(x, operator, dim), fast(x, operator, dim)), dim
    with torch.no_grad():
        assert torch.equal(_copied(x, operator), snncc.compile(_copied)(x, operator))


@pytest.mark.parametrize("operator", ["sum", "sum of all", "variance", "norm", "sigmoid"])
@pytest.mark.parametrize("model", [_copied_in_loop, _copied_in_recurrence])
def test_copy_in_a_loop(model: Callable[..., Tensor], operator: str) -> None:
    """A copy that turns axes is made where an operator behind it rounds by the order of memory."""
    x = torch.randn(4, 5, 19, generator=torch.Generator().manual_seed(0))
    fast = snncc.compile(model, target="torch")

    assert snncc.verify(model, fast, x, OPERATORS[operator], gradients=False).ok


def test_operands_in_order_are_left_alone() -> None:
    """Nothing is noted of operators that read what lies as in the serial code."""

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x[0])
        for x_t in x:
            total = total + x_t
        return total, F.gelu(x @ x.transpose(1, 2)).mean(1)

    x = torch.randn(3, 4, 5)
    graph = snncc.compile(model).specialize(x).graph
    noted = [node.name for node in graph.nodes if "layouts" in node.meta]
    assert noted == ["matmul"]  # it reads a view that changes the order of axes
