"""From a network in floats to one in whole numbers, with formats taken from examples.

A value gets the finest power of two at which twice the largest seen still fits a state.  What
counts (spikes, bools, sums of them) stays exact.  States are written after they are read, so that
the step is quantized again until the formats it gives its states are those it assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy
import torch
from torch import Tensor

from snncc.export.network import nodes as floats
from snncc.export.network.memory import arrays_of
from snncc.export.network.nodes import Array, Buffer, Home, Network, dense_strides
from snncc.export.quantized import nodes
from snncc.export.quantized.expressions import NoWholeFormError
from snncc.export.quantized.formats import (
    Arithmetic,
    Format,
    fraction_for,
    is_whole,
    limited,
    whole,
)
from snncc.export.quantized.layers import quantize_product
from snncc.export.quantized.observe import FloatRun
from snncc.export.quantized.pointwise import Draft, Surroundings

_FROM_CONSTANTS = (floats.Pointwise, floats.Lookup)
_MOST_ROUNDS = 40
_WIDEN = 6  # rounds after which a count that still grows gets the whole range of a state
_LARGEST_DIVISOR = (1 << 31) - 1
_MARGIN = 2.0  # how much larger than in the examples a value may become


def quantize(network: Network, seen: FloatRun, arithmetic: Arithmetic) -> nodes.QuantizedNetwork:
    """Return a network in whole numbers.

    Args:
        network: The network.
        seen: It, after the examples.
        arithmetic: The sizes of numbers.

    Raises:
        UnsupportedError: An operation has no form in whole numbers, with the user's line.
    """
    writers: dict[Buffer, dict[int, Format]] = {}
    growing: set[Buffer] = set()
    for round_ in range(_MOST_ROUNDS):
        quantizer = _Quantizer(network, seen, arithmetic, writers, growing)
        result = quantizer.network()
        if quantizer.written == writers:
            return result
        if round_ >= _WIDEN:
            growing |= {s for s in network.states if quantizer.written[s] != writers[s]}
        writers = quantizer.written
    raise seen.refuse(-1, "the formats of its states depend on each other")


@dataclass
class _Quantizer:
    """Quantizes a step once, with the formats that the round before gave to buffers."""

    source: Network
    seen: FloatRun
    arithmetic: Arithmetic
    writers: dict[Buffer, dict[int, Format]]
    growing: set[Buffer]
    written: dict[Buffer, dict[int, Format]] = field(default_factory=dict)
    cached: dict[tuple[object, ...], nodes.Constant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.result = nodes.QuantizedNetwork(self.source, self.arithmetic)
        a = self.arithmetic
        self.range = (a.state_low, a.state_high)
        for buffer in self.source.inputs:
            exact = self.seen.whole[buffer] and self.seen.largest[buffer] <= a.state_high
            fraction = 0 if exact else self.seen_fraction(buffer)
            self.result.formats[buffer] = Format(fraction, *self.range, exact)
        for state in self.source.states:
            self.written[state] = {-1: self.start_format(state)}
        weights = self.source.weights
        self.known = {b: self.seen.memory[b].double().reshape(1, -1) for b in weights}
        self.around = Surroundings(a, self.format, self.known.get, self.constant)
        self.trial = replace(self.around, constant=nodes.Constant)
        # Pointwise operations read what is known from their constants; all others read memory.
        others = (o for o in self.source.operations if not isinstance(o, _FROM_CONSTANTS))
        self.in_memory = {array.buffer for o in others for array in arrays_of(o)}

    def network(self) -> nodes.QuantizedNetwork:
        """Return the network."""
        for position, operation in enumerate(self.source.operations):
            try:
                made = self.operation(position, operation)
            except NoWholeFormError as error:
                raise self.seen.refuse(position, str(error)) from error
            if made is not None:
                self.result.operations[position] = made
        result = self.result
        for buffer in (*self.source.states, *self.source.work, *self.source.outputs):
            result.formats[buffer] = self.format(buffer)
        for state in self.source.states:
            start = whole(self.start(state), self.format(state).fraction)
            result.starts[state] = limited(start, *self.range).numpy()
        return result

    def start(self, state: Buffer) -> Tensor:
        """Return the numbers that a state starts from."""
        values = state.values
        if isinstance(values, Tensor):
            return values.detach().reshape(-1).double()
        return torch.full((state.size,), float(values or 0.0), dtype=torch.float64)

    def start_format(self, state: Buffer) -> Format:
        start = self.start(state)
        if is_whole(start, self.arithmetic.state_high) and start.numel():
            return Format(0, int(start.min()), int(start.max()), exact=True)
        return Format(self.seen_fraction(state), *self.range, exact=False)

    def seen_fraction(self, *keys: Buffer | tuple[int, str]) -> int:
        """Return the fraction for the largest of some values in the examples."""
        largest = max(self.seen.largest.get(key, 0.0) for key in keys) * _MARGIN
        return fraction_for(largest, self.arithmetic.state_high, self.arithmetic.state_bits - 2)

    def format(self, buffer: Buffer) -> Format:
        """Return the format of a buffer: what those who write it agree on."""
        if buffer in self.result.formats and buffer.home is Home.INPUT:
            return self.result.formats[buffer]
        found = {**self.writers.get(buffer, {}), **self.written.get(buffer, {})}.values()
        if not found:
            return Format(0, 0, 0, exact=True)
        low, high = min(f.low for f in found), max(f.high for f in found)
        if all(f.exact for f in found):
            bounds = self.range if buffer in self.growing else (low, high)
            return Format(0, *bounds, exact=True)
        fractions = {f.fraction for f in found if not f.exact}
        if len(fractions) > 1 or any(f.exact and (f.low, f.high) != (0, 0) for f in found):
            fractions.add(self.seen_fraction(buffer))
        return Format(min(fractions), *self.range, exact=False)

    def write(self, position: int, buffer: Buffer, made: Format) -> Format:
        """Note the format of what an operation writes and return that of the buffer."""
        low, high = max(made.low, self.range[0]), min(made.high, self.range[1])
        if made.exact:
            made = Format(0, min(low, high), max(low, high), exact=True)
        else:
            made = Format(made.fraction, *self.range, exact=False)
        self.written.setdefault(buffer, {})[position] = made
        return self.format(buffer)

    def operation(self, position: int, operation: floats.Operation) -> nodes.Operation | None:
        """Return an operation in whole numbers; None if all that it computes is known."""
        match operation:
            case floats.Pointwise():
                return self.pointwise(position, operation)
            case floats.Copy(source, result):
                dense = Array(
                    result.buffer, source.shape, dense_strides(source.shape), result.offset
                )
                return self.move(position, source, dense)
            case floats.Place(source, result):
                return self.move(position, source, result)
            case floats.Border():
                return self.border(position, operation)
            case floats.Linear() | floats.Convolution():
                return self.product(position, operation)
            case floats.Pool() | floats.Reduce():
                return self.reduction(position, operation)
            case floats.Lookup():
                return self.lookup(position, operation)
            case floats.MatMul():
                return self.matmul(position, operation)
            case floats.Softmax() | floats.Normalize() | floats.Queue():
                name = type(operation).__name__.lower()
                raise NoWholeFormError(f"the operation '{name}' has no form in whole numbers")
            case _:
                assert_never(operation)

    def lookup(self, position: int, operation: floats.Lookup) -> nodes.Lookup | None:
        """Return a look-up of the numbers of a step, if an operation reads them from memory."""
        table, result = operation.table, operation.result
        rows = self.seen.view(table).double().contiguous().view(table.shape[0], -1)
        self.known[result.buffer] = rows
        if result.buffer not in self.in_memory:
            return None
        exact = is_whole(rows, self.arithmetic.state_high)
        fraction = 0 if exact else self.seen_fraction(result.buffer)
        made = self.write(position, result.buffer, Format(fraction, *self.range, exact))
        numbers = limited(whole(rows, made.fraction), *self.range).numpy()
        bits = self.arithmetic.state_bits
        return nodes.Lookup(self.constant(f"{result.buffer.name}_table", numbers, bits), result)

    def border(self, position: int, operation: floats.Border) -> nodes.Border:
        """Return what padding adds; a whole number is a count."""
        value, result = torch.tensor(operation.value), operation.result
        exact = is_whole(value, self.arithmetic.state_high)
        made = Format(self.seen_fraction(result.buffer), *self.range, exact=False)
        if exact:
            made = Format(0, int(value), int(value), exact=True)
        fraction = self.write(position, result.buffer, made).fraction
        return nodes.Border(int(limited(whole(value, fraction), *self.range)), result)

    def move(self, position: int, source: Array, result: Array) -> nodes.Move:
        """Return a copy that brings numbers to the fraction of where they go."""
        if source.buffer.home is Home.WEIGHT:
            raise NoWholeFormError("it returns a parameter, or keeps one as a state")
        made = self.format(source.buffer)
        there = self.write(position, result.buffer, made)
        return nodes.Move(source, result, made.fraction - there.fraction)

    def product(
        self, position: int, operation: floats.Linear | floats.Convolution
    ) -> nodes.Linear | nodes.Convolution:
        """Return a linear layer or a convolution."""
        x = self.format(operation.x.buffer)
        result = operation.result
        made = Format(self.seen_fraction(result.buffer), *self.range, exact=False)
        y = self.write(position, result.buffer, made)
        groups = operation.groups if isinstance(operation, floats.Convolution) else 1
        dense = isinstance(operation, floats.Linear) and self.seen.is_dense(position)
        weights = self.seen.view(operation.weight)
        shaped = weights.reshape(groups, -1, weights.shape[-1])
        bias = None if operation.bias is None else self.seen.view(operation.bias)
        keep = (result.buffer.name, self.constant)
        given = (shaped, bias, (x, y), self.arithmetic, keep)
        product = quantize_product(*given, is_dense=dense)
        if int(product.shift.values.min(initial=0)) < 2 - self.arithmetic.state_bits:
            raise NoWholeFormError("its outputs are far smaller than its weights")
        if isinstance(operation, floats.Linear):
            return nodes.Linear(operation, product)
        return nodes.Convolution(operation, product)

    def matmul(self, position: int, operation: floats.MatMul) -> nodes.MatMul:
        """Return a product of matrices; one of counts is a count."""
        if Home.WEIGHT in (operation.a.buffer.home, operation.b.buffer.home):
            raise NoWholeFormError("it multiplies matrices of which one is a parameter")
        a, b = self.format(operation.a.buffer), self.format(operation.b.buffer)
        ends = [x * y * operation.a.shape[-1] for x in (a.low, a.high) for y in (b.low, b.high)]
        low, high, fraction = min(ends), max(ends), a.fraction + b.fraction
        result = operation.result
        if not (a.exact and b.exact):
            low, high = self.range
            fraction = min(self.seen_fraction(result.buffer), fraction)
        made = Format(fraction, low, high, a.exact and b.exact)
        shift = a.fraction + b.fraction - self.write(position, result.buffer, made).fraction
        reached = max(map(abs, ends)) + (1 << max(shift, 0))
        if reached >= 1 << 63:
            raise NoWholeFormError("the sums of a product of two matrices exceed 64 bits")
        return nodes.MatMul(operation, shift, 32 if reached < 1 << 31 else 64)

    def reduction(
        self, position: int, operation: floats.Pool | floats.Reduce
    ) -> nodes.Pool | nodes.Reduce:
        """Return a pooling or a reduction; extremes, and sums of counts, stay exact."""
        x, result = self.format(operation.x.buffer), operation.result
        count = operation.x.numel // max(result.numel, 1)
        if isinstance(operation, floats.Pool):
            kind = "max" if operation.is_max else "mean"
        else:
            kind = operation.kind
        if kind in ("max", "min"):
            made = x
        elif kind == "sum" and x.exact:
            made = Format(0, x.low * count, x.high * count, exact=True)
        else:
            room = 60 - (max(abs(x.low), abs(x.high), 1) * max(operation.x.numel, 1)).bit_length()
            finest = x.fraction + max(min(room, self.arithmetic.state_bits), 0)
            fraction = min(self.seen_fraction(result.buffer), finest)
            made = Format(fraction, *self.range, exact=False)
        left = self.write(position, result.buffer, made).fraction - x.fraction
        if kind in ("max", "min") and left:
            raise NoWholeFormError("a maximum is written among values of another scale")
        divided, left = 1 << max(-left, 0), max(left, 0)
        reached = max(abs(x.low), abs(x.high)) * operation.x.numel << left
        sum_bits = self.arithmetic.wide_bits if reached <= self.arithmetic.wide_high else 64
        if divided * operation.x.numel > _LARGEST_DIVISOR:
            raise NoWholeFormError("its inputs are far smaller than other values of its result")
        if isinstance(operation, floats.Pool):
            divisors = tuple(d * divided for d in operation.divisors)
            return nodes.Pool(operation, divisors, left, sum_bits)
        sizes = (operation.x.shape[axis] for axis in operation.axes)
        size = math.prod(sizes) if kind == "mean" else 1
        return nodes.Reduce(operation, left, size * divided, sum_bits)

    def pointwise(self, position: int, operation: floats.Pointwise) -> nodes.Pointwise | None:
        """Return lets in whole numbers; a first draft tells which values are potentials."""
        trial = Draft(self.trial, operation, 0)
        known = trial.known()
        self.known |= known
        operation = trial.without(known.keys() - self.in_memory)
        if not operation.results:
            return None
        keys = [(position, *key) if isinstance(key, tuple) else key for key in trial.potentials()]
        # A number that is read is shifted to the left by less than a state has bits.
        room = self.arithmetic.state_bits - 2
        read = (self.format(key) for key in keys if isinstance(key, Buffer))
        fraction = self.seen_fraction(*keys) if keys else 0
        fraction = min(fraction, *(f.fraction + room for f in read), room)
        draft = Draft(self.around, operation, fraction)
        results = []
        for array, name in operation.results:
            value = draft.result(name)
            there = self.write(position, array.buffer, value.format)
            results.append((array, draft.stored(value, there.fraction)))
        return draft.finished(results)

    def constant(self, name: str, values: numpy.ndarray, bits: int) -> nodes.Constant:
        """Return numbers as a constant of the library; equal ones are kept once."""
        key = (bits, values.shape, values.tobytes())
        if key not in self.cached:
            taken = {c.name for c in self.result.constants}
            names = (name, *(f"{name}{n}" for n in range(2, len(taken) + 3)))
            fresh = next(n for n in names if n not in taken)
            self.cached[key] = nodes.Constant(fresh, values.reshape(-1), bits)
            self.result.constants.append(self.cached[key])
        return self.cached[key]
