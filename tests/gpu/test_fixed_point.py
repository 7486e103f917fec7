"""Neurons by sweeps on GPUs: values in an interpreter or on the CPU, binaries by the compilers."""

import pytest
import torch

import snncc
from snncc.nn import IF, LIF, AdaptiveLIF, CubaLIF, Sigmoid
from snncc.runtime.gpu.binaries import bytes_of_a_step
from tests.gpu.offline import C, calls_of, empty, program_of
from tests.passes.test_parallelize_fixed_point import graded

pytestmark = [
    # Triton 3.6 turns arrays of one element into numbers in a way that NumPy deprecates.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]

NEURONS = {
    "if": IF(),
    "hard": LIF(0.9),
    "soft": LIF(0.9, v_reset=None, surrogate=Sigmoid(4.0)),
    "detached": LIF(0.5, v_reset=None, detach_reset=True),
    "plif-channels": LIF(learnable=True, shape=(4, 1), v_reset=None),
    "current": CubaLIF(learnable=True, shape=(4, 1), v_reset=None),
    "adaptive": AdaptiveLIF(),
    "graded": graded,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "storage"), [*((name, "auto") for name in NEURONS), ("hard", "save"), ("soft", "save")]
)
def test_until_stable(name, storage, target):
    """A kernel that sweeps until nothing changes gives the serial results, and their gradients."""
    neuron, x = NEURONS[name], torch.rand(21, 3, 4, 3) * 1.5
    fast = snncc.compile(neuron, mode="fpt", target=target, storage=storage)
    report = snncc.verify(neuron, fast, x)

    assert report.ok, report
    assert fast.plans[0].neurons[0].form == "sweeps until stable"
    assert 1 < fast.sweeps["neuron1"] <= 17


@pytest.mark.parametrize("schedule", [None, (2.0, 6.0, 12.0)], ids=["thresholds", "soft"])
def test_a_number_of_sweeps(schedule, target):
    """The chain of sweeps is that of the C kernel, forward and backward."""
    neuron = LIF(0.5, v_reset=None, surrogate=Sigmoid(4.0), learnable=True)
    x = (torch.rand(21, 3, 4) * 1.5).requires_grad_()
    results = []
    for language in ("c", target):
        fast = snncc.compile(neuron, mode="fpt", sweeps=3, schedule=schedule, target=language)
        s = fast(x)
        results.append((s, *torch.autograd.grad(s.cumsum(0).sum(), [x, *neuron.parameters()])))

    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_special_numbers_end(target):
    """A graded spike that is no number is not equal to itself; its sweeps end all the same."""
    x = torch.tensor([1.0, float("inf"), float("nan"), 2.5, -float("inf"), 2.0] * 4)
    fast = snncc.compile(graded, mode="fpt", target=target)

    torch.testing.assert_close(fast(x[:, None]), graded(x[:, None]), equal_nan=True)


ARCHES = ["sm_80", "sm_90", "sm_100", "gfx942"]
FORMS = {
    "until-stable": {},
    "soft": {"sweeps": 3},
}


def binaries(form, arch, target):
    """Return the calls of a neuron on [64, 64, C, 16, 16], and their kernels for a GPU."""
    neuron = LIF(0.5, v_reset=None, surrogate=Sigmoid(4.0))
    program = program_of(neuron, torch.rand(5, 2, C, 4, 4), mode="fpt", **FORMS[form])
    x = empty(64, 64, C, 16, 16)
    found = calls_of(program, [x], [x], arch, target)
    return (found.inference, found.training, found.backward), found.compile(arch)


@pytest.mark.slow
@pytest.mark.usefixtures("triton_cache")
@pytest.mark.parametrize(
    ("form", "arch", "target"),
    [
        *(("until-stable", arch, "triton") for arch in ARCHES),
        ("until-stable", "sm_90", "cuda"),
        ("soft", "sm_90", "triton"),
    ],
)
def test_sweeps_stay_on_chip(form, arch, target):
    """All sweeps run in registers: the input is read once, the spikes are written once.

    A Triton program asks all of its warps whether a spike changed; that takes a word of shared
    memory for each warp, and one barrier a sweep.
    """
    calls, found = binaries(form, arch, target)
    for binary in found:
        assert binary.spilled == 0
        assert binary.accesses.local == 0
        assert binary.shared <= (64 if form == "until-stable" and target == "triton" else 0)
    moved = [sum(bytes_of_a_step(b, call)) for b, call in zip(found, calls, strict=True)]
    states = 3 if form != "until-stable" else 1
    over = [m - e for m, e in zip(moved, (8.0, 8.0 + states / 4, 12.0 + states / 4), strict=True)]
    # On AMD the store of the counts stands before a label of the loop.
    assert over in ([0, 0, 0], [0.25, 0.25, 0] if arch == "gfx942" else [0, 0, 0])
