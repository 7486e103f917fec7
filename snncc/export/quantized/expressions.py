"""From the lets of a pointwise operation to lets on whole numbers.

All potentials of one operation have one fraction F; spikes, counts and bools are exact.  What is
known at export is computed in floats and rounded where it meets a number: a constant that is added
or compared has the fraction of the other side, and a factor is a multiplier ``m`` of as many bits
as a state has and a shift ``g``: ``x c = right(x m, g)``.  Bounds are followed; where a result
could leave the wide type, its operands are limited to the range of a state first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

import torch
from torch import Tensor

from snncc.export.quantized.formats import Arithmetic, Format, is_whole, limited, whole
from snncc.export.quantized.nodes import Apply, Integer, Name, Number
from snncc.ir.interpret import BINARY, UNARY
from snncc.ir.nodes import (
    COMPARISONS,
    EXACT_POWERS,
    LOGICAL,
    Binary,
    Const,
    Detach,
    Expr,
    Op,
    Select,
    Unary,
    Var,
)


class NoWholeFormError(Exception):
    """An expression cannot be computed in whole numbers; the text says why."""


@dataclass(frozen=True, slots=True)
class Value:
    """An integer expression, its fraction and bounds, and whether it counts."""

    expr: Integer
    format: Format

    @property
    def exact(self) -> bool:
        """Whether it is a count or a bool."""
        return self.format.exact


@dataclass(frozen=True)
class Known:
    """What is known at export, as doubles.

    A single number has no axes; all others have one for the steps, of size one where each step has
    the same, then those of the operation.
    """

    values: Tensor


Operand: TypeAlias = Value | Known
# Keeps numbers with the weights and returns the name under which an operation reads them.
Keep: TypeAlias = Callable[[Tensor], str]


@dataclass
class Compiler:
    """Compiles expressions of one operation.

    Attributes:
        arithmetic: The sizes of numbers.
        fraction: F.
        keep: Where arrays of constants go.
        scope: For each name its value.
    """

    arithmetic: Arithmetic
    fraction: int
    keep: Keep
    scope: dict[str, Operand]

    def compile(self, expr: Expr) -> Operand:
        """Return the value of an expression.

        Raises:
            NoWholeFormError: It has none.
        """
        match expr:
            case Const(value):
                return Known(torch.tensor(float(value), dtype=torch.float64))
            case Var(name):
                return self.scope[name]
            case Detach(arg):
                return self.compile(arg)
            case Unary(op, arg):
                return self._unary(op, self.compile(arg))
            case Binary(op, lhs, rhs):
                return self._binary(op, self.compile(lhs), self.compile(rhs))
            case Select(condition, if_true, if_false):
                chosen = (self.compile(if_true), self.compile(if_false))
                return self._select(self.compile(condition), *chosen)
            case _:
                assert_never(expr)

    def potential(self, operand: Operand) -> Value:
        """Return an operand in the fraction F."""
        if isinstance(operand, Known):
            return self._constant(operand, self.fraction, exact=False)
        if not operand.exact:
            return operand
        return self.shifted(operand, self.fraction)

    def shifted(self, value: Value, left: int) -> Value:
        """Return a value in a fraction that is finer by ``left`` bits."""
        f = value.format
        if left > 0:
            value = self._fitting(value, lambda low, high: (low << left, high << left))
            f = value.format
            low, high = f.low << left, f.high << left
        elif left < 0:
            low, high = rounded_shift(f.low, -left), rounded_shift(f.high, -left)
        else:
            low, high = f.low, f.high
        shape = Format(f.fraction + left, low, high, exact=False)
        if left == 0:
            return Value(value.expr, shape)
        name = "left" if left > 0 else "right"
        return Value(_fold(Apply(name, (value.expr,), abs(left))), shape)

    def limited(self, value: Value) -> Value:
        """Return a value limited to the range of a state."""
        f, a = value.format, self.arithmetic
        if a.state_low <= f.low and f.high <= a.state_high:
            return value
        low, high = max(f.low, a.state_low), min(f.high, a.state_high)
        return Value(Apply("limit", (value.expr,)), replace(f, low=low, high=high))

    def known(self, operand: Known) -> Value:
        """Return a constant as a count if it is whole, else in the fraction F."""
        exact = is_whole(operand.values, self.arithmetic.state_high)
        return self._constant(operand, 0 if exact else self.fraction, exact=exact)

    def _constant(self, operand: Known, fraction: int, *, exact: bool) -> Value:
        if bool(operand.values.isnan().any()):
            raise NoWholeFormError("a constant is not a number")
        # A threshold that no potential reaches stays out of reach of their difference as well.
        high = self.arithmetic.wide_high >> 2
        numbers = limited(whole(operand.values, fraction), -high, high)
        low, high = int(numbers.min()), int(numbers.max())
        expr = Number(low) if numbers.numel() == 1 else Name(self.keep(numbers))
        return Value(expr, Format(fraction, low, high, exact))

    def _fitting(self, value: Value, bounds: Callable[[int, int], tuple[int, int]]) -> Value:
        """Return a value, limited if a bound of a result could leave the wide type."""
        f = value.format
        if max(map(abs, bounds(f.low, f.high))) <= self.arithmetic.wide_high:
            return value
        return self.limited(value)

    def _unary(self, op: Op, x: Operand) -> Operand:
        if isinstance(x, Known):
            return Known(x.values if op is Op.FLOAT else UNARY[op](x.values).double())
        f = x.format
        match op:
            case Op.FLOAT:
                return x
            case Op.NEG:
                return Value(Apply("neg", (x.expr,)), replace(f, low=-f.high, high=-f.low))
            case Op.ABS:
                most = max(abs(f.low), abs(f.high))
                return Value(Apply("abs", (x.expr,)), replace(f, low=0, high=most))
            case Op.NOT:
                return _truth(Apply("not", (self._condition(x),)))
            case Op.SIGN:
                zero = Number(0)
                above, below = (Apply(c, (x.expr, zero)) for c in ("gt", "lt"))
                return Value(Apply("sub", (above, below)), Format(0, -1, 1, exact=True))
            case Op.FLOOR | Op.CEIL | Op.ROUND:
                return self._rounded(op, x)
        raise NoWholeFormError(f"the operation '{op.value}' has no form in whole numbers")

    def _rounded(self, op: Op, x: Value) -> Value:
        """Return a whole number near a value, as a count."""
        f = x.format
        if x.exact or f.fraction <= 0:
            return x
        low, high = f.low >> f.fraction, -(-f.high >> f.fraction)
        shape = Format(0, low, high, exact=True)
        if op is Op.CEIL:
            below = Apply("floor", (Apply("neg", (x.expr,)),), f.fraction)
            return Value(Apply("neg", (below,)), shape)
        name = "floor" if op is Op.FLOOR else "even"
        return Value(Apply(name, (x.expr,), f.fraction), shape)

    def _binary(self, op: Op, a: Operand, b: Operand) -> Operand:
        if isinstance(a, Known) and isinstance(b, Known):
            return Known(BINARY[op](a.values, b.values).double())
        if op is Op.MUL:
            return self._product(a, b)
        if op is Op.DIV:
            return self._quotient(a, b)
        if op is Op.POW and isinstance(b, Known):
            return self._power(a, b)
        if op in LOGICAL:
            return _truth(Apply(op.value, (self._condition(a), self._condition(b))))
        if op in COMPARISONS:
            x, y = self._same(a, b)
            return _truth(Apply(op.value, (x.expr, y.expr)))
        if op in _BOUNDS:
            x, y = self._same(a, b)
            join = _BOUNDS[op]
            if not self._fits(join(x.format, y.format)):
                x, y = self.limited(x), self.limited(y)
            low, high = join(x.format, y.format)
            shape = replace(x.format, low=low, high=high)
            return Value(_fold(Apply(op.value, (x.expr, y.expr))), shape)
        raise NoWholeFormError(f"the operation '{op.value}' has no form in whole numbers")

    def _power(self, x: Operand, exponent: Known) -> Operand:
        """Return a power that is a product, or a quotient."""
        power = float(exponent.values) if exponent.values.numel() == 1 else math.nan
        if power not in EXACT_POWERS:
            raise NoWholeFormError("a power has a form in whole numbers from -2 to 3 only")
        result: Operand = Known(torch.ones((), dtype=torch.float64))
        for _ in range(abs(round(power))):
            result = self._binary(Op.MUL, result, x)
        return result if power >= 0 else self._binary(Op.DIV, Known(torch.ones(())), result)

    def _fits(self, bounds: tuple[int, int]) -> bool:
        return max(map(abs, bounds)) <= self.arithmetic.wide_high

    def _same(self, a: Operand, b: Operand) -> tuple[Value, Value]:
        """Return two operands in one fraction: counts if both are."""
        x, y = self._beside(a, b), self._beside(b, a)
        if isinstance(x, Value) and isinstance(y, Value) and x.exact and y.exact:
            return x, y
        return self.potential(a), self.potential(b)

    def _beside(self, a: Operand, b: Operand) -> Operand:
        """Return an operand; a constant beside a count as a count if it is whole."""
        counts = isinstance(a, Known) and isinstance(b, Value) and b.exact
        return self.known(a) if counts and isinstance(a, Known) else a

    def _condition(self, x: Operand) -> Integer:
        if isinstance(x, Known):
            return self._constant(Known((x.values != 0).double()), 0, exact=True).expr
        if x.exact and (x.format.low, x.format.high) in _TRUTHS:
            return x.expr
        return Apply("ne", (x.expr, Number(0)))

    def _select(self, condition: Operand, a: Operand, b: Operand) -> Operand:
        x, y = self._same(a, b)
        if isinstance(a, Known) and isinstance(b, Known):
            high = self.arithmetic.state_high
            if is_whole(a.values, high) and is_whole(b.values, high):
                x, y = self.known(a), self.known(b)
        low, high = min(x.format.low, y.format.low), max(x.format.high, y.format.high)
        expr = Apply("select", (self._condition(condition), x.expr, y.expr))
        return Value(expr, replace(x.format, low=low, high=high))

    def _product(self, a: Operand, b: Operand) -> Value:
        if isinstance(a, Known):
            a, b = b, a
        assert isinstance(a, Value)
        if isinstance(b, Known):
            return self._scaled(a, b)
        if not a.exact and not b.exact:
            a, b = self._factors(a, b)
            return self.shifted(_multiplied(a, b, 2 * self.fraction), -self.fraction)
        a, b = self._factors(a, b)
        fraction = a.format.fraction + b.format.fraction
        product = _multiplied(a, b, fraction)
        return replace(product, format=replace(product.format, exact=a.exact and b.exact))

    def _factors(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Return two factors, limited if their product could leave the wide type."""
        if self._fits(_corners(a.format, b.format)):
            return a, b
        return self.limited(a), self.limited(b)

    def _scaled(self, x: Value, factor: Known) -> Value:
        """Return a value times what is known; a count times whole numbers stays a count."""
        if x.exact and is_whole(factor.values, self.arithmetic.state_high):
            return self._product(x, self.known(factor))
        if x.exact and max(abs(x.format.low), abs(x.format.high)) <= 1:
            return self._product(x, self.potential(factor))
        numbers, bits = self._multiplier(factor.values)
        low, high = int(numbers.min()), int(numbers.max())
        expr = Number(low) if numbers.numel() == 1 else Name(self.keep(numbers))
        x, m = self._factors(x, Value(expr, Format(bits, low, high, exact=False)))
        product = _multiplied(x, m, x.format.fraction + bits)
        return self.shifted(product, self.fraction - product.format.fraction)

    def _multiplier(self, factor: Tensor) -> tuple[Tensor, int]:
        """Return the numbers of a multiplier and their fraction, the least that loses nothing."""
        high = self.arithmetic.state_high
        largest = float(factor.abs().max())
        if not math.isfinite(largest):
            raise NoWholeFormError("a factor is not a finite number")
        if largest == 0:
            return torch.zeros(1, dtype=torch.int64), 0
        bits = math.floor(math.log2(high / largest))
        while round(math.ldexp(largest, bits)) > high:
            bits -= 1
        bits = min(bits, self.arithmetic.wide_bits - 2 + min(self.fraction, 0))
        numbers = limited(whole(factor, bits), -high, high)
        while not bool((numbers & 1).any()) and bool(numbers.any()):
            numbers, bits = numbers >> 1, bits - 1
        return numbers, bits

    def _quotient(self, a: Operand, b: Operand) -> Value:
        if isinstance(b, Known):
            if bool((b.values == 0).any()):
                raise NoWholeFormError("it divides by a constant zero")
            assert isinstance(a, Value)
            return self._scaled(a, Known(1.0 / b.values))
        numerator, denominator = self.limited_wide(self.potential(a)), self.limited_wide(b)
        if not b.exact:
            numerator = self.shifted(self.limited(numerator), self.fraction)
        ends = (numerator.format.low, numerator.format.high, -self.arithmetic.state_high - 1)
        most = max(map(abs, ends))
        expr = Apply("divide", (numerator.expr, denominator.expr))
        return self.limited(Value(expr, Format(self.fraction, -most, most, exact=False)))

    def limited_wide(self, value: Value) -> Value:
        """Return a value that does not leave the wide type, limiting it where it could."""
        return self._fitting(value, lambda low, high: (low, high))


def rounded_shift(x: int, bits: int) -> int:
    """Return ``floor(x / 2^bits + 1/2)``."""
    return (x + (1 << bits - 1)) >> bits


def _truth(expr: Integer) -> Value:
    return Value(expr, Format(0, 0, 1, exact=True))


def _corners(a: Format, b: Format) -> tuple[int, int]:
    ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return min(ends), max(ends)


def _multiplied(a: Value, b: Value, fraction: int) -> Value:
    low, high = _corners(a.format, b.format)
    expr = _fold(Apply("mul", (a.expr, b.expr)))
    return Value(expr, Format(fraction, low, high, exact=False))


def _fold(expr: Apply) -> Integer:
    """Return an expression without operations that change nothing, or that are known."""
    match expr:
        case Apply("left", (Number(value),), bits):
            return Number(value << bits)
        case Apply("right", (Number(value),), bits):
            return Number(rounded_shift(value, bits))
        case Apply("mul", (x, Number(1))) | Apply("mul", (Number(1), x)):
            return x
        case Apply("mul", (_, Number(0))) | Apply("mul", (Number(0), _)):
            return Number(0)
        case Apply("add", (x, Number(0))) | Apply("add", (Number(0), x)):
            return x
        case Apply("sub", (x, Number(0))):
            return x
    return expr


_TRUTHS = ((0, 0), (0, 1), (1, 1))
_BOUNDS: Mapping[Op, Callable[[Format, Format], tuple[int, int]]] = {
    Op.ADD: lambda a, b: (a.low + b.low, a.high + b.high),
    Op.SUB: lambda a, b: (a.low - b.high, a.high - b.low),
    Op.MIN: lambda a, b: (min(a.low, b.low), min(a.high, b.high)),
    Op.MAX: lambda a, b: (max(a.low, b.low), max(a.high, b.high)),
}
