"""What is said of a neuron holds when it is run, whatever recurrence it is said of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from snncc.ir.interpret import evaluate, run_step
from snncc.ir.neuron_class import NeuronClass, Reset, StateClass, Values
from snncc.ir.nodes import (
    Binary,
    Const,
    Expr,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    Select,
    State,
    Unary,
    Var,
)
from snncc.ir.walk import names_read
from snncc.passes.meaning.classify_neurons import classify_neuron
from tests.strategies import recurrences

LANES = 64


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recurrence=recurrences(max_lets=7), seed=st.integers(0, 2**31 - 1))
def test_claims_hold(recurrence: Recurrence, seed: int) -> None:
    """Charges, resets and spikes are what the interpreter computes, on random states."""
    check_claims(recurrence, classify_neuron(recurrence), seed)


def check_claims(recurrence: Recurrence, neuron: NeuronClass, seed: int) -> int:
    """Run two steps from a random state and compare the second with what is claimed.

    Returns:
        How many lanes were compared with a claim.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        # Eighths: ties with thresholds happen, sums and products are exact.
        return torch.randint(-16, 17, (LANES,), generator=generator).double() / 8

    lanes = {name: draw() for name in recurrence.lane_inputs}
    state = {s.name: draw() for s in recurrence.states}
    first = run_step(recurrence, {n: draw() for n in recurrence.step_inputs} | lanes, state)
    state = {s.name: first[s.update].double() for s in recurrence.states}
    second = run_step(recurrence, {n: draw() for n in recurrence.step_inputs} | lanes, state)
    compared = sum(_check_spikes(neuron, second))
    for claim in neuron.states:
        spikes = [(first if claim.is_delayed else second)[s.name] for s in neuron.spikes]
        compared += _check_state(claim, neuron, spikes, second)
    return compared


def _check_spikes(neuron: NeuronClass, values: dict[str, Tensor]) -> list[int]:
    compared = []
    for spike in neuron.spikes:
        s = values[spike.name].double()
        if spike.values in (Values.BINARY, Values.TERNARY):
            assert {*s.unique().tolist()} <= {-1.0, 0.0, 1.0}
        if spike.comparison is not None and _is_known(spike.potential, spike.threshold):
            difference = _value(spike.potential, values) - _value(spike.threshold, values)
            holds = getattr(torch, spike.comparison.value)(difference, torch.zeros(()))
            assert bool(holds[s > 0].all())
            compared.append(int((s > 0).sum()))
    return compared


def _check_state(
    claim: StateClass, neuron: NeuronClass, spikes: list[Tensor], values: dict[str, Tensor]
) -> int:
    if claim.charge is None:
        return 0
    after, charge = values[claim.update].double(), _value(claim.charge, values)
    quiet = torch.stack([s == 0 for s in spikes]).all(0) if spikes else torch.ones(LANES) > 0
    torch.testing.assert_close(after[quiet], charge[quiet])
    if claim.decay is not None and claim.drive is not None:
        again = _value(claim.decay, values) * values[claim.name] + _value(claim.drive, values)
        torch.testing.assert_close(again, charge)
    if len(spikes) != 1 or claim.amount is None:
        return int(quiet.sum())
    (s,), amount = spikes, _value(claim.amount, values)
    fired = s != 0
    kind = neuron.spikes[0].values
    if claim.reset is Reset.HARD and claim.is_delayed:
        assert claim.drive is not None
        amount = amount + _value(claim.drive, values)
    if claim.reset is Reset.SUBTRACT and kind in (Values.BINARY, Values.TERNARY):
        torch.testing.assert_close(after[fired], (charge - amount * s)[fired])
    elif claim.reset in (Reset.HARD, Reset.CLIP):
        torch.testing.assert_close(after[fired], amount[fired])
    return LANES


def _is_known(*exprs: Expr | None) -> bool:
    return all(e is not None and not any(n[0] in "?#" for n in names_read(e)) for e in exprs)


def _value(expr: Expr | None, values: dict[str, Tensor]) -> Any:
    assert expr is not None
    like = next(iter(values.values())).double()
    return evaluate(expr, values, like).double().expand(LANES)


@pytest.mark.parametrize("seed", range(3))
def test_claims_are_made(seed: int) -> None:
    """The check above compares something: on a plain LIF it compares every lane."""
    from tests.neuron_programs import lif

    recurrence = lif().forward
    neuron = classify_neuron(recurrence)

    assert neuron.name == "LIF"
    assert check_claims(recurrence, neuron, seed) > LANES // 2


def test_a_count_that_a_threshold_hides_is_no_reset() -> None:
    """The state follows the count; the spike, 0 above -1.5, does not tell what is taken away."""
    count = Let("n", Unary(Op.FLOOR, Var("v")))
    hidden = Select(Binary(Op.LT, Var("n"), Const(-1.5)), Var("n"), Const(0.0))
    state = State("v", Const(0.0), "n")
    inputs = (Input("x", Rank.STEP),)
    recurrence = Recurrence("hidden", inputs, (state,), (count, Let("s", hidden)), ("s",))
    neuron = classify_neuron(recurrence)

    check_claims(recurrence, neuron, 0)
    assert neuron.states[0].charge is None
