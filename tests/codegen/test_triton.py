"""Emitted Triton: stored kernels, names, numbers."""

import ast
import math

import pytest

from snncc.codegen.base import Access, FloatType, GpuSpec, Job, KernelSpec, SlotKind
from snncc.codegen.lower import lower
from snncc.codegen.triton.expressions import Constants, dialect, expand, literal
from snncc.codegen.triton.target import TritonTarget
from snncc.ir.names import Names
from snncc.ir.nodes import (
    Binary,
    Const,
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
from snncc.ir.printer import spell
from snncc.ir.program import NeuronProgram, Place
from tests.neuron_programs import lif, solving

A, B = Var("a"), Var("b")
BOTH = frozenset({"h_bar", "v_next_bar"})


def emit(program, job, dtype=FloatType.FLOAT32, gpu=None):
    gpu = gpu or GpuSpec(checkpoints=True)
    return TritonTarget().emit(lower(program, KernelSpec(job, dtype, wanted=BOTH, gpu=gpu)))


def test_forward_kernel(check_golden):
    """The forward kernel of a neuron is a text that a person can read."""
    check_golden("triton/lif_training.txt", emit(lif(), Job.TRAINING).text)


def test_solving_kernel(check_golden):
    """So is the kernel that sweeps until no spike changes."""
    check_golden("triton/lif_solving.txt", emit(solving(), Job.TRAINING).text)


def test_backward_kernel(check_golden):
    """So is the backward kernel that recomputes, with a parameter a channel."""
    gpu = GpuSpec(
        groups=2,
        inputs=(("v0", Access.REPEATED),),
        folded=frozenset({"v_next_bar"}),
        checkpoints=True,
    )
    check_golden("triton/lif_backward.txt", emit(lif(), Job.BACKWARD, gpu=gpu).text)


@pytest.mark.parametrize("dtype", FloatType)
@pytest.mark.parametrize("job", Job)
@pytest.mark.parametrize("place", Place)
def test_text_is_python(job, place, dtype):
    """The text parses, ends in a newline and needs nothing but Triton."""
    source = emit(lif(place, saved=("h", "fire")), job, dtype)
    imported = [
        name.name for node in ast.parse(source.text).body if isinstance(node, ast.Import)
        for name in node.names
    ]  # fmt: skip

    assert source.text.endswith("\n")
    assert imported == ["triton", "triton.language"]
    assert source.flags == ("enable_fp_fusion=False",)


def test_lengths_and_sizes_are_no_constants():
    """Only sizes of blocks are."""
    kinds = {slot.kind for slot in emit(lif(), Job.BACKWARD).signature.slots}
    text = emit(lif(), Job.BACKWARD).text

    assert {SlotKind.STEPS, SlotKind.LANES, SlotKind.TIME} < kinds
    assert [line.strip() for line in text.splitlines() if "constexpr" in line] == [
        "BLOCK: tl.constexpr,",
        "GROUP: tl.constexpr,",
        "CHUNK: tl.constexpr,",
        "REST: tl.constexpr = 4 if CHUNK > 4 else CHUNK",
    ]


def test_names_of_the_language_are_avoided():
    """A user's variable may have any name."""
    names = ["tl", "lambda", "n", "first", "range", "add", "steps", "x_in", "τ"]
    lets = [Let(name, Binary(Op.ADD, Var("x"), Const(1.0))) for name in names]
    recurrence = Recurrence("odd", (Input("x", Rank.STEP),), (), tuple(lets), tuple(names))
    text = emit(NeuronProgram(recurrence), Job.INFERENCE).text
    ast.parse(text)

    for name in ("tl_2", "lambda_", "n_2", "first_2", "range_2", "add_2", "steps_2", "x_in_2"):
        assert f"            {name} = x + 1.0\n" in text


def test_states_change_at_the_same_time():
    """Two states that swap do not overwrite one another."""
    states = (State("v", Const(0.0), "w"), State("w", Const(1.0), "v"))
    recurrence = Recurrence("swap", (Input("x", Rank.STEP),), states, (), ("v",))
    text = emit(NeuronProgram(recurrence), Job.INFERENCE).text

    assert "w_before = w\n            v_before = v\n" in text
    assert "v = w_before\n            w = v_before\n" in text


def spelled(expr, dtype=FloatType.FLOAT32):
    constants = Constants(Names(()))
    value = constants.value(expand(expr))
    names = {"a": "a", "b": "b", **constants.names()}
    return spell(value, dialect(dtype, names)), constants.lines(dtype)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (Binary(Op.SUB, A, Binary(Op.SUB, B, A)), "a - (b - a)"),
        (Binary(Op.MUL, Const(-2.0), A), "(-2.0) * a"),
        (Unary(Op.NEG, A), "a * (-1.0)"),
        (Binary(Op.DIV, A, B), "tl.div_rn(a, b)"),
        (Binary(Op.AND, Binary(Op.LT, A, B), Unary(Op.NOT, Var("b"))), "(a < b) & ~b"),
        (Unary(Op.FLOAT, Binary(Op.GE, A, Const(1.0))), "(a >= 1.0).to(tl.float32)"),
        (Binary(Op.MIN, A, B), "tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)"),
        (Unary(Op.SIGN, A), "(a > 0.0).to(tl.float32) - (a < 0.0).to(tl.float32)"),
        (Select(Binary(Op.LT, A, B), A, B), "tl.where(a < b, a, b)"),
    ],
    ids=["order", "negative", "neg", "div", "logic", "float", "min", "sign", "where"],
)  # fmt: skip
def test_expressions(expr, text):
    """Operations are spelled so that Triton rounds as torch does."""
    assert spelled(expr) == (text, [])


def test_float64_divides_with_the_exact_operator():
    """Division in float64 is exact as it is."""
    assert spelled(Binary(Op.DIV, A, B), FloatType.FLOAT64)[0] == "a / b"


def test_numbers_without_a_block_beside_them_get_a_type():
    """Elsewhere Triton would take them for float32, or for float64 if they are very small."""
    text, lines = spelled(Select(Binary(Op.LT, A, Const(0.5)), Const(0.1), Const(1e-40)))

    assert text == "tl.where(a < 0.5, const_0_1, const_1eminus_40)"
    assert lines == [
        "const_0_1 = tl.full((BLOCK,), 0.1, tl.float32)",
        "const_1eminus_40 = tl.full((BLOCK,), 1e-40, tl.float32)",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (1 / 3, "0.33333334"),
        (-0.0, "-0.0"),
        (math.inf, 'float("inf")'),
        (-math.inf, '-float("inf")'),
        (math.nan, 'float("nan")'),
        (True, "True"),
    ],
)
def test_literals(value, text):
    """Numbers are rounded to the working type first."""
    assert literal(value, FloatType.FLOAT32) == text


def test_text_is_stable():
    """Equal programs have equal text."""
    assert emit(lif(), Job.BACKWARD) == emit(lif(), Job.BACKWARD)
