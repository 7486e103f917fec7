"""Take a Function with several results for several Functions with one result each.

    s, v = f(x)  with the gradient  b(x, ds, dv)
    s = f0(x)    with the gradient  b(x, ds, 0)
    v = f1(x)    with the gradient  b(x, 0, dv)

A kernel knows a rule for the gradient of one value, so a whole step in one Function becomes a
neuron.  The two are the same where the user's backward is linear in the cotangents, because
autograd adds up what the results contribute: b(x, ds, dv) = b(x, ds, 0) + b(x, 0, dv).  That is
read off its graph, and a part without its cotangent is left out rather than computed with zeros.

Precondition: no operator multiplies, compares or clips cotangents, and none is added to a value
that does not depend on one; nothing draws random numbers.

Numerics: bitwise; gradients are those of autograd up to the order of sums.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import cast
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import TimeLoop
from snncc.passes.neurons import copy_graph

# What is linear in its first argument, given the others.
_LINEAR = frozenset({torch.neg, cast, torch.sum, torch.Tensor.sum_to_size})


@dataclass(frozen=True, slots=True)
class SplitResults:
    """Replace Functions with several results, in time loops and outside of them."""

    name = "split-results"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph, the same where no Function is split."""
        loops = [n for n in graph.nodes if isinstance(n.target, TimeLoop)]
        bodies = {n: split(n.target.body) for n in loops}
        result = split(graph)
        if result is graph and all(body is n.target.body for n, body in bodies.items()):
            return graph
        result = copy_graph(result) if result is graph else result
        calls = [n for n in result.nodes if isinstance(n.target, TimeLoop)]
        for call, body in zip(calls, bodies.values(), strict=True):
            call.target = replace(call.target, body=body)
        return result


def split(graph: torch.fx.Graph) -> torch.fx.Graph:
    """Return a graph whose Functions with several results are Functions with one each."""
    parts = {node: parts_of(node) for node in graph.nodes}
    if not any(parts.values()):
        return graph
    result = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    result.output(result.graph_copy(graph, copies))
    for node, functions in parts.items():
        if functions:
            call = copies[node]
            for use in list(call.users):
                # The node of a result keeps its name, by which loops know it.
                use.target, use.args = functions[int(use.args[1])], call.args  # type: ignore[arg-type]
            result.erase_node(call)
    return result


def parts_of(node: torch.fx.Node) -> list[CustomGradient]:
    """Return a Function for each result of a call; none where it has one, or is not linear."""
    function = node.target
    if not isinstance(function, CustomGradient) or node.meta.get("impure"):
        return []
    results = function.forward.output_node().args[0]
    if not isinstance(results, tuple | list):
        return []
    whole = all(isinstance(result, torch.fx.Node) for result in results)
    if not whole or not all(_is_item(use, node, len(results)) for use in node.users):
        return []
    parts = [_part(function, position, len(results)) for position in range(len(results))]
    return [part for part in parts if part] if all(parts) else []


def _is_item(use: torch.fx.Node, node: torch.fx.Node, count: int) -> bool:
    """Tell whether a node takes one result of a call, and the call only once."""
    is_item = use.target is operator.getitem and use.args[0] is node
    return is_item and isinstance(use.args[1], int) and 0 <= use.args[1] < count


def _part(function: CustomGradient, position: int, count: int) -> CustomGradient | None:
    """Return the Function of one result, or None where the gradient is not linear."""
    forward = torch.fx.Graph()
    results: Any = forward.graph_copy(function.forward, {})
    forward.output(results[position])
    forward.eliminate_dead_code()
    is_constant = position in function.without_gradient
    backward = _Share(count, None if is_constant else position).of(function.backward)
    if backward is None:
        return None
    marked = (0,) if is_constant else ()
    return CustomGradient(f"{function.name}_{position}", forward, backward, marked)


@dataclass
class _Share:
    """Copies what one cotangent contributes to the results of a backward graph.

    Attributes:
        count: How many cotangents there are: the last placeholders.
        position: Which of them it is; None stands for none.
        copies: The copies of what depends on no cotangent.
        shares: The share in what depends on some; None is zero.
    """

    count: int
    position: int | None
    graph: torch.fx.Graph = field(default_factory=torch.fx.Graph)
    copies: dict[torch.fx.Node, torch.fx.Node] = field(default_factory=dict)
    shares: dict[torch.fx.Node, torch.fx.Node | None] = field(default_factory=dict)

    def of(self, backward: torch.fx.Graph) -> torch.fx.Graph | None:
        """Return the graph of the share, or None where the graph is not linear."""
        places = backward.find_nodes(op="placeholder")
        for place in places[: -self.count]:
            self.copies[place] = self.graph.node_copy(place)
        cotangents = places[-self.count :]
        self.shares = dict.fromkeys(cotangents)
        own = self.graph.node_copy(cotangents[self.position or 0])
        if self.position is not None:
            self.shares[cotangents[self.position]] = own
        for node in backward.nodes:
            if node.op == "call_function" and not self.add(node):
                return None
        wanted: Any = backward.output_node().args[0]
        if any(node in self.copies for node in wanted if node is not None):
            return None
        shares = tuple(None if node is None else self.shares[node] for node in wanted)
        self.graph.output(shares)
        self.graph.eliminate_dead_code()
        return self.graph

    def add(self, node: torch.fx.Node) -> bool:
        """Copy a node, or its share; tell whether it is linear."""
        if not any(operand in self.shares for operand in node.all_input_nodes):
            self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
            return True
        if node.kwargs:
            return False
        if node.target in (torch.add, torch.sub):
            return self.add_sum(node)
        # Every other operator is linear in one operand.
        places = [i for i, value in enumerate(node.args) if value in self.shares]
        if not _is_linear(node.target, places):
            return False
        self.shares[node] = self.copy(node, self.terms(node))
        return True

    def add_sum(self, node: torch.fx.Node) -> bool:
        """Add the share of a sum, which has no more terms than the sum."""
        shape = node.meta.get("shape")
        if not all(
            value in self.shares and isinstance(value, torch.fx.Node) and _shape(value) == shape
            for value in node.args
        ):
            return False
        left, right = (self.shares[value] for value in node.args)  # type: ignore[index]
        if left is not None and right is not None:
            self.shares[node] = self.copy(node, (left, right))
        elif right is not None and node.target is torch.sub:
            self.shares[node] = self.graph.call_function(torch.neg, (right,))
            self.shares[node].meta = dict(node.meta)  # type: ignore[union-attr]
        else:
            self.shares[node] = right if left is None else left
        return True

    def terms(self, node: torch.fx.Node) -> tuple[Any, ...] | None:
        """Return the operands of a share, or None where it is zero."""
        found: list[Any] = []
        for value in node.args:
            if isinstance(value, torch.fx.Node) and value in self.shares:
                if self.shares[value] is None:
                    return None
                found.append(self.shares[value])
            else:
                found.append(torch.fx.node.map_arg(value, self.copies.__getitem__))
        return tuple(found)

    def copy(self, node: torch.fx.Node, args: tuple[Any, ...] | None) -> torch.fx.Node | None:
        """Return a node like another, on other operands."""
        if args is None:
            return None
        result = self.graph.call_function(node.target, args)  # type: ignore[arg-type]
        result.meta = dict(node.meta)
        return result


def _is_linear(target: Any, places: list[int]) -> bool:
    """Tell whether an operator is linear in its operands at some places, given the others."""
    if target is torch.mul:
        return len(places) == 1
    return (target is torch.div or target in _LINEAR) and places == [0]


def _shape(node: torch.fx.Node) -> Any:
    return node.meta.get("shape")
