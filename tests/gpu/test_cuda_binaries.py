"""CUDA kernels compiled by nvcc for GPUs that are not there: what their instructions are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from snncc.errors import OptionError
from snncc.ir.program import NeuronProgram, Place
from snncc.nn import LIF, CubaLIF
from snncc.runtime.gpu.binaries import Binary, bytes_of_a_step, check_arch, compile_offline
from snncc.runtime.gpu.calls import Call
from tests.gpu.offline import LEARNABLE, NEURONS, C, Calls, calls_of, empty, engine, program_of
from tests.gpu.test_values import curves
from tests.neuron_programs import lif

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on this machine")

LANES = (64, C, 16, 16)
# Backward kernels that move 8 bytes at a time; the others keep more of a step, or sum gradients.
WIDE = {"soft", "rectangle", "if"}


def calls(neuron: nn.Module, T: int) -> Calls:
    """Return the calls of a neuron on [T, 64, C, 16, 16]."""
    program = program_of(neuron, torch.rand(5, 2, C, 4, 4))
    forward = program.forward
    steps = [empty(T, *LANES) for _ in forward.step_inputs]
    parameters = [empty(C, 1, 1) for _ in forward.lane_inputs]
    outputs = [empty(T, *LANES) for _ in forward.outputs]
    return calls_of(program, [*steps, *parameters], outputs, target="cuda")


def moved(binary: Binary, call: Call) -> float:
    """Return the bytes that a kernel moves for a neuron-step, by its instructions."""
    return sum(bytes_of_a_step(binary, call))


def machine_code(binary: Binary, folder: Path) -> str:
    """Return the instructions that a GPU executes."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    file = folder / "kernel.cubin"
    file.write_bytes(binary.stages["cubin"])
    command = [str(tool), "-sass", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_kernels_stay_in_registers(arch, tmp_path):
    """No kernel of a neuron spills a register or touches local memory, and none contracts.

    Each moves what the plan says, 16 bytes at a time forward and 8 backward, on every
    architecture; T is long.
    """
    found = calls(LIF(), 64)
    launched = (found.inference, found.training, found.backward)
    binaries = found.compile(arch)
    for binary, width in zip(binaries, (16, 16, 8), strict=True):
        assert binary.registers <= 255
        assert binary.spilled == 0
        assert binary.shared == 0
        assert binary.accesses.local == 0
        assert set(binary.accesses.loads) == set(binary.accesses.stores) == {width}
        assert "fma" not in binary.stages["ptx"]
    assert [moved(b, call) for b, call in zip(binaries, launched, strict=True)] == [8, 8.25, 12.25]
    code = machine_code(binaries[0], tmp_path)

    assert re.search(r"\bLDG\S*\.128\b", code)
    assert re.search(r"\bSTG\S*\.128\b", code)
    assert not re.search(r"\b(?:LDL|STL|FFMA)\b", code)


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_fit(name):
    """Nor does any other, whether or not it sums gradients of parameters; T is long.

    Backward kernels are those that keep much: one value a step leaves room for 8 bytes at a time,
    more for 4.
    """
    call = calls(NEURONS[name], 64).backward
    binary = compile_offline(call.kernel.source, call.variant, "sm_80")

    assert binary.spilled == 0
    assert binary.accesses.local == 0
    assert set(binary.accesses.loads) == set(binary.accesses.stores) == {8 if name in WIDE else 4}
    assert not re.search(r"\batom|\bred\.", binary.stages["ptx"])
    # Only within the exponentials of CUDA's library is a sum fused with a product.
    assert name == "dynamic decay" or "fma." not in binary.stages["ptx"]


def test_bytes_are_those_of_the_triton_kernel():
    """Two states with learnable parameters: the two languages move the same, in one plan."""
    cuda = calls(CubaLIF(**LEARNABLE), 64)
    binary = compile_offline(cuda.backward.kernel.source, cuda.backward.variant, "sm_90")
    training = compile_offline(cuda.training.kernel.source, cuda.training.variant, "sm_90")

    assert moved(training, cuda.training) + moved(binary, cuda.backward) == 20.0 + 16 / 16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_forward_moves_16_bytes_at_a_time(dtype):
    """A thread of an inference kernel loads and stores 16 bytes, whatever the type."""
    x, v0 = empty(9, 64, 1000, dtype=dtype), empty(1000, dtype=dtype)
    call = engine(lif(), target="cuda").plan([x, v0], None, training=False).call
    binary = compile_offline(call.kernel.source, call.variant, "sm_90")

    assert set(binary.accesses.loads) == set(binary.accesses.stores) == {16}
    if dtype is not torch.float64:
        assert re.search(r"cvt\.rn\.(?:b?f16)", binary.stages["ptx"])


def test_odd_sizes_have_one_variant_of_their_own():
    """Sizes that are no multiples compile to single accesses, still side by side."""
    tensors = [empty(9, 7, 33), empty(33)]
    call = engine(lif(), target="cuda").plan(tensors, None, training=False).call
    binary = compile_offline(call.kernel.source, call.variant, "sm_90")

    assert not call.variant.aligned
    assert set(binary.accesses.loads) == set(binary.accesses.stores) == {4}


def test_bits_take_one_eighth_of_a_byte():
    """Eight steps of a bool are one byte of one lane."""
    program = lif(Place.MEMORY, saved=("h", "fire"))
    tensors = [empty(64, 64, 1000), empty(1000)]
    found = calls_of(program, tensors, [empty(64, 64, 1000), None], target="cuda")
    _, training, backward = found.compile("sm_90")

    assert moved(training, found.training) == 12.0 + 1 / 8
    assert moved(backward, found.backward) == 12.0 + 1 / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_operation_compiles(dtype):
    """Each operation exists for each type, under any names and with special numbers."""
    tensors = [empty(9, 64, dtype=dtype), empty(64, dtype=dtype)]
    gpu = engine(NeuronProgram(curves()), target="cuda")
    call = gpu.plan(tensors, None, training=False).call

    assert compile_offline(call.kernel.source, call.variant, "sm_80").registers > 0


def test_more_than_two_thousand_million_lanes():
    """Lanes are counted in 64 bits where 32 are too few."""
    x = torch.empty(1, dtype=torch.float16).expand(3, 1 << 16, 1 << 15)
    call = engine(lif(), target="cuda").plan([x, empty(1)], None, training=False).call

    assert call.variant.wide
    assert compile_offline(call.kernel.source, call.variant, "sm_90").spilled == 0


@pytest.mark.parametrize("arch", ["gfx942", "vax", "90"])
def test_architectures_of_others(arch):
    """CUDA C++ is for GPUs of NVIDIA."""
    with pytest.raises(OptionError, match=f"no architecture '{arch}' for target 'cuda'") as error:
        check_arch(arch, "cuda")

    assert error.value.code == "option.arch"
