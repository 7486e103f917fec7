"""Lowering: what a kernel reads, carries, computes and writes."""

from dataclasses import replace

import pytest

from snncc.codegen.base import FloatType, Job, KernelSpec, Role
from snncc.codegen.lower import lower, saved_values
from snncc.codegen.prepare import find_live, prepare
from snncc.errors import InternalError
from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
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
from snncc.ir.printer import print_let
from snncc.ir.program import NeuronProgram, Place
from tests.neuron_programs import lif, without_adjoint

A, B = Var("a"), Var("b")
BOTH = frozenset({"h_bar", "v_next_bar"})


def text(lets):
    return [line.strip() for let in lets for line in print_let(let)]


@pytest.mark.parametrize(
    ("expr", "lines"),
    [
        (Detach(Binary(Op.ADD, Detach(A), B)), ["y = a + b"]),
        (Binary(Op.POW, A, Const(2.0)), ["y = a * a"]),
        (
            Binary(Op.POW, Binary(Op.ADD, A, B), Const(3)),
            ["y_part = a + b", "y = y_part * y_part * y_part"],
        ),
        (Binary(Op.POW, A, Const(0.5)), ["y = sqrt(a)"]),
        (Binary(Op.POW, A, Const(0.0)), ["y = 1.0"]),
        (Binary(Op.POW, A, Const(1.5)), ["y = pow(a, 1.5)"]),
        (
            Select(Binary(Op.LT, A, B), Unary(Op.EXP, A), Binary(Op.ADD, Unary(Op.TANH, B), A)),
            ["y_part = exp(a)", "y_part_2 = tanh(b)", "y = where(a < b, y_part, y_part_2 + a)"],
        ),
        (Unary(Op.EXP, Select(Binary(Op.LT, A, B), A, B)), ["y = exp(where(a < b, a, b))"]),
    ],
    ids=["detach", "square", "cube", "root", "zero", "pow", "calls-in-arms", "call-outside"],
)
def test_prepare(expr, lines):
    """Lets reach a kernel without detaches, simple powers and conditional calls."""
    assert text(prepare([Let("y", expr)], ["a", "b"])) == lines


def test_prepare_avoids_taken_names():
    """New lets do not collide with the user's names."""
    expr = Binary(Op.POW, Binary(Op.ADD, A, B), Const(2.0))

    assert text(prepare([Let("y", expr)], ["y_part"]))[0] == "y_part_2 = a + b"


def test_liveness_follows_carries():
    """What a carry becomes is live if the carry is, over all steps."""
    kernel = lower(lif(), KernelSpec(Job.INFERENCE, FloatType.FLOAT32))
    step = kernel.main.step

    assert find_live(step.lets, step.carries, ["s"]) == {"s", "fire", "h", "v", "x", "v_next"}


def arguments(kernel):
    return [argument.name for argument in kernel.arguments]


def test_forward_arguments():
    """A forward kernel reads the inputs and writes outputs and finals."""
    kernel = lower(lif(), KernelSpec(Job.INFERENCE, FloatType.FLOAT32))

    assert arguments(kernel) == ["x_in", "v0_in", "s_out", "v_final"]


def test_training_saves_values_in_memory():
    """A kernel for training writes what backward needs, bools as bits."""
    program = lif(Place.MEMORY, saved=("h", "fire"))
    kernel = lower(program, KernelSpec(Job.TRAINING, FloatType.FLOAT32))
    saved = [a for a in kernel.arguments if a.role is Role.SAVED]

    assert saved_values(program) == ("h", "fire")
    assert [(a.name, a.packed, a.written) for a in saved] == [
        ("h_saved", False, True),
        ("fire_saved", True, True),
    ]


def test_backward_recomputes_into_scratch():
    """A backward kernel without saved values runs forward again."""
    kernel = lower(lif(), KernelSpec(Job.BACKWARD, FloatType.FLOAT32, wanted=BOTH))

    assert kernel.scratch == ("h",)
    assert [carry.name for carry in kernel.advance.step.carries] == ["v"]
    assert kernel.main.backwards


def test_backward_from_memory_needs_no_inputs():
    """A backward kernel that loads saved values neither recomputes nor reads the input."""
    program = lif(Place.MEMORY, saved=("h",))
    kernel = lower(program, KernelSpec(Job.BACKWARD, FloatType.FLOAT32, wanted=BOTH))

    assert kernel.recompute is None
    assert arguments(kernel) == ["s_bar_in", "v_bar_in", "h_saved", "h_bar_out", "v_next_bar_final"]


def test_names_of_the_adjoint_may_collide():
    """A let of the adjoint may have the name of a forward let that it does not read."""
    program = lif()
    reverse = program.adjoint.recurrence
    z = next(let for let in reverse.lets if let.name == "z")
    renamed = replace(
        reverse,
        lets=(replace(z, name="fire"), Let("slope", Var("fire"))),
        outputs=("slope",),
        finals=(),
        states=(),
    )
    program = replace(program, adjoint=replace(program.adjoint, recurrence=renamed))
    spec = KernelSpec(Job.BACKWARD, FloatType.FLOAT32, wanted=frozenset({"slope"}))

    assert text(lower(program, spec).main.step.lets) == [
        "fire_adjoint = 3.0 * (h - 1.0)",
        "slope = fire_adjoint",
    ]


def test_backward_without_adjoint_is_a_fault():
    """Only a program with an adjoint has a backward kernel."""
    with pytest.raises(InternalError, match="'lif' has no adjoint"):
        lower(without_adjoint(lif()), KernelSpec(Job.BACKWARD, FloatType.FLOAT32))


def test_unread_inputs_are_no_arguments():
    """An input that nothing depends on is not passed."""
    let = Let("y", Binary(Op.ADD, Var("x"), Var("v")))
    inputs = (Input("x", Rank.STEP), Input("idle", Rank.STEP), Input("p", Rank.LANE))
    states = (State("v", Const(0.0), "y"), State("unused", Var("p"), "x"))
    program = NeuronProgram(Recurrence("sum", inputs, states, (let,), ("y",)))
    kernel = lower(program, KernelSpec(Job.INFERENCE, FloatType.FLOAT32))

    assert arguments(kernel) == ["x_in", "y_out"]
