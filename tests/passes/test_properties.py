"""Random recurrences: every pass against the reference interpreter and autograd."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snncc.ir import interpret
from snncc.ir.nodes import Recurrence
from snncc.ir.program import Adjoint, Place, Storage
from snncc.ir.validate import validate
from snncc.ir.walk import names_read
from snncc.passes.gradients.differentiate import differentiate
from snncc.passes.gradients.plan_storage import plan_storage
from snncc.passes.simplify_step import simplify_step
from tests.strategies import recurrences

LANES = (2, 3)
sizes = st.integers(1, 4)
seeds = st.integers(0, 2**16)


def make_inputs(recurrence: Recurrence, length: int, seed: int) -> dict[str, Tensor]:
    """Return random multiples of 1/4 for each input, in float64, that require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        values = torch.randint(-6, 7, shape, generator=generator, dtype=torch.float64) / 4
        return values.requires_grad_()

    inputs = {name: draw(length, *LANES) for name in recurrence.step_inputs}
    return inputs | {name: draw(LANES[1]) for name in recurrence.lane_inputs}


def residuals_of(
    recurrence: Recurrence, adjoint: Adjoint, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return what the reverse steps read of the forward steps, as [T, *lanes]."""
    lanes = {name: inputs[name].detach() for name in recurrence.lane_inputs}
    like = next(iter(inputs.values()))
    state = {
        s.name: interpret.evaluate(s.initial, lanes, like).expand(LANES) for s in recurrence.states
    }
    seen: dict[str, list[Tensor]] = {name: [] for name in adjoint.residuals}
    for t in range(like.shape[0]):
        steps = {name: inputs[name][t].detach() for name in recurrence.step_inputs}
        values = interpret.run_step(recurrence, steps | lanes, state)
        for name, history in seen.items():
            history.append(values[name].expand(LANES))
        state = {s.name: values[s.update] for s in recurrence.states}
    return {name: torch.stack(history) for name, history in seen.items()}


def autograd(
    ends: list[Tensor], leaves: list[Tensor], cotangents: list[Tensor]
) -> list[Tensor | None]:
    """Return autograd's gradients; None for each leaf where nothing is differentiable."""
    pairs = [(y, g) for y, g in zip(ends, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [None] * len(leaves)
    ys, gs = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ys, leaves, gs, allow_unused=True))


@settings(deadline=None, max_examples=150)
@given(recurrences(), sizes, seeds)
def test_adjoint_equals_autograd(recurrence: Recurrence, length: int, seed: int) -> None:
    """The adjoint computes the gradients of autograd through the reference interpreter."""
    validate(recurrence)
    adjoint = differentiate(recurrence)
    validate(adjoint.recurrence)
    inputs = make_inputs(recurrence, length, seed)
    results = interpret.run(recurrence, inputs)
    ends = [results[name] for name in (*recurrence.outputs, *recurrence.finals)]
    cotangents = [torch.randn_like(end) for end in ends]
    expected = autograd(ends, [*inputs.values()], cotangents)
    names = (*adjoint.output_cotangents, *adjoint.final_cotangents)
    given_values = dict(zip(names, cotangents, strict=True))
    given_values |= residuals_of(recurrence, adjoint, inputs)
    given_values |= {name: inputs[name].detach() for name in recurrence.lane_inputs}

    actual = interpret.run(
        adjoint.recurrence, {i.name: given_values[i.name] for i in adjoint.recurrence.inputs}
    )

    found: list[Tensor | None] = [
        None if name is None else actual[name] for name in adjoint.step_gradients
    ]
    found += [
        sum((actual[f] for f in finals), torch.zeros(LANES, dtype=torch.float64)).sum(0)
        for finals in adjoint.lane_gradients
    ]
    order = (*recurrence.step_inputs, *recurrence.lane_inputs)
    wanted = dict(zip(inputs, expected, strict=True))
    for name, gradient in zip(order, found, strict=True):
        reference = wanted[name]
        reference = torch.zeros_like(inputs[name]) if reference is None else reference
        gradient = torch.zeros_like(reference) if gradient is None else gradient
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=150)
@given(recurrences(), sizes, seeds)
def test_simplified_step_is_bitwise_equal(recurrence: Recurrence, length: int, seed: int) -> None:
    """Simplification changes no value."""
    inputs = make_inputs(recurrence, length, seed)
    simpler = simplify_step(recurrence)
    validate(simpler)

    expected, actual = interpret.run(recurrence, inputs), interpret.run(simpler, inputs)

    for name, value in expected.items():
        assert torch.equal(actual[name].detach(), value.detach())


@settings(deadline=None, max_examples=100)
@given(recurrences(), st.sampled_from([None, *Place]))
def test_storage_covers_the_residuals(recurrence: Recurrence, place: Place | None) -> None:
    """What is saved suffices to evaluate each residual within the step."""
    adjoint = differentiate(recurrence)
    storage: Storage = plan_storage(recurrence, adjoint, place)
    known = {i.name for i in recurrence.inputs} | set(storage.saved)
    for let in recurrence.lets:
        if let.name in storage.recomputed:
            assert set(value_reads(let.name, recurrence)) <= known
            known.add(let.name)

    assert set(adjoint.residuals) <= known


def value_reads(name: str, recurrence: Recurrence) -> set[str]:
    """Return the names that the value of a let reads."""
    return set(names_read(next(let for let in recurrence.lets if let.name == name).expr))
