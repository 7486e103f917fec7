"""Sigmoids in place of thresholds, as the published schedule of fixed-point sweeps has them.

Before::

    s = float(h >= threshold)                              and the surrogate of the user

After, with a steepness that grows from sweep to sweep::

    s = sigmoid(steepness (h - threshold))                 ds/dh = b p (1 - p)
                                                           p = sigmoid(b (h - threshold))

The derivative has a steepness of its own: ``b = max(1, steepness / 3)`` as published.  The last
sweep keeps the threshold, or draws its spikes from the sigmoid, with the derivative of the
sigmoid in both cases::

    s = float(uniform < sigmoid(steepness (h - threshold)))

Numerics: substituted.
Source: FPT, arXiv 2506.12087.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from snncc.ir.nodes import (
    Binary,
    Const,
    Expr,
    Let,
    Op,
    Recurrence,
    Select,
    Surrogate,
    Unary,
    Var,
)
from snncc.passes.base import Rejection

ZERO, ONE = Const(0.0), Const(1.0)


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """What stands for the thresholds of one sweep.

    Attributes:
        steepness: Of the sigmoid.
        slope: Steepness of its derivative.
        is_last: Whether its spikes are those of the neuron, and so are zero or one.
        uniforms: For each cut let the input that its spikes are drawn with, where they are drawn.
    """

    steepness: float
    slope: float
    is_last: bool
    uniforms: Mapping[str, str]

    def value(self, let: Let, distance: Var) -> Expr:
        """Return the spike of a cut let, given its distance from the threshold."""
        soft = Unary(Op.SIGMOID, Binary(Op.MUL, distance, Const(self.steepness)))
        if not self.is_last:
            return soft
        if let.name in self.uniforms:
            return Unary(Op.FLOAT, Binary(Op.LT, Var(self.uniforms[let.name]), soft))
        return let.expr


def soften_thresholds(
    forward: Recurrence, cuts: Sequence[str], sigmoid: Sigmoid
) -> tuple[Let, ...] | Rejection:
    """Return the lets with sigmoids for thresholds, or spikes with a sigmoid's gradient."""
    lets: list[Let] = []
    for let in forward.lets:
        if let.name not in cuts:
            lets.append(let)
            continue
        distance = _distance(let.expr)
        if distance is None:
            return Rejection(
                "soft-threshold",
                f"'{let.name}' is no spike of height one that a sigmoid could stand for",
                let.where,
            )
        argument = f"{let.name}_distance"
        lets.append(Let(argument, distance, where=let.where))
        rule = _sigmoid_rule(let.name, argument, sigmoid.slope)
        lets.append(replace(let, expr=sigmoid.value(let, Var(argument)), surrogate=rule))
    return tuple(lets)


def _distance(expr: Expr) -> Expr | None:
    """Return what a spike compares with zero; None for what is no spike of height one."""
    match expr:
        case Unary(Op.FLOAT, Binary(Op.GE | Op.GT, lhs, rhs)):
            return lhs if rhs == ZERO else Binary(Op.SUB, lhs, rhs)
        case Unary(Op.FLOAT, Binary(Op.LE | Op.LT, lhs, rhs)):
            return rhs if lhs == ZERO else Binary(Op.SUB, rhs, lhs)
        case Select(Binary() as condition, Const(1.0), Const(0.0)):
            return _distance(Unary(Op.FLOAT, condition))
        case _:
            return None


def _sigmoid_rule(name: str, argument: str, slope: float) -> Surrogate:
    cotangent = f"g_{name}_soft"
    value = Unary(Op.SIGMOID, Binary(Op.MUL, Var(argument), Const(slope)))
    derivative = Binary(Op.MUL, Binary(Op.MUL, Const(slope), value), Binary(Op.SUB, ONE, value))
    result = Binary(Op.MUL, Var(cotangent), derivative)
    return Surrogate("sigmoid", cotangent, (argument,), (), (result,))
