"""Emitted C: stored kernels, clean compilation, vector code."""

import shutil
import subprocess

import pytest

from snncc.codegen.base import FloatType, Job, KernelSpec
from snncc.codegen.c.target import CTarget
from snncc.codegen.lower import lower
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
from snncc.ir.program import NeuronProgram, Place
from snncc.runtime.binaries.build import Compiler, understood
from tests.neuron_programs import lif, solving

COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
BOTH = frozenset({"h_bar", "v_next_bar"})


def emit(program, job, dtype=FloatType.FLOAT32, uniform=(), wanted=BOTH):
    return CTarget().emit(lower(program, KernelSpec(job, dtype, frozenset(uniform), wanted)))


def test_forward_kernel(check_golden):
    """The forward kernel of a neuron is a text that a person can read."""
    check_golden("c/lif_inference.c", emit(lif(), Job.INFERENCE, uniform=["v0"]).text)


def test_solving_kernel(check_golden):
    """So is the kernel that sweeps until no spike changes."""
    check_golden("c/lif_solving.c", emit(solving(), Job.INFERENCE, uniform=["v0"]).text)


def test_backward_kernel(check_golden):
    """So is the backward kernel that recomputes."""
    check_golden("c/lif_backward.c", emit(lif(), Job.BACKWARD, uniform=["v0"]).text)


def curves():
    """Return a recurrence with every operation that needs care in C."""
    x, v = Var("x"), Var("v")
    lets = [
        Let("double", Unary(Op.EXP, Unary(Op.NEG, x))),
        Let("exp", Unary(Op.SIGMOID, Var("double"))),
        Let("deep", Binary(Op.SUB, x, Binary(Op.SUB, v, Binary(Op.MUL, x, Const(-2.0))))),
        Let("low", Binary(Op.LT, x, Const(float("inf")))),
        Let("high", Binary(Op.GE, v, Const(float("nan")))),
        Let(
            "both",
            Binary(Op.AND, Unary(Op.NOT, Var("low")), Binary(Op.OR, Var("high"), Const(True))),
        ),
        Let("other", Binary(Op.XOR, Binary(Op.EQ, x, v), Var("both"))),
        Let("picked", Select(Var("other"), Unary(Op.TANH, x), Unary(Op.SQRT, Unary(Op.ABS, v)))),
        Let("cube", Binary(Op.POW, Binary(Op.ADD, x, v), Const(3.0))),
        Let("τ", Binary(Op.POW, x, Var("cube"))),
        Let("n", Binary(Op.MIN, Var("picked"), Binary(Op.MAX, Var("τ"), Unary(Op.SIGN, x)))),
        Let("next", Binary(Op.ADD, Var("n"), Binary(Op.ADD, Var("deep"), Var("exp")))),
    ]
    return Recurrence(
        name="curves",
        inputs=(Input("x", Rank.STEP), Input("p", Rank.LANE)),
        states=(State("v", Const(-0.5), "next"),),
        lets=tuple(lets),
        outputs=("low", "n", "x", "v", "other"),
        finals=("v",),
    )


def compile_source(source, folder, *flags):
    (folder / "kernel.c").write_text(source.text)
    own = understood(source.flags, Compiler((COMPILER,), "").version())
    command = [COMPILER, *own, *flags, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += [str(folder / "kernel.c"), "-o", str(folder / "kernel.so"), "-lm"]
    return subprocess.run(command, capture_output=True, text=True)


@needs_compiler
@pytest.mark.parametrize("dtype", FloatType)
@pytest.mark.parametrize(
    ("program", "job", "uniform"),
    [
        (lif(), Job.INFERENCE, ["x", "v0"]),
        (lif(), Job.BACKWARD, []),
        (lif(), Job.BACKWARD, ["x", "s_bar"]),
        (lif(Place.MEMORY, saved=("h", "fire")), Job.TRAINING, []),
        (lif(Place.MEMORY, saved=("h", "fire")), Job.BACKWARD, []),
        (lif(saved=("h", "fire")), Job.BACKWARD, []),
        (NeuronProgram(curves()), Job.INFERENCE, []),
        (solving(), Job.TRAINING, []),
        (solving(as_bits=False), Job.INFERENCE, ["x"]),
    ],
    ids=[
        *("uniform", "scratch", "uniform-back", "training", "memory", "bool-scratch", "curves"),
        *("solving", "solving-floats"),
    ],
)
def test_compiles_without_warnings(program, job, uniform, dtype, tmp_path):
    """No kernel gives the compiler a reason to warn, whatever the user's names are."""
    result = compile_source(emit(program, job, dtype, uniform), tmp_path, "-fopenmp")

    assert result.stderr == ""


@needs_compiler
def test_compiles_without_openmp(tmp_path):
    """The same text is a serial kernel for a compiler without OpenMP."""
    result = compile_source(emit(lif(), Job.BACKWARD), tmp_path, "-fopenmp-simd")

    assert result.stderr == ""


@needs_compiler
def test_maths_functions_are_vectorised(tmp_path):
    """Loops that call maths functions are vector code where the C library has vector versions."""
    source = emit(NeuronProgram(curves()), Job.INFERENCE)
    compile_source(source, tmp_path, "-fopenmp")
    symbols = subprocess.run(
        ["nm", "-D", str(tmp_path / "kernel.so")], capture_output=True, text=True
    ).stdout
    if "GLIBC_2.2.5" not in symbols:
        pytest.skip("no glibc on x86-64")

    assert "_ZGV" in symbols
    assert "_expf" in symbols
    assert " expf@" not in symbols


@needs_compiler
@pytest.mark.parametrize("dtype", FloatType)
@pytest.mark.parametrize("case", ["forward", "training", "backward", "curves"])
def test_steps_are_vectorised(case, dtype, tmp_path):
    """Each step function is vector code, with bools, selects and packed bits."""
    program = lif(Place.MEMORY, saved=("h", "fire"))
    source = {
        "forward": lambda: emit(lif(), Job.INFERENCE, dtype),
        "training": lambda: emit(program, Job.TRAINING, dtype),
        "backward": lambda: emit(lif(saved=("h", "fire")), Job.BACKWARD, dtype),
        "curves": lambda: emit(NeuronProgram(curves()), Job.INFERENCE, dtype),
    }[case]()
    if (
        "Free Software Foundation"
        not in subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout
    ):
        pytest.skip("reports of vectorisation are read from gcc")
    report = compile_source(source, tmp_path, "-fopenmp", "-fopt-info-vec").stderr
    lines = source.text.splitlines()
    loops = {n for n, line in enumerate(lines) if line == "#pragma omp simd"}
    vectorised = {int(line.split(":")[1]) for line in report.splitlines() if "vectorized" in line}

    assert loops
    for pragma in loops:
        # The report names a line of the loop: its head or a statement.
        body = range(
            pragma + 1, next(n for n in range(pragma, len(lines)) if lines[n] == "  }") + 2
        )
        assert vectorised & set(body)


def test_dead_gradients_are_not_computed():
    """A kernel whose caller wants one gradient does not compute the others."""
    text = emit(lif(), Job.BACKWARD, wanted=frozenset({"h_bar"})).text

    assert "v_next_bar_final" not in text


def test_text_is_stable():
    """Equal programs have equal text."""
    assert emit(lif(), Job.BACKWARD) == emit(lif(), Job.BACKWARD)
