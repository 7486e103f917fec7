"""Emitted CUDA C++: stored kernels, names, what a binary is made for."""

import re
from dataclasses import replace

import pytest

from snncc.codegen.base import Access, FloatType, GpuSpec, Job, KernelSpec
from snncc.codegen.cuda.target import CudaTarget
from snncc.codegen.lower import lower
from snncc.codegen.triton.target import TritonTarget
from snncc.ir.nodes import Binary, Const, Input, Let, Op, Rank, Recurrence, State, Var
from snncc.ir.program import NeuronProgram, Place
from tests.neuron_programs import lif, solving

BOTH = frozenset({"h_bar", "v_next_bar"})
FOLDED = GpuSpec(
    groups=2,
    inputs=(("v0", Access.REPEATED),),
    folded=frozenset({"v_next_bar"}),
    checkpoints=True,
)

TILED = replace(FOLDED, inputs=(("v0", Access.ROWS),), tiled=True)


def lowered(program, job, dtype=FloatType.FLOAT32, gpu=None):
    gpu = gpu or GpuSpec(checkpoints=True)
    return lower(program, KernelSpec(job, dtype, wanted=BOTH, gpu=gpu))


def emit(*args, **choices):
    return CudaTarget().emit(lowered(*args, **choices))


def test_forward_kernel(check_golden):
    """The forward kernel of a neuron is a text that a person can read."""
    check_golden("cuda/lif_training.cu", emit(lif(), Job.TRAINING).text)


def test_solving_kernel(check_golden):
    """So is the kernel that sweeps until no spike changes."""
    check_golden("cuda/lif_solving.cu", emit(solving(), Job.TRAINING).text)


def test_backward_kernel(check_golden):
    """So is the backward kernel that recomputes, with a parameter a channel."""
    check_golden("cuda/lif_backward.cu", emit(lif(), Job.BACKWARD, gpu=FOLDED).text)


@pytest.mark.parametrize(
    "gpu", [GpuSpec(checkpoints=True), FOLDED, TILED], ids=["flat", "folded", "tiled"]
)
@pytest.mark.parametrize("job", Job)
@pytest.mark.parametrize("place", Place)
def test_parameters_are_those_of_the_triton_kernel(place, job, gpu):
    """One plan serves both languages."""
    kernel = lowered(lif(place, saved=("h", "fire")), job, gpu=gpu)
    cuda, triton = CudaTarget().emit(kernel), TritonTarget().emit(kernel)

    assert cuda.signature == triton.signature
    assert cuda.flags == ("-std=c++17", "-fmad=false")


@pytest.mark.parametrize("gpu", [FOLDED, TILED], ids=["folded", "tiled"])
def test_parameters_are_declared_in_order(gpu):
    """Constants are no parameters; everything else is, by its name."""
    source = emit(lif(), Job.BACKWARD, gpu=gpu)
    text = source.text.split("lif_backward(", 1)[1].split(")\n{")[0]
    constants = {"BLOCK", "WIDTH", "GROUP", "CHUNK", "V_NEXT_BAR_FINAL_FOLD"}
    expected = [slot.name for slot in source.signature.slots if slot.name not in constants]

    assert [line.rstrip(",").split()[-1].lstrip("*") for line in text.splitlines()[1:]] == expected


def test_a_text_is_complete():
    """Where nothing is defined before it, sizes and types suit any arrays."""
    text = emit(lif(Place.MEMORY, saved=("h", "fire")), Job.BACKWARD, gpu=TILED).text
    defined = set(re.findall(r"^#define (\w+)", text, re.MULTILINE))

    assert set(re.findall(r"\bTYPE_\d+\b", text)) <= defined
    assert {"BLOCK", "WIDTH", "VECTOR", "ALIGNED", "GROUP", "LANE"} <= defined
    assert re.search(r"#define (TYPE_\d) signed char\n(?s:.*)typedef \1 fire_saved_type;", text)
    assert "#include" not in text


def test_no_atomics():
    """Sums over lanes are added up in a fixed order."""
    text = emit(lif(), Job.BACKWARD, gpu=FOLDED).text

    assert "snncc_fold<FOLD_5>(v_next_bar_final" in text
    assert "atomic" not in text


def test_names_of_the_language_are_avoided():
    """A user's variable may have any name."""
    names = [
        "class",
        "float",
        "n",
        "lane",
        "k",
        "LANE",
        "steps",
        "x_in",
        "expf",
        "x_in_type",
        "TYPE_0",
        "τ",
    ]
    lets = [Let(name, Binary(Op.ADD, Var("x"), Const(1.0))) for name in names]
    recurrence = Recurrence("odd", (Input("x", Rank.STEP),), (), tuple(lets), tuple(names))
    text = emit(NeuronProgram(recurrence), Job.INFERENCE).text

    for name in [*(f"{name}_2" for name in names[:-1]), "u03c4"]:
        assert f"        const float {name} = x + 1.0f;\n" in text


def test_states_change_at_the_same_time():
    """Two states that swap do not overwrite one another."""
    states = (State("v", Const(0.0), "w"), State("w", Const(1.0), "v"))
    recurrence = Recurrence("swap", (Input("x", Rank.STEP),), states, (), ("v",))
    text = emit(NeuronProgram(recurrence), Job.INFERENCE).text
    inside = re.search(r"const float v = .*?\}", text, re.DOTALL)[0]

    assert re.sub(r"\s+", " ", inside) == (
        "const float v = v_carry[k]; const float w = w_carry[k]; v_now[k] = v;"
        " v_carry[k] = w; w_carry[k] = v; }"
    )


def test_layers_that_differ_in_names_share_a_text():
    """The text that is compiled has no name of the user."""
    source = emit(lif(), Job.TRAINING)

    assert "snncc_training(" in source.anonymous
    assert not re.search(r"\b(?:lif|fire|v_next)\b", source.anonymous)


def test_text_is_stable():
    """Equal programs have equal text."""
    assert emit(lif(), Job.BACKWARD) == emit(lif(), Job.BACKWARD)
