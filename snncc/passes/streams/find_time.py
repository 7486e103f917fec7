"""Find the time axis of every value of a sequence graph, and which operators mix time steps.

A sequence graph runs on whole sequences.  To run it step by step one has to know, for each value,
whether it has a time axis and where, and for each operator whether it treats the steps apart.  Both
are found by running: the graph is run on sequences of one, two and three steps, and what grows with
the sequence has a time axis; an operator treats the steps apart if, on random values, its result on
a slice is the slice of its result.  So the analysis knows no operators, and new ones need no rule.

Random values stand for parameters too: a weight that happens to be zero hides nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.frontend.operators.canonical import draw, full, numel, size
from snncc.ir import sequence_ops
from snncc.ir.events.region import EventRegion
from snncc.ir.loop_call import LoopCall
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.time_loop import TimeLoop
from snncc.passes.base import Rejection
from snncc.passes.streams.event_steps import is_drawing, mixed_events
from snncc.passes.streams.running_values import can_reduce_on, can_scan_on, continued_value
from snncc.passes.streams.time_runs import (
    FAILURES,
    Environment,
    ShortRuns,
    call_node,
    run_short,
    takes_as_length,
)

# What makes steps.
LOOPS = NeuronCall | TimeLoop | LoopCall | EventRegion
# Values computed in another order differ by roundings; values of another step by much more.
_TOLERANCE = 1e-3


class Kind(Enum):
    """What a value of a sequence graph is to time."""

    TIMELESS = "timeless"  # the same whatever the sequence
    ALONG = "along"  # has a time axis
    FIRST = "first"  # computed from the first step, and the same ever after
    PREFIX = "prefix"  # one value for the sequence so far: a final state, a sum over time
    LENGTH = "length"  # an integer that follows the number of steps
    TUPLE = "tuple"  # several values, told apart by the nodes that take them


@dataclass(frozen=True, slots=True)
class Time:
    """Where time is in one value.

    Attributes:
        kind: What the value is to time.
        dim: Of ALONG values the axis.
        factor: Size of the axis for each step: B where [T, B] is flattened.
        inner: Whether the steps are the inner part of that axis, as where [B, T] is flattened.
        lead: Rows that stand before that of the first step, as where a sequence is padded.
    """

    kind: Kind
    dim: int = 0
    factor: int = 1
    inner: bool = False
    lead: int = 0

    def step(self, value: Tensor, t: int, steps: int) -> Tensor:
        """Return step ``t`` of a value with ``steps`` steps, its time axis kept.

        The rows just before stand in front of it, as many as lead the value.
        """
        if self.inner:
            index = [slice(None)] * self.dim + [slice(t, None, steps)]
            return value[tuple(index)]
        return value.narrow(self.dim, t * self.factor, self.factor + self.lead)


TIMELESS, FIRST, PREFIX, LENGTH, TUPLE = map(
    Time, (Kind.TIMELESS, Kind.FIRST, Kind.PREFIX, Kind.LENGTH, Kind.TUPLE)
)


@dataclass(eq=False)
class TimeMap:
    """The time of every value of a graph.

    Attributes:
        graph: The graph; its first placeholder is the number of steps.
        times: The time of each node.
        dtypes: The type of each node that is a tensor, or whose first result is.
        length: How many steps the graph takes, where that is a number of its own; else 0.
        makers: The nodes that put rows in front of the first step.
    """

    graph: torch.fx.Graph
    times: dict[torch.fx.Node, Time]
    dtypes: dict[torch.fx.Node, torch.dtype]
    length: int = 0
    makers: frozenset[torch.fx.Node] = frozenset()


def find_time(
    graph: torch.fx.Graph, values: Sequence[Tensor], inputs: Sequence[bool]
) -> TimeMap | Rejection:
    """Return where time is in each value of a sequence graph.

    Args:
        graph: The sequence graph.
        values: Tensors of the sizes of its placeholders; their values do not matter.
        inputs: For each placeholder whether it may have a time axis.
    """
    runs = run_short(graph, values, inputs)
    return runs if isinstance(runs, Rejection) else _Analysis(runs).times()


class _Analysis:
    """Assigns a `Time` to every node from runs of one, two and three steps."""

    def __init__(self, short: ShortRuns) -> None:
        self.short = short
        self.graph = short.graph
        self.runs = short.runs
        self.found: dict[torch.fx.Node, Time] = {}
        self.makers: set[torch.fx.Node] = set()

    def times(self) -> TimeMap | Rejection:
        """Return the time of every node, or why some node has none."""
        for node in self.graph.nodes:
            if node.op == "output":
                continue
            time = self.time(node)
            if isinstance(time, Rejection):
                reason = f"'{_spelled(node)}' {time.reason}"
                return Rejection(time.code, reason, node.meta.get("where"), time.hint)
            self.found[node] = time
        dtypes = {n: _dtype(v) for n, v in self.runs[3].items()}
        known = {n: d for n, d in dtypes.items() if d is not None}
        return TimeMap(self.graph, self.found, known, self.short.length, frozenset(self.makers))

    def time(self, node: torch.fx.Node) -> Time | Rejection:
        small, large = self.runs[2][node], self.runs[3][node]
        kinds = {self.found[n].kind for n in node.all_input_nodes}
        if not isinstance(large, Tensor):
            if isinstance(large, tuple | list):
                return self.several(node, kinds)
            return LENGTH if small != large else TIMELESS
        grown = [d for d, (a, b) in enumerate(zip(small.shape, large.shape, strict=True)) if a != b]
        if len(grown) > 1:
            return _mixing("relates every step to every other", "Let it relate what one step has.")
        if node.op == "placeholder":
            return Time(Kind.ALONG, grown[0]) if grown else TIMELESS
        if not grown:
            return self.without_axis(node, kinds)
        if Kind.PREFIX in kinds:
            hint = "Stream what stands before it, and call the rest on what the stream returned."
            return _mixing("needs the whole sequence before its first step", hint)
        factor = large.shape[grown[0]] - small.shape[grown[0]]
        return self.along(node, grown[0], factor, small.shape[grown[0]] - 2 * factor)

    def several(self, node: torch.fx.Node, kinds: set[Kind]) -> Time | Rejection:
        if Kind.PREFIX in kinds and isinstance(node.target, LOOPS):
            hint = "Compile and stream the two loops apart: one starts from what the other left."
            return _mixing("reads what another loop ends with", hint)
        refused = self.events(node) if isinstance(node.target, EventRegion) else None
        return TUPLE if refused is None else refused

    def events(self, node: torch.fx.Node) -> Rejection | None:
        """Return why a network of events cannot be run step by step; None if it can."""
        env = self.randomized(node)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            given = [env, *(self.sliced(env, t) for t in range(3))]
            args = [torch.fx.node.map_arg(node.args, each.__getitem__) for each in given]
            return mixed_events(node.target, args[0], args[1:], _same)  # type: ignore[arg-type]

    def without_axis(self, node: torch.fx.Node, kinds: set[Kind]) -> Time | Rejection:
        """Tell a value without a time axis: timeless, or a value of the sequence so far."""
        if _is_structural(node):
            return PREFIX
        if Kind.TUPLE in kinds:
            kinds = {self.found[n].kind for n in _operands(node)}
        if Kind.ALONG in kinds:
            if self.is_first(node):
                return FIRST
            return PREFIX if self.can_go_on(node) else _mixing()
        if kinds & {Kind.PREFIX, Kind.LENGTH}:
            return PREFIX
        return FIRST if Kind.FIRST in kinds else TIMELESS

    def is_first(self, node: torch.fx.Node) -> bool:
        """Tell whether a node takes the first step of its argument."""
        if node.target is not torch.select or node.args[2] != 0:
            return False
        time = self.found[node.args[0]]  # type: ignore[index]
        return time.kind is Kind.ALONG and (time.dim, time.factor) == (node.args[1], 1)

    def can_go_on(self, node: torch.fx.Node) -> bool:
        """Tell whether a node reduces time in a way that more steps can continue."""
        if node.target in (size, numel):
            return True
        reduced = continued_value(node)
        if reduced is not None:
            time = self.found[reduced]
            return time.kind is Kind.ALONG and can_reduce_on(node, time)
        source = node.args[0]
        return isinstance(source, torch.fx.Node) and is_last(node, self.found[source])

    def along(self, node: torch.fx.Node, dim: int, factor: int, lead: int) -> Time | Rejection:
        """Return the time of a value with a time axis, if its operator treats the steps apart."""
        if lead < 0 or (lead and factor != 1):
            return _mixing(
                "leaves steps out", "Return all steps, and leave out those of the stream."
            )
        choices = [Time(Kind.ALONG, dim, factor, inner, lead) for inner in (False, True)]
        choices = choices[: 1 if factor == 1 else 2]
        if _is_structural(node) or self.scans(node):
            return choices[0]
        if node.meta.get("impure") and not self.draws_alone(node):
            reason = "draws random numbers, or updates statistics, for the whole sequence"
            hint = "Apply it in each step; a norm also streams in evaluation mode, 'model.eval()'."
            return _mixing(reason, hint)
        try:
            whole, parts = self.evaluated(node)
        except FAILURES:
            return _mixing()
        for choice in choices:
            if all(_same(choice.step(whole, t, 3), part) for t, part in enumerate(parts)):
                return choice
        if lead and self.may_lead(node):
            rows = [whole.narrow(dim, t + lead, 1) for t in range(3)]
            if all(
                _same(row, part.narrow(dim, lead, 1)) for row, part in zip(rows, parts, strict=True)
            ):
                self.makers.add(node)
                return choices[0]
        return _mixing()

    def scans(self, node: torch.fx.Node) -> bool:
        """Tell whether a node gives running values over time."""
        operand = continued_value(node)
        return operand is not None and can_scan_on(node, self.found[operand])

    def evaluated(self, node: torch.fx.Node) -> tuple[Tensor, list[Tensor]]:
        """Return the value of a node for three steps at once, and for each of them alone."""
        env = self.randomized(node)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # numbers may be drawn for all steps at once
            whole = _evaluate(node, env)
            torch.manual_seed(0)
            return whole, [_evaluate(node, self.sliced(env, t)) for t in range(3)]

    def may_lead(self, node: torch.fx.Node) -> bool:
        """Tell whether the rows that a node puts in front are known before the first step."""
        if node.target is torch.cat:
            return self.found[node.args[0][0]].kind in (Kind.TIMELESS, Kind.FIRST)  # type: ignore[index]
        before = [node]
        for each in before:
            before += [n for n in each.all_input_nodes if n not in before]
        return not any(n.meta.get("impure") for n in before)

    def draws_alone(self, node: torch.fx.Node) -> bool:
        """Tell whether a node draws numbers and no other does, so that their order is its own."""
        impure = [n for n in self.graph.nodes if n.meta.get("impure") or is_drawing(n)]
        device: Any = node.kwargs.get("device")
        return impure == [node] and node.target in (draw, torch.rand) and device.type == "cpu"

    def randomized(self, node: torch.fx.Node) -> Environment:
        """Return the inputs of a node for three steps, random where they have a time axis."""
        env = {n: self.runs[3][n] for n in _operands(node)}
        for n, value in env.items():
            if self.found[n].kind is Kind.ALONG and value.dtype.is_floating_point:
                env[n] = torch.randn(value.shape, dtype=value.dtype)
            elif self.found[n].kind is Kind.ALONG and value.dtype == torch.bool:
                env[n] = torch.rand(value.shape) < 0.5
        return env

    def sliced(self, env: Environment, t: int) -> Environment:
        """Return the inputs of a node for step ``t`` alone."""
        result: Environment = {}
        for n, value in env.items():
            time = self.found[n]
            if time.kind is Kind.ALONG:
                result[n] = time.step(value, t, 3)
            else:
                result[n] = self.runs[1][n] if time.kind is Kind.LENGTH else value
        return result


def _is_structural(node: torch.fx.Node) -> bool:
    """Tell whether what a node does to time is known: it is a part of the sequence graph."""
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, torch.fx.Node) and isinstance(source.target, LOOPS)
    if node.target is torch.arange:
        return all(takes_as_length(user, node) for user in node.users)
    return node.target in STRUCTURAL


def _dtype(value: Any) -> torch.dtype | None:
    first = value[0] if isinstance(value, tuple | list) and value else value
    return first.dtype if isinstance(first, Tensor) else None


def _operands(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Return what a node reads; for a part of several results, what their operator reads."""
    if node.target is operator.getitem and isinstance(node.args[0], torch.fx.Node):
        source = node.args[0]
        bounds = [n for n in node.all_input_nodes if n is not source]
        return [*(source.all_input_nodes if "shape" not in source.meta else [source]), *bounds]
    return node.all_input_nodes


def _evaluate(node: torch.fx.Node, env: Environment) -> Any:
    if node.args and node.args[0] not in env and node.target is operator.getitem:
        source: Any = node.args[0]
        return call_node(node, {**env, source: call_node(source, env)})
    return call_node(node, env)


# Operators that may put rows in front of the first step.
MAKERS = frozenset({torch.cat, torch.nn.functional.pad, full})
STRUCTURAL = frozenset(
    {sequence_ops.shift_time, sequence_ops.numbers_until, sequence_ops.steps_until}
)


def _mixing(
    reason: str = "does not treat the time steps apart",
    hint: str = "Apply it to each step alone, or to what the stream returns.",
) -> Rejection:
    return Rejection("mixes-time", reason, hint=hint)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


def _spelled(node: torch.fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def is_last(node: torch.fx.Node, time: Time) -> bool:
    """Tell whether a node takes the last step of its argument."""
    if node.target is sequence_ops.last_step:
        return True
    if node.target is torch.select:
        return node.args[1:] == (time.dim, -1) and time.factor == 1
    return False
