"""The part of a certificate that is about neurons in scan form, whose spikes may move.

A chunk starts from a sum in another order, so a potential differs by roundings from that of the
serial code, and a spike that is read off it may differ by one.  Three comparisons tell this from a
fault:

- *states*: the states before each step are those of the reference, within rounding;
- *steps*: the results are what the step of the neuron makes of these very states and inputs;
- *kernel*: the kernel that runs in the network gives these results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from snncc.equivalence.certificate import OUTPUT_TOLERANCE, Comparison, compare_all
from snncc.ir import interpret
from snncc.ir.chunked_scan import ChunkedScan
from snncc.ir.program import NeuronProgram
from snncc.ir.walk import calls_maths
from snncc.options import Options
from snncc.passes.scans.chunked import chunked_scan
from snncc.runtime.launch import with_lanes
from snncc.runtime.scans.chunked import Chunked, Found, lanes_of
from snncc.runtime.scans.neuron import ScanNeuron


def compare_scan(
    program: NeuronProgram, arguments: Sequence[Any], options: Options
) -> list[Comparison]:
    """Compare a neuron that runs forward by chunks with the reference.

    Args:
        program: The neuron.
        arguments: T, then the tensors that it was called with.
        options: How it is compiled.
    """
    length, *tensors = arguments
    layer = ScanNeuron(
        program, target=options.target, num_threads=options.num_threads, chunk=options.chunk
    )
    forward = program.forward
    steps = max([int(x.shape[0]) for x in tensors[: len(forward.step_inputs)]] or [int(length)])
    values = dict(zip((*forward.step_inputs, *forward.lane_inputs), tensors, strict=True))
    with torch.no_grad():
        results = layer.run(tensors, steps)
        kept, found = _watched(layer, values, steps)
        states = {name: found.outputs[name] for name in kept}
        serial = interpret.run(replace(forward, outputs=kept, finals=()), values, steps)
        made = _made(program, values, states, steps)
    rounding = OUTPUT_TOLERANCE[results[0].dtype]
    exact = rounding if calls_maths(forward.lets) else 0.0
    watched = [found.outputs[name] for name in forward.outputs]
    watched += [found.states[name] for name in forward.finals]
    shown = watched[: len(forward.outputs)]
    name = forward.name
    return [
        *compare_all(
            "kernel", f"{name} states", list(serial.values()), [*states.values()], rounding
        ),
        *compare_all("kernel", f"{name} steps", list(made.values()), shown, exact),
        *compare_all("kernel", name, watched, results, 0.0),
    ]


def _watched(
    layer: ScanNeuron, values: Mapping[str, Tensor], steps: int
) -> tuple[tuple[str, ...], Found]:
    """Return the results of a neuron by chunks with all states but sums before each step."""
    scan = layer.scan.forward
    assert scan is not None
    forward = layer.program.forward
    kept = tuple(s.name for s in forward.states if s.name not in scan.sums)
    outputs = tuple(dict.fromkeys((*forward.outputs, *kept)))
    watched = chunked_scan(replace(forward, outputs=outputs))
    assert isinstance(watched, ChunkedScan)
    chunked = Chunked(watched, layer.options)
    return kept, chunked.run(values, steps, layer.cut(chunked, values, steps))


def _made(
    program: NeuronProgram, values: Mapping[str, Tensor], states: Mapping[str, Tensor], steps: int
) -> dict[str, Tensor]:
    """Return the outputs that the step makes of given states, all steps at once."""
    forward = program.forward
    lanes = lanes_of(forward, values)
    inputs = {
        name: with_lanes(x, len(lanes)).expand(steps, *lanes) if name in forward.step_inputs else x
        for name, x in values.items()
    }
    zero = next(iter(values.values())).new_zeros(())
    before = {s.name: states.get(s.name, zero) for s in forward.states}
    made = interpret.run_step(forward, inputs, before)
    return {name: made[name].to(zero.dtype).expand(steps, *lanes) for name in forward.outputs}
