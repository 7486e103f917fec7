"""Form: threshold feedback solved by sweeps over all steps (FPT).

Before::

    h[t] = f(v[t-1], x[t])      s[t] = fire(h[t])      v[t] = r(h[t], s[t])

After, for k = 1, 2, ... with s(0) = 0::

    h[t] = f(v[t-1], x[t])      s(k)[t] = fire(h[t])   v[t] = r(h[t], s(k-1)[t])

With its spikes given, a neuron whose charge and reset are affine in its states is an affine
recurrence: nothing waits for a comparison.  Step t depends on spikes before t only, so after k
sweeps the first k steps are final, whatever the decay: at most T + 1 sweeps find that nothing
changes any more, and that is the serial result.  In the published variant a few sweeps have a
sigmoid of growing steepness in place of the threshold; its fixed point is not the serial neuron.
Its last sweep gives spikes by the threshold, or draws them with random numbers that are inputs.

Precondition: with all comparisons given, the states after a step are affine in those before it.
Numerics: until stable, bitwise (each sweep evaluates the step in the serial order); a number of
sweeps, iterated: exact for as many steps.
Source: FPT, arXiv 2506.12087, with the termination argument for thresholds in place of the
contraction argument for sigmoids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.fx

from snncc.ir import sequence_ops
from snncc.ir.nodes import FixedPoint, FusedTime, Recurrence
from snncc.ir.numerics import Numerics
from snncc.ir.program import NeuronProgram
from snncc.passes.base import Rejection
from snncc.passes.meaning.find_feedback import find_feedback, find_nonlinearity
from snncc.passes.neurons import neuron_nodes, rewrite_neurons
from snncc.passes.parallel.guess_spikes import guess_spikes
from snncc.passes.parallel.unroll_sweeps import unroll_sweeps


@dataclass(frozen=True, slots=True)
class ParallelizeFixedPoint:
    """Set the form of every neuron with threshold feedback to `FixedPoint`, and make its sweeps."""

    form: FixedPoint
    name = "parallelize-fixed-point"

    @property
    def numerics(self) -> Numerics:
        """Exact until stable; else for as many steps as there are sweeps, or another neuron's."""
        if self.form.sweeps is None:
            return Numerics.BITWISE
        return Numerics.ITERATED if self.form.schedule is None else Numerics.SUBSTITUTED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the graph with its spiking neurons in fixed-point form."""
        for node in neuron_nodes(graph):
            program = node.target.program  # type: ignore[union-attr]
            made = parallelize(program, self.form)
            if isinstance(made, Rejection):
                return made
        result = rewrite_neurons(graph, self._rewrite)
        for node in neuron_nodes(result) if self.form.draws else ():
            _draw(node)
        return result

    def _rewrite(self, program: NeuronProgram, _node: torch.fx.Node) -> NeuronProgram:
        made = parallelize(program, self.form)
        assert isinstance(made, NeuronProgram)
        return made


def parallelize(program: NeuronProgram, form: FixedPoint) -> NeuronProgram | Rejection:
    """Return a neuron in fixed-point form; in fused time where no comparison feeds back."""
    forward = program.forward
    cuts = find_feedback(forward)
    if not cuts:
        return replace(program, forward=replace(forward, form=FusedTime()))
    rejection = find_nonlinearity(forward, cuts)
    if rejection is not None:
        return rejection
    if form.sweeps is None:
        sweep = guess_spikes(forward, cuts)
        return replace(program, forward=replace(forward, form=form), sweep=sweep)
    chain = unroll_sweeps(forward, cuts, form)
    if isinstance(chain, Rejection):
        return chain
    written = replace(forward, inputs=chain.inputs, form=form)
    return replace(program, forward=chain, written=written)


def _draw(node: torch.fx.Node) -> None:
    """Give a neuron the random numbers that its spikes are drawn with."""
    forward: Recurrence = node.target.program.forward  # type: ignore[union-attr]
    length, *given = node.args
    count = len(forward.inputs) - len(given)
    first = len(forward.step_inputs) - count
    for position in range(first, first + count):
        with node.graph.inserting_before(node):
            args = (length, first, *given)
            drawn = node.graph.call_function(sequence_ops.uniforms, args)
        drawn.meta.update(dtype=node.meta["dtype"], impure=True, where=forward.where)
        node.insert_arg(1 + position, drawn)
