"""Random recurrences: kernels for GPUs against the reference interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snncc.ir import interpret
from snncc.ir.nodes import Recurrence
from snncc.ir.program import NeuronProgram
from snncc.passes.gradients.differentiate import differentiate
from snncc.runtime.operators import Neuron
from tests.runtime.test_properties import draw_tensor, make_inputs, reference_gradients, storages
from tests.strategies import recurrences

SHAPES = st.sampled_from([(1,), (7,), (33,), (2, 5), (3, 1, 40)])
LENGTHS = st.sampled_from([1, 3, 9, 18])
DTYPES = st.sampled_from([torch.float32, torch.float64])


# The interpreter is slow: few examples, all small; the C kernels have many.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
@settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(recurrence=recurrences(max_lets=5), data=st.data())
def test_kernels_equal_the_interpreter(
    target: str, recurrence: Recurrence, data: st.DataObject
) -> None:
    """Outputs, finals and gradients are bitwise those of the reference."""
    lanes, length = data.draw(SHAPES), data.draw(LENGTHS)
    dtype, seed = data.draw(DTYPES), data.draw(st.integers(0, 999))
    adjoint = differentiate(recurrence)
    program = NeuronProgram(recurrence, adjoint, data.draw(storages(recurrence, adjoint)))
    inputs = make_inputs(recurrence, length, lanes, dtype, seed)
    steps = [inputs[name] for name in recurrence.step_inputs]
    parameters = [inputs[name] for name in recurrence.lane_inputs]
    leaves = [x.detach().requires_grad_() for x in (*steps, *parameters)]
    expected = interpret.run(recurrence, inputs, length)
    names = (*recurrence.outputs, *recurrence.finals)

    outputs, finals = Neuron(program, target=target)(leaves[: len(steps)], leaves[len(steps) :])

    ends = [*outputs, *finals]
    for name, end in zip(names, ends, strict=True):
        torch.testing.assert_close(end.detach(), expected[name], rtol=0, atol=0, equal_nan=True)
    generator = torch.Generator().manual_seed(seed)
    cotangents = [draw_tensor(tuple(end.shape), dtype, generator) for end in ends]
    gradients = torch.autograd.grad(ends, leaves, cotangents, allow_unused=True)
    wanted = reference_gradients(recurrence, adjoint, inputs, cotangents)
    for gradient, reference in zip(gradients, wanted, strict=True):
        if reference is None:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, reference, rtol=0, atol=0, equal_nan=True)
