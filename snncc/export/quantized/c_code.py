"""Write the operations of a quantized network as C."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from snncc.codegen.c.expressions import c_names
from snncc.export.c.parts import Parts, in_order
from snncc.export.network.loops import Loops, loops_over
from snncc.export.network.memory import Memory
from snncc.export.network.nodes import Array, Buffer, Steps
from snncc.export.quantized.c_functions import fixed_names, fixed_part
from snncc.export.quantized.formats import MOST_STEPS
from snncc.export.quantized.nodes import (
    Apply,
    Border,
    Constant,
    ConstantArray,
    Convolution,
    Integer,
    Linear,
    Lookup,
    MatMul,
    Move,
    Name,
    Number,
    Operation,
    Pointwise,
    Pool,
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
        parts: What its code is put together from.
    """

    def __init__(self, network: QuantizedNetwork, prefix: str) -> None:
        self.network = network
        self.memory = Memory(
            replace(network.network, weights=[]), list(network.operations.values())
        )
        a = network.arithmetic
        self.state, self.wide = f"int{a.state_bits}_t", f"int{a.wide_bits}_t"
        self.parts = Parts(self.memory, prefix, self.state, taken=fixed_names())

    def step(self) -> list[str]:
        """Return the statements of one step."""
        own = self.network.operations
        every = range(len(self.network.network.operations))
        statements = [self.operation(own[p]) if p in own else [] for p in every]
        return in_order(self.network.network, statements)

    def fixed_part(self) -> str:
        """Return the functions of every library that the step uses."""
        return fixed_part(self.parts.used, self.parts.prefix, self.network.arithmetic)

    def operation(self, operation: Operation) -> list[str]:
        """Return the statements of one operation."""
        match operation:
            case Pointwise():
                return [self._pointwise(operation)]
            case Move(source, result, shift):
                return self.parts.moved(source, result, self._scale(shift) if shift else None)
            case Border(value, result):
                return self.parts.filled(self.spell(Number(value), {}), result)
            case Lookup(table, result):
                return [self.parts.row(f"weights->{table.name}", result)]
            case Linear() | Convolution():
                return [self._product(operation)]
            case MatMul():
                return self._matmul(operation)
            case Pool():
                return [self._pool(operation)]
            case Reduce():
                return self._reduce(operation)
            case _:
                assert_never(operation)

    def _scale(self, shift: int) -> Callable[[str], str]:
        bits = self.network.arithmetic.wide_bits
        return lambda value: self.parts.call(f"scale{bits}", value, shift)

    def _product(self, operation: Linear | Convolution) -> str:
        layer, product = operation.layer, operation.product
        x, result = layer.x, layer.result
        bias = "NULL" if product.bias is None else f"weights->{product.bias.name}"
        given = (x, f"weights->{product.weight.name}", bias, f"weights->{product.shift.name}")
        ending = f"{'_spikes' if product.of_spikes else ''}{product.sum_bits}"
        kind = f"int{product.sum_bits}_t"
        if isinstance(operation, Convolution):
            sums = self.parts.room(kind, result.numel // result.shape[0])
            sizes: tuple[object, ...] = (self.parts.geometry(operation.layer), sums)
            return self.parts.call(f"convolution{ending}", *given, result, *sizes) + ";"
        inputs, outputs = operation.layer.weight.shape
        name = f"dense{product.sum_bits}" if product.by_output else f"linear{ending}"
        sizes = (x.numel // inputs, inputs, outputs, self.parts.room(kind, outputs))
        return self.parts.call(name, *given, result, *sizes) + ";"

    def _matmul(self, operation: MatMul) -> list[str]:
        over, (a, b, y), table = self.parts.matmul(operation.layer)
        bits, size = operation.sum_bits, math.prod(operation.layer.result.shape[-2:])
        sums = self.parts.room(f"int{bits}_t", size)
        call = self.parts.call(f"matmul{bits}", a, b, sums, table)
        scaled = self.parts.call(f"scale{bits}", f"{sums}[i]", operation.shift)
        return over.around(
            [
                f"memset({sums}, 0, {size} * sizeof(int{bits}_t));",
                f"{call};",
                f"for (int i = 0; i < {size}; i++) {{",
                f"  ({y})[i] = {scaled};",
                "}",
            ]
        )

    def _pool(self, operation: Pool) -> str:
        layer = operation.layer
        if layer.is_max:
            return (
                self.parts.call("max_pool", layer.x, layer.result, self.parts.windows(layer)) + ";"
            )
        table = self.parts.windows(layer, operation.divisors)
        name = f"mean_pool{operation.sum_bits}"
        return self.parts.call(name, layer.x, layer.result, table, operation.left) + ";"

    def _reduce(self, operation: Reduce) -> list[str]:
        """Return loops over what stays, and inside them loops over what is reduced."""
        made, kind = self.parts.reduction(operation.layer), operation.layer.kind
        if kind in ("max", "min"):
            bound = self.network.arithmetic.state_high
            start, beats = (f"-{bound} - 1", ">") if kind == "max" else (str(bound), "<")
            join = f"total = {made.value} {beats} total ? {made.value} : total;"
            body = [f"{self.state} total = {start};", *made.through.around([join])]
            return made.over.around([*body, f"{made.target} = total;"])
        bits = operation.sum_bits
        total = f"total * ((int{bits}_t)1 << {operation.left})" if operation.left else "total"
        if operation.divisor > 1:
            total = self.parts.call(f"divided{bits}", total, operation.divisor)
        stored = self.parts.call(f"narrow{bits}", total)
        added = made.through.around([f"total += {made.value};"])
        return made.over.around([f"int{bits}_t total = 0;", *added, f"{made.target} = {stored};"])

    def _pointwise(self, operation: Pointwise) -> str:
        """Write a function for a pointwise operation and return its call."""
        arrays = [a for _, a in operation.inputs if not isinstance(a, Steps)]
        written = [a.buffer for a, _ in operation.results]
        homes = dict.fromkeys([*map(_home, arrays), *written])
        pointers: dict[Buffer | Constant, str] = {home: f"p{i}" for i, home in enumerate(homes)}
        every = {_home(a): a.every for a in arrays if isinstance(a, ConstantArray)}
        given = [
            (
                f"{'' if home in written else 'const '}{self._type(home)} *restrict {pointer}",
                self._address(home, every.get(home, 0)),
            )
            for home, pointer in pointers.items()
        ]
        if any(isinstance(a, Steps) for _, a in operation.inputs):
            given.append(("unsigned long steps", "net->steps"))
        loops = loops_over(operation.shape, [*arrays, *(a for a, _ in operation.results)])
        body = loops.around(self._body(operation, pointers, loops))
        return self.parts.pointwise(operation.name, operation.comment, given, body)

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
                return self.parts.call(name, _bare(texts[0]), bits)
            case "floor" | "even":
                return self.parts.call(operation, _bare(texts[0]), bits)
        return self.parts.call(operation, *map(_bare, texts))


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
