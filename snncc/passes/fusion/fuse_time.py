"""Form: one kernel runs all steps of a recurrence, its state in registers or L1.

Before: T launches, and the state goes through memory at every step.  After: one launch that reads
each input once and writes each output once.  Legal for every recurrence, because a lane depends on
no other lane.

Numerics: bitwise; the same operations in the same order.
Source: Li et al. 2024, Towards Scalable GPU-Accelerated SNN Training via Temporal Fusion, sec. 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.fx

from snncc.ir.nodes import FusedTime
from snncc.ir.numerics import Numerics
from snncc.ir.program import NeuronProgram
from snncc.passes.neurons import rewrite_neurons


@dataclass(frozen=True, slots=True)
class FuseTime:
    """Set the form of every neuron to `FusedTime`."""

    name = "fuse-time"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with each neuron in fused-time form."""
        return rewrite_neurons(graph, _fuse)


def _fuse(program: NeuronProgram, _node: torch.fx.Node) -> NeuronProgram:
    return replace(program, forward=replace(program.forward, form=FusedTime()))
