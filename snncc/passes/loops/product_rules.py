"""Matrix products and convolutions inside a recurrent loop: their gradients.

For ``y[t] = x[t] W`` with the same weight at every step::

    gx[t] = gy[t] W^T                      one product a step, in reverse time
    gW    = sum over t of x[t]^T gy[t]     one product over all [T * B] rows, after the loop

so the sum over time of the weight's gradient is taken inside of one product.

Numerics: gradients of autograd up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

from snncc.ir.adjoint_ops import (
    channels_sum,
    columns_product,
    convolution_input_gradient,
    convolution_weight_gradient,
    rows_product,
    rows_sum,
)
from snncc.ir.interpret import HALVES
from snncc.ir.time_loop import TimeLoop
from snncc.passes.hoisting.find_recurrences import FLOATS

Node = torch.fx.Node
Emit = Callable[..., Node]


@dataclass(frozen=True, slots=True)
class Product:
    """A product of a value of each step with weights that are the same at all steps.

    Attributes:
        node: The operator.
        x: What varies from step to step.
        weights: The matrix or filter, and the bias if there is one.
        input_gradient: ``(emit, g, x, weight)``: emits the gradient of ``x`` at one step.
        weight_gradients: ``(emit, g, x, weight)``: emits the gradient of each of the weights, from
            cotangents and inputs of all steps.
        reads_input: Whether ``input_gradient`` reads ``x``.
    """

    node: Node
    x: Node
    weights: tuple[Node, ...]
    input_gradient: Callable[[Emit, Node, Node | None, Node], Node]
    weight_gradients: Callable[[Emit, Node, Node, Node], list[Node]]
    reads_input: bool = False


def find_product(loop: TimeLoop, node: Node) -> Product | None:
    """Return a node of a loop's body as a product that has rules, or None."""
    rule = RULES.get(node.target)
    if rule is None or node.kwargs:
        return None
    product = rule(node)
    fixed = {i.name for i in loop.invariants}
    if product is None or product.x.name in fixed or not _floating(node, product.x):
        return None
    return product if all(weight.name in fixed for weight in product.weights) else None


def _floating(*nodes: Node) -> bool:
    return all(n.meta.get("dtype") in (*FLOATS, *HALVES) for n in nodes)


def _linear(node: Node) -> Product | None:
    x, *rest = node.args
    weights = tuple(w for w in rest if w is not None)
    multiply = torch.mm if len(node.meta["shape"]) == 2 else torch.matmul
    return _product(
        node,
        x,
        weights,
        lambda emit, g, _x, weight: emit(multiply, g, weight),
        lambda emit, g, x, _w: [emit(rows_product, g, x), emit(rows_sum, g)][: len(weights)],
    )


def _matmul(node: Node) -> Product | None:
    a, b = node.args
    if not isinstance(a, Node) or not isinstance(b, Node):
        return None
    rank_a, rank_b = len(a.meta["shape"]), len(b.meta["shape"])
    if rank_b == 2 and b.op == "placeholder":
        multiply = torch.mm if rank_a == 2 else torch.matmul
        return _product(
            node,
            a,
            (b,),
            lambda emit, g, _x, w: emit(multiply, g, emit(torch.transpose, w, 0, 1)),
            lambda emit, g, x, _w: [emit(rows_product, x, g)],
        )
    if rank_a == 2 and rank_b in (1, 2):
        apply = torch.mm if rank_b == 2 else torch.mv
        outer = columns_product if rank_b == 2 else rows_product
        return _product(
            node,
            b,
            (a,),
            lambda emit, g, _x, w: emit(apply, emit(torch.transpose, w, 0, 1), g),
            lambda emit, g, x, _w: [emit(outer, g, x)],
        )
    return None


def _convolution(node: Node) -> Product | None:
    x, weight, *rest = node.args
    options: list[Any] = [*rest, *(None, 1, 0, 1, 1)[len(rest) :]]
    bias, stride, padding, dilation, groups = options
    weights = (weight,) if bias is None else (weight, bias)
    rank = len(node.meta["shape"]) - 2
    batched = f"{rank}d" in getattr(node.target, "__name__", "")
    if not batched or isinstance(padding, str):
        return None
    sizes = tuple(_each(value, rank) for value in (stride, padding, dilation))
    return _product(
        node,
        x,
        weights,
        lambda emit, g, x, w: emit(convolution_input_gradient, g, x, w, *sizes, groups),
        lambda emit, g, x, w: [
            emit(convolution_weight_gradient, g, x, w, *sizes, groups),
            emit(channels_sum, g),
        ][: len(weights)],
        reads_input=True,
    )


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * rank


def _product(
    node: Node, x: Any, weights: tuple[Any, ...], *rules: Any, **more: Any
) -> Product | None:
    """Return the product, or None where an operand is no value of the body."""
    if all(isinstance(operand, Node) for operand in (x, *weights)):
        return Product(node, x, weights, *rules, **more)
    return None


Rule = Callable[[Node], Product | None]

RULES: dict[Any, Rule] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    **dict.fromkeys(
        (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), _convolution
    ),
}
