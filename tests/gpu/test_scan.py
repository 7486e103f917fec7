"""Chunks of time side by side, with kernels for GPUs: values at small sizes, and binaries."""

import pytest
import torch

import snncc
from snncc.ir.chunked_scan import ChunkedScan
from snncc.ir.program import NeuronProgram
from snncc.nn import LI, LIF, DynamicDecay
from snncc.passes.gradients.differentiate import differentiate
from snncc.passes.scans.alone import adjoint_alone
from snncc.passes.scans.chunked import chunked_scan
from snncc.runtime.gpu.binaries import compile_offline
from tests.gpu.offline import empty, engine, program_of

pytestmark = [
    # Triton 3.6 turns arrays of one element into numbers in a way that NumPy deprecates.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]
NEURONS = {
    "integrator": LI(0.9, learnable=True, shape=(3,)),
    "lif": LIF(0.9),
    "dynamic decay": DynamicDecay(3),
}


@pytest.mark.parametrize("name", NEURONS)
def test_values(name, target):
    """Two chunks and a rest, forward and backward; the reverse recurrence is a kernel as well."""
    torch.manual_seed(0)
    x = torch.rand(15, 2, 3) * 1.5
    fast = snncc.compile(NEURONS[name], mode="scan", chunk=6, target=target)

    report = snncc.verify(NEURONS[name], fast, x)
    assert report.ok, report


@pytest.mark.parametrize("neuron", [LI(0.9, learnable=True, shape=(8, 1, 1)), DynamicDecay(8)],
                         ids=["integrator", "dynamic decay"])  # fmt: skip
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_kernels_stay_in_registers(direction, neuron, triton_cache):
    """The sweeps over all chunks spill nothing: [steps of a chunk, chunks, lanes]."""
    forward = program_of(neuron, torch.rand(5, 2, 8, 4, 4)).forward
    if direction == "backward":
        forward = adjoint_alone(forward, differentiate(forward))
    scan = chunked_scan(forward)
    assert isinstance(scan, ChunkedScan)
    for part in (scan.summary, scan.apply):
        tensors = [empty(8, 64, 256).transpose(0, 1) for _ in part.step_inputs]
        tensors += [empty(8, 256) for _ in part.lane_inputs]
        call = engine(NeuronProgram(part)).plan(tensors, None, training=False).call
        binary = compile_offline(call.kernel.source, call.variant, "sm_90")

        assert binary.spilled == 0
        assert binary.accesses.local == 0
