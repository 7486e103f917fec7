"""Delay lines in one tensor, and lists of results that are none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from snncc.frontend.capture import capture
from snncc.frontend.reroll import check, reroll
from snncc.frontend.state.sources import gather
from tests.frontend.recordings import randn

Shift = Callable[[Tensor, Tensor], Tensor]


def rolled(buffer: Tensor, s: Tensor) -> Tensor:
    buffer = torch.roll(buffer, -1, 0)
    buffer[-1] = s
    return buffer


def rolled_back(buffer: Tensor, s: Tensor) -> Tensor:
    buffer = torch.roll(buffer, shifts=(1,), dims=(0,))
    buffer[0] = s
    return buffer.flip(0)


def joined(buffer: Tensor, s: Tensor) -> Tensor:
    return torch.cat([buffer[1:], s.unsqueeze(0)])


def line(shift: Shift) -> Callable[[Tensor], Tensor]:
    """Return a loop that reads what it put into a buffer three steps before."""

    def run(x: Tensor) -> Tensor:
        v, buffer = torch.zeros_like(x[0]), torch.zeros(3, *x.shape[1:])
        out = []
        for x_t in x:
            v = 0.5 * v + x_t - 0.25 * buffer[0]
            buffer = shift(buffer, v)
            out.append(v)
        return torch.stack(out)

    return run


@pytest.mark.parametrize("shift", [rolled, joined])
def test_delay_line_is_states(shift: Shift) -> None:
    """The buffer is gone: its elements are values of the steps before."""
    tape = capture(line(shift), (randn(9, 2, 3),), {})
    (loop,) = reroll(tape).loops

    targets = {n.target for n in loop.body.nodes if n.op == "call_function"}
    assert targets == {torch.mul, torch.add, torch.sub}


@pytest.mark.parametrize("shift", [rolled, rolled_back, joined])
@pytest.mark.parametrize("length", [2, 3, 4, 9])
def test_delay_line_computes_the_same(shift: Shift, length: int) -> None:
    """Whether it is taken apart or not, and where the sequence is shorter than the line."""
    run = line(shift)
    tape = capture(run, (randn(length, 2, 3),), {})

    check(reroll(tape), tape, gather(tape, run, (randn(length, 2, 3, seed=1),), {}))


def test_list_of_results_stays_a_list() -> None:
    """The loop of the second layer is over what the first has stacked."""

    def layer(x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
            out.append(v)
        return torch.stack(out)

    tape = capture(lambda x: layer(layer(x)), (randn(6, 2, 3),), {})

    assert [loop.trip.seen for loop in reroll(tape).loops] == [6, 6]
