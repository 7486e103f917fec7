"""Neurons and recurrent loops: one step in line, or all steps as a ``Scan``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from onnx import helper

from snncc.codegen.prepare import find_live, prepare
from snncc.export.onnx.expressions import Lanes, Shapes, Term
from snncc.export.onnx.graph import TYPES, GraphWriter
from snncc.export.onnx.lowering import Lowering
from snncc.export.onnx.values import Value
from snncc.ir import sequence_ops
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Recurrence
from snncc.ir.printer import print_recurrence
from snncc.ir.program import NeuronProgram
from snncc.ir.step_call import StepCall
from snncc.ir.time_loop import Fill, TimeLoop


def neuron(low: Lowering, forward: Recurrence, args: tuple[Any, ...]) -> list[Value]:
    """Write a neuron; its results are its outputs over time and its final states."""
    if forward.reverse:
        raise low.refusal("a neuron runs backwards in time")
    length, *inputs = args
    call = NeuronCall(NeuronProgram(forward))
    samples = low.sampled(call, (length, *inputs), {})
    results = [Value(tuple(each)) for each in zip(*samples, strict=True)]
    if low.one_step:
        _one_step(low, forward, inputs, results)
    else:
        _all_steps(low, forward, length, inputs, results)
    return results


def step(low: Lowering, recurrence: Recurrence, args: tuple[Any, ...]) -> list[Value]:
    """Write the elementwise part of one step of a loop."""
    samples = low.sampled(StepCall(recurrence, low.dtype), args, {})
    results = [Value(tuple(each)) for each in zip(*samples, strict=True)]
    terms = {n: _float(low, low.term(x)) for n, x in zip(recurrence.step_inputs, args, strict=True)}
    lanes = _lanes(low, recurrence, terms, recurrence.outputs)
    for name, result in zip(recurrence.outputs, results, strict=True):
        result.name = _result(low, lanes, name, result.shapes)
    return results


def _lanes(
    low: Lowering, recurrence: Recurrence, terms: Mapping[str, Term], wanted: Sequence[str]
) -> Lanes:
    """Write the lets of one step that wanted values depend on."""
    lanes = Lanes(low.graph, low.dtype, terms, low.count)
    lets = prepare(recurrence.lets, {*terms, *(let.name for let in recurrence.lets)})
    live = find_live(lets, (), wanted)
    lanes.add((let for let in lets if let.name in live), f"{recurrence.name}.")
    return lanes


def _float(low: Lowering, term: Term) -> Term:
    return Term(low.graph.cast(term.name, low.dtype), term.shapes) if term.is_bool else term


def _result(low: Lowering, lanes: Lanes, name: str, wanted: Shapes) -> str:
    """Return the name of a value of a step, a float for every lane."""
    term = _float(low, lanes.terms[name])
    return low.expanded(term, wanted, list(lanes.terms.values()))


def _one_step(
    low: Lowering, forward: Recurrence, inputs: Sequence[Any], results: Sequence[Value]
) -> None:
    """Write one step in line, without the time axis."""
    count = len(forward.step_inputs)
    terms = {n: _first(low, x) for n, x in zip(forward.step_inputs, inputs[:count], strict=True)}
    lanes_in = zip(forward.lane_inputs, inputs[count:], strict=True)
    terms |= {n: _float(low, low.term(x)) for n, x in lanes_in}
    before = Lanes(low.graph, low.dtype, terms, low.count)
    states = {s.name: before.write(s.initial) for s in forward.states}
    updates = {s.name: s.update for s in forward.states}
    wanted = [*forward.outputs, *(updates[name] for name in forward.finals)]
    lanes = _lanes(low, forward, terms | states, wanted)
    for i, (name, result) in enumerate(zip(wanted, results, strict=True)):
        if i < len(forward.outputs):
            result.bare = _result(low, lanes, name, tuple(s[1:] for s in result.shapes))
        else:
            result.name = _result(low, lanes, name, result.shapes)


def _first(low: Lowering, value: Any) -> Term:
    """Return the only step of a sequence."""
    if not isinstance(value, Value):
        return low.term(value)
    shapes = tuple(s[1:] for s in value.shapes)
    return _float(low, Term(low.without_first(value), shapes, value.dtype is torch.bool))


def _all_steps(
    low: Lowering,
    forward: Recurrence,
    length: Any,
    inputs: Sequence[Any],
    results: Sequence[Value],
) -> None:
    """Write a scan over all steps."""
    count = len(forward.step_inputs)
    terms = {
        n: _float(low, low.term(x))
        for n, x in zip(forward.lane_inputs, inputs[count:], strict=True)
    }
    before = Lanes(low.graph, low.dtype, terms, low.count)
    lanes_shape = _lanes_shape(low, inputs[:count], list(terms.values()))
    scan = Scan(low, forward.name, print_recurrence(forward))
    sources = [*terms.values(), *inputs[:count]]
    for state in forward.states:
        start = low.expanded(before.write(state.initial), lanes_shape, sources)
        terms[state.name] = Term(scan.carry(start, state.name, low.dtype), lanes_shape)
    for name, x in zip(forward.step_inputs, inputs[:count], strict=True):
        sequence = _float(low, low.term(x))
        terms[name] = Term(
            scan.sequence(sequence.name, name, low.dtype), tuple(s[1:] for s in sequence.shapes)
        )
    if not count:
        scan.count(length)
    inner = low.inside(scan.inner)
    updates = [s.update for s in forward.states]
    lanes = _lanes(inner, forward, terms, [*updates, *forward.outputs])
    for name in updates:
        scan.update(_result(inner, lanes, name, lanes_shape), low.dtype)
    for name in forward.outputs:
        scan.stack(_result(inner, lanes, name, lanes_shape), low.dtype)
    finals, stacked = scan.finish()
    positions = {s.name: i for i, s in enumerate(forward.states)}
    names = [*stacked, *(finals[positions[name]] for name in forward.finals)]
    for result, name in zip(results, names, strict=True):
        result.name = name


def _lanes_shape(low: Lowering, steps: Sequence[Any], lanes: Sequence[Term]) -> Shapes:
    shapes = [tuple(s[1:] for s in x.shapes) for x in steps]
    shapes += [t.shapes for t in lanes]
    return tuple(
        tuple(torch.broadcast_shapes(*(s[k] for s in shapes)))  # type: ignore[no-untyped-call]
        for k in range(low.count)
    )


class Scan:
    """A scan under construction: carries and sequences, then the inner graph, then results."""

    def __init__(
        self, low: Lowering, name: str, comment: str = "", *, reverse: bool = False
    ) -> None:
        self.low, self.name, self.comment, self.reverse = low, name, comment, reverse
        self.inner: GraphWriter = low.graph.inner()
        self.starts: list[str] = []
        self.sequences: list[str] = []
        self.places: list[Any] = []
        self.updates: list[tuple[str, torch.dtype]] = []
        self.stacked: list[tuple[str, torch.dtype]] = []

    def carry(self, start: str, name: str, dtype: torch.dtype) -> str:
        """Add a value that flows from step to step and return its name within a step."""
        self.starts.append(start)
        return self._place(name, dtype)

    def sequence(self, sequence: str, name: str, dtype: torch.dtype) -> str:
        """Add a sequence, time first, and return the name of its value at a step."""
        self.sequences.append(sequence)
        return self._place(name, dtype)

    def count(self, length: Any) -> None:
        """Give the number of steps, where there is no sequence."""
        graph = self.low.graph
        zero, one = (self.low.number(n) for n in (0, 1))
        steps = graph.node("Range", zero, self.low.number(length), one)
        self.sequence(steps, "t", torch.int64)

    def _place(self, name: str, dtype: torch.dtype) -> str:
        place = self.inner.fresh(f"{self.name}.{name}")
        self.places.append(helper.make_tensor_value_info(place, TYPES[dtype], None))
        return place

    def update(self, name: str, dtype: torch.dtype) -> None:
        """Say what the next carry becomes."""
        self.updates.append((name, dtype))

    def stack(self, name: str, dtype: torch.dtype) -> None:
        """Add a result with a value for each step."""
        self.stacked.append((name, dtype))

    def finish(self) -> tuple[list[str], list[str]]:
        """Add the node; return the names of the last carries, and of the stacked results."""
        outputs = []
        for name, dtype in (*self.updates, *self.stacked):  # each needs a node of its own
            own = self.inner.node("Identity", name, name=f"{self.name}.result")
            outputs.append(helper.make_tensor_value_info(own, TYPES[dtype], None))
        nodes = self.inner.finish(value.name for value in outputs)
        body = helper.make_graph(nodes, self.name, self.places, outputs, doc_string=self.comment)
        directions = {}
        if self.reverse:
            directions = {
                "scan_input_directions": [1] * len(self.sequences),
                "scan_output_directions": [1] * len(self.stacked),
            }
        names = self.low.graph.nodes_of(
            "Scan", [*self.starts, *self.sequences], len(outputs), name=self.name,
            body=body, num_scan_inputs=len(self.sequences), **directions,
        )  # fmt: skip
        return names[: len(self.updates)], names[len(self.updates) :]


def loop(low: Lowering, loop: TimeLoop, args: tuple[Any, ...]) -> list[Value]:
    """Write a loop whose steps depend on one another across lanes as a scan."""
    samples = low.sampled(loop, args, {})
    results = [Value(tuple(each)) for each in zip(*samples, strict=True)]
    found = _step_values(low, loop, args)
    scan = Scan(low, loop.name, reverse=loop.reverse)
    values: dict[str, Any] = {}
    for carry in loop.carries:
        update = Value(tuple(each[carry.update] for each in found))
        if update.is_number or update.dtype is not low.dtype:
            raise low.refusal(f"'{carry.name}' is carried from step to step and no float")
        start = _start(low, carry.initial, args, update.shapes, found)
        name = scan.carry(start, carry.name, low.dtype)
        values[carry.name] = Value(update.samples, name)
    for each in loop.steps:
        sequence = _sequence(low, loop, args[each.operand], each, args)
        at = Value(tuple(s.select(0, 0) for s in sequence.samples))
        at.name = scan.sequence(low.use(sequence), each.name, sequence.dtype)
        values[each.name] = at
    for table in loop.tables:
        numbers = torch.tensor(table.values, dtype=low.dtype)
        name = scan.sequence(low.graph.constant(numbers, table.name), table.name, low.dtype)
        values[table.name] = Value((torch.empty((), dtype=low.dtype),) * low.count, name)
    if not scan.sequences:
        scan.count(_trip(low, loop, args))
    values |= {i.name: args[i.operand] for i in loop.invariants}
    inner = low.inside(scan.inner)
    places = {n: values[n.name] for n in loop.body.nodes if n.op == "placeholder"}
    named = {n.name: v for n, v in inner.evaluate(loop.body, places).items()}
    low.node = inner.node if low.node is None else low.node
    for carry in loop.carries:
        term = _float(inner, inner.term(named[carry.update]))
        wanted = tuple(tuple(each[carry.update].shape) for each in found)
        scan.update(inner.expanded(term, wanted, [values[carry.name]]), low.dtype)
    for result in loop.results:
        value = named[result.node]
        scan.stack(inner.use(value), value.dtype)
    _, stacked = scan.finish()
    last = low.number(0 if loop.reverse else -1)
    for result, value, name in zip(loop.results, results, stacked, strict=True):
        value.name = name if result.stacked else low.graph.node("Gather", name, last, axis=0)
    return results


def _step_values(low: Lowering, loop: TimeLoop, args: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Return what the nodes of a loop are after some steps, when carries have their full shape."""
    found = []
    for k in range(low.count):
        given = tuple(a.samples[k] if isinstance(a, Value) else a for a in args)
        carried = loop.initial_values(given)
        values: dict[str, Any] = {}
        with torch.no_grad():
            for _ in range(1 + len(loop.carries)):
                values = loop.run_step(0, given, carried)
                carried = {c.name: values[c.update] for c in loop.carries}
        found.append(values)
    return found


def _start(
    low: Lowering,
    initial: int | Fill,
    args: tuple[Any, ...],
    wanted: Shapes,
    found: Sequence[dict[str, Any]],
) -> str:
    """Return the name of what a carry holds before the first step, in its full shape."""
    given: Any = float(initial.value) if isinstance(initial, Fill) else args[initial]
    if isinstance(given, Fill):
        given = float(given.value)
    term = _float(low, low.term(given))
    return low.expanded(term, wanted, [a for a in args if isinstance(a, Value)])


def _sequence(
    low: Lowering, loop: TimeLoop, operand: Any, each: Any, args: tuple[Any, ...]
) -> Value:
    """Return the values of a step input over time, time first."""
    if not isinstance(operand, Value):
        raise low.refusal("a loop runs over something that is no tensor")
    view: Value = low.apply(
        sequence_ops.time_view,
        (operand, each.dim, each.start, each.stride, _trip(low, loop, args)),
    )
    return view


def _trip(low: Lowering, loop: TimeLoop, args: tuple[Any, ...]) -> Any:
    """Return the number of steps of a loop."""
    trip = loop.trip
    if trip.operand is None:
        return trip.seen
    return low.apply(sequence_ops.TripLength(trip.dim, trip.offset), (args[trip.operand],))
