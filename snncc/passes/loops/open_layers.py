"""Open recurrent layers of torch, ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``, into loops over time.

Before, a layer is one call that takes a whole sequence.  After, each of its layers is a time loop
around the operators of torch's cell (`frontend.operators.cells`), whose states begin with the
``h_0`` and ``c_0`` that the call was given::

    y, (h_n, c_n) = lstm(x, (h_0, c_0))    ->    for t:  h, c = cell(x[t], (h, c));  y[t] = h

Precondition: one direction, a batch of samples of one length, no dropout between its layers.
Numerics: reassociated; torch's call adds up products of a step and rounds maths functions in
another order than its cells do.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from snncc.frontend.operators.cells import CELLS
from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import Trip
from snncc.passes.base import Rejection
from snncc.passes.loops.builder import LoopBuilder
from snncc.passes.neurons import copy_graph

Node = torch.fx.Node

LAYERS: Mapping[Any, str] = {
    torch.lstm: "lstm_cell",
    torch.gru: "gru_cell",
    torch.rnn_tanh: "rnn_tanh_cell",
    torch.rnn_relu: "rnn_relu_cell",
}


@dataclass(frozen=True, slots=True)
class OpenLayers:
    """Replace every call of a recurrent layer by time loops."""

    name = "open-layers"
    numerics = Numerics.REASSOCIATED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the graph with loops, the same where it has no recurrent layer."""
        if not has_layers(graph):
            return graph
        result = copy_graph(graph)
        for node in [n for n in result.nodes if n.target in LAYERS]:
            reason = _reason(node)
            if reason is not None:
                return Rejection("recurrent-layer", reason, node.meta.get("where"))
            with result.inserting_before(node):
                _Opened(result, node).replace()
        result.eliminate_dead_code()
        result.lint()
        return result


def has_layers(graph: torch.fx.Graph) -> bool:
    """Tell whether a graph calls a recurrent layer of torch."""
    return any(node.op == "call_function" and node.target in LAYERS for node in graph.nodes)


def _reason(node: Node) -> str | None:
    """Return why a call cannot be taken apart."""
    name = node.target.__name__  # type: ignore[union-attr]
    if node.kwargs or not isinstance(node.args[3], bool):
        return f"'{name}' takes a packed sequence, whose samples have lengths of their own"
    _, _, _, _, layers, dropout, is_training, is_bidirectional, _ = node.args
    if is_bidirectional:
        return f"'{name}' is bidirectional: it reads the sequence from its end as well"
    if dropout and is_training and layers != 1:
        return f"'{name}' drops values between its layers, by a mask for all steps"
    return None


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of a body: its node, and a tensor of its size and type without memory."""

    node: Node
    like: Tensor

    @property
    def shape(self) -> torch.Size:
        """The size, for the operators of a cell."""
        return self.like.shape


class _Opened:
    """Writes the loops of one call in front of it."""

    def __init__(self, graph: torch.fx.Graph, call: Node) -> None:
        self.graph = graph
        self.call = call
        args: Any = call.args
        self.x, starts, parameters, _, self.layers, *_, is_batch_first = args
        self.starts: tuple[Node, ...] = starts if call.target is torch.lstm else (starts,)
        each = len(parameters) // self.layers
        self.parameters = [parameters[i : i + each] for i in range(0, len(parameters), each)]
        self.has_biases: bool = args[3]
        self.time = 1 if is_batch_first else 0
        kept = {k: v for k, v in call.meta.items() if k in ("where", "path", "grad")}
        self.meta: dict[str, Any] = {**kept, "impure": False}
        self.dtype = self.parameters[0][0].meta["dtype"]
        self.steps, self.batch = self.sizes()

    def sizes(self) -> tuple[int, int]:
        """Return the numbers of steps and of samples that were recorded."""
        for use in self.call.users:
            shape = use.meta["shape"]
            if use.args[1] == 0:
                return shape[self.time], shape[1 - self.time]
            samples = shape[1]
        return 1, samples  # the sequence of outputs is not read

    def replace(self) -> None:
        """Write the loops, and let them take the place of the call."""
        outputs, time, ends = self.x, self.time, []
        for layer in range(self.layers):
            outputs, *last = self.loop(layer, outputs, time)
            time = 0
            ends.append(last)
        if self.time:
            outputs = self.emit(torch.transpose, outputs, 0, 1, like=self.used(0))
        results = [outputs]
        for i, each in enumerate(zip(*ends, strict=True), 1):
            results.append(self.emit(torch.stack, list(each), 0, like=self.used(i)))
        for use in list(self.call.users):
            use.replace_all_uses_with(results[use.args[1]])  # type: ignore[index]
            self.graph.erase_node(use)
        self.graph.erase_node(self.call)

    def used(self, position: int) -> Node:
        """Return what takes a result of the call; where nothing does, the call."""
        return next((use for use in self.call.users if use.args[1] == position), self.call)

    def emit(self, target: Any, *args: Any, like: Node | None = None, **meta: Any) -> Node:
        """Add a call to the graph."""
        node = self.graph.call_function(target, args)
        node.meta = {**self.meta, **meta} if like is None else dict(like.meta)
        return node

    def loop(self, layer: int, x: Node, time: int) -> list[Node]:
        """Write the loop of one layer; return its outputs, and what its states end with."""
        builder = LoopBuilder()
        body = _Body(builder, self.meta)
        parameters = self.parameters[layer]
        features = parameters[0].meta["shape"][1]
        now = body.value(builder.step("x_t", x, time), (self.batch, features), self.dtype)
        states = []
        rows, size = parameters[1].meta["shape"]
        for name, start, own in zip(("h", "c"), self.starts, (size, rows // 4), strict=False):
            shape = (self.batch, own)
            row = self.emit(torch.select, start, 0, layer, shape=shape, dtype=self.dtype)
            states.append(body.value(builder.carry(f"{name}_prev", row), shape, self.dtype))
        weights = [body.parameter(parameter) for parameter in parameters]
        ends = self.cell(body, now, states, weights)
        for state, end in zip(states, ends, strict=True):
            builder.set_update(state.node, end.node)
        stacked = builder.result(ends[0].node, stacked=True)
        positions = [stacked, *(builder.result(end.node, stacked=False) for end in ends)]
        trip = Trip(self.steps, builder.operand(x), time)
        loop = builder.build(f"{self.call.name}_l{layer}", trip, reverse=False)
        call = self.emit(loop, *builder.operands)
        shapes = [(self.steps, *ends[0].shape), *(tuple(end.shape) for end in ends)]
        return [
            self.emit(operator.getitem, call, at, shape=size, dtype=self.dtype)
            for at, size in zip(positions, shapes, strict=True)
        ]

    def cell(
        self, body: _Body, x: _Value, states: Sequence[_Value], weights: Sequence[_Value]
    ) -> list[_Value]:
        """Write one step; return what the states become."""
        count = 4 if self.has_biases else 2
        cell = CELLS[LAYERS[self.call.target]]
        state = tuple(states) if len(states) > 1 else states[0]
        biases = () if self.has_biases else (None, None)
        result = cell(body.do, x, state, *weights[:count], *biases)
        ends = [*result] if isinstance(result, tuple) else [result]
        if len(weights) > count:  # a projection of the state
            ends[0] = body.do(F.linear, ends[0], weights[count])
        return ends


@dataclass(frozen=True, slots=True)
class _Body:
    """Writes the operators of a cell into the body of a loop."""

    builder: LoopBuilder
    meta: Mapping[str, Any]

    def value(self, node: Node, shape: Sequence[int], dtype: torch.dtype) -> _Value:
        """Return a node of the body as a value of this size."""
        node.meta = {**self.meta, "shape": tuple(shape), "dtype": dtype}
        return _Value(node, torch.empty(tuple(shape), dtype=dtype, device="meta"))

    def parameter(self, node: Node) -> _Value:
        """Return the value of a weight."""
        own = self.builder.invariant(node.name, node)
        return self.value(own, node.meta["shape"], node.meta["dtype"])

    def do(self, target: Any, *args: Any) -> Any:
        """Write one operator; parts of the gates are slices, as capture has them."""
        if target is torch.chunk:
            x, count, dim = args
            size = x.shape[dim] // count
            return [self.do(torch.narrow, x, dim, i * size, size) for i in range(count)]
        if target is torch.narrow:
            x, dim, start, size = args
            target, args = (
                operator.getitem,
                (x, (*(slice(None),) * dim, slice(start, start + size))),
            )
        likes = [a.like if isinstance(a, _Value) else a for a in args]
        nodes = [a.node if isinstance(a, _Value) else a for a in args]
        like = target(*likes)
        return self.value(self.builder.emit(target, *nodes), like.shape, like.dtype)
