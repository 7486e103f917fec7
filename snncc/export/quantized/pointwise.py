"""One pointwise operation in whole numbers: what it reads, its lets and what it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import numpy
import torch
from torch import Tensor

from snncc.export.network import nodes as floats
from snncc.export.network.loops import broadcast_strides
from snncc.export.network.nodes import Array, Buffer, Home, Steps, dense_strides
from snncc.export.quantized import nodes
from snncc.export.quantized.expressions import Compiler, Known, Operand, Value
from snncc.export.quantized.formats import MOST_STEPS, Arithmetic, Format
from snncc.ir.nodes import Const

Source = Array | nodes.ConstantArray | Steps


@dataclass(frozen=True)
class Surroundings:
    """What an operation needs to know of its network.

    Attributes:
        arithmetic: The sizes of numbers.
        format: Returns what the numbers of a buffer are.
        known: Returns what is known at export of a buffer, as it lies in memory at each step,
            [T, size], or [1, size] where all steps are the same.
        constant: Keeps numbers with the weights: a name, the numbers, the bits of one.
    """

    arithmetic: Arithmetic
    format: Callable[[Buffer], Format]
    known: Callable[[Buffer], Tensor | None]
    constant: Callable[[str, numpy.ndarray, int], nodes.Constant]


@dataclass
class Draft:
    """A pointwise operation whose potentials have one fraction.

    Attributes:
        around: Its network.
        operation: The operation in floats.
        fraction: The fraction of its potentials.
        inputs: What it reads.
        lets: Its lets in whole numbers.
        scope: For each name what stands for its value.
    """

    around: Surroundings
    operation: floats.Pointwise
    fraction: int
    inputs: list[tuple[str, Source]] = field(default_factory=list)
    lets: list[tuple[str, nodes.Integer]] = field(default_factory=list)
    scope: dict[str, Operand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.compiler = Compiler(self.around.arithmetic, self.fraction, self._keep, self.scope)
        for name, operand in self.operation.inputs:
            self.scope[name] = self._loaded(name, operand)
        for let in self.operation.lets:
            value = self.compiler.compile(let.expr)
            if isinstance(value, Value):
                value = self._named(let.name, self.compiler.limited_wide(value))
            self.scope[let.name] = value

    def potentials(self) -> list[Buffer | tuple[str]]:
        """Return the buffers and the names of lets whose values are no counts."""
        read = [
            operand.buffer
            for name, operand in self.operation.inputs
            if isinstance(operand, Array) and not _is_exact(self.scope[name])
        ]
        lets = [(let.name,) for let in self.operation.lets if not _is_exact(self.scope[let.name])]
        kept = [array.buffer for array, name in self.operation.results if self._is_fraction(name)]
        return [*read, *lets, *kept]

    def known(self) -> dict[Buffer, Tensor]:
        """Return the buffers whose numbers are known at export, [T, size]."""
        found = {}
        for array, name in self.operation.results:
            value, shape = self.scope[name], self.operation.shape
            if isinstance(value, Known) and array.buffer.home is Home.WORK and array.is_dense:
                steps = value.values.shape[0] if value.values.dim() else 1
                found[array.buffer] = (
                    value.values.expand(steps, *shape).contiguous().view(steps, -1)
                )
        return found

    def without(self, known: Collection[Buffer]) -> floats.Pointwise:
        """Return the operation without the results that nobody reads from memory."""
        results = tuple((a, name) for a, name in self.operation.results if a.buffer not in known)
        return replace(self.operation, results=results)

    def result(self, name: str) -> Value:
        """Return the value of a name as it can be stored."""
        value = self.scope[name]
        return self.compiler.known(value) if isinstance(value, Known) else value

    def stored(self, value: Value, fraction: int) -> nodes.Integer:
        """Return what is written for a value to a buffer of a fraction."""
        shifted = self.compiler.shifted(value, fraction - value.format.fraction)
        return self.compiler.limited(shifted).expr

    def finished(self, results: list[tuple[Array, nodes.Integer]]) -> nodes.Pointwise:
        """Return the operation, without what nobody reads."""
        wanted = {n for _, expr in results for n in _names(expr)}
        for name, expr in reversed(self.lets):
            wanted |= set(_names(expr)) if name in wanted else set()
        made = self.operation
        return nodes.Pointwise(
            name=made.name,
            comment=made.comment,
            shape=made.shape,
            inputs=tuple((n, source) for n, source in self.inputs if n in wanted),
            lets=tuple((n, expr) for n, expr in self.lets if n in wanted),
            results=tuple(results),
        )

    def _named(self, name: str, value: Value) -> Value:
        """Return a value that is read by the name of a let."""
        self.lets.append((name, value.expr))
        return Value(nodes.Name(name), value.format)

    def _loaded(self, name: str, operand: floats.Operand) -> Operand:
        if isinstance(operand, Const):
            return Known(torch.tensor(float(operand.value), dtype=torch.float64))
        if isinstance(operand, Steps):
            self.inputs.append((name, operand))
            most = MOST_STEPS // max(abs(operand.factor), 1)
            low, high = sorted((0, most * operand.factor))
            return Value(nodes.Name(name), Format(0, low, high, exact=True))
        memory = self.around.known(operand.buffer)
        if memory is not None:
            strides = (memory.stride(0), *broadcast_strides(operand, self.operation.shape))
            shape = (len(memory), *self.operation.shape)
            return Known(_trimmed(torch.as_strided(memory, shape, strides, operand.offset)))
        form = self.around.format(operand.buffer)
        shift = self.fraction - form.fraction
        if form.exact or shift == 0:
            self.inputs.append((name, operand))
            return Value(nodes.Name(name), form)
        raw = self._fresh(f"{name}_stored")
        self.inputs.append((raw, operand))
        return self._named(name, self.compiler.shifted(Value(nodes.Name(raw), form), shift))

    def _keep(self, numbers: Tensor) -> str:
        """Keep an array of constants and return the name by which it is read."""
        trimmed = _trimmed(numbers)
        a = self.around.arithmetic
        bits = a.state_bits if int(trimmed.abs().max()) <= a.state_high else a.wide_bits
        constant = self.around.constant(f"{self.operation.name}_constant", trimmed.numpy(), bits)
        steps, *sizes = trimmed.shape or (1,)
        shape = tuple(sizes)
        every = math.prod(shape) if steps > 1 else 0
        array = nodes.ConstantArray(constant, shape, dense_strides(shape), every=every)
        for name, other in self.inputs:
            if other == array:
                return name
        name = self._fresh("constant")
        self.inputs.append((name, array))
        return name

    def _is_fraction(self, name: str) -> bool:
        """Tell whether a name stands for numbers that are known and not whole."""
        value = self.scope[name]
        return isinstance(value, Known) and not self.compiler.known(value).exact

    def _fresh(self, name: str) -> str:
        """Return a name that nothing in the operation has."""
        made = self.operation
        taken = {*(n for n, _ in (*made.inputs, *self.inputs)), *(let.name for let in made.lets)}
        names = (name, *(f"{name}{n}" for n in range(2, len(taken) + 3)))
        return next(n for n in names if n not in taken)


def _trimmed(values: Tensor) -> Tensor:
    """Return values without the copies that broadcasting made."""
    for axis, size in enumerate(values.shape):
        first = values.narrow(axis, 0, 1) if size else values
        if size > 1 and bool((values == first).all()):
            values = first
    return values.reshape(()) if values.numel() == 1 else values.contiguous()


def _is_exact(value: Operand) -> bool:
    return isinstance(value, Known) or value.exact


def _names(expr: nodes.Integer) -> list[str]:
    return [e.name for e in nodes.parts(expr) if isinstance(e, nodes.Name)]
