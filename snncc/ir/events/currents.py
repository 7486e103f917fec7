"""What drives the groups of a network of events: graphs of the user's own operators."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch.fx

from snncc.ir import sequence_ops
from snncc.ir.events.recalled import from_start
from snncc.ir.graph_function import function_of
from snncc.ir.nodes import Const, Expr, Recurrence, Var


@dataclass(frozen=True, eq=False)
class Currents:
    """What a group of neurons is driven by.

    Attributes:
        neuron: The neuron as it was written.
        standing: Maps spikes of ``sources``, then ``externals``, to the STEP inputs.
        linear: The same without all that is added: linear in the spikes.
        sources: Indices of the edges that end here, one for each placeholder of spikes.
        externals: Positions of the other placeholders among the arguments of the region.
        is_varying: Whether what it gets without spikes differs from step to step or by sample.
        is_sized: Whether one of ``externals`` may have as many steps as the call.
        batched: Which of ``externals`` depend on inputs of the model, and which axis is the batch.
        own: The lane inputs that differ by sample: they are added, and multiply nothing.
        drive: What the STEP inputs and lane inputs add to the membrane, affine in the first.
        decay: What the membrane keeps of itself.
        membrane: The name of the state.
        initial: What it is before the first step.
        lanes: For each lane input its name and its position among the arguments.
        shape: The shape of the group, without the batch.
    """

    neuron: Recurrence
    standing: torch.fx.Graph
    linear: torch.fx.Graph
    sources: tuple[int, ...]
    externals: tuple[int, ...]
    is_varying: bool
    is_sized: bool
    batched: tuple[tuple[int, int], ...]
    own: frozenset[str]
    drive: Expr
    decay: Expr
    membrane: str
    initial: Const | Var
    lanes: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the STEP inputs of the neuron."""
        return self.neuron.step_inputs

    @cached_property
    def run_standing(self) -> Any:
        """The function of ``standing``."""
        return function_of(self.standing)

    @cached_property
    def run_later(self) -> Any:
        """The function of ``standing`` for steps that are not the first of the sequence."""
        graph = torch.fx.Graph()
        copies: dict[torch.fx.Node, torch.fx.Node] = {}
        for node in self.standing.nodes:
            if node.target is from_start:
                copies[node] = copies[node.args[0]]
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        return function_of(graph)

    @property
    def is_started(self) -> bool:
        """Whether what it gets in the first step is another thing than in later ones."""
        return any(node.target is from_start for node in self.standing.nodes)

    @cached_property
    def run_linear(self) -> Any:
        """The function of ``linear``."""
        return function_of(self.linear)

    @cached_property
    def weight(self) -> int | None:
        """The position among ``externals`` of the weight, where a linear layer is all there is."""
        results: Any = self.linear.output_node().args[0]
        spikes, *externals = self.linear.find_nodes(op="placeholder")
        if len(results) == len(self.sources) == 1:
            (layer,) = results
            if layer and layer.target is sequence_ops.linear and layer.args[0] is spikes:
                return externals.index(layer.args[1]) if layer.args[1] in externals else None
        return None


@dataclass(frozen=True, eq=False)
class Given:
    """An input whose events join the queue: its position among the arguments."""

    argument: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a call.

    Attributes:
        samples: B.
        shapes: Of the groups, without the batch.
    """

    samples: int
    shapes: tuple[tuple[int, ...], ...]
