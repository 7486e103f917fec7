"""The reference of a quantized network: what each operation is, in numpy.

Numbers are 64-bit integers here, and every bound that was proven at export holds for them too.
The exported C computes the same numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, assert_never

import numpy

from snncc.export.network.loops import broadcast_strides
from snncc.export.network.nodes import Array, Buffer, Steps, positions
from snncc.export.quantized.formats import MOST_STEPS
from snncc.export.quantized.nodes import (
    Apply,
    Border,
    ConstantArray,
    Convolution,
    Integer,
    Layer,
    Linear,
    Lookup,
    MatMul,
    Move,
    Name,
    Number,
    Pointwise,
    Pool,
    Product,
    QuantizedNetwork,
    Reduce,
)

Numbers: TypeAlias = Any  # arrays of integers, and single ones


class Run:
    """A quantized network that takes steps.

    Attributes:
        network: The network.
        memory: For each buffer its numbers.
        values: For each pointwise operation by position what its lets were in the last step.
    """

    def __init__(self, network: QuantizedNetwork) -> None:
        self.network = network
        self.memory: dict[Buffer, Numbers] = {}
        self.values: dict[int, dict[str, Numbers]] = {}
        self.reset()

    def reset(self) -> None:
        """Go back to the state before the first step."""
        n = self.network.network
        self.steps = 0
        for buffer in (*n.inputs, *n.outputs, *n.work):
            self.memory[buffer] = numpy.zeros(buffer.size, numpy.int64)
        for buffer, start in self.network.starts.items():
            self.memory[buffer] = start.astype(numpy.int64).copy()

    def step(self, inputs: Sequence[Numbers]) -> list[Numbers]:
        """Take a step on whole numbers and return the outputs."""
        self.steps += 1
        for buffer, x in zip(self.network.network.inputs, inputs, strict=True):
            self.memory[buffer][:] = x.reshape(-1)
        for position in positions(self.network.network, self.steps):
            operation = self.network.operations.get(position)
            if operation is None:
                continue
            if isinstance(operation, Pointwise):
                self.values[position] = self._pointwise(operation)
            else:
                self._run(operation)
        return [self.memory[buffer].copy() for buffer in self.network.network.outputs]

    def view(self, array: Array, shape: tuple[int, ...] | None = None) -> Numbers:
        """Return the numbers of an array, broadcast to a shape."""
        shape = array.shape if shape is None else shape
        return _strided(self.memory[array.buffer], array, shape)

    def _run(self, operation: Move | Border | Lookup | Layer) -> None:
        match operation:
            case Lookup(table, result):
                start = (self.steps - 1) * result.numel
                self._write(result, table.values[start : start + result.numel])
            case Border(value, result):
                self.view(result)[...] = value
            case Move(source, result, shift):
                self.view(result)[...] = self._rescaled(self.view(source), shift)
            case Linear() | Convolution() | MatMul() | Pool() | Reduce():
                self._write(operation.layer.result, self._layer(operation))
            case _:
                assert_never(operation)

    def _layer(self, operation: Layer) -> Numbers:
        """Return the result of a layer."""
        match operation:
            case Linear(layer, product):
                inputs, outputs = layer.weight.shape
                rows, weights = self.view(layer.x).reshape(-1, inputs), product.weight.values
                ordered = weights.reshape(outputs, inputs).T if product.by_output else weights
                sums = _multiplied(rows, ordered.reshape(inputs, outputs), product.sum_bits)
                return self._scaled(sums, product, (1, -1))
            case Convolution(layer, product):
                return self._scaled(
                    _convolved(self.view(layer.x), operation), product, (1, -1, 1, 1)
                )
            case MatMul(layer, shift, sum_bits):
                sums = _multiplied(self.view(layer.a), self.view(layer.b), sum_bits)
                return self._rescaled(sums, shift)
            case Pool(layer):
                return self._pool(self.view(layer.x), operation)
            case Reduce(layer):
                return self._reduce(self.view(layer.x), operation)
            case _:
                assert_never(operation)

    def _reduce(self, x: Numbers, operation: Reduce) -> Numbers:
        kind, axes = operation.layer.kind, operation.layer.axes
        if kind in ("max", "min"):
            return getattr(x, kind)(axes) if axes else x
        sums = x.sum(axes) if axes else x
        return self._limited(divided(sums << operation.left, operation.divisor))

    def _write(self, array: Array, values: Numbers) -> None:
        end = array.offset + values.size
        self.memory[array.buffer][array.offset : end] = values.reshape(-1)

    def _limited(self, values: Numbers) -> Numbers:
        a = self.network.arithmetic
        return values.clip(a.state_low, a.state_high)

    def _rescaled(self, values: Numbers, shift: Numbers | int) -> Numbers:
        """Return ``limit(x / 2^shift)``, rounded; a shift below zero multiplies."""
        a, amount = self.network.arithmetic, numpy.asarray(shift, numpy.int64)
        down, up = right(values, numpy.maximum(amount, 1)), numpy.maximum(-amount, 0)
        highest = numpy.right_shift(numpy.int64(a.state_high), up)
        beyond = numpy.where(values > highest, a.state_high, a.state_low)
        is_inside = (values <= highest) & (values >= -highest - 1)
        raised = numpy.where(is_inside, numpy.left_shift(values, up), beyond)
        return self._limited(numpy.where(amount > 0, down, raised))

    def _scaled(self, sums: Numbers, product: Product, shape: tuple[int, ...]) -> Numbers:
        """Return ``limit(right(bias + sum, shift))``; a shift below zero goes to the left."""
        bias = 0 if product.bias is None else product.bias.values.reshape(shape)
        return self._rescaled(sums + bias, product.shift.values.reshape(shape))

    def _pool(self, x: Numbers, operation: Pool) -> Numbers:
        layer, values = operation.layer, []
        rows, columns = layer.windows
        for a, b in rows:
            for c, d in columns:
                window = x[:, :, a:b, c:d]
                values.append(window.max((2, 3)) if layer.is_max else window.sum((2, 3)))
        y = numpy.stack(values, 2)
        if layer.is_max:
            return y
        return self._limited(divided(y << operation.left, numpy.array(operation.divisors)))

    def _pointwise(self, operation: Pointwise) -> dict[str, Numbers]:
        values: dict[str, Numbers] = {}
        for name, source in operation.inputs:
            if isinstance(source, Steps):
                most = MOST_STEPS // max(abs(source.factor), 1)
                values[name] = numpy.int64(min(self.steps, most) * source.factor)
            elif isinstance(source, ConstantArray):
                numbers = source.constant.values[(self.steps - 1) * source.every :]
                values[name] = _strided(numbers.astype(numpy.int64), source, operation.shape)
            else:
                values[name] = self.view(source, operation.shape).copy()
        for name, expr in operation.lets:
            values[name] = self.evaluate(expr, values)
        for array, expr in operation.results:
            self.view(array, operation.shape)[...] = self.evaluate(expr, values)
        return values

    def evaluate(self, expr: Integer, values: Mapping[str, Numbers]) -> Numbers:
        """Return the numbers of an expression."""
        match expr:
            case Number(value):
                return numpy.int64(value)
            case Name(name):
                return values[name]
            case Apply("limit", (x,)):
                return self._limited(self.evaluate(x, values))
            case Apply("divide", (x, y)):
                ends = self.network.arithmetic
                top, bottom = self.evaluate(x, values), self.evaluate(y, values)
                most = numpy.where(
                    top < 0, ends.state_low, numpy.where(top > 0, ends.state_high, 0)
                )
                sign = numpy.where(bottom < 0, -1, 1)
                quotient = divided(top * sign, numpy.where(bottom == 0, 1, abs(bottom)))
                return numpy.where(bottom == 0, most, quotient)
            case Apply("right" | "left" | "floor" | "even" as name, (x,), bits):
                return _SHIFTS[name](self.evaluate(x, values), bits)
            case Apply(name, args):
                return numpy.int64(1) * _OPERATIONS[name](*(self.evaluate(a, values) for a in args))
            case _:
                assert_never(expr)


def divided(x: Numbers, y: Numbers | int) -> Numbers:
    """Return ``floor(x / y + 1/2)`` for a positive y."""
    quotient, rest = numpy.divmod(x, y)
    return quotient + (rest >= y - rest)


def right(x: Numbers, bits: Numbers | int) -> Numbers:
    """Return ``floor(x / 2^bits + 1/2)`` for positive ``bits``."""
    half = numpy.left_shift(numpy.int64(1), numpy.asarray(bits, numpy.int64) - 1)
    return (x + half) >> bits


def even(x: Numbers, bits: int) -> Numbers:
    """Return the whole number nearest to ``x / 2^bits``, of two the even one."""
    nearest, half = right(x, bits), 1 << bits - 1
    is_tie = (x & (2 * half - 1)) == half
    return nearest - (is_tie & (nearest % 2 == 1))


def _strided(memory: Numbers, array: Array | ConstantArray, shape: tuple[int, ...]) -> Numbers:
    step = memory.itemsize
    strides = [n * step for n in broadcast_strides(array, shape)]
    return numpy.lib.stride_tricks.as_strided(memory[array.offset :], shape, strides)


def _multiplied(x: Numbers, w: Numbers, sum_bits: int) -> Numbers:
    """Return a product of matrices, by floats where their sums are exact."""
    if sum_bits < 53:
        return (x.astype(numpy.float64) @ w.astype(numpy.float64)).astype(numpy.int64)
    return x @ w.astype(numpy.int64)


def _convolved(x: Numbers, operation: Convolution) -> Numbers:
    """Return the sums of a convolution, one place of its kernel after another."""
    layer, product = operation.layer, operation.product
    batch, channels = x.shape[:2]
    _, outs, out_height, out_width = layer.result.shape
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel, layer.stride, layer.dilation
    ph, pw = layer.padding
    padded = numpy.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    groups = layer.groups
    weights = product.weight.values.reshape(groups, channels // groups, kh, kw, outs // groups)
    sums = numpy.zeros((groups, batch * out_height * out_width, outs // groups), numpy.int64)
    for ky in range(kh):
        for kx in range(kw):
            y, z = ky * dh, kx * dw
            part = padded[:, :, y : y + (out_height - 1) * sh + 1 : sh]
            part = part[:, :, :, z : z + (out_width - 1) * sw + 1 : sw]
            rows = part.transpose(1, 0, 2, 3).reshape(groups, channels // groups, -1)
            sums += _multiplied(rows.transpose(0, 2, 1), weights[:, :, ky, kx], product.sum_bits)
    shaped = sums.reshape(groups, batch, out_height, out_width, outs // groups)
    return shaped.transpose(1, 0, 4, 2, 3).reshape(batch, outs, out_height, out_width)


_SHIFTS: Mapping[str, Callable[[Numbers, int], Numbers]] = {
    "right": right,
    "left": numpy.left_shift,
    "floor": numpy.right_shift,
    "even": even,
}
_OPERATIONS: Mapping[str, Callable[..., Numbers]] = {
    "add": numpy.add,
    "sub": numpy.subtract,
    "mul": numpy.multiply,
    "neg": numpy.negative,
    "abs": numpy.abs,
    "min": numpy.minimum,
    "max": numpy.maximum,
    "lt": numpy.less,
    "le": numpy.less_equal,
    "gt": numpy.greater,
    "ge": numpy.greater_equal,
    "eq": numpy.equal,
    "ne": numpy.not_equal,
    "and": numpy.logical_and,
    "or": numpy.logical_or,
    "xor": numpy.logical_xor,
    "not": numpy.logical_not,
    "select": numpy.where,
}
