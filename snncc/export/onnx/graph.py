"""An ONNX graph under construction: nodes, constants, names, and the graphs inside of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from snncc.ir.names import fresh_name

OPSET = 20
IR_VERSION = 9
TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.bool: TensorProto.BOOL,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.uint8: TensorProto.UINT8,
}
# What models are made of; a reader refuses everything else.
OPERATORS = frozenset(
    {
        *("Abs", "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Concat"),
        *("Conv", "Cos", "Div", "Equal", "Exp", "Expand", "Floor", "Gather", "Gemm", "Greater"),
        *("GreaterOrEqual", "Identity", "If", "LayerNormalization", "Less", "LessOrEqual", "Log"),
        *("LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Or", "Pow"),
        *("ArgMax", "ArgMin", "CumSum", "Einsum", "Gelu", "Pad", "Softplus"),
        *("Range", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape"),
        *("Round", "Scan", "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Sqrt"),
        *("Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where", "Xor"),
    }
)


class GraphWriter:
    """Nodes in order; constants and names are those of the outermost graph."""

    def __init__(self, parent: GraphWriter | None = None) -> None:
        self.root: GraphWriter = self if parent is None else parent.root
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._taken: set[str] = set()

    def inner(self) -> GraphWriter:
        """Return an empty graph that may read what this one computes."""
        return GraphWriter(self)

    def fresh(self, wish: str) -> str:
        """Return the wish, or the wish with a number, and take it."""
        return fresh_name(wish, self.root._taken)

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one result and return the name of that."""
        return self.nodes_of(operator, inputs, 1, name=name, **attributes)[0]

    def nodes_of(
        self,
        operator: str,
        inputs: Sequence[str],
        results: int,
        name: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node and return the names of its results."""
        assert operator in OPERATORS, operator
        names = [self.fresh(name or operator.lower()) for _ in range(results)]
        own = self.fresh(f"{operator}/{names[0]}")
        self.nodes.append(helper.make_node(operator, inputs, names, name=own, **attributes))
        return names

    def constant(self, values: Tensor, name: str = "constant") -> str:
        """Return the name of a constant; small equal ones are one."""
        array = values.detach().cpu().contiguous().numpy()
        if array.size > 16:
            return self.root.weight(array, name)
        key = (str(array.dtype), array.shape, array.tobytes())
        known = self.root._names
        if key not in known:
            known[key] = self.root.weight(array, name)
        return known[key]

    def weight(self, array: numpy.ndarray[Any, Any], name: str) -> str:
        """Add a constant under a name of its own."""
        unique = self.fresh(name)
        self.constants[unique] = numpy_helper.from_array(array, unique)
        return unique

    def integers(self, values: Iterable[int]) -> str:
        """Return the name of a constant list of integers."""
        numbers = tuple(values)
        name = f"ints_{'_'.join(map(str, numbers))}".replace("-", "m")
        return self.constant(torch.tensor(numbers, dtype=torch.int64).reshape(-1), name)

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """Convert to a type."""
        return self.node("Cast", name, to=TYPES[dtype])

    def finish(self, outputs: Iterable[str]) -> list[onnx.NodeProto]:
        """Return the nodes that outputs depend on, and forget all other constants."""
        live, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if live.intersection(node.output):
                live |= set(names_read(node))
                nodes.append(node)
        if self.root is self:
            self.constants = {n: c for n, c in self.constants.items() if n in live}
        return nodes[::-1]


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield every name that a node reads, in the graphs inside of it too."""
    yield from node.input
    for graph in subgraphs(node):
        yield from (value.name for value in graph.output)
        for each in graph.node:
            yield from names_read(each)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that are attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def plain_name(name: str) -> str:
    """Return a name of a value without characters that mean something to runtimes."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name) or "x"
