"""Fold a batch norm that only decides on spikes into a threshold of each channel (MPBN).

Before, with ``r = sqrt(var + eps)``::

    s = ((h - mean) gamma / r + beta >= theta)

After, with ``side = sign(gamma)``::

    s = (side h >= side ((theta - beta) r / gamma + mean))

so a negative scale turns the comparison round, and a scale of 0 leaves a constant.  The potential
``h`` is carried on without its norm, before and after.  ``NormThreshold`` finds both coefficients
from live parameters, the threshold as the very float from which on the user's comparison holds:
no spike moves, unless torch rounds the norm of a potential in another way than that of a
contiguous one, as it does for transposed axes.

A surrogate keeps its argument, the normalised potential: its norm stays in the graph for the
backward pass alone, and is folded as any other by the passes behind this one.

Precondition: evaluation mode; all that reads the norm compares it, or its sum or product with what
is the same at all steps and for all neurons of a channel; the potential depends on a state.
Numerics: reassociated; with contiguous potentials the spikes are those of torch's norm, bit by bit.
Source: MPBN, Guo et al. 2023 (the threshold for positive scales).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.norm_threshold import NormThreshold
from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import TimeLoop
from snncc.passes.folding.fold_membrane_norm import is_evaluation, membrane_norms, reached
from snncc.passes.hoisting.find_recurrences import pointwise
from snncc.passes.neurons import copy_graph

INTO_THRESHOLD = "its norm is folded into the threshold of each channel"

Node = torch.fx.Node
_COMPARISONS = (torch.ge, torch.gt, torch.le, torch.lt)
_MONOTONE = (torch.add, torch.sub, torch.mul, torch.div)
_TYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class FoldThresholdNorm:
    """Fold every norm of a potential that decides on spikes and does nothing else.

    Attributes:
        everywhere: Whether norms are folded that could stay outside of the loop, too.
    """

    everywhere: bool = False
    name = "fold-threshold-norm"
    numerics = Numerics.REASSOCIATED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with its time loops rewritten; the same where there is nothing."""
        if not any(self.deciding(n.target) for n in graph.nodes):
            return graph
        result = copy_graph(graph)
        for node in result.nodes:
            if self.deciding(node.target):
                node.target = self.fold(node.target)
        return result

    def deciding(self, loop: Any) -> list[_Deciding]:
        """Return the norms of a loop that are folded; none of what is no loop."""
        if not isinstance(loop, TimeLoop):
            return []
        fed_back = membrane_norms(loop)
        found: list[_Deciding] = []
        for node in loop.body.nodes:
            is_norm = node.target is F.batch_norm and is_evaluation(node)
            if is_norm and (node in fed_back or (self.everywhere and _is_of_potential(loop, node))):
                found += _deciding(loop, node)
        return found

    def fold(self, loop: TimeLoop) -> TimeLoop:
        """Return a loop whose comparisons are of potentials."""
        body = torch.fx.Graph()
        body.output(body.graph_copy(loop.body, {}))
        folded = replace(loop, body=body)
        for deciding in self.deciding(folded):
            _lift(deciding.norm, _fixed(folded))
            for end in deciding.ends:
                deciding.fold(end)
            if not deciding.norm.users:
                body.erase_node(deciding.norm)
        return folded


def _is_of_potential(loop: TimeLoop, norm: Node) -> bool:
    """Tell whether elementwise operators lead from a state to a norm."""
    carries = [n for n in loop.body.nodes if n.name in {c.name for c in loop.carries}]
    return norm in reached(
        carries, lambda n: [u for u in n.users if u is norm or pointwise(u) is None]
    )


def _deciding(loop: TimeLoop, norm: Node) -> Iterator[_Deciding]:
    """Yield a norm with what it decides on, if that is all that reads it."""
    args: Any = norm.args
    fixed = _fixed(loop)
    parameters = [p for p in args[1:5] if p is not None]
    types = {n.meta.get("dtype") for n in (norm, args[0], *parameters)}
    if not all(p in fixed for p in parameters) or len(types) > 1 or not types <= {*_TYPES}:
        return
    kept = {c.update for c in loop.carries} | {r.node for r in loop.results}
    found = _Deciding(loop.body, norm, [norm], [])
    for node in found.chain:  # which grows
        if node.name in kept:
            return
        for user in node.users:
            if found.is_end(user, fixed):
                found.ends += [user] if user not in found.ends else []
            elif found.is_monotone(user, fixed):
                found.chain.append(user)
            else:
                return
    yield found


def _lift(norm: Node, fixed: set[Node]) -> None:
    """Move what is the same at all steps in front of a norm."""
    nodes = list(norm.graph.nodes)
    for node in nodes[nodes.index(norm) :]:
        if node in fixed and node.op == "call_function":
            norm.prepend(node)


def _fixed(loop: TimeLoop) -> set[Node]:
    """Return what is the same at all steps."""
    known = {i.name for i in loop.invariants}
    fixed = {n for n in loop.body.nodes if n.op == "placeholder" and n.name in known}
    for node in loop.body.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and inputs and fixed.issuperset(inputs):
            fixed |= set() if node.meta.get("impure") else {node}
    return fixed


@dataclass(eq=False)
class _Deciding:
    """A norm, what is computed of it, and the comparisons or surrogates in which that ends."""

    body: torch.fx.Graph
    norm: Node
    chain: list[Node]
    ends: list[Node]

    def is_monotone(self, node: Node, fixed: set[Node]) -> bool:
        """Tell whether a node keeps or turns the order of its one argument in the chain."""
        args: Any = node.args
        others = [a for a in args if a not in self.chain]
        if node.target is torch.neg:
            return True
        if node.target not in _MONOTONE or node.kwargs or len(args) != 2 or len(others) != 1:
            return False
        is_divisor = node.target is torch.div and args[1] in self.chain
        return not is_divisor and self.is_of_channels(others[0], fixed)

    def is_of_channels(self, value: Any, fixed: set[Node]) -> bool:
        """Tell whether a value is a number, or one for each channel that is the same at all steps.

        Its type has to be that of the norm, so that no operand is converted.
        """
        if not isinstance(value, Node):
            return isinstance(value, int | float)
        shape, norm = value.meta.get("shape"), self.norm.meta
        if value not in fixed or shape is None or value.meta.get("dtype") is not norm["dtype"]:
            return False
        rank = len(norm["shape"])
        padded = (*(1,) * (rank - len(shape)), *shape)
        return len(padded) == rank and all(n == 1 for d, n in enumerate(padded) if d != 1)

    def is_end(self, node: Node, fixed: set[Node]) -> bool:
        """Tell whether a node decides by a comparison alone."""
        args: Any = node.args
        if node.target in _COMPARISONS:
            others = [a for a in args if a not in self.chain]
            return len(others) == 1 and self.is_of_channels(others[0], fixed)
        if not isinstance(node.target, CustomGradient) or node.kwargs:
            return False
        moving = [a for a in args if a in self.chain]
        return len(moving) == 1 and _comparison(node.target, args.index(moving[0])) is not None

    def fold(self, end: Node) -> None:
        """Let a comparison read the potential."""
        potential: Any = self.norm.args[0]
        with self.body.inserting_before(self.norm):
            parameters, graph = self.question(end)
            threshold = self.body.call_function(NormThreshold(graph), parameters)
            threshold.meta.update(where=self.norm.meta.get("where"), folded=INTO_THRESHOLD)
            side, level = (self.of_channels(threshold, i) for i in range(2))
            turned = self.emit(torch.mul, side, potential, shape=potential.meta["shape"])
        if isinstance(end.target, CustomGradient):
            end.args = (turned, level, *end.args)
            end.target = _deciding_by(end.target, end.args.index(self.read_by(end)) - 2)
        else:
            end.target, end.args = torch.ge, (turned, level)
        for node in reversed(self.chain[1:]):
            if not node.users:
                self.body.erase_node(node)

    def read_by(self, end: Node) -> Node:
        """Return what an end reads of the chain."""
        return next(n for n in end.all_input_nodes if n in self.chain)

    def question(self, end: Node) -> tuple[tuple[Node, ...], torch.fx.Graph]:
        """Return parameters, and a graph from values and these to what an end decides."""
        args: Any = self.norm.args
        graph = torch.fx.Graph()
        copies: dict[Node, Node] = {args[0]: graph.placeholder("values")}
        given: dict[Node, Node] = {}

        def read(value: Node) -> Node:
            if value not in copies:
                given[value] = self.flat(value)
                copies[value] = graph.placeholder(value.name)
            return copies[value]

        way = [self.read_by(end)]
        while way[-1] is not self.norm:
            way += [n for n in way[-1].all_input_nodes if n in self.chain]
        readers = way if isinstance(end.target, CustomGradient) else [end, *way]
        for value in (n for node in reversed(readers) for n in node.all_input_nodes):
            if value not in self.chain:
                read(value)
        for node in reversed(way):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(self.answer(end, graph, copies))
        return tuple(given.values()), graph

    def answer(self, end: Node, graph: torch.fx.Graph, copies: dict[Node, Node]) -> Node:
        """Add the comparison of an end."""
        if not isinstance(end.target, CustomGradient):
            return graph.node_copy(end, copies.__getitem__)
        position = end.args.index(self.read_by(end))
        comparison = _comparison(end.target, position)
        assert comparison is not None
        return graph.node_copy(comparison, lambda _: copies[self.read_by(end)])

    def flat(self, parameter: Node) -> Node:
        """Return a parameter as one number for each channel."""
        shape = parameter.meta["shape"]
        if len(shape) < 2:
            return parameter
        size = (max(shape),)
        return self.emit(torch.reshape, parameter, size, shape=size)

    def of_channels(self, threshold: Node, position: int) -> Node:
        """Return a part of a threshold such that it broadcasts against the potential."""
        args: Any = self.norm.args
        channels = args[1].meta["shape"]
        part = self.emit(operator.getitem, threshold, position, shape=channels)
        if len(self.norm.meta["shape"]) > 2:
            shape = (*channels, *(1,) * (len(self.norm.meta["shape"]) - 2))
            part = self.emit(torch.reshape, part, shape, shape=shape)
        part._rename(("side", "threshold")[position])
        return part

    def emit(self, target: Any, *args: Any, shape: tuple[int, ...]) -> Node:
        """Add an operator to the body."""
        node = self.body.call_function(target, args)
        node.meta.update(self.norm.meta, shape=tuple(shape), folded=INTO_THRESHOLD)
        return node


def _comparison(function: CustomGradient, position: int) -> Node | None:
    """Return the comparison with a number if nothing else in a forward graph reads an argument."""
    readers = [*function.forward.find_nodes(op="placeholder")[position].users]
    if len(readers) != 1 or readers[0].target not in _COMPARISONS or readers[0].kwargs:
        return None
    args: Any = readers[0].args
    return readers[0] if isinstance(args[1], int | float) else None


def _deciding_by(function: CustomGradient, position: int) -> CustomGradient:
    """Return a function that decides by its first two arguments, with the gradient as it was."""
    forward, backward = torch.fx.Graph(), torch.fx.Graph()
    turned, level = (forward.placeholder(name) for name in ("turned", "level"))
    comparison = _comparison(function, position)
    assert comparison is not None
    copies: dict[Node, Node] = {}
    for node in function.forward.nodes:
        if node is comparison:
            fires = forward.call_function(torch.ge, (turned, level))
            fires.meta.update(node.meta)
            copies[node] = fires
        elif node.op == "output":
            forward.output(torch.fx.node.map_arg(node.args[0], copies.__getitem__))
        else:
            copies[node] = forward.node_copy(node, copies.__getitem__)
    for name in ("turned", "level"):
        backward.placeholder(name)
    results = backward.graph_copy(function.backward, {})
    assert isinstance(results, tuple)
    backward.output((None, None, *results))
    return CustomGradient(function.name, forward, backward, function.without_gradient)
