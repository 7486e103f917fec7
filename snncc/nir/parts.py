"""A NIR graph while it is written: its nodes, and which of them each value is the sum of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.ir import sequence_ops
from snncc.ir.nodes import Recurrence
from snncc.nir.neurons import InexpressibleError, neuron_node
from snncc.source import Location


class Parts:
    """The nodes and arrows of a graph that is being written, and what writes one operator.

    The nodes of a sequence graph, and those of the bodies of its loops, are what is written; a node
    of a body stands for a sequence of one step.

    Attributes:
        values: The value of each node.
        origins: For each node whose value depends on the input the NIR nodes that it is the sum of.
        axes: For each such node where its time axis is; 0 from the first neuron on.
        nodes, edges: What is written.
        delayed: The arrows that arrive one step later.
        rules: What writes an operator, by the operator.
    """

    def __init__(self, dt: float) -> None:
        self.dt = dt
        self.values: dict[torch.fx.Node, Any] = {}
        self.origins: dict[torch.fx.Node, tuple[str, ...]] = {}
        self.axes: dict[torch.fx.Node, int] = {}
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.delayed: set[tuple[str, str]] = set()
        self.rules: dict[Any, Callable[[torch.fx.Node, Any], None]] = {
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
        made.input_type = {"input": shape_of(args[0])}
        made.output_type = {"output": shape_of(self.values[node])}
        self.place(node, self.name(node), made)

    def flatten(self, node: torch.fx.Node, args: Any) -> None:
        """Axes merged; NIR counts them without time and batch."""
        import nir

        x, first, last = args
        if first < 2:
            raise self.refusal(node, "NIR has no node that mixes samples or steps")
        kind = {"input": shape_of(x)}
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


def name_of(target: Any) -> str:
    """Return the name of an operator."""
    return str(getattr(target, "__name__", target))


def _array(value: Tensor) -> Any:
    return value.detach().cpu().numpy()


def shape_of(value: Tensor) -> Any:
    """Return the shape of one sample of one step."""
    return numpy.array(value.shape[2:])


def _pair(value: Any) -> Any:
    return numpy.array(value if isinstance(value, tuple) else (value, value))
