"""Integers of a loop that stay so small that floats hold them exactly.

A kernel has floats and bools.  A refractory count, a spike counter or the step of a first spike is
an integer tensor in the user's code; float32 holds integers up to 2^24 and adds, compares and
selects them exactly, so such a state runs in the kernel if it stays below.  That is proven here: in
one step an integer state c becomes one of

* c + d with d from a known interval (``ref - 1``, ``count + s.long()``),
* a value from a known interval (``2`` after a spike).

So after T steps it lies in a known interval that grows with T, and holds for T up to a limit that
is checked at each call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.fx

from snncc.frontend.operators.canonical import cast, full, full_like
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.time_loop import Carry, Fill, TimeLoop

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
EXACT = 2.0**24  # float32 holds every integer up to here
INITIAL = 2.0**23  # what an integer state from outside may hold, checked at each call
LEAST_STEPS = 10_000  # a state that may be exact for fewer steps is left alone

Node = torch.fx.Node


class Interval(NamedTuple):
    """Whole numbers from ``low`` to ``high``."""

    low: float
    high: float

    def __or__(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high))

    def plus(self, other: Interval) -> Interval:
        """Return what sums lie in."""
        return Interval(self.low + other.low, self.high + other.high)

    def times(self, other: Interval) -> Interval:
        """Return what products lie in."""
        ends = [a * b for a in self for b in other]
        return Interval(min(ends), max(ends))


# What a value may be: for a state, it plus an element of the interval; for None, an element.
Forms: TypeAlias = dict[Node | None, Interval]


class SmallIntegers:
    """The integers of a loop that are known to be small.

    Args:
        loop: The loop.

    Attributes:
        most_steps: For how many steps that is known.
    """

    def __init__(self, loop: TimeLoop) -> None:
        self._nodes = list(loop.body.nodes)
        named = {node.name: node for node in self._nodes}
        self._tables = {named[t.name]: t.values for t in loop.tables}
        self._carries = {named[c.name]: (c, named[c.update]) for c in loop.carries}
        self._states = {s: c for s, c in self._carries.items() if _is_integer(c[1])}
        self._blocked: set[Node] = set()
        self._forms: dict[Node, Forms] = {}
        self.most_steps = math.inf
        if any(_is_integer(node) for node in self._nodes):
            while self._drops_unknown_states() or self._blocks_large_values():
                pass

    def __contains__(self, node: object) -> bool:
        return node in self._forms

    def _drops_unknown_states(self) -> bool:
        """Compute all values; drop the states that become something else than is known."""
        self._forms = {state: {state: Interval(0, 0)} for state in self._states}
        for node in self._nodes:
            found = None if node in self._forms else self._evaluate(node)
            if found is not None and node not in self._blocked:
                self._forms[node] = found
        unknown = [s for s, (_, u) in self._states.items() if not self._becomes_known(s, u)]
        for state in unknown:
            del self._states[state]
        return bool(unknown)

    def _becomes_known(self, state: Node, update: Node) -> bool:
        forms = self._forms.get(update)
        return forms is not None and set(forms) <= {state, None}

    def _blocks_large_values(self) -> bool:
        """Block the values that leave the exact range too early."""
        steps = {node: self._steps_within(node) for node in self._forms if _is_integer(node)}
        large = {node for node, most in steps.items() if most < LEAST_STEPS}
        self._blocked |= large
        self._states = {s: c for s, c in self._states.items() if s not in large}
        self.most_steps = min(steps.values(), default=math.inf)
        return bool(large)

    def _steps_within(self, node: Node) -> float:
        """Return for how many steps a value stays within its type and within what is exact."""
        info = torch.iinfo(node.meta["dtype"])
        low, high = max(-EXACT, info.min), min(EXACT, info.max)
        steps = math.inf
        for state, interval in self._forms[node].items():
            start, growth = self._reach(state)
            first = start.plus(interval)
            if first.low < low or first.high > high:
                return 0
            if growth.high > 0:
                steps = min(steps, (high - first.high) // growth.high)
            if growth.low < 0:
                steps = min(steps, (low - first.low) // growth.low)
        return steps

    def _reach(self, state: Node | None) -> tuple[Interval, Interval]:
        """Return where a state is without growth, and how it may grow in one step."""
        zero = Interval(0, 0)
        if state is None:
            return zero, zero
        carry, update = self._states[state]
        forms = self._forms[update]
        start = _initial(carry, update)
        if None in forms:
            start |= forms[None]
        return start, forms.get(state, zero) | zero

    def _evaluate(self, node: Node) -> Forms | None:
        """Return what a node may be; None where that is not known."""
        if node in self._tables:
            values = self._tables[node]
            whole = all(float(v).is_integer() for v in values)
            return {None: Interval(min(values), max(values))} if whole else None
        if node in self._carries:
            return _of_type(self._carries[node][1].meta.get("dtype"))
        if node.op != "call_function":
            return _of_type(node.meta.get("dtype"))
        if isinstance(node.target, CustomGradient):
            return self._result(node.target.forward)
        return _value(node, self._operand)

    def _operand(self, value: Any) -> Forms | None:
        """Return what an argument may be."""
        if isinstance(value, Node):
            return self._forms.get(value) or _of_type(value.meta.get("dtype"))
        if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
            return {None: Interval(float(value), float(value))}
        return None

    def _result(self, graph: torch.fx.Graph) -> Forms | None:
        """Return what the result of a spike function may be."""
        known: dict[Node, Forms | None] = {}

        def operand(value: Any) -> Forms | None:
            if isinstance(value, Node):
                return known.get(value) or _of_type(value.meta.get("dtype"))
            return self._operand(value)

        for node in graph.nodes:
            if node.op == "call_function":
                known[node] = _value(node, operand)
        result = graph.output_node().args[0]
        return operand(result) if isinstance(result, Node) else None


def _initial(carry: Carry, update: Node) -> Interval:
    if isinstance(carry.initial, Fill):
        return Interval(float(carry.initial.value), float(carry.initial.value))
    known = _of_type(update.meta["dtype"])
    return Interval(-INITIAL, INITIAL) if known is None else known[None]


def _is_integer(node: Node) -> bool:
    """Tell whether a node is an integer for each lane; what counts for all lanes is no state."""
    return node.meta.get("dtype") in INTEGERS and bool(node.meta.get("shape"))


def _of_type(dtype: torch.dtype | None) -> Forms | None:
    """Return what any value of a type is."""
    if dtype is torch.bool:
        return {None: Interval(0, 1)}
    if dtype in INTEGERS and torch.iinfo(dtype).max < EXACT:
        info = torch.iinfo(dtype)
        return {None: Interval(info.min, info.max)}
    return None


def _value(node: Node, operand: Callable[[Any], Forms | None]) -> Forms | None:
    """Return what an operator makes of its operands."""
    rule = RULES.get(node.target)
    if rule is None or node.kwargs.get("alpha", 1) != 1:
        return None
    return rule(node, operand)


Operand = Callable[[Any], Forms | None]
Rule = Callable[[Node, Operand], Forms | None]


def _constant(forms: Forms | None) -> Interval | None:
    """Return the interval of what depends on no state."""
    return forms[None] if forms is not None and set(forms) == {None} else None


def _union(parts: Iterable[Forms | None]) -> Forms | None:
    union: Forms = {}
    for forms in parts:
        if forms is None:
            return None
        for state, interval in forms.items():
            union[state] = union[state] | interval if state in union else interval
    return union


def _shifted(forms: Forms | None, by: Interval | None) -> Forms | None:
    if forms is None or by is None:
        return None
    return {state: interval.plus(by) for state, interval in forms.items()}


def _add(node: Node, operand: Operand) -> Forms | None:
    x, y = map(operand, node.args[:2])
    if node.meta.get("dtype") is torch.bool:
        return None
    return _shifted(x, _constant(y)) or _shifted(y, _constant(x))


def _sub(node: Node, operand: Operand) -> Forms | None:
    x, y = operand(node.args[0]), _constant(operand(node.args[1]))
    return None if y is None else _shifted(x, Interval(-y.high, -y.low))


def _mul(node: Node, operand: Operand) -> Forms | None:
    x, y = map(operand, node.args[:2])
    a, b = _constant(x), _constant(y)
    if a is not None and b is not None:
        return {None: a.times(b)}
    if b is None:
        x, b = y, a
    if b is None or x is None or b.low < 0 or b.high > 1:
        return None
    return _union([x, {None: Interval(0, 0)}])  # times 0 or 1


def _any_of(*positions: int) -> Rule:
    """Return the rule of an operator whose result is one of these operands."""

    def rule(node: Node, operand: Operand) -> Forms | None:
        given = [node.args[p] for p in positions if p < len(node.args)]
        return _union(operand(value) for value in given if value is not None)

    return rule


def _relu(node: Node, operand: Operand) -> Forms | None:
    return _union([operand(node.args[0]), {None: Interval(0, 0)}])


def _neg(node: Node, operand: Operand) -> Forms | None:
    x = _constant(operand(node.args[0]))
    return None if x is None else {None: Interval(-x.high, -x.low)}


def _sign(node: Node, operand: Operand) -> Forms | None:
    return {None: Interval(-1, 1)}


def _cast(node: Node, operand: Operand) -> Forms | None:
    return None if node.args[1] is torch.bool else operand(node.args[0])


RULES: Mapping[Any, Rule] = {
    torch.add: _add,
    torch.sub: _sub,
    torch.mul: _mul,
    torch.neg: _neg,
    torch.relu: _relu,
    torch.sign: _sign,
    torch.where: _any_of(1, 2),
    torch.minimum: _any_of(0, 1),
    torch.maximum: _any_of(0, 1),
    torch.clamp: _any_of(0, 1, 2),
    torch.detach: _any_of(0),
    cast: _cast,
    full: _any_of(1),
    full_like: _any_of(1),
}
