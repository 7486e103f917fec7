"""From a graph of operators to ONNX nodes, one operator after the other.

Sizes are found by evaluating every operator on an example, once for each of some sample
sizes: what differs among them is dynamic, and is computed in the model.  What depends on parameters
alone is computed here, once, and becomes a constant.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.fx
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.export.onnx.expressions import Lanes, Shapes, Term
from snncc.export.onnx.graph import GraphWriter
from snncc.export.onnx.values import Value, known_value, map_values, values_in
from snncc.export.remedies import OTHER_OPERATORS, OUTSIDE
from snncc.ir.nodes import Binary, Const, Expr, Op, Unary, Var
from snncc.ir.walk import is_bool, subexpressions
from snncc.passes.base import Rejection
from snncc.passes.scalars.expressions import expression_of, literal, operands
from snncc.passes.scalars.scalar_ops import Scope

# Integers that a network may take and compute with.
INTEGERS = frozenset({torch.int64, torch.int32, torch.uint8})
# Operations on integers that give the integers that torch's give.
_WHOLE = frozenset(
    {
        *(Op.NEG, Op.ABS, Op.ADD, Op.SUB, Op.MUL, Op.MIN, Op.MAX, Op.NOT, Op.AND, Op.OR, Op.XOR),
        *(Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE, Op.FLOAT),
    }
)

# Writes one operator; gets the lowering, the operator, and its arguments.
Write: TypeAlias = Callable[["Lowering", Any, tuple[Any, ...], dict[str, Any]], Any]


class Lowering:
    """Writes the operators of one graph.

    Attributes:
        write: What writes an operator: `dispatch.write_operator`.
        graph: Where the nodes go.
        dtype: The type of all floats.
        count: How many sample sizes there are.
        one_step: Whether the time axis has size one and is left out where that is possible.
    """

    def __init__(
        self, write: Write, graph: GraphWriter, dtype: torch.dtype, count: int, *, one_step: bool
    ) -> None:
        self.write, self.graph, self.dtype = write, graph, dtype
        self.count, self.one_step = count, one_step
        self.node: torch.fx.Node | None = None

    def inside(self, graph: GraphWriter, *, one_step: bool = False) -> Lowering:
        """Return what writes a graph inside of this one."""
        child = Lowering(self.write, graph, self.dtype, self.count, one_step=one_step)
        child.node = self.node
        return child

    def run(self, graph: torch.fx.Graph, values: Mapping[torch.fx.Node, Any]) -> list[Any]:
        """Write a graph and return its outputs.

        Args:
            graph: The graph.
            values: What stands for its placeholders.
        """
        found = self.evaluate(graph, values)
        outputs: Any = graph.output_node().args[0]
        self.node = None
        return [found[n] if isinstance(n, torch.fx.Node) else None for n in outputs]

    def evaluate(
        self, graph: torch.fx.Graph, values: Mapping[torch.fx.Node, Any]
    ) -> dict[torch.fx.Node, Any]:
        """Write a graph and return what stands for each of its nodes."""
        found = dict(values)
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            self.node = node
            if node.meta.get("impure"):
                raise self.refusal("it draws random numbers or changes a buffer", OUTSIDE)
            args = torch.fx.node.map_arg(node.args, found.__getitem__)
            kwargs = torch.fx.node.map_arg(node.kwargs, found.__getitem__)
            found[node] = self.apply(node.target, tuple(args), dict(kwargs))
        return found

    def apply(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Write one operator and return what stands for its result.

        Raises:
            UnsupportedError: The operator has no form in ONNX.
        """
        kwargs = kwargs or {}
        found = values_in((args, kwargs))
        if all(v.known is not None for v in found):
            with torch.no_grad():
                real = target(*map_values(_known, args), **map_values(_known, kwargs))
            return self.wrapped(real)
        return self.write(self, target, args, kwargs)

    def sampled(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Evaluate an operator on examples, for each of the sample sizes."""
        found = []
        for k in range(self.count):
            take = operator.methodcaller("sample", k)
            with torch.no_grad():
                found.append(target(*map_values(take, args), **map_values(take, kwargs)))
        return tuple(found)

    def made(self, samples: tuple[Any, ...], result: Any) -> Any:
        """Return what stands for a result, given its name."""
        return Value(samples, result) if isinstance(result, str) else result

    def wrapped(self, real: Any) -> Any:
        """Return what stands for something that is known."""
        if isinstance(real, Tensor):
            label = self.node.name if self.node is not None else "constant"
            return known_value(real, self.count, label)
        return [self.wrapped(x) for x in real] if isinstance(real, tuple | list) else real

    def use(self, value: Any) -> str:
        """Return the name of a value in the graph."""
        if not isinstance(value, Value):
            dtype = torch.bool if isinstance(value, bool) else self.dtype
            return self.graph.constant(torch.tensor(value, dtype=dtype), f"number_{value}")
        if not value.name and value.known is not None:
            value.name = self.graph.constant(value.known, value.label or "constant")
        elif not value.name:
            value.name = self.graph.node("Unsqueeze", value.bare, self.graph.integers([0]))
        return value.name

    def name_of(self, value: Value) -> str:
        """Return the name of a tensor or an integer in the graph."""
        return value.name if value.is_number else self.use(value)

    def filled(self, value: Any, like: Value) -> Value:
        """Return a value, or a number, of the type and shape of another value."""
        term = self.term(value)
        if term.is_bool or like.dtype is not self.dtype:
            term = Term(self.graph.cast(term.name, like.dtype), term.shapes)
        return Value(like.samples, self.expanded(term, like.shapes, [like]))

    def number(self, value: Any) -> str:
        """Return the name of an integer in the graph."""
        if isinstance(value, Value):
            return value.name
        return self.graph.constant(torch.tensor(value, dtype=torch.int64), f"int_{value}")

    def without_first(self, value: Value) -> str:
        """Return the name of a value without its first axis, which is of size one."""
        if not value.bare:
            value.bare = self.graph.node("Squeeze", self.use(value), self.graph.integers([0]))
        return value.bare

    def term(self, value: Any) -> Term:
        """Return a value as an operand of elementwise arithmetic."""
        scalar: Shapes = ((),) * self.count
        if not isinstance(value, Value):
            return Term(self.use(value), scalar, isinstance(value, bool))
        if value.is_number:
            return Term(self.graph.cast(value.name, self.dtype), scalar)
        if value.dtype in INTEGERS:  # torch converts them where a float stands beside them
            return Term(self.graph.cast(self.use(value), self.dtype), value.shapes)
        if value.dtype not in (self.dtype, torch.bool):
            raise self.refusal(f"a value is of {value.dtype} beside {self.dtype}")
        return Term(self.use(value), value.shapes, value.dtype is torch.bool)

    def elementwise(
        self, samples: tuple[Any, ...], target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Value:
        """Write an elementwise operator, or the forward graph of a custom gradient."""
        inputs: dict[str, Any] = {}

        def read(argument: Any) -> Any:
            if isinstance(argument, Value):
                name = f"a{len(inputs)}"
                inputs[name] = argument
                return Var(name)
            return literal(argument)

        bare = self.one_step and _can_be_bare(samples, values_in((args, kwargs)))
        named = operands(args, kwargs, read)
        bools = frozenset(n for n, v in inputs.items() if not v.is_number and v.dtype is torch.bool)
        expr = expression_of(target, Scope(lambda e: is_bool(e, bools)), *named)
        if isinstance(expr, Rejection):
            raise self.refusal(expr.reason)
        if samples[0].dtype is torch.int64 or _compares_integers(expr, inputs.values()):
            return self.whole(samples, expr, inputs, values_in((args, kwargs)))
        terms = {n: self.bare_term(v) if bare else self.term(v) for n, v in inputs.items()}
        lanes = Lanes(self.graph, self.dtype, terms, self.count)
        assert self.node is not None
        result = Value(samples, label=self.node.name)
        wanted = tuple(s[1:] for s in result.shapes) if bare else result.shapes
        if result.dtype not in (self.dtype, torch.bool):
            raise self.refusal(f"it computes with {result.dtype}")
        term = lanes.write(expr, self.node.name)
        if term.is_bool is not (result.dtype is torch.bool):
            term = Term(self.graph.cast(term.name, result.dtype), term.shapes)
        name = self.expanded(term, wanted, [*terms.values(), *values_in((args, kwargs))])
        if bare:
            result.bare = name
        else:
            result.name = name
        return result

    def whole(
        self,
        samples: tuple[Any, ...],
        expr: Expr,
        inputs: Mapping[str, Value],
        sources: Sequence[Value],
    ) -> Value:
        """Write an expression on integers."""
        assert self.node is not None
        if not _is_whole(expr):
            raise self.refusal("it computes with integers other than by sums and products")
        terms = {name: self.whole_term(value) for name, value in inputs.items()}
        term = Lanes(self.graph, torch.int64, terms, self.count).write(expr, self.node.name)
        result = Value(samples, label=self.node.name)
        if term.is_bool is not (result.dtype is torch.bool):
            term = Term(self.graph.cast(term.name, result.dtype), term.shapes)
        result.name = self.expanded(term, result.shapes, [*terms.values(), *sources])
        return result

    def whole_term(self, value: Value) -> Term:
        """Return integers, or bools, as an operand of arithmetic on integers."""
        if value.is_number:
            return Term(value.name, ((),) * self.count)
        if value.dtype is torch.bool or value.dtype is torch.int64:
            return Term(self.use(value), value.shapes, value.dtype is torch.bool)
        if value.dtype not in INTEGERS:
            raise self.refusal(f"a value is of {value.dtype} beside integers")
        return Term(self.graph.cast(self.use(value), torch.int64), value.shapes)

    def bare_term(self, value: Value) -> Term:
        """Return a value without its first axis, if it has the others of a bare result."""
        if not value.is_number and value.bare:
            shapes = tuple(s[1:] for s in value.shapes)
            if value.dtype in INTEGERS:
                return Term(self.graph.cast(value.bare, self.dtype), shapes)
            return Term(value.bare, shapes, value.dtype is torch.bool)
        return self.term(value)

    def expanded(self, term: Term, wanted: Shapes, sources: Sequence[Term | Value]) -> str:
        """Return the name of a term, broadcast to a shape if it does not have that yet."""
        if term.shapes == wanted:
            return term.name
        return self.graph.node("Expand", term.name, self.shape(wanted, sources))

    def shape(self, wanted: Shapes, sources: Sequence[Term | Value], *, infer: bool = False) -> str:
        """Return the name of a shape; dynamic dims are those of equal size among the sources.

        Args:
            wanted: The shape for each of the sample sizes.
            sources: Tensors and integers to take sizes from.
            infer: Whether one dim may be -1.
        """
        each = list(zip(*wanted, strict=True))
        dynamic = [i for i, sizes in enumerate(each) if len(set(sizes)) > 1]
        if not dynamic or (infer and len(dynamic) == 1):
            return self.graph.integers(-1 if i in dynamic else n[0] for i, n in enumerate(each))
        parts = [
            self.size_like(sizes, sources) if i in dynamic else self.graph.integers([sizes[0]])
            for i, sizes in enumerate(each)
        ]
        return self.graph.node("Concat", *parts, axis=0)

    def size_like(self, sizes: tuple[int, ...], sources: Sequence[Term | Value]) -> str:
        """Return the name of a list of one size, which some source has."""
        for source in sources:
            if isinstance(source, Value) and source.is_number:
                if source.samples == sizes:
                    return self.graph.node("Reshape", source.name, self.graph.integers([1]))
                continue
            for dim, found in enumerate(zip(*source.shapes, strict=True)):
                if found == sizes:
                    name = source.name if isinstance(source, Term) else self.use(source)
                    return self.graph.node("Shape", name, start=dim, end=dim + 1)
        raise self.refusal("a size depends on the sizes of the input in a way that ONNX has not")

    def refusal(self, reason: str, hint: str = OTHER_OPERATORS) -> UnsupportedError:
        """Return the error that the network cannot be exported."""
        where = self.node.meta.get("where") if self.node is not None else None
        return UnsupportedError(
            "The network cannot be exported to ONNX.",
            code="unsupported.onnx",
            location=where,
            notes=[reason],
            hints=[hint],
        )


def _known(value: Value) -> Any:
    return value.known


def _compares_integers(expr: Expr, inputs: Iterable[Value]) -> bool:
    """Tell whether integers are compared with integers: not all of them are floats."""
    tensors = [value for value in inputs if not value.is_number]
    return (
        any(value.dtype in INTEGERS for value in tensors)
        and all(value.dtype in INTEGERS | {torch.bool} for value in tensors)
        and is_bool(expr, frozenset())
        and _is_whole(expr)
    )


def _is_whole(expr: Expr) -> bool:
    """Tell whether an expression of integers is one on integers."""
    for each in subexpressions(expr):
        if isinstance(each, Unary | Binary) and each.op not in _WHOLE:
            return False
        if isinstance(each, Const) and each.value != int(each.value):
            return False
    return True


def _can_be_bare(samples: tuple[Any, ...], operands: Sequence[Value]) -> bool:
    """Tell whether an elementwise result of one step can be computed without its time axis."""
    rank = len(samples[0].shape)
    if not rank or any(s.shape[0] != 1 for s in samples):
        return False
    tensors = [v for v in operands if not v.is_number]
    return any(v.bare for v in tensors) and all(
        v.bare if v.rank == rank else v.rank < rank for v in tensors
    )
