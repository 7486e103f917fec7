"""Chunks of time side by side, with kernels for GPUs: values at small sizes, and binaries."""

import pytest
import torch

import snncc
from snncc.nn import LI, LIF, DynamicDecay

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
