"""Apply a rewrite to every neuron of a sequence graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch.fx

from snncc.ir.neuron_call import NeuronCall
from snncc.ir.program import NeuronProgram

Rewrite = Callable[[NeuronProgram, torch.fx.Node], NeuronProgram]


def neuron_nodes(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """Yield the nodes of a graph that call a neuron, in order."""
    return (n for n in graph.nodes if isinstance(n.target, NeuronCall))


def copy_graph(graph: torch.fx.Graph) -> torch.fx.Graph:
    """Return a copy of a graph, its meta included."""
    result = torch.fx.Graph()
    result.output(result.graph_copy(graph, {}))
    return result


def rewrite_neurons(graph: torch.fx.Graph, rewrite: Rewrite) -> torch.fx.Graph:
    """Return the graph with ``rewrite`` applied to the program of each neuron."""
    result = copy_graph(graph)
    for node in neuron_nodes(result):
        node.target = NeuronCall(rewrite(node.target.program, node))  # type: ignore[union-attr]
    return result


def as_written(graph: torch.fx.Graph) -> torch.fx.Graph:
    """Return the graph with the recurrence of the user where a neuron is a chain of sweeps."""
    return rewrite_neurons(graph, lambda program, _: serial_program(program))


def serial_program(program: NeuronProgram) -> NeuronProgram:
    """Return the neuron as it was written."""
    if program.written is None:
        return program
    return replace(program, forward=program.written, written=None)
