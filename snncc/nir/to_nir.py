"""A compiled model as a graph in the Neuromorphic Intermediate Representation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.compilation.chunk_programs import uniform_program
from snncc.compilation.streamed import returning
from snncc.errors import OptionError, UnsupportedError
from snncc.frontend.state.sources import gather
from snncc.ir import sequence_ops
from snncc.ir.loop_call import LoopCall
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.tape import SourceKind
from snncc.model.given import example_of
from snncc.model.module import CompiledModule
from snncc.nir.checks import STEP
from snncc.nir.graph import delays_of
from snncc.nir.layers import gather_layers, move_biases
from snncc.nir.loops import LoopWriter
from snncc.nir.parts import Parts, name_of, shape_of


def to_nir(fast: CompiledModule, *example_inputs: Any, dt: float = 1e-4) -> Any:
    """Return a compiled model as a NIR graph, with the values that its parameters have now.

    `snncc.from_nir` states the conventions: a step is one step of forward Euler of length ``dt``.
    A neuron that fires *at* its threshold gets the next smaller number as threshold, for NIR fires
    above it.  A surrogate gradient has no place in NIR.

    Args:
        fast: The compiled model, in evaluation mode.
        *example_inputs: Arguments of the model; the graph has their sizes without time and batch.
        dt: Length of a step, in seconds: the unit of the time constants.

    Returns:
        A ``nir.NIRGraph``; ``nir.write(path, graph)`` stores it.

    Raises:
        OptionError: The package ``nir`` is missing, or what is passed is no compiled model.
        UnsupportedError: The network has a part that NIR does not express, with the user's line.

    Source: Pedersen et al. 2024, "Neuromorphic intermediate representation".
    """
    try:
        import nir  # noqa: F401
    except ImportError as error:
        raise OptionError(
            "Writing NIR needs the package 'nir'.",
            code="option.nir",
            hints=["Install it: pip install 'snncc[export]'."],
        ) from error
    if not isinstance(fast, CompiledModule):
        raise OptionError(
            "What is to be exported is not a compiled model.",
            code="option.export",
            hints=["Pass the result of 'snncc.compile'."],
        )
    if fast.options.mode == "async":
        raise UnsupportedError(
            "The network cannot be written as a NIR graph: it has no order of spikes.",
            code="unsupported.nir",
            hints=["Write the layered network: compile the model with mode='fused'."],
        )
    dt, example_inputs = STEP.positive(dt), example_of(example_inputs)
    with torch.no_grad():
        compiled = fast.specialize(*example_inputs)
        tape = compiled.recording.tape
        leaves = [leaf.detach() for leaf in gather(tape, fast.program, example_inputs, {})]
        own = [source.kind is SourceKind.INPUT for source in tape.sources]
        compiled = fast.without_norms(compiled, leaves)
        axes = uniform_program(compiled, leaves).input_axes
        return Writer(returning(compiled.graph, tape), dt).write(leaves, own, axes)


def _outputs(call: NeuronCall) -> int:
    """Return how many sequences a neuron gives; what it gives besides is left after the last."""
    return len(call.program.forward.outputs)


class Writer:
    """Runs a sequence graph on an example and writes down a node for each part.

    Attributes:
        parts: What has been written.
        results: For each recurrent loop the NIR nodes that each of its results is the sum of.
    """

    def __init__(self, graph: torch.fx.Graph, dt: float) -> None:
        self.graph, self.parts = graph, Parts(dt)
        self.results: dict[torch.fx.Node, tuple[tuple[str, ...], ...]] = {}
        self.rules: dict[Any, Callable[[torch.fx.Node, Any], None]] = {
            sequence_ops.time_view: self.all_steps,
            sequence_ops.align: self.pass_on,
            torch.clone: self.pass_on,
            operator.getitem: self.item,
            torch.movedim: self.moved,
        }

    def write(
        self, leaves: Sequence[Tensor], own: Sequence[bool], axes: Sequence[int | None]
    ) -> Any:
        """Return the graph, given an example and which of its tensors are inputs of the model."""
        import nir

        places = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node, leaf, is_own, axis in zip(places, leaves, own, axes, strict=True):
            self.parts.values[node] = leaf
            if is_own:
                self.input(node, leaf, axis)
        for node in self.graph.nodes:
            if node.op == "output":
                self.outputs(node)
            elif node.op == "call_function":
                self.visit(node)
        move_biases(self.parts)
        gather_layers(self.parts)
        graph = nir.NIRGraph(self.parts.nodes, self.parts.edges)
        if self.parts.delayed and self.parts.delayed != delays_of(graph, self.parts.dt):
            last = self.graph.output_node()
            raise self.parts.refusal(last, "its feedback is delayed elsewhere in NIR")
        return graph

    def input(self, node: torch.fx.Node, x: Tensor, axis: int | None) -> None:
        """A sequence that the model is given."""
        import nir

        if axis is None or x.dim() < 2:
            raise self.parts.refusal(node, f"its input '{node.name}' has no axes of time and batch")
        self.parts.axes[node] = axis
        self.parts.place(node, node.name, nir.Input(shape_of(x.movedim(axis, 0))))

    def visit(self, node: torch.fx.Node) -> None:
        """Run a node, and translate it if it depends on the input."""
        values = self.parts.values
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        moving = [n for n in node.all_input_nodes if n in self.parts.origins]
        if not moving or not isinstance(values[node], (Tensor, tuple)):
            return
        self.parts.axes[node] = self.parts.axes[moving[0]]
        inner = node.target
        if isinstance(inner, sequence_ops.Folded):
            inner = inner.operator
        rule = self.rule(node, inner)
        if any(self.parts.axes[n] for n in moving) and rule not in (
            self.all_steps,
            self.moved,
            self.parts.product,
        ):
            raise self.parts.refusal(node, "an operator sees the time axis elsewhere than in front")
        rule(node, args)

    def rule(self, node: torch.fx.Node, inner: Any) -> Callable[[torch.fx.Node, Any], None]:
        """Return what writes an operator."""
        if isinstance(inner, NeuronCall):
            return self.neuron
        if isinstance(inner, LoopCall):
            return self.loop
        rule = self.rules.get(inner) or self.parts.rules.get(inner)
        if rule is None:
            raise self.parts.refusal(node, f"NIR has no node for '{name_of(node.target)}'")
        return rule

    def loop(self, node: torch.fx.Node, args: Any) -> None:
        """A loop that feeds back."""
        self.results[node] = LoopWriter(self.parts, node, args).write()
        self.parts.origins[node] = ()

    def item(self, node: torch.fx.Node, args: Any) -> None:
        """One of several results."""
        source: Any = node.args[0]
        if source in self.results:
            self.parts.origins[node] = self.results[source][args[1]]
        elif isinstance(source.target, NeuronCall) and args[1] >= _outputs(source.target):
            del self.parts.axes[node]  # what is left after the last step
        else:
            self.pass_on(node, args)

    def moved(self, node: torch.fx.Node, args: Any) -> None:
        """A sequence with its time axis elsewhere."""
        x, source, target = args
        if source != self.parts.axes[node.all_input_nodes[0]] or not isinstance(target, int):
            raise self.parts.refusal(node, "NIR has no node that moves axes")
        self.pass_on(node, args)
        self.parts.axes[node] = target % x.dim()

    def all_steps(self, node: torch.fx.Node, args: Any) -> None:
        """A sequence with its time axis in front."""
        x, axis, start, stride, length = args
        if (start, stride, length) != (0, 1, x.shape[axis]) or axis != self.parts.axes[node]:
            raise self.parts.refusal(node, "NIR has no node that picks steps")
        self.pass_on(node, args)
        self.parts.axes[node] = 0

    def pass_on(self, node: torch.fx.Node, _: Any) -> None:
        """What only arranges axes."""
        self.parts.origins[node] = self.parts.origins[node.all_input_nodes[0]]

    def neuron(self, node: torch.fx.Node, args: Any) -> None:
        """A neuron."""
        call = node.target
        assert isinstance(call, NeuronCall)
        forward = call.program.forward
        steps = len(forward.step_inputs)
        if any(n in self.parts.origins for n in node.args[1 + steps :]) or any(
            n not in self.parts.origins for n in node.args[1 : 1 + steps]
        ):
            raise self.parts.refusal(
                node, f"NIR has no node for '{forward.name}': an input is no sequence"
            )
        names = (*forward.step_inputs, *forward.lane_inputs)
        self.parts.translate(node, forward, dict(zip(names, node.args[1:], strict=True)))

    def outputs(self, node: torch.fx.Node) -> None:
        """What the model returns."""
        import nir

        for n, result in enumerate(node.all_input_nodes):
            axis, value = self.parts.axes.get(result), self.parts.values[result]
            if axis is None or value.dim() < 2:
                raise self.parts.refusal(
                    result, "a result is no sequence of its input; return sequences alone"
                )
            value = value.movedim(axis, 0)
            name = "output" if len(node.all_input_nodes) == 1 else f"output_{n}"
            self.parts.place(node, name, nir.Output(shape_of(value)), (result,))
