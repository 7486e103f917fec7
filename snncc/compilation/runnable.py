"""A sequence graph as a function whose neurons, loops and products are those of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.fx
from torch import Tensor
from torch.nn.functional import batch_norm

from snncc.ir import sequence_ops
from snncc.ir.events.region import EventRegion
from snncc.ir.events.steps import EventQueue
from snncc.ir.graph_function import function_of
from snncc.ir.layouts import Arranging
from snncc.ir.loop_call import LoopCall
from snncc.ir.program import NeuronProgram
from snncc.ir.time_loop import TimeLoop
from snncc.options import Options
from snncc.passes.neurons import copy_graph, neuron_nodes
from snncc.runtime.events.runner import EventRunner, QueueRunner
from snncc.runtime.forms.chosen import ChoosingNeuron
from snncc.runtime.forms.parallel_reset import ParallelResetNeuron
from snncc.runtime.loops.recurrent import RecurrentLoop, StepTarget
from snncc.runtime.norms import per_step as norms
from snncc.runtime.operators import Neuron
from snncc.runtime.products import convolution, plain
from snncc.runtime.products import linear as products
from snncc.runtime.products.spikes import Spikes
from snncc.runtime.scans.neuron import ScanNeuron

AnyNeuron: TypeAlias = Neuron | ParallelResetNeuron | ScanNeuron | ChoosingNeuron


def executable(graph: torch.fx.Graph, options: Options) -> Callable[..., tuple[Any, ...]]:
    """Return a function that runs a sequence graph with compiled neurons."""
    return function_of(with_kernels(graph, options))


def with_kernels(graph: torch.fx.Graph, options: Options) -> torch.fx.Graph:
    """Return a sequence graph whose neurons and products are those of the runtime."""
    runnable = copy_graph(graph)
    for node in neuron_nodes(runnable):
        program = node.target.program  # type: ignore[union-attr]
        node.target = KernelCall(_neuron_of(program, options))
    for node in runnable.nodes:
        if isinstance(node.target, LoopCall) and options.target != "torch":
            target = StepTarget(options.target, options.num_threads)
            node.target = RecurrentLoop(node.target, target)
        if isinstance(node.target, EventRegion | EventQueue):
            node.target = _events(node.target, options)
        if node.target is sequence_ops.linear:
            node.target = products.linear
        if isinstance(node.target, TimeLoop) and options.target != "torch":
            node.target = norms.steps_of_norm(node.target)
        if node.target is batch_norm and options.target != "torch":
            node.target = norms.norm
        if node.meta.get("skips_zeros"):
            node.target = convolution.skipping(node.target)
        if "layouts" in node.meta:
            node.target = Arranging(node.target, node.meta["layouts"])
    _keep_bits(runnable)
    return runnable


def _keep_bits(graph: torch.fx.Graph) -> None:
    """Let products of spikes keep bits; those that read one value share them."""
    shared: dict[Any, torch.fx.Node] = {}
    for node in [n for n in graph.nodes if n.meta.get("reads_bits")]:
        target = _keeping(node.target)
        if target is None:
            continue
        node.target, read = target, node.args[0]
        if read not in shared:
            with graph.inserting_before(node):
                shared[read] = graph.call_function(Spikes, (read,))
        node.kwargs = {**node.kwargs, "spikes": shared[read]}


def _keeping(target: Any) -> Any:
    """Return what runs a product and may keep its input as bits; None where nothing does."""
    if isinstance(target, sequence_ops.Folded | Arranging):
        operator = _keeping(target.operator)
        return None if operator is None else replace(target, operator=operator)
    own = (products.linear, convolution.convolve)
    return target if target in own else plain.keeping(target)


def _events(network: EventRegion | EventQueue, options: Options) -> EventRunner | QueueRunner:
    """Return what runs a network of events, whole sequences or some steps."""
    if isinstance(network, EventRegion):
        return EventRunner(network, options.target, options.num_threads)
    return QueueRunner(network, options.target, options.num_threads)


def _neuron_of(program: NeuronProgram, options: Options) -> AnyNeuron:
    """Return the layer that runs a program in its form."""
    target, threads = options.target, options.num_threads
    if program.estimates and (program.scan is not None or program.restart is not None):
        return ChoosingNeuron(program, target=target, num_threads=threads)
    if program.restart is not None:
        return ParallelResetNeuron(program, target=target, num_threads=threads, chunk=options.chunk)
    if program.scan is not None:
        return ScanNeuron(program, target=target, num_threads=threads, chunk=options.chunk)
    return Neuron(program, target=target, num_threads=threads)


@dataclass(frozen=True, eq=False)
class KernelCall:
    """Target of a node that calls a compiled neuron, as `NeuronCall` calls the reference."""

    neuron: AnyNeuron

    @property
    def __name__(self) -> str:
        return self.neuron.program.forward.name

    def __call__(self, length: int, *arguments: Tensor) -> Sequence[Tensor]:
        """Run the kernels."""
        return self.neuron.run(arguments, length)
