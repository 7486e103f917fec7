"""Generated recurrences: C kernels against the reference interpreter."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snncc.ir import interpret
from snncc.ir.nodes import Recurrence
from snncc.ir.program import NeuronProgram, Place
from snncc.passes.gradients.differentiate import differentiate
from snncc.passes.gradients.plan_storage import plan_storage
from snncc.runtime.operators import Neuron
from tests.strategies import recurrences

# Reverse sums of a few dozen products of small multiples of 1/16.
GRADIENT = {torch.float32: 1e-5, torch.float64: 1e-12}


def draw_inputs(
    recurrence: Recurrence, length: int, lanes: tuple[int, ...], dtype: torch.dtype, seed: int
) -> list[Tensor]:
    """Return multiples of 1/4 for each input; every second lane input is broadcast."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        values = torch.randint(-6, 7, shape, generator=generator).to(dtype) / 4
        return values.requires_grad_()

    steps = [draw(length, *lanes) for _ in recurrence.step_inputs]
    shapes = [lanes, lanes[-1:], ()]
    return steps + [draw(*shapes[i % 3]) for i, _ in enumerate(recurrence.lane_inputs)]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([Place.SCRATCH, Place.MEMORY]),
    recurrences(),
    st.integers(1, 5),
    st.sampled_from([(1,), (3,), (2, 3), (2, 3, 5), (70,)]),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 1000),
)
def test_kernel_equals_reference(
    place: Place,
    recurrence: Recurrence,
    length: int,
    lanes: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Forward bit by bit, gradients to the rounding of their sums."""
    adjoint = differentiate(recurrence)
    program = NeuronProgram(recurrence, adjoint, plan_storage(recurrence, adjoint, place))
    inputs = draw_inputs(recurrence, length, lanes, dtype, seed)
    names = (*recurrence.step_inputs, *recurrence.lane_inputs)
    reference = interpret.run(recurrence, dict(zip(names, inputs, strict=True)), length)
    expected = [reference[n] for n in (*recurrence.outputs, *recurrence.finals)]
    count = len(recurrence.step_inputs)

    outputs, finals = Neuron(program)(inputs[:count], inputs[count:], length=length)

    actual = [*outputs, *finals]
    for a, b in zip(expected, actual, strict=True):
        assert torch.equal(a, b)
    weights = [torch.randn_like(y) for y in expected]
    for a, b in zip(
        gradients(expected, weights, inputs), gradients(actual, weights, inputs), strict=True
    ):
        bound = GRADIENT[dtype] * max(float(a.abs().max()), 1.0)
        torch.testing.assert_close(b, a, rtol=GRADIENT[dtype], atol=bound)


def gradients(ys: list[Tensor], weights: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Return the gradients of a weighting of the results; zeros where there is none."""
    pairs = [(y, w) for y, w in zip(ys, weights, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in leaves]
    results, cotangents = zip(*pairs, strict=True)
    found = torch.autograd.grad(results, leaves, cotangents, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
