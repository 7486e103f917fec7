"""Re-rolling of the ways in which published code loops over time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.frontend.capture import capture
from snncc.frontend.generalize import Generalization, Mismatch, same_program
from snncc.frontend.reroll import Rolled, check, reroll
from snncc.frontend.state.sources import gather
from snncc.ir.custom_gradient import run_graph
from snncc.ir.tape import Tape
from tests.frontend.looping_models import MODELS, Looping

LOOPING = [pytest.param(m, id=m.name) for m in MODELS]
FREE = [pytest.param(m, id=m.name) for m in MODELS if m.time is not None]
# Python computed a number from the length: the divisor of a mean, the steps of every second step.
BAKED = {"SumOfList", "SumInPlace", "EverySecondStep"}


def recorded(model: Any, x: Any) -> tuple[Tape, Rolled]:
    tape = capture(model, (x,), {})
    return tape, reroll(tape)


def outputs(graph: torch.fx.Graph, values: list[Any]) -> tuple[Any, ...]:
    torch.manual_seed(5)
    return tuple(run_graph(graph, values))


@pytest.mark.parametrize("looping", LOOPING)
def test_finds_the_loops(looping: Looping) -> None:
    """Each loop over time is one loop, with the steps and the states of the user's code."""
    _, rolled = recorded(looping.make(), looping.input())

    found = [(x.trip.seen, x.trip.operand is not None, len(x.carries)) for x in rolled.loops]
    assert looping.loops == found


@pytest.mark.parametrize("looping", LOOPING)
def test_computes_the_same_bits(looping: Looping) -> None:
    """The loops compute, on other data, what the record computes."""
    model = looping.make()
    tape, rolled = recorded(model, looping.input())

    check(rolled, tape, gather(tape, model, (looping.input(seed=1),), {}))


@pytest.mark.parametrize("looping", LOOPING)
def test_has_the_same_gradients(looping: Looping) -> None:
    """Gradients flow through the loops as through the record."""
    model = looping.make()
    tape, rolled = recorded(model, looping.input())
    values = gather(tape, model, (looping.input(seed=2),), {})

    expected, actual = (_gradients(g, values) for g in (tape.graph, rolled.graph))

    assert any(g is not None and g.abs().sum() > 0 for g in expected)
    for a, b in zip(expected, actual, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            # Contributions to one parameter may be added in another order.
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def _gradients(graph: torch.fx.Graph, values: list[Any]) -> list[Tensor | None]:
    # Inputs are not leaves in the test models; buffers have no gradient.
    wanted = [v.requires_grad or v.shape == values[0].shape for v in values]
    leaves = [v.detach().clone().requires_grad_(w) for v, w in zip(values, wanted, strict=True)]
    results = [y for y in outputs(graph, leaves) if y.requires_grad]
    loss = sum((y * torch.linspace(0.5, 1.5, y.numel()).reshape(y.shape)).sum() for y in results)
    leaves = [x for x in leaves if x.requires_grad]
    return list(torch.autograd.grad(loss, leaves, allow_unused=True))


@pytest.mark.parametrize("looping", FREE)
@pytest.mark.parametrize("length", [4, 9])
def test_runs_at_another_length(looping: Looping, length: int) -> None:
    """A loop that follows its input computes what the model computes on a longer or shorter one."""
    if looping.name in BAKED:
        pytest.skip("Python computed a number from the length")
    model = looping.make()
    tape, rolled = recorded(model, looping.input())
    x = looping.input(seed=3, time=length, batch=2)
    values = [v.clone() for v in gather(tape, model, (x,), {})]

    torch.manual_seed(5)
    expected = pytree.tree_leaves(copy.deepcopy(model)(x))
    actual = outputs(rolled.graph, values)

    for leaf, position in zip(expected, tape.output_leaves, strict=True):
        assert torch.equal(leaf, actual[position.index])


@pytest.mark.parametrize("looping", FREE)
def test_two_recordings_are_one_program(looping: Looping) -> None:
    """A second recording at another length and batch size proves both sizes free."""
    model = looping.make()
    _, a = recorded(model, looping.input())
    sizes = {"batch": 2} if looping.name == "TwoSteps" else {"time": 9, "batch": 2}
    _, b = recorded(model, looping.input(**sizes))

    answer = same_program(a, b)

    if looping.name in BAKED and "time" in sizes:
        assert isinstance(answer, Mismatch)
    else:
        assert isinstance(answer, Generalization), answer.reason
        axes = {looping.time, 1 if looping.time == 0 else 0}
        assert {dim for _, dim in answer.free} == axes if "time" in sizes else {1}


@pytest.mark.parametrize("looping", LOOPING)
def test_is_found_again(looping: Looping) -> None:
    """Re-rolling is a function of the tape: the same run gives the same program."""
    model = looping.make()
    _, a = recorded(model, looping.input())
    _, b = recorded(model, looping.input(seed=4))

    answer = same_program(a, b)

    assert isinstance(answer, Generalization), answer.reason
    assert answer.free == frozenset()
