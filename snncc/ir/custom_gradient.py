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
