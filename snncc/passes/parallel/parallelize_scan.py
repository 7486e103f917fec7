"""Form: time cut into chunks that run side by side.

A neuron whose states no spike changes is affine in them, and so is a chunk of its steps::

    s[t] = A[t] s[t-1] + b[t]          s[end] = (product of A) s[start] + (what zero leads to)

One sweep over all chunks at once finds these maps, a short recurrence over the chunks what each
starts from, and a second sweep runs the step itself from there: within a chunk the operations are
those of the serial code.  Given the states before each step, the adjoint of *any* neuron is affine
in the cotangents of the states, so backward is run in this way for all others too.

Preconditions: the states are affine in one another at every step, apart from sums that nothing
reads and from windows of past inputs; decays may depend on the step, the lane and the input.
Numerics: reassociated; what a chunk starts from is a sum in another order, and a spike that is
read off a potential may move where the potential is within rounding of the threshold.  Gradients
are those of autograd up to the order of sums.
Source: Blelloch 1990, Prefix sums and their applications, section 1.4 (recurrences), by chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.fx

from snncc.ir.chunked_scan import ChunkedScan, ScanPrograms
from snncc.ir.nodes import FusedTime, Scan
from snncc.ir.numerics import Numerics
from snncc.ir.program import NeuronProgram
from snncc.passes.base import Rejection
from snncc.passes.neurons import rewrite_neurons
from snncc.passes.scans.alone import adjoint_alone, keeping_states
from snncc.passes.scans.chunked import chunked_scan

FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class ParallelizeScan:
    """Set the form of every neuron that has one to `Scan`.

    ``forward`` allows forward sweeps by chunks, which are not bitwise; without it only backward
    is run so.
    """

    forward: bool = True
    name = "parallelize-scan"

    @property
    def numerics(self) -> Numerics:
        """Forward by chunks starts from sums in another order; gradients always may."""
        return Numerics.REASSOCIATED if self.forward else Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with neurons in scan form."""
        return rewrite_neurons(graph, self._rewrite)

    def _rewrite(self, program: NeuronProgram, node: torch.fx.Node) -> NeuronProgram:
        made = scan_programs(program, forward=self.forward)
        is_single = node.meta.get("dtype") in FLOATS and not program.narrow
        if isinstance(made, Rejection) or not is_single:
            return replace(program, forward=replace(program.forward, form=FusedTime()))
        form = Scan(forward=made.forward is not None)
        return replace(program, forward=replace(program.forward, form=form), scan=made)


def scan_programs(program: NeuronProgram, *, forward: bool = True) -> ScanPrograms | Rejection:
    """Return what a neuron runs in scan form; why not, where neither direction is affine.

    Args:
        program: The neuron.
        forward: Whether its forward sweep may be run by chunks.
    """
    own = chunked_scan(program.forward)
    ahead = own if forward and isinstance(own, ChunkedScan) else None
    adjoint = program.adjoint
    if adjoint is None:
        return ScanPrograms(ahead) if ahead is not None else _refused(own)
    alone = adjoint_alone(program.forward, adjoint)
    keeping, kept = keeping_states(program.forward, alone)
    training = chunked_scan(keeping) if ahead is not None else None
    back = chunked_scan(alone)
    if ahead is None and isinstance(back, Rejection):
        return back
    return ScanPrograms(
        forward=ahead,
        training=training if isinstance(training, ChunkedScan) else None,
        keeping=keeping,
        kept=kept,
        backward=back if isinstance(back, ChunkedScan) else None,
    )


def _refused(found: ChunkedScan | Rejection) -> Rejection:
    """Return why a neuron without gradients has no scan form."""
    if isinstance(found, Rejection):
        return found
    return Rejection("no-gradient", "it has no backward sweep, and forward is to be bitwise")
