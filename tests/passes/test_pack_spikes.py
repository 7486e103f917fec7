"""Products whose input is 0 or 1 are marked, and no others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import snncc
from snncc.ir import interpret
from snncc.ir.nodes import Binary, Const, Detach, Expr, Op, Select, Unary, Var
from snncc.passes.pack_spikes import is_zero_or_one
from tests.passes.between import Between, Two

CHANNELS = 4


BITS: dict[str, Between] = {
    "a spike": lambda h, s, x: s,
    "transposed": lambda h, s, x: s.transpose(2, 3).flip(0),
    "the largest": lambda h, s, x: F.max_pool2d(s, 2, 1),
    "both": lambda h, s, x: s * s.flip(0),
    "another decision": lambda h, s, x: (h > 0.1).float(),
    "no spike": lambda h, s, x: 1.0 - s,
    "two thresholds": lambda h, s, x: torch.maximum(s, (h < -1.0).float()),
    "one after another": lambda h, s, x: torch.cat([s, s.flip(0)])[: s.shape[0]],
}
OTHER: dict[str, Between] = {
    "scaled": lambda h, s, x: 0.5 * s,
    "graded": lambda h, s, x: torch.where(h > 0.2, h, 0.0),
    "ternary": lambda h, s, x: s - (h < -0.2).float(),
    "whole numbers": lambda h, s, x: torch.round(h.clamp(0.0, 4.0)),
    "negated": lambda h, s, x: -s,
    "a mean": lambda h, s, x: F.avg_pool2d(s, 3, 1, 1),
    "a sum": lambda h, s, x: s + s.flip(0),
    "dropped out": lambda h, s, x: F.dropout(s, 0.5),
    "gated": lambda h, s, x: s * torch.sigmoid(h),
    "straight through": lambda h, s, x: (s - h).detach() + h,
    "with a potential": lambda h, s, x: torch.cat([s, h])[: s.shape[0]],
    "the input": lambda h, s, x: x,
}


def marked(between: Between, second: nn.Module) -> list[str]:
    """Return the layers that the plan says keep bits."""
    torch.manual_seed(0)
    first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    fast = snncc.compile(Two(between, first, second))
    fast(torch.randn(3, 2, CHANNELS, 5, 5))
    layers = fast.plans[0].layers
    return [x.name.rpartition("_")[0] or x.name for x in layers if x.kept_bytes == 0.125]


@pytest.mark.parametrize("name", BITS)
def test_what_is_zero_or_one_is_kept_as_bits(name: str) -> None:
    """Whatever arranges or multiplies spikes, for both kinds of layers."""
    assert marked(BITS[name], nn.Conv2d(CHANNELS, 3, 3))[-1:] == ["second"]


@pytest.mark.parametrize("name", OTHER)
def test_other_values_are_kept(name: str) -> None:
    """A bit cannot say what they are."""
    assert marked(OTHER[name], nn.Conv2d(CHANNELS, 3, 3)) == []


def test_linear_layers_keep_bits_too() -> None:
    """Behind a flattening, as readouts are."""
    readout = nn.Sequential(nn.Flatten(), nn.Linear(25 * CHANNELS, 3))

    assert marked(BITS["a spike"], readout) == ["second.1"]


NAMES = ("s", "v")
_LEAVES = st.sampled_from(
    [*map(Var, NAMES), *(Const(value) for value in (0.0, 1.0, -0.0, 0.5, -1.0))]
)
_FLOAT_OPS = (Op.NEG, Op.ABS, Op.SIGN, Op.FLOOR, Op.CEIL, Op.ROUND, Op.SQRT, Op.TANH)
_PAIRS = (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MIN, Op.MAX)


def _larger(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    comparisons = st.builds(Binary, st.sampled_from([Op.GT, Op.LE, Op.NE]), inner, inner)
    return st.one_of(
        st.builds(Unary, st.sampled_from(_FLOAT_OPS), inner),
        st.builds(Unary, st.just(Op.FLOAT), comparisons),
        st.builds(Binary, st.sampled_from(_PAIRS), inner, inner),
        st.builds(Select, comparisons, inner, inner),
        st.builds(Detach, inner),
    )


@given(
    st.recursive(_LEAVES, _larger, max_leaves=8),
    st.sampled_from([0.0, 1.0]),
    st.floats(width=32),
)
def test_no_expression_is_taken_for_a_bit_that_is_none(expr: Expr, s: float, v: float) -> None:
    """Of any expression of a spike and a number that is said to be 0 or 1, the value is."""
    if not is_zero_or_one(expr, {"s": True}, set()):
        return
    values = {"s": torch.tensor(s), "v": torch.tensor(v)}
    result = interpret.evaluate(expr, values, values["s"])

    assert float(result) in (0.0, 1.0)
    assert not bool(torch.signbit(result))
