"""Chunks of time at once on GPUs: values in an interpreter or on the CPU, binaries by compilers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snncc.ir.nodes import ParallelReset
from snncc.ir.program import NeuronProgram, Restart
from snncc.passes.parallel.parallelize_reset import restart_of
from snncc.runtime.forms.parallel_reset import ParallelResetNeuron
from tests.neuron_programs import lif


def chunked() -> NeuronProgram:
    """Return a neuron in parallel-reset form."""
    program = lif()
    made = restart_of(program.forward)
    assert isinstance(made, Restart)
    form = replace(program.forward, form=ParallelReset())
    return replace(program, forward=form, restart=made)


@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
@pytest.mark.parametrize("lanes", [(3,), (2, 20)], ids=str)
def test_equals_one_run_over_all_steps(lanes, target):
    """Few lanes and many, T no multiple of the chunks; values and gradients, bit for bit."""
    torch.manual_seed(0)
    x, v0 = torch.rand(43, *lanes) * 0.6, torch.rand(lanes)
    layer = ParallelResetNeuron(chunked(), target=target, chunk=8)
    actual, expected = layer.run((x, v0), None), layer.serial.run((x, v0), None)

    assert layer.chunks is not None
    assert layer.chunks.count == 5
    assert expected[0].mean() > 0.05
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    x.requires_grad_()
    gradients = [
        torch.autograd.grad(run((x, v0), None)[0].cumsum(0).sum(), x)[0]
        for run in (layer.run, layer.serial.run)
    ]
    assert torch.equal(*gradients)
