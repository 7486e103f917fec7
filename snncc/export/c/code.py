"""Write the operations of a network as C.

Pointwise operations become functions of their own, with the names and the order of the user's
code; everything else calls a function of the fixed part (`functions`).  Each operation is rounded
once and in one order, whatever the compiler's options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from snncc.codegen.base import FloatType
from snncc.codegen.c.expressions import C_TYPE, c_names, dialect, literal
from snncc.codegen.prepare import find_bools
from snncc.export.c.events import Interface, QueueWriter, queue_names
from snncc.export.c.functions import fixed_names
from snncc.export.c.parts import Parts, Places, in_order, taken
from snncc.export.network.loops import Loops, loops_over
from snncc.export.network.nodes import (
    Array,
    Border,
    Buffer,
    Convolution,
    Copy,
    Linear,
    Lookup,
    MatMul,
    Network,
    Normalize,
    Operation,
    Place,
    Pointwise,
    Pool,
    Queue,
    Reduce,
    Softmax,
    Steps,
    dense_strides,
)
from snncc.ir.nodes import Binary, Expr, Op, Unary
from snncc.ir.printer import spell
from snncc.ir.walk import subexpressions


@dataclass
class Writer:
    """Writes the operations of a network.

    Attributes:
        network: The network.
        memory: Where its buffers lie.
        prefix: What every name in the library starts with.
        reserved: Names that no variable may have.
    """

    network: Network
    memory: Places
    prefix: str
    reserved: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.float_type = FloatType.FLOAT64 if self.network.is_double else FloatType.FLOAT32
        self.real = C_TYPE[self.float_type]
        self.parts = Parts(self.memory, self.prefix, self.real, taken=fixed_names() | queue_names())
        self.interface = Interface()

    def step(self) -> list[str]:
        """Return the statements of one step; the functions that they need are in `parts`."""
        return in_order(self.network, [self.operation(each) for each in self.network.operations])

    def operation(self, operation: Operation) -> list[str]:
        """Return the statements of one operation."""
        match operation:
            case Pointwise():
                return [self._pointwise(operation)]
            case Copy(source, result):
                strides = dense_strides(source.shape)
                dense = Array(result.buffer, source.shape, strides, result.offset)
                return self.parts.moved(source, dense)
            case Place(source, result):
                return self.parts.moved(source, result)
            case Border(value, result):
                return self.parts.filled(literal(value, self.float_type), result)
            case Lookup(table, result):
                return [self.parts.row(self.parts.base(table), result)]
            case Linear() | Convolution() | Pool() | Normalize():
                return [self._whole(operation)]
            case Reduce() | MatMul() | Softmax():
                return self._by_parts(operation)
            case Queue():
                queue = QueueWriter(operation, self.parts, self.float_type)
                self.interface = queue.interface()
                return queue.statements()
            case _:
                assert_never(operation)

    def _whole(self, operation: Linear | Convolution | Pool | Normalize) -> str:
        """Return the call of a function that takes whole arrays."""
        match operation:
            case Linear():
                return self._linear(operation)
            case Convolution():
                return self._convolution(operation)
            case Pool():
                return self._pool(operation)
            case Normalize(x, groups, epsilon, result):
                text = literal(epsilon, self.float_type)
                return self._call("normalize", x, result, groups, x.numel // groups, text)
            case _:
                assert_never(operation)

    def _by_parts(self, operation: Reduce | MatMul | Softmax) -> list[str]:
        """Return loops over the parts of arrays that an operation treats apart."""
        match operation:
            case Reduce():
                _, loops, body = self.reduction(operation)
                return loops.around(body)
            case MatMul():
                return self._matmul(operation)
            case Softmax():
                loops, call = self.softmax(operation)
                return loops.around([call])
            case _:
                assert_never(operation)

    def _call(self, function: str, *arguments: object) -> str:
        """Return the statement that calls a function of the fixed part."""
        return self.parts.call(function, *arguments) + ";"

    def _linear(self, operation: Linear) -> str:
        x, weight, result = operation.x, operation.weight, operation.result
        bias = "NULL" if operation.bias is None else operation.bias
        rows = x.numel // weight.shape[0]
        return self._call("linear", x, weight, bias, result, rows, *weight.shape)

    def _convolution(self, operation: Convolution) -> str:
        x, weight, result = operation.x, operation.weight, operation.result
        bias = "NULL" if operation.bias is None else operation.bias
        sums = self.parts.room(self.real, result.numel // result.shape[0])
        table = self.parts.geometry(operation)
        return self._call("convolution", x, weight, bias, result, table, sums)

    def _pool(self, operation: Pool) -> str:
        name, divisors = ("max_pool", ()) if operation.is_max else ("mean_pool", operation.divisors)
        table = self.parts.windows(operation, divisors)
        return self._call(name, operation.x, operation.result, table)

    def _pointwise(self, operation: Pointwise) -> str:
        """Write a function for a pointwise operation and return its call."""
        read = [a.buffer for _, a in operation.inputs if isinstance(a, Array)]
        written = [a.buffer for a, _ in operation.results]
        pointers = {b: f"p{i}" for i, b in enumerate(dict.fromkeys([*read, *written]))}
        homes = [
            (
                f"{'' if b in written else 'const '}{self.real} *restrict {pointer}",
                self.memory.address(b),
            )
            for b, pointer in pointers.items()
        ]
        if any(isinstance(a, Steps) for _, a in operation.inputs):
            homes.append(("unsigned long steps", "net->steps"))
        loops, body = self.pointwise_body(operation, pointers)
        return self.parts.pointwise(operation.name, operation.comment, homes, loops.around(body))

    def pointwise_body(
        self, operation: Pointwise, pointers: dict[Buffer, str]
    ) -> tuple[Loops, list[str]]:
        """Return the loops of a pointwise operation, and what they do for an element."""
        arrays = [a for _, a in operation.inputs if isinstance(a, Array)]
        loops = loops_over(operation.shape, arrays + [a for a, _ in operation.results])
        lets = operation.lets
        every = [n for n, _ in operation.inputs] + [let.name for let in lets]
        taken = {*pointers.values(), "steps", *loops.variables, *self.reserved}
        names = c_names(every, taken)
        spelled = dialect(self.float_type, names)
        bools = find_bools(lets, ())
        lines = []
        for name, operand in operation.inputs:
            if isinstance(operand, Array):
                value = f"{pointers[operand.buffer]}[{loops.index(operand)}]"
            elif isinstance(operand, Steps):
                value = f"({self.real})(steps * {operand.factor}UL)"
            else:
                value = literal(float(operand.value), self.float_type)
            lines.append(f"const {self.real} {names[name]} = {value};")
        for let in lets:
            kind = "int" if let.name in bools else self.real
            self.parts.used |= {op.value for op in Op if op in _operations(let.expr)}
            lines.append(f"const {kind} {names[let.name]} = {spell(let.expr, spelled)};")
        for array, name in operation.results:
            value = f"({self.real}){names[name]}" if name in bools else names[name]
            lines.append(f"{pointers[array.buffer]}[{loops.index(array)}] = {value};")
        return loops, lines

    def reduction(self, operation: Reduce) -> tuple[int, Loops, list[str]]:
        """Return how many results a reduction has, loops over them, and what they do for one."""
        made = self.parts.reduction(operation)
        value = made.value
        start = {"max": "-INFINITY", "min": "INFINITY"}.get(operation.kind, "0")
        join = {
            "max": f"total = {value} > total || {value} != {value} ? {value} : total;",
            "min": f"total = {value} < total || {value} != {value} ? {value} : total;",
        }.get(operation.kind, f"total += {value};")
        divided = f"total / {made.count}" if operation.kind == "mean" else "total"
        body = [
            f"{self.real} total = {start};",
            *made.through.around([join]),
            f"{made.target} = {divided};",
        ]
        return made.results, made.over, body

    def _matmul(self, operation: MatMul) -> list[str]:
        over, (a, b, y), table = self.parts.matmul(operation)
        size = operation.result.shape[-2] * operation.result.shape[-1]
        zero = f"memset({y}, 0, {size} * sizeof({self.real}));"
        return over.around([zero, self._call("matmul", a, b, y, table)])

    def softmax(self, operation: Softmax) -> tuple[Loops, str]:
        """Return loops over the rows of a softmax, and the call that computes one."""
        x, axis = operation.x, operation.axis
        kept = [d for d in range(len(x.shape)) if d != axis]
        result = operation.result
        lead = Array(x.buffer, taken(x.shape, kept), taken(x.strides, kept), x.offset)
        home = Array(result.buffer, lead.shape, taken(result.strides, kept), result.offset)
        over = loops_over(lead.shape, [lead, home])
        name = "log_softmax" if operation.is_log else "softmax"
        call = self._call(
            name,
            f"{self.memory.address(x.buffer)} + {over.index(lead)}",
            f"{self.memory.address(result.buffer)} + {over.index(home)}",
            x.shape[axis],
            x.strides[axis],
            result.strides[axis],
        )
        return over, call


def _operations(expr: Expr) -> set[Op]:
    return {e.op for e in subexpressions(expr) if isinstance(e, Unary | Binary)}
