"""A compiled model as a graph in the Neuromorphic Intermediate Representation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from snncc.compilation.pipeline import uniform_program
from snncc.errors import OptionError, UnsupportedError
from snncc.frontend.state.sources import gather
from snncc.interchange.nir_graph import delays_of
from snncc.interchange.nir_loops import LoopWriter
from snncc.interchange.nir_neurons import InexpressibleError, neuron_node
from snncc.interchange.nir_nodes import check_step
from snncc.ir import sequence_ops
from snncc.ir.loop_call import LoopCall
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Recurrence
from snncc.ir.tape import SourceKind
from snncc.module import CompiledModule
from snncc.source import Location


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
    check_step(dt)
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
    with torch.no_grad():
        compiled = fast.specialize(*example_inputs)
        tape = compiled.recording.tape
        leaves = [leaf.detach() for leaf in gather(tape, fast.program, example_inputs, {})]
        own = [source.kind is SourceKind.INPUT for source in tape.sources]
        compiled = fast.without_norms(compiled, leaves)
        axes = uniform_program(compiled, leaves).input_axes
        return Writer(compiled.graph, dt).write(leaves, own, axes)


class Writer:
    """Runs a sequence graph on an example and writes down a node for each part.

    Attributes:
        values: The value of each node of the graph.
        origins: For each node whose value depends on the input the NIR nodes that it is the sum of.
        axes: For each such node where its time axis is; 0 from the first neuron on.
        delayed: The arrows that arrive one step later.
        results: For each recurrent loop the NIR nodes that each of its results is the sum of.
    """

    def __init__(self, graph: torch.fx.Graph, dt: float) -> None:
        self.graph, self.dt = graph, dt
        self.values: dict[torch.fx.Node, Any] = {}
        self.origins: dict[torch.fx.Node, tuple[str, ...]] = {}
        self.axes: dict[torch.fx.Node, int] = {}
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.delayed: set[tuple[str, str]] = set()
        self.results: dict[torch.fx.Node, tuple[tuple[str, ...], ...]] = {}
        self.rules: dict[Any, Callable[[torch.fx.Node, Any], None]] = {
            sequence_ops.time_view: self.all_steps,
            sequence_ops.align: self.pass_on,
            operator.getitem: self.item,
            sequence_ops.linear: self.product,
            F.linear: self.product,
            F.conv1d: self.convolution,
            F.conv2d: self.convolution,
            F.avg_pool2d: self.pooling,
            torch.flatten: self.flatten,
            torch.add: self.add,
            operator.add: self.add,
            torch.mul: self.scale,
            operator.mul: self.scale,
        }

    def write(
        self, leaves: Sequence[Tensor], own: Sequence[bool], axes: Sequence[int | None]
    ) -> Any:
        """Return the graph, given an example and which of its tensors are inputs of the model."""
        import nir

        places = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node, leaf, is_own, axis in zip(places, leaves, own, axes, strict=True):
            self.values[node] = leaf
            if is_own:
                self.input(node, leaf, axis)
        for node in self.graph.nodes:
            if node.op == "output":
                self.outputs(node)
            elif node.op == "call_function":
                self.visit(node)
        graph = nir.NIRGraph(self.nodes, self.edges)
        if self.delayed and self.delayed != delays_of(graph, self.dt):
            raise self.refusal(self.graph.output_node(), "its feedback is delayed elsewhere in NIR")
        return graph

    def input(self, node: torch.fx.Node, x: Tensor, axis: int | None) -> None:
        """A sequence that the model is given."""
        import nir

        if axis is None or x.dim() < 2:
            raise self.refusal(node, f"its input '{node.name}' has no axes of time and batch")
        self.axes[node] = axis
        self.place(node, node.name, nir.Input(_shape(x.movedim(axis, 0))))

    def visit(self, node: torch.fx.Node) -> None:
        """Run a node, and translate it if it depends on the input."""
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        self.values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        moving = [n for n in node.all_input_nodes if n in self.origins]
        if not moving or not isinstance(self.values[node], (Tensor, tuple)):
            return
        self.axes[node] = self.axes[moving[0]]
        inner = node.target
        if isinstance(inner, sequence_ops.Folded):
            inner = inner.operator
        rule = self.rule(node, inner)
        if any(self.axes[n] for n in moving) and rule not in (self.all_steps, self.product):
            raise self.refusal(node, "an operator sees the time axis elsewhere than in front")
        rule(node, args)

    def rule(self, node: torch.fx.Node, inner: Any) -> Callable[[torch.fx.Node, Any], None]:
        """Return what writes an operator."""
        if isinstance(inner, NeuronCall):
            return self.neuron
        if isinstance(inner, LoopCall):
            return self.loop
        if inner not in self.rules:
            raise self.refusal(node, f"NIR has no node for '{_name(node.target)}'")
        return self.rules[inner]

    def adopt(self, node: torch.fx.Node, value: Tensor) -> None:
        """Let a node of a loop's body stand for a sequence of one step."""
        self.values[node], self.axes[node] = value, 0

    def visit_step(self, node: torch.fx.Node, *, is_late: bool) -> None:
        """Run an operator of a loop's body on one step, and translate it where it moves."""
        args: Any = torch.fx.node.map_arg(node.args, self.values.__getitem__)
        moving = [n in self.axes for n in node.args]
        if node.kwargs or (
            not is_late and not any(n in self.origins for n in node.all_input_nodes)
        ):
            raise self.refusal(node, f"NIR has no node for '{_name(node.target)}'")
        step = [x[0] if m else x for x, m in zip(args, moving, strict=True)]
        self.adopt(node, node.target(*step).unsqueeze(0))  # type: ignore[operator]
        if node.target not in (F.linear, F.conv1d, F.conv2d, torch.add, torch.mul):
            raise self.refusal(node, f"NIR has no node for '{_name(node.target)}' in a loop")
        self.rules[node.target](node, args)

    def loop(self, node: torch.fx.Node, args: Any) -> None:
        """A loop that feeds back."""
        self.results[node] = LoopWriter(self, node, args).write()
        self.origins[node] = ()

    def item(self, node: torch.fx.Node, args: Any) -> None:
        """One of several results."""
        source: Any = node.args[0]
        if source in self.results:
            self.origins[node] = self.results[source][args[1]]
        else:
            self.pass_on(node, args)

    def all_steps(self, node: torch.fx.Node, args: Any) -> None:
        """A sequence with its time axis in front."""
        x, axis, start, stride, length = args
        if (start, stride, length) != (0, 1, x.shape[axis]) or axis != self.axes[node]:
            raise self.refusal(node, "NIR has no node that picks steps")
        self.pass_on(node, args)
        self.axes[node] = 0

    def pass_on(self, node: torch.fx.Node, _: Any) -> None:
        """What only arranges axes."""
        self.origins[node] = self.origins[node.all_input_nodes[0]]

    def product(self, node: torch.fx.Node, args: Any) -> None:
        """A linear layer."""
        import nir

        _, weight, bias = (*args, None)[:3]
        if bias is None:
            self.place(node, self.name(node), nir.Linear(_array(weight)))
        else:
            self.place(node, self.name(node), nir.Affine(_array(weight), _array(bias)))

    def convolution(self, node: torch.fx.Node, args: Any) -> None:
        """A convolution; one without bias gets a bias of zeros, which NIR wants."""
        import nir

        x, weight, bias, stride, padding, dilation, groups = args
        if bias is None:
            bias = weight.new_zeros(weight.shape[0])
        spatial = tuple(x.shape[3:])
        is_flat = len(spatial) == 1
        kind = nir.Conv1d if is_flat else nir.Conv2d
        spatial, stride, padding, dilation = (
            value[0] if is_flat and isinstance(value, tuple) else value
            for value in (spatial, stride, padding, dilation)
        )
        made = kind(spatial, _array(weight), stride, padding, dilation, groups, _array(bias))
        self.place(node, self.name(node), made)

    def pooling(self, node: torch.fx.Node, args: Any) -> None:
        """The mean of each window."""
        import nir

        _, kernel, stride, padding, ceil, counts_padding, divisor = args
        if ceil or divisor is not None or (padding and not counts_padding):
            raise self.refusal(node, "NIR's average has no other divisor than the window")
        made = nir.AvgPool2d(*(_pair(n) for n in (kernel, stride or kernel, padding)))
        made.input_type = {"input": _shape(args[0])}
        made.output_type = {"output": _shape(self.values[node])}
        self.place(node, self.name(node), made)

    def flatten(self, node: torch.fx.Node, args: Any) -> None:
        """Axes merged; NIR counts them without time and batch."""
        import nir

        x, first, last = args
        if first < 2:
            raise self.refusal(node, "NIR has no node that mixes samples or steps")
        kind = {"input": _shape(x)}
        end = -1 if last == x.dim() - 1 else last - 2
        self.place(node, self.name(node), nir.Flatten(kind, start_dim=first - 2, end_dim=end))

    def scale(self, node: torch.fx.Node, args: Any) -> None:
        """A product with a constant."""
        import nir

        moving = [n for n in node.args if n in self.origins]
        if len(moving) != 1 or node.kwargs:
            raise self.refusal(node, "NIR has no node that multiplies two values")
        factor = torch.as_tensor(args[1] if node.args[0] is moving[0] else args[0])
        if factor.dim() > self.values[node].dim() - 2:
            raise self.refusal(node, "a factor has an axis of time or batch")
        shape = self.values[node].shape[2:]
        self.place(node, self.name(node), nir.Scale(_array(factor.expand(shape).double())))

    def add(self, node: torch.fx.Node, _: Any) -> None:
        """A sum: arrows into one node add up."""
        operands = [a for a in node.args if isinstance(a, torch.fx.Node)]
        origins = [name for a in operands for name in self.origins.get(a, ())]
        if len(operands) != 2 or node.kwargs or any(a not in self.origins for a in operands):
            raise self.refusal(node, "NIR has no node that adds a constant")
        if len(set(origins)) < len(origins) or "" in origins:
            raise self.refusal(node, "NIR adds each value once")
        self.origins[node] = tuple(origins)

    def neuron(self, node: torch.fx.Node, args: Any) -> None:
        """A neuron."""
        call = node.target
        assert isinstance(call, NeuronCall)
        forward = call.program.forward
        steps = len(forward.step_inputs)
        if any(n in self.origins for n in node.args[1 + steps :]) or any(
            n not in self.origins for n in node.args[1 : 1 + steps]
        ):
            raise self.refusal(
                node, f"NIR has no node for '{forward.name}': an input is no sequence"
            )
        names = (*forward.step_inputs, *forward.lane_inputs)
        self.translate(node, forward, dict(zip(names, node.args[1:], strict=True)))

    def translate(self, node: torch.fx.Node, forward: Recurrence, read: Mapping[str, Any]) -> None:
        """Let the NIR node of a neuron stand for a node; its inputs are read by name."""
        like = self.like(node)
        values = {
            name: torch.as_tensor(self.values.get(read[name], read[name]))
            for name in forward.lane_inputs
        }
        try:
            made = neuron_node(forward, values, like, self.dt)
        except InexpressibleError as error:
            raise self.refusal(node, f"NIR has no node for '{forward.name}': {error}") from error
        arriving = [
            origin
            for name in forward.step_inputs
            for origin in self.scaled(read[name], made.scales[name])
        ]
        if len(set(arriving)) < len(arriving):
            raise self.refusal(node, "NIR adds each value once")
        self.origins[node] = (self.add_node(forward.name, made.node, arriving),)

    def like(self, node: torch.fx.Node) -> Tensor:
        """Return one sample of one step of what a neuron gives."""
        if node in self.values:
            sample: Tensor = self.values[node][0][0, 0]
            return sample
        step: Any = node.target
        return torch.zeros(next(iter(node.users)).meta["shape"][1:], dtype=step.dtype)

    def scaled(self, source: torch.fx.Node, scale: Any) -> tuple[str, ...]:
        """Return the NIR nodes whose sum is a value times a factor for each neuron, or times 1."""
        import nir

        if scale is None:
            return self.origins[source]
        return (self.add_node(f"{source.name}_scale", nir.Scale(scale), self.origins[source]),)

    def outputs(self, node: torch.fx.Node) -> None:
        """What the model returns."""
        import nir

        for n, result in enumerate(node.all_input_nodes):
            if self.axes.get(result) != 0 or self.values[result].dim() < 2:
                raise self.refusal(result, "a result is no sequence of its input")
            value = self.values[result]
            name = "output" if len(node.all_input_nodes) == 1 else f"output_{n}"
            self.place(node, name, nir.Output(_shape(value)), (result,))

    def place(
        self, node: torch.fx.Node, name: str, made: Any, read: tuple[torch.fx.Node, ...] = ()
    ) -> None:
        """Let a NIR node stand for a node of the graph."""
        sources = read or tuple(node.all_input_nodes)
        origins = [origin for source in sources for origin in self.origins.get(source, ())]
        self.origins[node] = (self.add_node(name, made, origins),)

    def add_node(self, name: str, made: Any, origins: Sequence[str]) -> str:
        """Add a NIR node and the arrows into it; return its name, unique in the graph."""
        while name in self.nodes:
            name += "_"
        self.nodes[name] = made
        self.edges += [(origin, name) for origin in origins]
        return name

    def name(self, node: torch.fx.Node) -> str:
        """Return the name of the weight of a node, without its last part, or the node's own."""
        weights = [n.name for n in node.all_input_nodes if n.name.endswith("_weight")]
        return weights[0].removesuffix("_weight") if weights else node.name

    def refusal(self, node: torch.fx.Node, reason: str) -> UnsupportedError:
        """Return the error about a node."""
        where = node.meta.get("where")
        return UnsupportedError(
            f"The network cannot be written as a NIR graph: {reason}.",
            code="unsupported.nir",
            location=where if isinstance(where, Location) else None,
            hints=["Export it with snncc.export, or leave that part out of the model."],
        )


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _array(value: Tensor) -> Any:
    return value.detach().cpu().numpy()


def _shape(value: Tensor) -> Any:
    """Return the shape of one sample of one step."""
    return numpy.array(value.shape[2:])


def _pair(value: Any) -> Any:
    return numpy.array(value if isinstance(value, tuple) else (value, value))
