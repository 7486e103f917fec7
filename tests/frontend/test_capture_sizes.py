"""Sizes stay symbolic, so that a tape replays at another batch size."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from snncc.frontend.capture import capture
from snncc.frontend.operators.canonical import numel, size
from snncc.frontend.traced import TracedInt
from tests.frontend.recordings import check, names, randn


class Kept:
    """Holds what a model leaves behind where capture does not look."""

    values: ClassVar[list[Any]] = []


def keep(values: list[Any], kept: Any = Kept.values.extend) -> None:
    kept(values)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.zeros(x.shape) + x,
        lambda x: torch.zeros(*x.shape) + x,
        lambda x: torch.zeros(x.size()) + x,
        lambda x: torch.zeros(x.size(0), x.size(-1)) + x,
        lambda x: torch.ones((x.shape[0], 1)) * x,
        lambda x: torch.zeros((2, *x.shape[1:]))[0] + x,
        lambda x: torch.full((x.shape[0], 3), 2.0) + x,
        lambda x: x.new_zeros(x.shape[0], 3) + x,
        lambda x: x.view(x.shape[0] * x.shape[1]).sum() + x,
        lambda x: x.reshape(x.numel()) * 2,
        lambda x: x.repeat(2, 1).view(2, x.size(0), -1),
        lambda x: x.expand(4, *x.shape).sum(0),
        lambda x: x[None].expand(-1, x.shape[0], 3),
        lambda x: x / x.shape[0],
        lambda x: x * (x.shape[0] + 1) - (2 * x.size(0) // 3) % 5,
        lambda x: x[: x.shape[0] - 1],
        lambda x: x[x.shape[0] - 1],
        lambda x: torch.arange(x.shape[0]) * 2,
        lambda x: torch.rand(x.shape[0]) + x.sum(1),
        lambda x: torch.randn(x.shape).view_as(x),
        lambda x: x.unflatten(0, (x.shape[0], 1)).flatten(0, 1),
        lambda x: torch.eye(x.shape[0]) @ x,
        lambda x: torch.full((2,), x.shape[0]) * 1.0,
        lambda x: torch.tensor(x.shape[0]) * x,
    ],
)
def test_tape_replays_at_another_batch_size(function: Callable[[Tensor], Tensor]) -> None:
    """No size of the recorded run is frozen into the tape."""
    check(function, randn(4, 3), again=(randn(7, 3),))


def test_sizes_are_integer_nodes() -> None:
    """A size is one node however often it is read; arithmetic on it is on integers."""

    def model(x: Tensor) -> Tensor:
        rows, columns = x.shape
        return torch.zeros(rows * columns) + x.reshape(rows * columns) + torch.ones(x.numel())

    tape = check(model, randn(4, 3))
    integers = [n for n in tape.graph.nodes if "value" in n.meta]

    assert [n.target for n in integers] == [size, size, operator.mul, operator.mul, numel]
    assert [n.meta["value"] for n in integers] == [4, 3, 12, 12, 12]


def test_sizes_are_integers() -> None:
    """Python sees ordinary integers."""

    def model(x: Tensor) -> Tensor:
        rows, columns = x.shape
        keep([rows, columns, x.shape, x.size(0) == 4, list(range(columns)), rows / 2])
        keep([[0] * rows, f"{rows}", rows > 3, -rows, len(x), x.dim(), {rows: 1}[4]])
        keep([isinstance(x.shape, torch.Size) and isinstance(rows, int)])
        return x * 1

    Kept.values.clear()
    capture(model, (randn(4, 3),), {})

    assert Kept.values == [
        4, 3, torch.Size([4, 3]), True, [0, 1, 2], 2.0, [0] * 4, "4", True, -4, 4, 2, 1, True,
    ]  # fmt: skip


def test_sizes_of_parameters_are_constants() -> None:
    """A parameter's shape is the same in every call; it needs no node."""
    linear = torch.nn.Linear(3, 2)

    assert "size" not in names(check(lambda x: torch.zeros(linear.weight.shape[1]) + x, randn(3)))


def test_traced_integer_outlives_the_run() -> None:
    """An integer of an earlier run is an ordinary number in the next."""

    def model(x: Tensor) -> Tensor:
        keep([x.shape[0]])
        return x * 1

    Kept.values.clear()
    capture(model, (randn(4, 3),), {})
    tape = check(lambda x: x + torch.zeros(Kept.values[0] - 1), randn(2, 3))

    assert isinstance(Kept.values[0], TracedInt)
    assert names(tape) == ["full", "add"]


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: torch.zeros(3), 0.0),
        (lambda: torch.ones(3, dtype=torch.int64), 1),
        (lambda: torch.zeros(3, dtype=torch.bool), False),
        (lambda: torch.empty(3).fill_(2), 2.0),
        (lambda: torch.tensor(True), True),
        (lambda: torch.FloatTensor([2, 2, 2]), 2.0),
        (lambda: torch.Tensor(3).zero_(), 0.0),
    ],
)
def test_fill_is_a_number_of_the_kind_of_its_tensor(make: Any, value: Any) -> None:
    """What holds one value everywhere is a fill, of a Python number of the right kind."""
    tape = check(lambda x: x * make(), randn(3))
    fills = [n.args[1] for n in tape.graph.nodes if n.target.__class__ is not str and n.args[1:]]

    found = [f for f in fills if isinstance(f, bool | int | float)][-1]
    assert (type(found), found) == (type(value), value)
