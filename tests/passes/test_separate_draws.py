"""Draws depend on sizes that are known before the loop; everything else stays as it was."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snncc.frontend.capture import capture
from snncc.frontend.reroll import reroll
from snncc.ir.custom_gradient import run_graph
from snncc.ir.step_sizes import StepSizes
from snncc.ir.time_loop import TimeLoop
from snncc.passes.hoisting.separate_draws import SeparateDraws


def noisy(x: Tensor) -> Tensor:
    """Draw for the input, for a state, and by sizes of a state."""
    v = torch.zeros_like(x[0])
    out = []
    for x_t in x:
        v = 0.5 * v + F.dropout(x_t, 0.3) + torch.randn_like(v) * torch.rand(v.shape[0], 1)
        out.append(v)
    return torch.stack(out)


def with_input_noise(x: Tensor) -> Tensor:
    """Draw for the input alone."""
    v = torch.zeros_like(x[0])
    for x_t in x:
        v = 0.5 * v + x_t * torch.rand_like(x_t)
    return v


def before_and_after(function: Any) -> tuple[torch.fx.Graph, torch.fx.Graph]:
    """Return a graph with its loop, and what the pass makes of it."""
    before = reroll(capture(function, (torch.randn(6, 2, 3),), {})).graph
    return before, SeparateDraws().run(before)


def run(graph: torch.fx.Graph, x: Tensor) -> tuple[Any, Tensor]:
    """Return what a graph computes and the random number that follows."""
    torch.manual_seed(0)
    (result,) = run_graph(graph, [x])
    return result, torch.rand(())


def test_the_same_numbers_are_drawn() -> None:
    """At any size, values and the next random number are equal."""
    before, after = before_and_after(noisy)
    for sizes in ((6, 2, 3), (4, 5, 3), (1, 1, 3)):
        x = torch.randn(sizes)

        for a, b in zip(run(before, x), run(after, x), strict=True):
            assert torch.equal(a, b)


def test_draws_read_no_state() -> None:
    """What a draw reads is from outside of the loop: a step of the input, sizes, numbers."""
    _, after = before_and_after(noisy)
    (loop,) = (n.target for n in after.nodes if isinstance(n.target, TimeLoop))
    carried = {carry.name for carry in loop.carries}

    reads = [i for n in loop.body.nodes if n.meta.get("impure") for i in n.all_input_nodes]
    assert {node.op for node in reads} == {"placeholder"}
    assert carried.isdisjoint(node.name for node in reads)


def test_sizes_are_computed_once_for_each_shape() -> None:
    """A second call with operands of the same sizes runs nothing."""
    _, after = before_and_after(noisy)
    sizes = [n.target for n in after.nodes if isinstance(n.target, StepSizes)]
    for _ in range(2):
        run(after, torch.randn(6, 4, 3))

    assert {tuple(s.known.values()) for s in sizes} == {((4, 3),)}


def test_draws_of_the_input_stay() -> None:
    """Where nothing of the loop is read, there is nothing to change."""
    before, after = before_and_after(with_input_noise)

    assert [str(n) for n in before.nodes] == [str(n) for n in after.nodes]
