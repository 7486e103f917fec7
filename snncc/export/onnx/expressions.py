"""Scalar expressions as elementwise ONNX nodes, each operation rounded once and in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, assert_never

import torch
from onnx import TensorProto

from snncc.export.onnx.graph import GraphWriter
from snncc.ir.nodes import Binary, Const, Detach, Expr, Let, Op, Select, Unary, Var

Shapes: TypeAlias = tuple[tuple[int, ...], ...]

_SAME = {
    Op.NEG: "Neg",
    Op.ABS: "Abs",
    Op.SIGN: "Sign",
    Op.EXP: "Exp",
    Op.LOG: "Log",
    Op.SQRT: "Sqrt",
    Op.SIGMOID: "Sigmoid",
    Op.TANH: "Tanh",
    Op.SIN: "Sin",
    Op.COS: "Cos",
    Op.FLOOR: "Floor",
    Op.CEIL: "Ceil",
    Op.ROUND: "Round",
    Op.ADD: "Add",
    Op.SUB: "Sub",
    Op.MUL: "Mul",
    Op.DIV: "Div",
    Op.POW: "Pow",
    Op.MIN: "Min",
    Op.MAX: "Max",
}
_BOOL = {
    Op.NOT: "Not",
    Op.LT: "Less",
    Op.LE: "LessOrEqual",
    Op.GT: "Greater",
    Op.GE: "GreaterOrEqual",
    Op.EQ: "Equal",
    Op.AND: "And",
    Op.OR: "Or",
    Op.XOR: "Xor",
}


@dataclass(frozen=True, slots=True)
class Term:
    """A value in a graph: its name, its shape for each of the sample sizes, its type."""

    name: str
    shapes: Shapes
    is_bool: bool = False


class Lanes:
    """Writes expressions of named values; all floats are of one type."""

    def __init__(
        self, graph: GraphWriter, dtype: torch.dtype, terms: Mapping[str, Term], count: int
    ) -> None:
        self.graph, self.dtype, self.terms = graph, dtype, dict(terms)
        self.scalar: Shapes = ((),) * count

    def add(self, lets: Iterable[Let], prefix: str = "") -> None:
        """Write lets in order; later expressions can read them."""
        for let in lets:
            self.terms[let.name] = self.write(let.expr, f"{prefix}{let.name}")

    def write(self, expr: Expr, name: str = "") -> Term:
        """Write an expression; ``name`` is what its result is called, where it is a node."""
        match expr:
            case Const(bool(value)):
                constant = self.graph.constant(torch.tensor(value), str(value).lower())
                return Term(constant, self.scalar, is_bool=True)
            case Const(value):
                number = torch.tensor(value, dtype=self.dtype)
                return Term(self.graph.constant(number, f"number_{value:g}"), self.scalar)
            case Var(read):
                return self.terms[read]
            case Unary(op, arg):
                return self.unary(op, self.write(arg), name)
            case Binary(op, lhs, rhs):
                return self.binary(op, self.write(lhs), self.write(rhs), name)
            case Select(condition, if_true, if_false):
                return self.select(
                    self.write(condition), self.write(if_true), self.write(if_false), name
                )
            case Detach(arg):
                return self.write(arg, name)
            case _:
                assert_never(expr)

    def unary(self, op: Op, arg: Term, name: str) -> Term:
        """Write an operation of one value."""
        if op is Op.FLOAT:
            if not arg.is_bool:
                return arg
            return Term(self.graph.cast(arg.name, self.dtype), arg.shapes)
        if op in _COMPOSED:
            return _COMPOSED[op](self, arg)
        return self.node(_SAME.get(op) or _BOOL[op], arg, name=name, is_bool=op in _BOOL)

    def binary(self, op: Op, lhs: Term, rhs: Term, name: str) -> Term:
        """Write an operation of two values."""
        if op is Op.NE and lhs.is_bool:
            return self.node("Xor", lhs, rhs, name=name, is_bool=True)
        if op is Op.NE:
            return self.node("Not", self.binary(Op.EQ, lhs, rhs, ""), name=name, is_bool=True)
        return self.node(_SAME.get(op) or _BOOL[op], lhs, rhs, name=name, is_bool=op in _BOOL)

    def select(self, condition: Term, if_true: Term, if_false: Term, name: str) -> Term:
        """Write a select; of bools by logic, since runtimes have no ``Where`` of them."""
        if not if_true.is_bool:
            return self.node("Where", condition, if_true, if_false, name=name)
        otherwise = self.node("Not", condition, is_bool=True)
        parts = ((condition, if_true), (otherwise, if_false))
        arms = (self.node("And", a, b, is_bool=True) for a, b in parts)
        return self.node("Or", *arms, name=name, is_bool=True)

    def node(self, operator: str, *args: Term, name: str = "", is_bool: bool = False) -> Term:
        """Add a node of elementwise arguments."""
        result = self.graph.node(operator, *(a.name for a in args), name=name)
        shapes = tuple(
            tuple(torch.broadcast_shapes(*each))  # type: ignore[no-untyped-call]
            for each in zip(*(a.shapes for a in args), strict=True)
        )
        return Term(result, shapes, is_bool)


def _expm1(lanes: Lanes, x: Term) -> Term:
    """Write exp(x) - 1: near 0 as 2 t / (1 - t) with t = tanh(x / 2), which loses no digits."""
    one, two = lanes.write(Const(1.0)), lanes.write(Const(2.0))
    t = lanes.node("Tanh", lanes.node("Div", x, two))
    near = lanes.node("Div", lanes.node("Mul", two, t), lanes.node("Sub", one, t))
    far = lanes.node("Sub", lanes.node("Exp", x), one)
    is_near = lanes.node("Less", lanes.node("Abs", x), one, is_bool=True)
    return lanes.node("Where", is_near, near, far)


def _log1p(lanes: Lanes, x: Term) -> Term:
    """Write log(1 + x) as log(u) x / (u - 1) with u = 1 + x rounded, and x where u is 1.

    Source: Goldberg 1991, "What every computer scientist should know about floating-point
    arithmetic", theorem 4.
    """
    one = lanes.write(Const(1.0))
    u = lanes.node("Add", one, x)
    step = lanes.node("Sub", u, one)
    log = lanes.node("Log", u)
    exact = lanes.node("Div", lanes.node("Mul", log, x), step)
    # At infinity the quotient is NaN, and the logarithm right.
    is_infinite = lanes.node("Equal", u, x, is_bool=True)
    far = lanes.node("Where", is_infinite, log, exact)
    is_zero = lanes.node("Equal", step, lanes.write(Const(0.0)), is_bool=True)
    return lanes.node("Where", is_zero, x, far)


def _log_sigmoid(lanes: Lanes, x: Term) -> Term:
    """Write log(sigmoid(x)) as min(x, 0) - log(1 + exp(-|x|))."""
    tail = _log1p(lanes, lanes.node("Exp", lanes.node("Neg", lanes.node("Abs", x))))
    return lanes.node("Sub", lanes.node("Min", x, lanes.write(Const(0.0))), tail)


def _rounded(half: int) -> Callable[[Lanes, Term], Term]:
    """Return the writer of a rounding to a half type."""

    def write(lanes: Lanes, x: Term) -> Term:
        narrow = lanes.graph.node("Cast", x.name, to=half)
        return Term(lanes.graph.cast(narrow, lanes.dtype), x.shapes)

    return write


_COMPOSED: Mapping[Op, Callable[[Lanes, Term], Term]] = {
    Op.FLOAT16: _rounded(TensorProto.FLOAT16),
    Op.BFLOAT16: _rounded(TensorProto.BFLOAT16),
    Op.EXPM1: _expm1,
    Op.LOG1P: _log1p,
    Op.LOGSIGMOID: _log_sigmoid,
}
