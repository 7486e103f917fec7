"""When two recordings are the same program, and which sizes that frees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snncc.frontend.capture import capture
from snncc.frontend.generalize import Generalization, Mismatch, same_program
from snncc.frontend.reroll import Rolled, reroll
from tests.frontend.looping_models import spike

Model = Callable[..., Any]


def recorded(model: Model, *shapes: tuple[int, ...]) -> Rolled:
    inputs = tuple(torch.rand(shape) for shape in shapes)
    return reroll(capture(model, inputs, {}))


def compare(model: Model, first: tuple[int, ...], second: tuple[int, ...]) -> Any:
    return same_program(recorded(model, first), recorded(model, second))


def integrate(x: Tensor, steps: range) -> Tensor:
    v, out = torch.zeros(x.shape[1:]), []
    for t in steps:
        v = 0.5 * v + x[t]
        s = spike(v - 1)
        v = v - s
        out.append(s)
    return torch.stack(out)


def over_input(x: Tensor) -> Tensor:
    return integrate(x, range(x.shape[0]))


def over_four_steps(x: Tensor) -> Tensor:
    return integrate(x, range(4))


def half_of_input(x: Tensor) -> Tensor:
    return integrate(x, range(x.shape[0] // 2))


def all_but_last(x: Tensor) -> Tensor:
    return integrate(x, range(x.shape[0] - 1))


def mean_by_length(x: Tensor) -> Tensor:
    return over_input(x).sum(0) / len(x)


def mean_by_shape(x: Tensor) -> Tensor:
    return over_input(x).sum(0) / x.shape[0]


def batch_in_python(x: Tensor) -> Tensor:
    return over_input(x).sum() / float(x.shape[1])


def state_of_fixed_batch(x: Tensor) -> Tensor:
    v = torch.zeros(3, 4)
    for t in range(x.shape[0]):
        v = 0.5 * v + x[t]
    return v


@pytest.mark.parametrize(
    ("model", "first", "second", "free"),
    [
        (over_input, (6, 3, 4), (9, 3, 4), {(0, 0)}),
        (over_input, (6, 3, 4), (6, 2, 4), {(0, 1)}),
        (over_input, (6, 3, 4), (9, 2, 5), {(0, 0), (0, 1), (0, 2)}),
        (over_input, (6, 3, 4), (6, 3, 4), set()),
        (over_four_steps, (6, 3, 4), (9, 3, 4), {(0, 0)}),
        (over_four_steps, (9, 3, 4), (6, 3, 4), {(0, 0)}),
        (all_but_last, (6, 3, 4), (9, 3, 4), {(0, 0)}),
        (mean_by_shape, (6, 3, 4), (9, 2, 4), {(0, 0), (0, 1)}),
        (mean_by_length, (6, 3, 4), (6, 2, 4), {(0, 1)}),
    ],
)
def test_sizes_that_the_program_follows_are_free(
    model: Model, first: tuple[int, ...], second: tuple[int, ...], free: set[tuple[int, int]]
) -> None:
    """Sizes are free whose change changes no number in the program but those that follow."""
    answer = compare(model, first, second)

    assert answer == Generalization(frozenset(free))


@pytest.mark.parametrize(
    ("model", "first", "second", "reason"),
    [
        (over_four_steps, (4, 3, 4), (9, 3, 4), "4 steps where the first recording implies 9"),
        (half_of_input, (8, 3, 4), (12, 3, 4), "6 steps where the first recording implies 4"),
        (mean_by_length, (6, 3, 4), (9, 3, 4), "an argument of 'div' is 6, then 9"),
        (batch_in_python, (6, 3, 4), (6, 2, 4), "an argument of 'div' is 3.0, then 2.0"),
    ],
)
def test_numbers_of_python_make_another_program(
    model: Model, first: tuple[int, ...], second: tuple[int, ...], reason: str
) -> None:
    """A number that Python computed from a size ties the program to that size."""
    answer = compare(model, first, second)

    assert isinstance(answer, Mismatch)
    assert not answer
    assert reason in answer.reason


def test_length_that_equals_a_constant_by_chance_is_told_apart_later() -> None:
    """Four steps of an input of length four look like all of them; other lengths agree again."""
    by_chance = recorded(over_four_steps, (4, 3, 4))
    longer, longest = (recorded(over_four_steps, (n, 3, 4)) for n in (9, 12))

    assert isinstance(same_program(by_chance, longer), Mismatch)
    assert same_program(longer, longest) == Generalization(frozenset({(0, 0)}))


def test_state_of_a_fixed_batch_stays_fixed() -> None:
    """A start value whose shape only happens to be that of the input is not made to follow it."""
    answer = same_program(
        recorded(state_of_fixed_batch, (6, 3, 4)), recorded(state_of_fixed_batch, (6, 1, 4))
    )

    assert isinstance(answer, Mismatch)


def test_other_branches_are_other_programs() -> None:
    """A model that branches on a size is a program for each branch; the line is named."""

    def model(x: Tensor) -> Tensor:
        y = over_input(x)
        return torch.relu(y) if x.shape[1] > 2 else torch.tanh(y)

    answer = compare(model, (6, 3, 4), (6, 2, 4))

    assert isinstance(answer, Mismatch)
    assert "different operators" in answer.reason
    assert answer.location is not None


def test_other_dtypes_are_other_programs() -> None:
    """The same operators on another type are another program."""
    a = reroll(capture(over_input, (torch.rand(6, 3),), {}))
    b = reroll(capture(over_input, (torch.rand(6, 3, dtype=torch.float64),), {}))

    assert isinstance(same_program(a, b), Mismatch)


def test_parameters_of_another_name_are_another_program() -> None:
    """Two models that read different parameters are not one program."""

    class Scaled(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.ones(4)))
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            return over_input(x * getattr(self, self.name))

    a, b = (recorded(Scaled(name), (6, 3, 4)) for name in ("gain", "scale"))

    answer = same_program(a, b)

    assert answer == Mismatch("one reads 'gain', the other 'scale'")


def test_constants_are_compared_by_value() -> None:
    """Tensors made of Python data in the run are part of the program."""

    def with_constant(values: list[float]) -> Model:
        return lambda x: over_input(x) * torch.tensor(values)

    a, b, c = (recorded(with_constant([1.0, 2.0, n]), (6, 2, 3)) for n in (3.0, 3.0, 4.0))

    assert same_program(a, b)
    assert isinstance(same_program(a, c), Mismatch)
