"""Torch calls as scalar expressions: operators, and functions that have a gradient of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.fx

from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.nodes import Const, Expr
from snncc.passes.base import Rejection
from snncc.passes.scalars.scalar_ops import SCALAR_OPS, Scope

Operands = tuple[list[Any], dict[str, Any]]


def literal(value: Any) -> Any:
    """Return a number as a constant of the IR; anything else as it is."""
    return Const(value) if isinstance(value, bool | int | float) else value


def operands(
    args: Iterable[Any], kwargs: Mapping[str, Any], read: Callable[[Any], Any]
) -> Operands:
    """Return the arguments of an elementwise operator as expressions.

    Args:
        args: The arguments; what is no operand, such as a type, ``read`` leaves as it is.
        kwargs: The named ones, of which ``alpha`` is a number that the rules look at.
        read: Returns an argument as an expression.
    """
    return [read(a) for a in args], {k: v if k == "alpha" else read(v) for k, v in kwargs.items()}


def expression_of(
    target: Any, scope: Scope, args: Iterable[Any], kwargs: Mapping[str, Any]
) -> Expr | Rejection:
    """Return what a call computes, its forward graph where the gradient is the user's own.

    Args:
        target: An elementwise operator, or a function of elementwise operators.
        scope: Tells which expressions are bools.
        args: As from `operands`.
        kwargs: As from `operands`.
    """
    if isinstance(target, CustomGradient):
        return _inlined(target, scope, args)
    if target not in SCALAR_OPS:
        return Rejection("operator", f"'{getattr(target, '__name__', target)}' is not elementwise")
    return SCALAR_OPS[target](scope, *args, **kwargs)


def _inlined(function: CustomGradient, scope: Scope, args: Iterable[Any]) -> Expr | Rejection:
    places = [n for n in function.forward.nodes if n.op == "placeholder"]
    values: dict[torch.fx.Node, Any] = dict(zip(places, args, strict=True))

    def read(argument: Any) -> Any:
        return values[argument] if isinstance(argument, torch.fx.Node) else literal(argument)

    for node in function.forward.nodes:
        if node.op != "call_function":
            continue
        expr = expression_of(node.target, scope, *operands(node.args, node.kwargs, read))
        if isinstance(expr, Rejection):
            return Rejection(expr.code, f"in '{function.name}', {expr.reason}")
        values[node] = expr
    result: Any = function.forward.output_node().args[0]
    if isinstance(result, tuple | list):
        return Rejection("results", f"'{function.name}' has several results")
    inlined: Expr = read(result)
    return inlined
