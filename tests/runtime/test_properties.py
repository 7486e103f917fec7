"""Random recurrences: C kernels against the reference interpreter, forward and backward."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snncc.ir import interpret
from snncc.ir.nodes import Recurrence
from snncc.ir.program import Adjoint, NeuronProgram, Place, Storage
from snncc.passes.gradients.differentiate import differentiate
from snncc.passes.gradients.plan_storage import plan_storage
from snncc.runtime.operators import Neuron
from tests.strategies import recurrences

SHAPES = st.sampled_from([(1,), (7,), (33,), (2, 5), (3, 1, 40)])
LENGTHS = st.sampled_from([1, 2, 5, 9])
DTYPES = st.sampled_from([torch.float32, torch.float64])


def draw_tensor(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return multiples of 1/4 in some memory order, now and then with gaps or broadcast."""

    def random(high: int) -> int:
        return int(torch.randint(0, high, (), generator=generator))

    order = torch.randperm(len(shape), generator=generator).tolist()
    gap = 2 if random(4) == 0 else 1
    sizes = [shape[d] for d in order]
    if sizes:
        sizes[-1] *= gap
    values = torch.randint(-6, 7, sizes, generator=generator).to(dtype) / 4
    inverse = sorted(range(len(shape)), key=order.__getitem__)
    values = values[..., ::gap].permute(inverse) if shape else values
    if len(shape) > 1 and random(4) == 0:
        dim = 1 + random(len(shape) - 1)
        values = values.narrow(dim, 0, 1).expand(shape)
    return values


def make_inputs(
    recurrence: Recurrence, length: int, lanes: tuple[int, ...], dtype: torch.dtype, seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        name: draw_tensor((length, *lanes), dtype, generator) for name in recurrence.step_inputs
    }
    return inputs | {name: draw_tensor(lanes, dtype, generator) for name in recurrence.lane_inputs}


def reference_gradients(
    recurrence: Recurrence,
    adjoint: Adjoint,
    inputs: dict[str, Tensor],
    cotangents: list[Tensor],
) -> list[Tensor | None]:
    """Run the adjoint by the interpreter; the same operations in the same order."""
    names = (*adjoint.output_cotangents, *adjoint.final_cotangents)
    values = dict(zip(names, cotangents, strict=True)) | inputs | trace(recurrence, inputs)
    given_values = {i.name: values[i.name] for i in adjoint.recurrence.inputs}
    length = next(iter(inputs.values())).shape[0]
    results = interpret.run(adjoint.recurrence, given_values, length)
    steps = [None if name is None else results[name] for name in adjoint.step_gradients]
    lanes = []
    for finals in adjoint.lane_gradients:
        parts = [results[name] for name in finals]
        lanes.append(None if not parts else sum(parts[1:], parts[0]))
    return [*steps, *lanes]


def trace(recurrence: Recurrence, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return every state before the step and every let, as [T, *lanes]."""
    lanes = next(iter(inputs.values())).shape[1:]
    like = next(iter(inputs.values()))
    values = {name: inputs[name] for name in recurrence.lane_inputs}
    state = {
        s.name: interpret.evaluate(s.initial, values, like).expand(lanes) for s in recurrence.states
    }
    history: dict[str, list[Tensor]] = {}
    for t in range(len(like)):
        step = {name: inputs[name][t] for name in recurrence.step_inputs} | values
        found = interpret.run_step(recurrence, step, state)
        for name in (*state, *(let.name for let in recurrence.lets)):
            history.setdefault(name, []).append(found[name].expand(lanes))
        state = {s.name: found[s.update] for s in recurrence.states}
    return {name: torch.stack(seen) for name, seen in history.items()}


def storages(recurrence: Recurrence, adjoint: Adjoint) -> st.SearchStrategy[Storage]:
    plans = [plan_storage(recurrence, adjoint, place) for place in Place]
    everything = tuple(s.name for s in recurrence.states)
    everything += tuple(let.name for let in recurrence.lets)
    plans += [Storage(place, everything, ()) for place in Place]
    return st.sampled_from(plans)


@settings(deadline=None, max_examples=15)
@given(recurrences(), st.data())
def test_c_kernels_equal_the_interpreter(recurrence: Recurrence, data: st.DataObject) -> None:
    """Outputs, finals and gradients are bitwise those of the interpreter."""
    lanes, length = data.draw(SHAPES), data.draw(LENGTHS)
    dtype, seed = data.draw(DTYPES), data.draw(st.integers(0, 999))
    adjoint = differentiate(recurrence)
    storage = data.draw(storages(recurrence, adjoint))
    # So little scratch that time is cut into chunks.
    scratch = data.draw(st.sampled_from([None, 1]))
    neuron = Neuron(NeuronProgram(recurrence, adjoint, storage), scratch_bytes=scratch)
    inputs = make_inputs(recurrence, length, lanes, dtype, seed)
    steps = [inputs[name] for name in recurrence.step_inputs]
    parameters = [inputs[name] for name in recurrence.lane_inputs]
    leaves = [x.detach().requires_grad_() for x in (*steps, *parameters)]
    expected = interpret.run(recurrence, inputs, length)
    names = (*recurrence.outputs, *recurrence.finals)

    outputs, finals = neuron(leaves[: len(steps)], leaves[len(steps) :])

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
