"""Write the operations of a network as C.

Pointwise operations become functions of their own, with the names and the order of the user's
code; everything else calls a function of the fixed part (`c_functions`).  Each operation is rounded
once and in one order, whatever the compiler's options.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

from snncc.codegen.base import FloatType
from snncc.codegen.c.expressions import C_TYPE, c_names, dialect, literal
from snncc.codegen.prepare import find_bools
from snncc.export.loops import Loops, broadcast_strides
from snncc.export.network import (
    Array,
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
    Reduce,
    Softmax,
    Steps,
    dense_strides,
)
from snncc.ir.nodes import Binary, Expr, Op, Unary
from snncc.ir.printer import spell
from snncc.ir.walk import subexpressions

Strides = tuple[int, ...]


class Places(Protocol):
    """Where the buffers of a network lie, and how much memory its operations need besides."""

    def address(self, buffer: Buffer) -> str:
        """Return the expression of a buffer's address."""

    def need_indices(self, count: int) -> None:
        """Note that a linear layer has so many inputs."""

    def need_sums(self, count: int) -> None:
        """Note that a convolution has so many outputs."""


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
        self.functions: list[str] = []
        self.used: set[str] = set()
        self.names: set[str] = set()

    def step(self) -> list[str]:
        """Return the statements of one step; the functions that they need are in `functions`."""
        return in_order(self.network, [self.operation(each) for each in self.network.operations])

    def operation(self, operation: Operation) -> list[str]:
        """Return the statements of one operation."""
        match operation:
            case Pointwise():
                return [self._pointwise(operation)]
            case Copy(source, result):
                strides = dense_strides(source.shape)
                return self._moved(
                    source, Array(result.buffer, source.shape, strides, result.offset)
                )
            case Place(source, result):
                return self._moved(source, result)
            case Lookup(table, result):
                row = f"{self.base(table)} + (net->steps - 1) * {result.numel}"
                size = f"{result.numel} * sizeof({self.real})"
                return [f"memcpy({self.base(result)}, {row}, {size});"]
            case Linear() | Convolution() | Pool() | Normalize():
                return [self._whole(operation)]
            case Reduce() | MatMul() | Softmax():
                return self._by_parts(operation)
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

    def base(self, array: Array) -> str:
        """Return the C expression of the address of an array's first element."""
        place = self.memory.address(array.buffer)
        return f"({place} + {array.offset})" if array.offset else f"({place})"

    def _call(self, function: str, *arguments: object) -> str:
        """Return a call of a function of the fixed part."""
        self.used.add(function)
        texts = [self.base(a) if isinstance(a, Array) else str(a) for a in arguments]
        return f"{self.prefix}_{function}({', '.join(texts)});"

    def _linear(self, operation: Linear) -> str:
        x, weight = operation.x, operation.weight
        inputs, outputs = weight.shape
        bias = "NULL" if operation.bias is None else self.base(operation.bias)
        rows = x.numel // inputs
        self.memory.need_indices(inputs)
        return self._call(
            "linear", x, weight, bias, operation.result, rows, inputs, outputs, "net->active"
        )

    def _convolution(self, operation: Convolution) -> str:
        batch, channels, height, width = operation.x.shape
        _, outs, out_height, out_width = operation.result.shape
        sizes = [batch, channels, height, width, outs, out_height, out_width]
        bias = "NULL" if operation.bias is None else self.base(operation.bias)
        settings = [*operation.kernel, *operation.stride, *operation.padding, *operation.dilation]
        self.memory.need_sums(outs * out_height * out_width)
        table = self._table([*sizes, *settings, operation.groups])
        return self._call(
            "convolution", operation.x, operation.weight, bias, operation.result, table, "net->sums"
        )

    def _table(self, numbers: Sequence[int]) -> str:
        """Return the name of a constant table of integers."""
        name = f"{self.prefix}_table{len(self.functions)}"
        items = ", ".join(map(str, numbers))
        self.functions.append(f"static const int {name}[] = {{{items}}};\n")
        return name

    def _pool(self, operation: Pool) -> str:
        planes = operation.x.shape[0] * operation.x.shape[1]
        rows, columns = operation.windows
        numbers = [planes, *operation.x.shape[2:], len(rows), len(columns)]
        numbers += [n for window in (*rows, *columns) for n in window]
        if operation.is_max:
            return self._call("max_pool", operation.x, operation.result, self._table(numbers))
        numbers += operation.divisors
        return self._call("mean_pool", operation.x, operation.result, self._table(numbers))

    def _pointwise(self, operation: Pointwise) -> str:
        """Write a function for a pointwise operation and return its call."""
        name = self._fresh(f"{self.prefix}_{operation.name}")
        arrays = [(n, a) for n, a in operation.inputs if isinstance(a, Array)]
        results = [(a, n) for a, n in operation.results]
        buffers = list(
            dict.fromkeys([a.buffer for _, a in arrays] + [a.buffer for a, _ in results])
        )
        written = {a.buffer for a, _ in results}
        pointers = {b: f"p{i}" for i, b in enumerate(buffers)}
        steps = any(isinstance(a, Steps) for _, a in operation.inputs)
        params = [
            f"{'' if b in written else 'const '}{self.real} *restrict {pointers[b]}"
            for b in buffers
        ]
        params += ["unsigned long steps"] if steps else []
        loops, body = self.pointwise_body(operation, pointers)
        lines = [
            f"static void {name}({', '.join(params)})",
            "{",
            *_indented(loops.around(body)),
            "}",
        ]
        comment = [f" * {line}".rstrip() for line in operation.comment.splitlines()]
        text = "\n".join(["/*", *comment, " */", *lines] if comment else lines)
        self.functions.append(text + "\n")
        addresses = [self.memory.address(b) for b in buffers] + (["net->steps"] if steps else [])
        return f"{name}({', '.join(addresses)});"

    def pointwise_body(
        self, operation: Pointwise, pointers: dict[Buffer, str]
    ) -> tuple[Loops, list[str]]:
        """Return the loops of a pointwise operation, and what they do for an element."""
        arrays = [a for _, a in operation.inputs if isinstance(a, Array)]
        loops = self._loops(operation.shape, arrays + [a for a, _ in operation.results])
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
            self.used |= {op.value for op in Op if op in _operations(let.expr)}
            lines.append(f"const {kind} {names[let.name]} = {spell(let.expr, spelled)};")
        for array, name in operation.results:
            value = f"({self.real}){names[name]}" if name in bools else names[name]
            lines.append(f"{pointers[array.buffer]}[{loops.index(array)}] = {value};")
        return loops, lines

    def _fresh(self, name: str) -> str:
        """Return a function name that is not taken."""
        numbered = (f"{name}_{i}" for i in itertools.count(2))
        found = next(n for n in itertools.chain([name], numbered) if n not in self.names)
        self.names.add(found)
        return found

    def _loops(self, shape: tuple[int, ...], arrays: Sequence[Array]) -> Loops:
        return Loops.of(shape, [broadcast_strides(a, shape) for a in arrays])

    def _moved(self, source: Array, result: Array) -> list[str]:
        """Return loops that copy element by element."""
        if source.is_dense and result.is_dense:
            size = f"{source.numel} * sizeof({self.real})"
            return [f"memcpy({self.base(result)}, {self.base(source)}, {size});"]
        loops = self._loops(result.shape, [source, result])
        to, origin = self.memory.address(result.buffer), self.memory.address(source.buffer)
        return loops.around([f"({to})[{loops.index(result)}] = ({origin})[{loops.index(source)}];"])

    def reduction(self, operation: Reduce) -> tuple[int, Loops, list[str]]:
        """Return how many results a reduction has, loops over them, and what they do for one."""
        x, axes = operation.x, operation.axes
        kept = [d for d in range(len(x.shape)) if d not in axes]
        outer = Array(x.buffer, _take(x.shape, kept), _take(x.strides, kept), x.offset)
        inner = Array(x.buffer, _take(x.shape, axes), _take(x.strides, axes), 0)
        result = Array(
            operation.result.buffer,
            outer.shape,
            dense_strides(outer.shape),
            operation.result.offset,
        )
        over = self._loops(outer.shape, [outer, result])
        through = Loops.of(inner.shape, [inner.strides], "j")
        place = self.memory.address(x.buffer)
        value = f"({place})[{over.index(outer)} + {through.index(inner)}]"
        start = {"max": "-INFINITY", "min": "INFINITY"}.get(operation.kind, "0")
        join = {
            "max": f"total = {value} > total || {value} != {value} ? {value} : total;",
            "min": f"total = {value} < total || {value} != {value} ? {value} : total;",
        }.get(operation.kind, f"total += {value};")
        divided = f"total / {inner.numel}" if operation.kind == "mean" else "total"
        home = self.memory.address(result.buffer)
        body = [
            f"{self.real} total = {start};",
            *through.around([join]),
            f"({home})[{over.index(result)}] = {divided};",
        ]
        return outer.numel, over, body

    def _matmul(self, operation: MatMul) -> list[str]:
        a, b, result = operation.a, operation.b, operation.result
        over = self._loops(result.shape[:-2], [_lead(a), _lead(b), _lead(result)])
        (n, k), m = a.shape[-2:], b.shape[-1]
        call = self._call(
            "matmul",
            f"{self.memory.address(a.buffer)} + {over.index(_lead(a))}",
            f"{self.memory.address(b.buffer)} + {over.index(_lead(b))}",
            f"{self.memory.address(result.buffer)} + {over.index(_lead(result))}",
            self._table([n, k, m, *a.strides[-2:], *b.strides[-2:]]),
        )
        return over.around([call])

    def softmax(self, operation: Softmax) -> tuple[Loops, str]:
        """Return loops over the rows of a softmax, and the call that computes one."""
        x, axis = operation.x, operation.axis
        kept = [d for d in range(len(x.shape)) if d != axis]
        result = operation.result
        lead = Array(x.buffer, _take(x.shape, kept), _take(x.strides, kept), x.offset)
        home = Array(result.buffer, lead.shape, _take(result.strides, kept), result.offset)
        over = self._loops(lead.shape, [lead, home])
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


def in_order(network: Network, statements: Sequence[list[str]]) -> list[str]:
    """Return the statements of all operations; those of the first step run in it, and alone."""
    first, rest = statements[: network.first], statements[network.first :]
    lines = list(itertools.chain.from_iterable(rest))
    if first:
        own = itertools.chain.from_iterable(first)
        lines = ["if (net->steps == 1) {", *_indented([*own, "return 0;"]), "}", *lines]
    return lines


def _operations(expr: Expr) -> set[Op]:
    return {e.op for e in subexpressions(expr) if isinstance(e, Unary | Binary)}


def _take(values: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
    return tuple(values[p] for p in positions)


def _lead(array: Array) -> Array:
    return Array(array.buffer, array.shape[:-2], array.strides[:-2], array.offset)


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
