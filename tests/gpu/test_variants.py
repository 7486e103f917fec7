"""How many binaries calls of different sizes ask for, on a GPU that is not there."""

import pytest
import torch

from benchmarks.device.neurons import LENGTHS_AND_BATCHES
from snncc.nn import CubaLIF
from snncc.runtime.backward import BackwardCall
from snncc.runtime.gpu.calls import Machine
from snncc.runtime.gpu.engine import GpuEngine
from snncc.runtime.operators import Neuron
from tests.gpu.offline import program_of

CHANNELS = 512
MACHINE = Machine(processors=132, threads=32)


@pytest.fixture(scope="module")
def program():
    return program_of(CubaLIF(learnable=True, shape=(CHANNELS,)), torch.rand(5, 2, CHANNELS))


def binaries_of(program, sizes):
    """Return the binaries that training with inputs [T, B, C] of some sizes asks for."""
    gpu = GpuEngine(program, Neuron(program, target="triton").source, MACHINE)
    found = set()
    for T, batch in sizes:
        x = torch.empty(T, batch, CHANNELS)
        tensors = [x, torch.empty(CHANNELS), torch.empty(CHANNELS)]
        forward = gpu.plan(tensors, None, training=True)
        cotangents = [x, *[None] * len(program.forward.finals)]
        call = BackwardCall(program.adjoint, tensors, cotangents, [True] * 3)
        for each in (forward.call, forward.differentiate(call).call):
            found.add((each.kernel.source.text, each.variant))
    return found


def test_lengths_and_batches_share_binaries(program):
    """A forward and a backward kernel serve all lengths from a chunk on, and all large batches."""
    assert len(binaries_of(program, LENGTHS_AND_BATCHES)) == 2


def test_short_and_narrow_calls_have_binaries_of_their_own(program):
    """A part of a chunk is another backward kernel; fewer warps than processors are narrow ones."""
    sizes = [*LENGTHS_AND_BATCHES, (10, 256), (11, 300)]

    assert len(binaries_of(program, sizes)) == 3
    assert len(binaries_of(program, [*sizes, (16, 2), (90, 3)])) == 5
