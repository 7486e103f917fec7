"""Write the operations of a quantized network as C."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from snncc.codegen.c.expressions import c_names
from snncc.export.c.code import in_order
from snncc.export.loops import Loops, broadcast_strides
from snncc.export.memory import Memory
from snncc.export.network import Array, Buffer, Steps, dense_strides
from snncc.export.quantized.c_functions import fixed_part
from snncc.export.quantized.formats import MOST_STEPS
from snncc.export.quantized.nodes import (
    Apply,
    Constant,
    ConstantArray,
    Convolution,
    Integer,
    Linear,
    Lookup,
    Move,
    Name,
    Number,
    Operation,
    Pointwise,
    Pool,
    Product,
    QuantizedNetwork,
    Reduce,
)

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "eq": "==", "ne": "!=", "and": "&", "or": "|", "xor": "^",
}  # fmt: skip


class Writer:
    """Writes the operations of a quantized network.

    Attributes:
        network: The network.
        memory: Where its buffers lie.
        prefix: What every name in the library starts with.
        functions: The functions that the step needs.
        sums: For each size of sums how many an operation needs at most.
    """

    def __init__(self, network: QuantizedNetwork, prefix: str) -> None:
        self.network, self.prefix = network, prefix
        self.memory = Memory(
            replace(network.network, weights=[]), list(network.operations.values())
        )
        a = network.arithmetic
        self.state, self.wide = f"int{a.state_bits}_t", f"int{a.wide_bits}_t"
        self.functions: list[str] = []
        self.used: set[str] = set()
        self.names: set[str] = set()
        self.sums = {32: 0, 64: 0}

    def step(self) -> list[str]:
        """Return the statements of one step."""
        own = self.network.operations
        every = range(len(self.network.network.operations))
        statements = [self.operation(own[p]) if p in own else [] for p in every]
        return in_order(self.network.network, statements)

    def fixed_part(self) -> str:
        """Return the functions of every library that the step uses."""
        return fixed_part(self.used, self.prefix, self.network.arithmetic)

    def operation(self, operation: Operation) -> list[str]:
        """Return the statements of one operation."""
        match operation:
            case Pointwise():
                return [self._pointwise(operation)]
            case Move():
                return self._move(operation)
            case Lookup(table, result):
                row = f"weights->{table.name} + (net->steps - 1) * {result.numel}"
                size = f"{result.numel} * sizeof({self.state})"
                return [f"memcpy({self.base(result)}, {row}, {size});"]
            case Linear(x, product, result, inputs, outputs):
                rows = x.numel // inputs
                return [self._product("linear", x, product, result, (rows, inputs, outputs))]
            case Convolution(x, product, result):
                return [self._product("convolution", x, product, result, self._geometry(operation))]
            case Pool():
                return [self._pool(operation)]
            case Reduce():
                return self._reduce(operation)
            case _:
                assert_never(operation)

    def base(self, array: Array) -> str:
        """Return the C expression of the address of an array's first element."""
        place = self.memory.address(array.buffer)
        return f"({place} + {array.offset})" if array.offset else f"({place})"

    def _call(self, function: str, *arguments: object) -> str:
        self.used.add(function)
        return f"{self.prefix}_{function}({', '.join(map(str, arguments))})"

    def _product(
        self, name: str, x: Array, product: Product, result: Array, sizes: tuple[object, ...]
    ) -> str:
        bits = product.sum_bits
        channels = product.shift.values.size
        places = 1 if name == "linear" else result.numel // result.shape[0] // channels
        self.sums[bits] = max(self.sums[bits], channels * places)
        bias = "NULL" if product.bias is None else f"weights->{product.bias.name}"
        given = (f"weights->{product.weight.name}", bias, f"weights->{product.shift.name}")
        sums = f"net->sums{bits}"
        return (
            self._call(f"{name}{bits}", self.base(x), *given, self.base(result), *sizes, sums) + ";"
        )

    def _geometry(self, operation: Convolution) -> tuple[str]:
        sizes = [*operation.x.shape, *operation.result.shape[1:], *operation.kernel]
        settings = [*operation.stride, *operation.padding, *operation.dilation, operation.groups]
        return (self._table([*sizes, *settings]),)

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
        arrays = (self.base(operation.x), self.base(operation.result))
        if operation.is_max:
            return self._call("max_pool", *arrays, self._table(numbers)) + ";"
        table = self._table([*numbers, *operation.divisors])
        name = f"mean_pool{operation.sum_bits}"
        return self._call(name, *arrays, table, operation.left) + ";"

    def _move(self, operation: Move) -> list[str]:
        source, result = operation.source, operation.result
        if operation.shift == 0 and source.is_dense and result.is_dense:
            size = f"{source.numel} * sizeof({self.state})"
            return [f"memcpy({self.base(result)}, {self.base(source)}, {size});"]
        loops = _loops(result.shape, [source, result])
        to, origin = self.memory.address(result.buffer), self.memory.address(source.buffer)
        value = f"({origin})[{loops.index(source)}]"
        if operation.shift:
            value = self._call(f"scale{self.network.arithmetic.wide_bits}", value, operation.shift)
        return loops.around([f"({to})[{loops.index(result)}] = {value};"])

    def _reduce(self, operation: Reduce) -> list[str]:
        """Return loops over what stays, and inside them loops over what is reduced."""
        x, axes, result = operation.x, operation.axes, operation.result
        kept = [d for d in range(len(x.shape)) if d not in axes]
        outer = Array(x.buffer, _take(x.shape, kept), _take(x.strides, kept), x.offset)
        home = Array(result.buffer, outer.shape, dense_strides(outer.shape), result.offset)
        over = _loops(outer.shape, [outer, home])
        inner = _take(x.strides, axes)
        through = Loops.of(_take(x.shape, axes), [inner], "j")
        part = Array(x.buffer, _take(x.shape, axes), inner, 0)
        value = f"({self.memory.address(x.buffer)})[{over.index(outer)} + {through.index(part)}]"
        target = f"({self.memory.address(result.buffer)})[{over.index(home)}]"
        if operation.kind in ("max", "min"):
            bound = self.network.arithmetic.state_high
            start = f"-{bound} - 1" if operation.kind == "max" else str(bound)
            sign = ">" if operation.kind == "max" else "<"
            join = f"total = {value} {sign} total ? {value} : total;"
            body = [f"{self.state} total = {start};", *through.around([join]), f"{target} = total;"]
            return over.around(body)
        bits = operation.sum_bits
        total = f"total * ((int{bits}_t)1 << {operation.left})" if operation.left else "total"
        if operation.divisor > 1:
            total = self._call(f"divided{bits}", total, operation.divisor)
        stored = self._call(f"narrow{bits}", total)
        return over.around(
            [
                f"int{bits}_t total = 0;",
                *through.around([f"total += {value};"]),
                f"{target} = {stored};",
            ]
        )

    def _pointwise(self, operation: Pointwise) -> str:
        """Write a function for a pointwise operation and return its call."""
        ends = itertools.chain([""], itertools.count(2))
        numbered = (f"{self.prefix}_{operation.name}{end}" for end in ends)
        name = next(n for n in numbered if n not in self.names)
        self.names.add(name)
        arrays = [(n, a) for n, a in operation.inputs if not isinstance(a, Steps)]
        homes = list(
            dict.fromkeys([_home(a) for _, a in arrays] + [a.buffer for a, _ in operation.results])
        )
        pointers: dict[Buffer | Constant, str] = {home: f"p{i}" for i, home in enumerate(homes)}
        written = {a.buffer for a, _ in operation.results}
        params = [
            f"{'' if home in written else 'const '}{self._type(home)} *restrict {pointers[home]}"
            for home in homes
        ]
        steps = any(isinstance(a, Steps) for _, a in operation.inputs)
        params += ["unsigned long steps"] if steps else []
        loops = _loops(operation.shape, [a for _, a in arrays] + [a for a, _ in operation.results])
        body = self._body(operation, pointers, loops)
        comment = [f" * {line}".rstrip() for line in operation.comment.splitlines()]
        head = f"static void {name}({', '.join(params)})"
        lines = [
            "/*",
            *comment,
            " */",
            head,
            "{",
            *(f"  {line}" for line in loops.around(body)),
            "}",
        ]
        self.functions.append("\n".join(lines) + "\n")
        every = {_home(a): a.every for _, a in arrays if isinstance(a, ConstantArray)}
        addresses = [self._address(home, every.get(home, 0)) for home in homes]
        addresses += ["net->steps"] if steps else []
        return f"{name}({', '.join(addresses)});"

    def _type(self, home: Buffer | Constant) -> str:
        return f"int{home.bits}_t" if isinstance(home, Constant) else self.state

    def _address(self, home: Buffer | Constant, every: int) -> str:
        """Return the C expression of an address; ``every`` is by how much it moves in a step."""
        if isinstance(home, Buffer):
            return self.memory.address(home)
        step = f" + (net->steps - 1) * {every}" if every else ""
        return f"weights->{home.name}{step}"

    def _body(
        self, operation: Pointwise, pointers: dict[Buffer | Constant, str], loops: Loops
    ) -> list[str]:
        every = [n for n, _ in operation.inputs] + [n for n, _ in operation.lets]
        names = c_names(every, {*pointers.values(), "steps", *loops.variables})
        lines = []
        for name, source in operation.inputs:
            if isinstance(source, Steps):
                most = MOST_STEPS // max(abs(source.factor), 1)
                value = f"({self.wide})(steps < {most}UL ? steps : {most}UL) * {source.factor}"
            else:
                value = f"{pointers[_home(source)]}[{loops.index(source)}]"
            lines.append(f"const {self.wide} {names[name]} = {value};")
        for name, expr in operation.lets:
            lines.append(f"const {self.wide} {names[name]} = {_bare(self.spell(expr, names))};")
        for array, expr in operation.results:
            value = self.spell(expr, names)
            lines.append(f"{pointers[array.buffer]}[{loops.index(array)}] = ({self.state}){value};")
        return lines

    def spell(self, expr: Integer, names: dict[str, str]) -> str:
        """Return the C text of an integer expression."""
        match expr:
            case Number(value):
                suffix = "LL" if self.network.arithmetic.wide_bits == 64 else ""
                return f"{value}{suffix}" if value >= 0 else f"({value}{suffix})"
            case Name(name):
                return names[name]
            case Apply(operation, args, bits):
                texts = [self.spell(a, names) for a in args]
                if operation in _INFIX:
                    return f"({texts[0]} {_INFIX[operation]} {texts[1]})"
                return self._spelled(operation, texts, bits)
            case _:
                assert_never(expr)

    def _spelled(self, operation: str, texts: list[str], bits: int) -> str:
        match operation:
            case "neg":
                return f"(-{texts[0]})"
            case "not":
                return f"(!{texts[0]})"
            case "select":
                return f"({texts[0]} ? {texts[1]} : {texts[2]})"
            case "left":
                return f"({texts[0]} * (({self.wide})1 << {bits}))"
            case "right":
                name = f"right{self.network.arithmetic.wide_bits}"
                return self._call(name, _bare(texts[0]), bits)
            case "floor" | "even":
                return self._call(operation, _bare(texts[0]), bits)
        return self._call(operation, *map(_bare, texts))


def _bare(text: str) -> str:
    """Return an expression without the parentheses around all of it."""
    if not text.startswith("("):
        return text
    depth = 0
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return text[1:-1] if place == len(text) - 1 else text
    return text


def _home(source: Array | ConstantArray | Steps) -> Buffer | Constant:
    assert not isinstance(source, Steps)
    return source.constant if isinstance(source, ConstantArray) else source.buffer


def _loops(shape: tuple[int, ...], arrays: Sequence[Array | ConstantArray]) -> Loops:
    return Loops.of(shape, [broadcast_strides(a, shape) for a in arrays])


def _take(values: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
    return tuple(values[p] for p in positions)
