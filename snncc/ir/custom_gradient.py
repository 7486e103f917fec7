"""A pure function with the user's own gradient: a surrogate spike, or any torch.autograd.Function.

A `CustomGradient` is the target of a ``call_function`` node.  Its two graphs are in canonical
operators (`snncc.ir.tape`).  Two of them are equal where they are of the same name and the same
graphs, so the calls of all time steps have equal targets.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.ir.layouts import arranged


@dataclass(eq=False)
class CustomGradient:
    """A function of tensors with a gradient of its own.

    Attributes:
        name: Name of the user's Function.
        forward: Maps the arguments to the output, a node or a tuple of nodes.
        backward: Maps the arguments, then one cotangent for each output, to a tuple: for each
            argument its gradient or None.  It computes again what it needs of the forward pass.
        without_gradient: Positions of outputs that are not differentiable.
    """

    name: str
    forward: torch.fx.Graph
    backward: torch.fx.Graph
    without_gradient: tuple[int, ...] = ()

    @property
    def __name__(self) -> str:
        return self.name

    @functools.cached_property
    def key(self) -> str:
        """Text that two equal functions share."""
        parts = (self.name, describe(self.forward), describe(self.backward), self.without_gradient)
        return "\n".join(map(str, parts))

    @functools.cached_property
    def lane_backward(self) -> torch.fx.Graph:
        """The backward of one lane: without the sums that gradients of broadcast arguments end in.

        The gradient of an argument that is smaller than the output is the sum of what each element
        of the output contributes; a kernel, which computes the contributions, takes that sum.
        """
        graph = torch.fx.Graph()
        copies: dict[torch.fx.Node, torch.fx.Node] = {}
        results = graph.graph_copy(self.backward, copies)
        places = self.backward.find_nodes(op="placeholder")
        whole = places[-1].meta.get("shape")
        wanted = self.backward.output_node().args[0]
        assert isinstance(results, tuple)
        assert isinstance(wanted, tuple)
        kept = [
            copies[_summand(node, place.meta.get("shape"), whole)]
            if isinstance(node, torch.fx.Node)
            else result
            for node, place, result in zip(wanted, places, results, strict=False)
        ]
        graph.output(tuple(kept))
        graph.eliminate_dead_code()
        return graph

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CustomGradient) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.name

    def __call__(self, *args: Tensor) -> Any:
        """Run the forward graph; gradients of the result run the backward graph."""
        apply: Any = _Apply.apply
        return apply(self, *args)


def _summand(node: torch.fx.Node, shape: Any, whole: Any) -> torch.fx.Node:
    """Return what a gradient is the sum of, over the axes of the output that its argument lacks.

    Args:
        node: The gradient.
        shape: The shape of its argument.
        whole: The shape of the output.
    """
    term: Any = node
    while isinstance(term, torch.fx.Node) and _is_sum(term, shape, whole):
        term = term.args[0]
    is_whole = isinstance(term, torch.fx.Node) and term.meta.get("shape") == whole
    return term if is_whole else node


def _is_sum(node: torch.fx.Node, shape: Any, whole: Any) -> bool:
    """Tell whether a node sums over all axes that an argument of ``shape`` lacks, and no other."""
    if node.target is torch.Tensor.sum_to_size:
        return True
    if node.target is not torch.sum or node.kwargs or shape is None or whole is None:
        return False
    if len(node.args) == 1:
        return all(size == 1 for size in shape)
    dims: Any = node.args[1]
    leading = sorted((dims,) if isinstance(dims, int) else dims)
    is_leading = leading == list(range(len(leading)))
    return len(node.args) == 2 and is_leading and tuple(shape) == tuple(whole[len(leading) :])


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: CustomGradient, *args: Tensor) -> Any:
        ctx.function = function
        ctx.save_for_backward(*args)
        result = run_graph(function.forward, args)
        outputs = result if isinstance(result, tuple) else (result,)
        marked = [x for i, x in enumerate(outputs) if i in function.without_gradient]
        ctx.mark_non_differentiable(*marked)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gradients = run_graph(ctx.function.backward, (*ctx.saved_tensors, *grads))
        return (None, *gradients)


def run_graph(graph: torch.fx.Graph, values: Sequence[Any]) -> Any:
    """Run a graph of functions, node after node, on values for its placeholders.

    Values are dropped after their last use.
    """
    environment: dict[torch.fx.Node, Any] = {}
    given = iter(values)
    last: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in graph.nodes:
        for operand in node.all_input_nodes:
            last[operand] = node
    for node in graph.nodes:
        if node.op == "placeholder":
            environment[node] = next(given)
            continue
        args = torch.fx.node.map_arg(node.args, environment.__getitem__)
        if node.op == "output":
            return args[0]
        kwargs = torch.fx.node.map_arg(node.kwargs, environment.__getitem__)
        args = arranged(args, node.meta.get("layouts", {}))
        environment[node] = node.target(*args, **kwargs)
        for operand in node.all_input_nodes:
            if last[operand] is node:
                del environment[operand]
    return None


def describe(graph: torch.fx.Graph) -> str:
    """Return the text of a graph, the same for equal graphs: operators, operands and literals."""
    numbers: dict[torch.fx.Node, int] = {}
    lines = []
    for node in graph.nodes:
        args = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
        target = node.target
        if node.op == "placeholder":
            text = "placeholder"
        elif isinstance(target, CustomGradient):
            text = f"[{target.key}]"
        else:
            text = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"
        lines.append(f"{text}{args if node.op != 'placeholder' else ''}")
        numbers[node] = len(numbers)
    return "\n".join(lines)
