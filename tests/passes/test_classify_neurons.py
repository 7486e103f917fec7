"""Neurons written in many ways are recognised for what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import snncc.nn as neurons
from snncc.compilation.pipeline import build, record
from snncc.frontend.state.sources import gather
from snncc.ir.neuron_class import Decay, NeuronClass, Reset, Values
from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
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
from snncc.ir.printer import IR_DIALECT, spell
from snncc.ir.symbolic import constant
from snncc.options import Options
from snncc.passes.meaning.classify_neurons import classify_neuron
from snncc.passes.neurons import neuron_nodes
from tests.passes.test_classify_properties import check_claims
from tests.strategies import surrogate

Step = Callable[..., Any]
SPIKE = neurons.ATan()
WEIGHT = nn.Parameter(torch.tensor(0.25))
LANES = nn.Parameter(torch.full((4,), 0.5))


def classified(model: Callable[..., Any], *args: Tensor) -> NeuronClass:
    """Return what the only neuron of a model means."""
    recording = record(model, args, {})
    leaves = gather(recording.tape, model, args, {})
    graph = build(recording, Options(fallback="serial", target="torch"), leaves, "x").graph
    (node,) = neuron_nodes(graph)
    forward: Recurrence = node.target.program.forward  # type: ignore[union-attr]
    neuron = classify_neuron(forward)
    for seed in range(3):
        check_claims(forward, neuron, seed)
    return neuron


def looped(step: Step, states: int = 1) -> Callable[[Tensor], Tensor]:
    """Return a model that runs a step ``(x, *states) -> (out, *states)`` over time."""

    def model(x: Tensor) -> Tensor:
        values = [torch.zeros_like(x[0])] * states
        out = []
        for x_t in x:
            s, *values = step(x_t, *values)
            out.append(s)
        return torch.stack(out)

    return model


def hard_to(v: Tensor, s: Tensor, value: float) -> Tensor:
    return (1.0 - s) * v + s * value


def masked(x: Tensor, v: Tensor) -> Any:
    h = v * LANES + x
    s = SPIKE(h - WEIGHT)
    return s, h.masked_fill(s > 0, 0.0)


def bare(x: Tensor, v: Tensor) -> Any:
    v = v + (x - v) / 2.0
    return (v > 1.0).float(), torch.where(v > 1.0, torch.zeros_like(v), v)


def straight_through(x: Tensor, v: Tensor) -> Any:
    h = v * 0.5 + x
    soft = torch.sigmoid(4.0 * (h - 1.0))
    s = ((h > 1.0).float() - soft).detach() + soft
    return s, h - s


def ternary(x: Tensor, v: Tensor) -> Any:
    h = 0.5 * v + x
    s = (h >= 1.0).float() - (h <= -1.0).float()
    return s, h * (1.0 - s.abs())


def integer(x: Tensor, v: Tensor) -> Any:
    h = 0.5 * v + x
    s = torch.round(torch.clamp(h, 0.0, 4.0))
    return s, h - s


def graded(x: Tensor, v: Tensor) -> Any:
    h = 0.5 * v + x
    s = torch.relu(h - 0.5)
    return s, h - s


def clipped(x: Tensor, v: Tensor) -> Any:
    h = 0.5 * v + x
    return torch.relu(h - 0.5), torch.clamp(h, max=0.5)


def graded_quantized(x: Tensor, v: Tensor) -> Any:
    h = 0.5 * v + x
    s = torch.relu(h - 0.5)
    return torch.clamp(torch.round(s * 4.0), 0.0, 15.0) / 4.0, h - s


def gated(x: Tensor, v: Tensor) -> Any:
    a = torch.sigmoid(x)
    v = a * v + (1.0 - a) * x
    return SPIKE(v - 1.0), v


def fused_reset(x: Tensor, v: Tensor, s: Tensor) -> Any:
    v = v * 0.25 * (1.0 - s) + x
    s = SPIKE(v - 0.5)
    return s, v, s


def subtract_then_decay(x: Tensor, v: Tensor, s: Tensor) -> Any:
    v = 0.5 * (v - s.detach()) + x
    s = SPIKE(v - 1.0)
    return s, v, s


def recomputed_spike(x: Tensor, v: Tensor) -> Any:
    v = 0.5 * v + x - SPIKE(v - 1.0).detach()
    return SPIKE(v - 1.0), v


def fires_first(x: Tensor, v: Tensor, i: Tensor) -> Any:
    s = SPIKE(v - 0.5)
    return s, (0.75 * v + i) * (1.0 - s.detach()), 0.5 * i + x


def refractory(x: Tensor, v: Tensor, wait: Tensor) -> Any:
    h = 0.5 * v + x
    s = SPIKE(h - 1.0) * (wait <= 0.0).float()
    return s, h * (1.0 - s), torch.clamp(wait - 1.0, min=0.0) + 3.0 * s


def rests_a_step(x: Tensor, v: Tensor, s: Tensor) -> Any:
    h = 0.5 * v + x
    s = (h > 1.0).float() * (1.0 - s)
    return s, h * (1.0 - s), s


def resonator(x: Tensor, u: Tensor, w: Tensor) -> Any:
    new = u + 0.125 * (x - 0.5 * u - 4.0 * w)
    w = w + 0.125 * (4.0 * u - 0.5 * w)
    return SPIKE(new - 1.0), new, w


def adaptive_current(x: Tensor, v: Tensor, w: Tensor) -> Any:
    h = 0.5 * v + x - w
    s = SPIKE(h - 1.0)
    return s, h - s, 0.75 * w + 0.5 * s


def two_compartments(x: Tensor, soma: Tensor, dendrite: Tensor) -> Any:
    dendrite = dendrite - 0.25 * soma + x
    soma = soma + 0.5 * dendrite
    s = SPIKE(soma - 1.0)
    return s, soma - s, dendrite - 0.5 * s


def quadratic(x: Tensor, v: Tensor) -> Any:
    h = v + 0.5 * (v * (v - 0.5) + x)
    s = SPIKE(h - 1.0)
    return s, hard_to(h, s, -0.25)


def exponential(x: Tensor, v: Tensor) -> Any:
    h = v + 0.5 * (torch.exp(v - 1.0) - v + x)
    s = SPIKE(h - 1.0)
    return s, hard_to(h, s, 0.0)


def self_recurrent(x: Tensor, v: Tensor, s: Tensor) -> Any:
    h = 0.5 * v + x + WEIGHT * s
    s = SPIKE(h - 1.0)
    return s, h * (1.0 - s), s


def state_dependent(x: Tensor, v: Tensor) -> Any:
    h = torch.sigmoid(v) * v + x
    s = SPIKE(h - 1.0)
    return s, h - s


def rounded_state(x: Tensor, v: Tensor) -> Any:
    h = torch.floor(v * 4.0) / 4.0 * 0.5 + x
    s = SPIKE(h - 1.0)
    return s, h - s


def online(x: Tensor, v: Tensor) -> Any:
    h = 0.5 * v.detach() + x
    s = SPIKE(h - 1.0)
    return s, h * (1.0 - s)


def normalised(x: Tensor, v: Tensor) -> Any:
    h = 0.5 * v + x
    s = SPIKE(h / 2.0 - 1.0)
    return s, h * (1.0 - s)


CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("if", neurons.IF(), {"name": "IF", "varies": Decay.UNIT, "amount": "0.0"}),
    ("lif", neurons.LIF(0.75), {"decay": "0.75", "gain": "1.0", "threshold": "1.0"}),
    ("lif-free", neurons.LIF(), {"name": "LIF", "is_gated": False}),
    ("lif-to", neurons.LIF(v_reset=-0.5), {"reset": Reset.HARD, "amount": "-0.5"}),
    (
        "lif-soft",
        neurons.LIF(v_reset=None, v_threshold=0.5, detach_reset=True),
        {"reset": Reset.SUBTRACT, "amount": "0.5", "is_detached": True, "is_delayed": False},
    ),
    ("lif-attached", neurons.LIF(v_reset=None), {"is_detached": False}),
    ("lif-no-reset", neurons.LIF(reset="none"), {"name": "LIF without reset", "reset": Reset.NONE}),
    ("plif", neurons.LIF(learnable=True), {"name": "LIF", "varies": Decay.LANE}),
    ("li", neurons.LI(), {"name": "leaky integrator", "reset": Reset.NONE, "decay": "0.5"}),
    ("cuba", neurons.CubaLIF(), {"name": "current-based LIF", "roles": "CURRENT MEMBRANE"}),
    (
        "adaptive",
        neurons.AdaptiveLIF(v_reset=None),
        {"name": "adaptive LIF", "is_adaptive": True, "amount": "a_prev * 0.5 + 1.0"},
    ),
    ("masked", looped(masked), {"varies": Decay.LANE, "threshold": "masked_WEIGHT"}),
    ("bare", looped(bare), {"name": "LIF", "comparison": Op.GT, "gain": "0.5", "decay": "0.5"}),
    (
        "straight",
        looped(straight_through),
        {"reset": Reset.SUBTRACT, "is_detached": False, "values": Values.BINARY},
    ),
    ("ternary", looped(ternary), {"values": Values.TERNARY, "reset": Reset.HARD, "name": "LIF"}),
    ("integer", looped(integer), {"values": Values.INTEGER, "reset": Reset.SUBTRACT}),
    ("graded", looped(graded), {"name": "graded LIF (P2 reset)", "amount": "0.5"}),
    ("clipped", looped(clipped), {"name": "graded LIF (P2 reset)", "reset": Reset.CLIP}),
    ("quantized", looped(graded_quantized), {"name": "graded LIF (P2 reset)"}),
    ("gated", looped(gated), {"name": "dynamic decay", "varies": Decay.INPUT}),
    (
        "dynamic",
        neurons.DynamicDecay(4, kernel_size=3),
        {"name": "dynamic decay", "varies": Decay.INPUT, "roles": "MEMBRANE PAST"},
    ),
    ("fused", looped(fused_reset, 2), {"reset": Reset.HARD, "is_delayed": True, "amount": "0.0"}),
    (
        "delayed",
        looped(subtract_then_decay, 2),
        {"is_delayed": True, "is_detached": True, "amount": "0.5", "roles": "MEMBRANE SPIKE"},
    ),
    ("recomputed", looped(recomputed_spike), {"is_delayed": True, "amount": "1.0"}),
    (
        "early",
        looped(fires_first, 2),
        {"name": "current-based LIF", "is_early": True, "reset": Reset.HARD, "is_detached": True},
    ),
    (
        "refractory",
        looped(refractory, 2),
        {"name": "LIF with refractory period", "is_gated": True},
    ),
    ("rests", looped(rests_a_step, 2), {"name": "elementwise recurrence"}),
    ("resonator", looped(resonator, 2), {"name": "resonate-and-fire", "is_affine": True}),
    ("current", looped(adaptive_current, 2), {"name": "LIF with adaptation current"}),
    ("compartments", looped(two_compartments, 2), {"name": "two-compartment LIF"}),
    ("quadratic", looped(quadratic), {"name": "quadratic IF", "is_affine": False}),
    ("exponential", looped(exponential), {"name": "exponential IF", "decay": None}),
    ("self", looped(self_recurrent, 2), {"name": "LIF", "coupled_to": True}),
    ("state", looped(state_dependent), {"name": "nonlinear IF", "is_affine": False}),
    ("rounded", looped(rounded_state), {"charge": None, "is_affine": False}),
    ("online", looped(online), {"name": "LIF", "is_truncated": True}),
    ("normalised", looped(normalised), {"name": "elementwise recurrence"}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_meaning(model: Any, expected: dict[str, Any]) -> None:
    """The class has what the neuron was written with."""
    neuron = classified(model, torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0)))

    assert {name: _seen(neuron, name) for name in expected} == expected


def _seen(neuron: NeuronClass, name: str) -> Any:
    """Return one property, of the neuron, its membrane or its spike; expressions as text."""
    if name == "roles":
        return " ".join(sorted({s.role.name for s in neuron.states}))
    if name == "coupled_to":
        return bool(neuron.membranes[0].coupled_to)
    membrane = (*neuron.membranes, *neuron.states)[0]
    owner = next(o for o in (neuron, membrane, *neuron.spikes) if hasattr(o, name))
    value = getattr(owner, name)
    return spell(value, IR_DIALECT) if isinstance(value, Expr) else value


DECAYS: dict[str, tuple[Expr, Decay]] = {
    "unit": (Const(1.0), Decay.UNIT),
    "constant": (Const(0.75), Decay.CONSTANT),
    "lane": (Var("p"), Decay.LANE),
    "of-lane": (Unary(Op.SIGMOID, Var("p")), Decay.LANE),
    "step": (Var("d"), Decay.STEP),
    "input": (Unary(Op.SIGMOID, Var("x")), Decay.INPUT),
}
THRESHOLDS: dict[str, Expr] = {"number": Const(0.5), "lane": Var("q"), "step": Var("e")}
RANKS = {"x": Rank.STEP, "p": Rank.LANE, "d": Rank.STEP, "q": Rank.LANE, "e": Rank.STEP}


def add(a: Expr, b: Expr) -> Expr:
    return Binary(Op.ADD, a, b)


def sub(a: Expr, b: Expr) -> Expr:
    return Binary(Op.SUB, a, b)


def mul(a: Expr, b: Expr) -> Expr:
    return Binary(Op.MUL, a, b)


@st.composite
def written_neurons(draw: st.DrawFn) -> tuple[Recurrence, dict[str, Any]]:
    """Draw a neuron written in one of many ways, and what it means."""
    decay, varies = DECAYS[draw(st.sampled_from(sorted(DECAYS)))]
    threshold = THRESHOLDS[draw(st.sampled_from(sorted(THRESHOLDS)))]
    comparison = draw(st.sampled_from([Op.GE, Op.GT]))
    v, h, one = Var("v"), Var("h"), Const(1.0)
    leaked = draw(st.sampled_from([mul(decay, v), sub(v, mul(sub(one, decay), v))]))
    fires = [
        Binary(comparison, sub(h, threshold), Const(0.0)),
        Binary(comparison, h, threshold),
        Binary(Op.LE if comparison is Op.GE else Op.LT, threshold, h),
    ]
    detached = draw(st.booleans())
    s: Expr = Detach(Var("s")) if detached else Var("s")
    value, half = Const(draw(st.sampled_from([0.0, -0.25]))), Const(0.5)
    resets: dict[Reset, list[Expr]] = {
        Reset.NONE: [h],
        Reset.HARD: [add(mul(sub(one, s), h), mul(s, value)), sub(h, mul(sub(h, value), s))],
        Reset.SUBTRACT: [sub(h, mul(s, half)), add(mul(sub(one, s), h), mul(sub(h, half), s))],
    }
    reset = draw(st.sampled_from(sorted(resets, key=lambda kind: kind.name)))
    lets = (
        Let("h", add(leaked, Var("x"))),
        Let("z", sub(h, threshold)),
        Let("s", Unary(Op.FLOAT, draw(st.sampled_from(fires))), surrogate("s", "z", "atan")),
        Let("u", draw(st.sampled_from(resets[reset]))),
    )
    inputs = tuple(Input(name, rank) for name, rank in RANKS.items())
    state = State("v", Const(0.0), "u")
    expected = {
        "varies": varies,
        "reset": reset,
        "amount": {Reset.NONE: None, Reset.HARD: value.value, Reset.SUBTRACT: 0.5}[reset],
        "is_detached": detached and reset is not Reset.NONE,
        "comparison": comparison,
        "is_affine": True,
    }
    return Recurrence("written", inputs, (state,), lets, ("s",)), expected


@settings(max_examples=120, deadline=None)
@given(written_neurons(), st.integers(0, 99))
def test_meaning_does_not_depend_on_the_spelling(
    written: tuple[Recurrence, dict[str, Any]], seed: int
) -> None:
    """Decay, comparison and reset are found in every way of writing them, and hold when run."""
    recurrence, expected = written
    neuron = classify_neuron(recurrence)
    (membrane,), (spike,) = neuron.membranes, neuron.spikes
    seen = {
        "varies": membrane.varies,
        "reset": membrane.reset,
        "amount": None if membrane.amount is None else constant(membrane.amount),
        "is_detached": membrane.is_detached,
        "comparison": spike.comparison,
        "is_affine": neuron.is_affine,
    }

    assert seen == expected
    assert check_claims(recurrence, neuron, seed) > 0


def integrator(name: str, *lets: Let) -> Recurrence:
    """Return a recurrence of one state that becomes the last let."""
    state = State("v", Const(0.0), lets[-1].name)
    return Recurrence(name, (Input("x", Rank.STEP),), (state,), lets, (lets[-1].name,))


def test_distinct_neurons_are_classified_once() -> None:
    """The name of a recurrence does not matter, and the second time costs nothing."""
    leak = Let("h", add(mul(Const(0.3), Var("v")), Var("x")))

    assert classify_neuron(integrator("a", leak)) is classify_neuron(integrator("b", leak))


def test_large_steps_are_given_up_soon() -> None:
    """A step with many operations or decisions has no class, without an error."""
    chain = [Let("a0", add(Var("v"), Var("x")))]
    for i in range(60):
        previous = Var(f"a{i}")
        product = mul(previous, add(previous, Var("x")))
        fired = Binary(Op.GT, previous, Const(float(i)))
        chain.append(Let(f"a{i + 1}", Select(fired, previous, product)))
    neuron = classify_neuron(integrator("large", *chain))

    assert (neuron.name, neuron.is_affine) == ("elementwise recurrence", False)
    assert neuron.reason
