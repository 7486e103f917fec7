"""Kernels of the parallel modes, compiled for GPUs that are not there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from snncc.ir.nodes import Rank, Recurrence
from snncc.ir.program import NeuronProgram
from snncc.nn import LIF, CubaLIF, DynamicDecay
from snncc.runtime.gpu.binaries import bytes_of_a_step, compile_offline
from snncc.runtime.gpu.calls import Call
from tests.gpu.offline import C, empty, engine, program_of

ARCHES = ["sm_80", "sm_90", "sm_100", "gfx942"]
# The third is a scan forward, too, and computes its decays: its parts are the largest.
FORMS = {
    "scan": (CubaLIF(), {"mode": "scan"}),
    "parallel reset": (LIF(), {"mode": "parallel_reset"}),
    "dynamic decay": (DynamicDecay(C), {"mode": "scan"}),
}


def parts_of(program: NeuronProgram) -> Iterator[NeuronProgram]:
    """Yield what runs chunks of time side by side, each once."""
    scan, restart = program.scan, program.restart
    if restart is not None:
        yield from (restart.guess, restart.chunk)
    if scan is None:
        return
    chunked = [s for s in (scan.forward, scan.training, scan.backward) if s is not None]
    found: list[Recurrence | None] = [scan.keeping]
    for each in chunked:
        found += [each.summary, each.carry, each.lookback, each.apply]
    yield from (NeuronProgram(part) for part in dict.fromkeys(found) if part is not None)


def call_of(program: NeuronProgram, arch: str) -> Call:
    """Return the call of a part on 64 steps of 128 chunks of C * 256 neurons."""
    forward = program.forward
    tensors = [empty(64, 128, C, 16, 16) for _ in forward.step_inputs]
    tensors += [empty(128, C, 16, 16) for _ in forward.lane_inputs]
    return engine(program, arch).plan(tensors, 64, training=False).call


@pytest.mark.slow
@pytest.mark.usefixtures("triton_cache")
@pytest.mark.parametrize(
    ("form", "arch"),
    [
        *((form, arch) for form in ("scan", "parallel reset") for arch in ARCHES),
        *(("dynamic decay", arch) for arch in ("sm_80", "gfx942")),
    ],
)
def test_parts_stay_in_registers(form: str, arch: str) -> None:
    """No part of a parallel form spills, and each moves what it reads and writes, once.

    Nothing is contracted but within the functions of a maths library.  On AMD what is read once
    stands behind a label of the loop as well, so that bytes are not counted there.
    """
    neuron, options = FORMS[form]
    parts = list(parts_of(program_of(neuron, torch.rand(5, 2, C, 4, 4), **options)))
    if form == "dynamic decay":
        parts = [part for part in parts if part.forward.name.endswith("apply")]
    for call in (call_of(part, arch) for part in parts):
        source = call.kernel.source
        binary = compile_offline(source, call.variant, arch)
        steps = [a for a in source.signature.arguments if a.rank is Rank.STEP]
        read, written = (4 * sum(a.written is w for a in steps) for w in (False, True))

        assert binary.spilled == 0
        assert binary.accesses.local == 0
        if arch == "gfx942":
            assert binary.stages["hsaco"]
            continue
        assert bytes_of_a_step(binary, call) == (read, written)
        assert {*binary.accesses.loads, *binary.accesses.stores} == {16}
        if "libdevice" not in source.text:
            assert not re.search(r"\bfma\.", binary.stages["ptx"])
    assert len(parts) >= 3
