"""Triton kernels compiled for GPUs that are not there: what their instructions are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from snncc.codegen.base import Access
from snncc.errors import BuildError, OptionError
from snncc.ir.program import NeuronProgram, Place
from snncc.nn import LIF, CubaLIF
from snncc.passes.gradients.plan_storage import FLOAT_BYTES, GPU, backward_bytes
from snncc.runtime.backward import BackwardCall
from snncc.runtime.gpu.binaries import (
    PTX,
    Accesses,
    Binary,
    bytes_of_a_step,
    compile_offline,
    find_target,
    read_accesses,
)
from snncc.runtime.gpu.calls import Call
from tests.gpu.offline import LEARNABLE, NEURONS, C, Calls, calls_of, empty, engine, program_of
from tests.gpu.test_values import curves
from tests.neuron_programs import lif

pytestmark = pytest.mark.usefixtures("triton_cache")

ARCHES = ["sm_80", "sm_90", "sm_100", "gfx942"]
STEPS_OF_A_CHUNK = 16


def calls(neuron: nn.Module, T: int, arch: str = "sm_90") -> Calls:
    """Return the calls of a neuron on [T, 64, C, 16, 16]."""
    program = program_of(neuron, torch.rand(5, 2, C, 4, 4))
    return calls_of(program, *arguments(program, T), arch)


def arguments(program: NeuronProgram, T: int):
    lanes = (64, C, 16, 16)
    steps = [empty(T, *lanes) for _ in program.forward.step_inputs]
    outputs = [empty(T, *lanes) for _ in program.forward.outputs]
    parameters = [empty(C, 1, 1) for _ in program.forward.lane_inputs]
    return [*steps, *parameters], outputs


def moved(binary: Binary, call: Call) -> float:
    """Return the bytes that a kernel moves for a neuron-step, by its instructions."""
    return sum(bytes_of_a_step(binary, call))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
def test_kernels_stay_in_registers(arch):
    """No kernel of a neuron spills a register or touches local or shared memory.

    Each moves what the plan says, 16 bytes at a time forward and 8 backward, on every
    architecture; T is long.
    """
    found = calls(LIF(), 64, arch)
    binaries = found.compile(arch)
    launched = (found.inference, found.training, found.backward)
    for binary, width in zip(binaries, (16, 16, 8), strict=True):
        assert binary.registers <= 255
        assert binary.spilled == 0
        assert binary.shared == 0
        assert binary.accesses.local == 0
        assert set(binary.accesses.loads) == set(binary.accesses.stores) == {width}
    assert [moved(b, call) for b, call in zip(binaries, launched, strict=True)] == [8, 8.25, 12.25]


@pytest.mark.slow
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_fit(name):
    """Nor does any other, whether or not it sums gradients of parameters; T is long."""
    for binary in calls(NEURONS[name], 64).compile("sm_80"):
        assert binary.spilled == 0
        assert binary.accesses.local == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("neuron", "states"), [(LIF(), 1), (CubaLIF(**LEARNABLE), 2)], ids=["lif", "two-states"]
)
def test_bytes_of_a_neuron_step(neuron, states):
    """Inference moves 8 bytes and training 20, and 8 for each state at each chunk after the first.

    The kernels are read: their accesses inside loops, for each lane and step.
    """
    found = calls(neuron, 64)
    inference, training, backward = found.compile("sm_90")
    forward, reverse = moved(training, found.training), moved(backward, found.backward)

    assert found.backward.variant.blocks.chunk == STEPS_OF_A_CHUNK
    assert moved(inference, found.inference) == 8.0
    assert forward + reverse == 20.0 + 2 * FLOAT_BYTES * states / STEPS_OF_A_CHUNK
    assert forward + reverse == 8.0 + planned_bytes(neuron)


def planned_bytes(neuron: nn.Module) -> float:
    """Return what the plan says that backward and what it needs cost."""
    program = program_of(neuron, torch.rand(5, 2, C, 4, 4))
    return backward_bytes(program.forward, program.adjoint, program.storage, GPU)


@pytest.mark.parametrize(
    ("neuron", "T"), [(LIF(), 16), (CubaLIF(**LEARNABLE), 4)], ids=["lif", "two-states"]
)
def test_a_short_sequence_keeps_no_states(neuron, T):
    """Up to the length of a chunk there are no states in memory: training moves 20 bytes."""
    found = calls(neuron, T)
    training = engine(program_of(neuron, torch.rand(5, 2, C, 4, 4)))
    results = training.results(arguments(training._resources.program, T)[0], None, training=True)
    backward = compile_offline(found.backward.kernel.source, found.backward.variant, "sm_90")
    chunk = found.backward.variant.blocks.chunk

    assert chunk == T
    assert all(shape.sizes[0] == 0 for shape in results.saved)
    # Of the loads of the loop those of states never happen: there is no chunk before.
    states = len(results.saved)
    assert moved(backward, found.backward) == 12.0 + FLOAT_BYTES * states / chunk


@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, 16), (torch.float64, 16), (torch.bfloat16, 16)]
)
def test_forward_moves_16_bytes_at_a_time(dtype, width):
    """A thread of an inference kernel loads and stores 16 bytes, whatever the type."""
    found = calls_of(
        lif(), [empty(9, 64, 1000, dtype=dtype), empty(1000, dtype=dtype)], SEEDS[dtype]
    )
    binary = compile_offline(found.inference.kernel.source, found.inference.variant, "sm_90")

    assert set(binary.accesses.loads) == set(binary.accesses.stores) == {width}


SEEDS = {
    dtype: [empty(9, 64, 1000, dtype=dtype), empty(64, 1000, dtype=dtype)]
    for dtype in (torch.float32, torch.float64, torch.bfloat16)
}


@pytest.mark.parametrize("layout", ["batch-first", "channels-last", "channels-first"])
def test_other_layouts_move_16_bytes_at_a_time(layout):
    """So does one whose lanes do not lie in one piece, or whose parameters are broadcast."""
    x = {
        "batch-first": lambda: empty(64, 9, 1000).transpose(0, 1),
        "channels-last": lambda: empty(9, 64, 4, 4, 8).permute(0, 1, 4, 2, 3),
        "channels-first": lambda: empty(9, 64, 8, 4, 4),
    }[layout]()
    v0 = empty(8, 1, 1) if x.dim() == 5 else empty(1000)
    found = calls_of(lif(), [x, v0], [x, empty(*x.shape[1:])])
    binary = compile_offline(found.inference.kernel.source, found.inference.variant, "sm_90")

    assert set(binary.accesses.loads) == set(binary.accesses.stores) == {16}


def test_odd_sizes_have_one_variant_of_their_own():
    """Sizes that are no multiples compile to single accesses, still side by side."""
    found = calls_of(lif(), [empty(9, 7, 33), empty(33)], [empty(9, 7, 33), empty(7, 33)])
    binary = compile_offline(found.inference.kernel.source, found.inference.variant, "sm_90")

    assert not found.inference.variant.aligned
    assert set(binary.accesses.loads) == set(binary.accesses.stores) == {4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arithmetic_is_that_of_ieee(dtype):
    """No contracted, approximate or flushing operation in a kernel that promises bits.

    Quotients of gradients are the one exception: in single precision they have no branches.
    """
    tensors = [empty(9, 64, 1000, dtype=dtype), empty(1000, dtype=dtype)]
    found = calls_of(lif(), tensors, SEEDS[dtype])
    suffix = "f64" if dtype is torch.float64 else "f32"
    loose = {found.inference: [], found.backward: ["div.full.f32"] if suffix == "f32" else []}
    for call, allowed in loose.items():
        ptx = compile_offline(call.kernel.source, call.variant, "sm_90").stages["ptx"]
        arithmetic = set(re.findall(r"\b((?:mul|add|sub|div|fma|rcp|sqrt)\.\S*f\d\d)\b", ptx))

        assert {f"mul.{suffix}", f"add.{suffix}"} <= {op.replace(".rn", "") for op in arithmetic}
        assert [op for op in arithmetic if re.search(r"fma|approx|full|ftz|rcp", op)] == allowed


def test_stores_of_half_types_round_to_nearest():
    """A state in float32 is rounded once, to the nearest, when it is written as bfloat16."""
    dtype = torch.bfloat16
    tensors = [empty(9, 64, 1000, dtype=dtype), empty(1000, dtype=dtype)]
    call = calls_of(lif(), tensors, SEEDS[dtype]).backward
    ptx = compile_offline(call.kernel.source, call.variant, "sm_90").stages["ptx"]

    assert re.search(r"cvt\.rn\.bf16", ptx)
    assert not re.search(r"\b(?:mul|add|fma)\.\S*bf16", ptx)


@pytest.mark.parametrize("arch", ["sm_80", "gfx942"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_operation_compiles(arch, dtype):
    """Each operation exists for each maker's GPUs and each type."""
    program = NeuronProgram(curves())
    call = (
        engine(program)
        .plan([empty(9, 64, dtype=dtype), empty(64, dtype=dtype)], None, training=False)
        .call
    )

    assert compile_offline(call.kernel.source, call.variant, arch).registers > 0


@pytest.mark.parametrize("arch", ["sm_80", "gfx942"])
@pytest.mark.parametrize("v0", [(), (8, 1, 1), (8, 4, 4), (64, 8, 4, 4)], ids=str)
def test_parameter_gradients_use_no_atomics(arch, v0):
    """Sums over lanes are written as they are, and added up afterwards."""
    x = empty(4, 2048, 8, 4, 4) if v0 == (8, 4, 4) else empty(4, 64, 8, 4, 4)
    call = calls_of(lif(), [x, empty(*v0)], [x, empty(*x.shape[1:])]).backward
    binary = compile_offline(call.kernel.source, call.variant, arch)
    text = binary.stages.get("ptx") or binary.stages["amdgcn"]

    assert "v_next_bar_final" in call.kernel.source.text
    assert call.variant.blocks.width == (32 if v0 == (8, 4, 4) else 0)
    assert binary.spilled == 0
    assert not re.search(r"\batom|\bred\.|_atomic_", text)


@pytest.mark.parametrize(("T", "rows"), [(2, 8), (16, 4)])
def test_gradients_of_channels_are_few_numbers(T, rows):
    """Two parameters a channel, channels innermost: each program writes one number a column."""
    program = program_of(CubaLIF(learnable=True, shape=(64,)), torch.rand(5, 2, 64))
    x, decays = empty(T, 16384, 64), [empty(64), empty(64)]
    plan = engine(program).plan([x, *decays], None, training=True)
    call = BackwardCall(program.adjoint, [x, *decays], [x], [True] * 3)
    (sums,) = plan.differentiate(call).sums.allocate(x.dtype, x.device)

    assert sums.shape == (2, 16384 // rows * 64)


def test_bits_take_one_eighth_of_a_byte():
    """Eight steps of a bool are one byte of one lane."""
    program = lif(Place.MEMORY, saved=("h", "fire"))
    found = calls_of(program, [empty(64, 64, 1000), empty(1000)], [empty(64, 64, 1000), None])
    _, training, backward = found.compile("sm_90")

    assert moved(training, found.training) == 12.0 + 1 / 8
    assert moved(backward, found.backward) == 12.0 + 1 / 8


def test_more_than_two_thousand_million_lanes():
    """Lanes are counted in 64 bits where 32 are too few."""
    x = torch.empty(1, dtype=torch.float16).expand(3, 1 << 16, 1 << 15)
    call = engine(lif()).plan([x, empty(1)], None, training=False).call

    assert call.variant.wide
    assert compile_offline(call.kernel.source, call.variant, "sm_90").spilled == 0


def test_unknown_architecture():
    """An architecture that nobody makes is refused."""
    with pytest.raises(OptionError, match="no architecture 'vax'") as error:
        find_target("vax")

    assert error.value.code == "option.arch"


def test_failure_of_the_compiler(monkeypatch):
    """A kernel that Triton cannot compile is reported with its name."""
    call = calls_of(lif(), [empty(4, 8), empty(8)], [empty(4, 8), empty(8)]).inference
    source = call.kernel.source
    broken = replace(source, anonymous=source.anonymous.replace("n < lanes", "n < lakes"))
    with pytest.raises(BuildError, match="Triton failed on the kernel 'lif_inference'") as error:
        compile_offline(broken, call.variant, "sm_90")

    assert error.value.code == "build.triton-failed"


def test_accesses_are_read_from_loops():
    """Only what lies between a label and a branch back to it happens at every step."""
    ptx = """
        ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
    $L__BB0_1:
        @%p1 ld.global.v2.b64 {%rd5, %rd6}, [%rd2];
        st.global.b8 [%rd3], %r5;
        ld.local.b32 %r6, [%rd4];
        @%p2 bra $L__BB0_1;
        st.global.b32 [%rd7], %r7;
    """.replace("\n    ", "\n")

    assert read_accesses(ptx, PTX) == Accesses((16,), (1,), 1)


def test_access_of_arrays():
    """The plan says how each array is addressed."""
    x = empty(9, 64, 8, 4, 4)
    call = engine(lif()).plan([x, empty(8, 1, 1)], None, training=False).call
    accesses: Sequence[Access] = [a.access for a in call.kernel.source.signature.arguments]

    assert accesses == [Access.FLAT, Access.REPEATED, Access.FLAT, Access.FLAT]
