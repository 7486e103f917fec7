"""One call of a recurrent loop: allocate, prepare the calls of all steps, run them.

The steps are a plain Python loop over prepared functions of the step number.  A fused step is one
foreign call, a product one call of torch into a row that is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.ir.norm_ops import normalized
from snncc.ir.step_call import StepCall, step_inputs
from snncc.ir.time_loop import Fill
from snncc.runtime import memory
from snncc.runtime.launch import with_lanes
from snncc.runtime.loops.norm_steps import norm_into
from snncc.runtime.loops.plan import LoopPlan, Supply
from snncc.runtime.loops.row_loop import row_product
from snncc.runtime.loops.row_plan import packed
from snncc.runtime.loops.sketch import OUT, SEVERAL
from snncc.runtime.loops.step_kernel import Addresses
from snncc.runtime.loops.storage import Cells, Items, Read, Rows, allocate_ring, in_order

Node = torch.fx.Node
Run = Callable[[int], None]


def run_loop(plan: LoopPlan, operands: Sequence[Any]) -> list[Any]:
    """Run a loop and return its results.

    A stacked result is a tensor, or a list where the loop did not write it into one array.
    """
    return _Call(plan, operands).run()


class _Call:
    def __init__(self, plan: LoopPlan, operands: Sequence[Any]) -> None:
        self.plan, self.sketch, self.operands = plan, plan.sketch, operands
        self.length = plan.length
        self.times = in_order(plan.length, reverse=plan.sketch.loop.reverse)
        self.fixed = self.run_fixed()
        self.cells: dict[Node, Cells] = {}
        self.initials: dict[Node, Tensor] = {}
        self.held: list[Tensor] = []

    def run(self) -> list[Any]:
        """Run all steps and return the results."""
        for call in self.sketch.calls:
            for value in self.sketch.values(call):
                self.cells[value] = self.allocate(value)
        for carry in self.sketch.carries:
            self.initials[carry] = self.start(carry)
        if self.plan.rows is not None:
            self.plan.rows.run(self.length, [self.locate(call) for call in self.sketch.calls])
        else:
            self.run_steps()
        return [self.result(r.node, stacked=r.stacked) for r in self.sketch.loop.results]

    def run_steps(self) -> None:
        """Make the calls of one step after another."""
        calls = [function for call in self.sketch.calls for function in self.prepare(call)]
        for k in range(self.length):
            for function in calls:
                function(k)

    def run_fixed(self) -> dict[Node, Any]:
        """Return the values that are the same at all steps."""
        values: dict[Node, Any] = {
            node: self.operands[i] for node, i in self.sketch.invariants.items()
        }
        for node in self.sketch.loop.body.nodes:
            if node in self.sketch.fixed and node not in values:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
        return values

    def allocate(self, value: Node) -> Cells:
        """Return where a value of the loop lies."""
        sketch, sizes, dtype = self.sketch, self.plan.sizes(value), self.plan.dtype(value)
        if not self.plan.is_array(value):
            stacked = any(
                r.stacked and sketch.reading(sketch.by_name[r.node]).base is value
                for r in sketch.loop.results
            )
            return Items([None] * self.length, None if stacked else sketch.longest_delay(value))
        if not sketch.is_stacked(value):
            count = sketch.buffers(value, in_place=not self.plan.on_gpu)
            return allocate_ring(count, sizes, dtype, self.length, self.plan.device)
        # One row more, before the first step that is run, for what a carry starts as.
        rows = self.empty((self.length + 1, *sizes), dtype)
        index, before = list(self.times), self.length
        if not sketch.loop.reverse:
            index, before = [t + 1 for t in self.times], 0
        return Rows(rows, index, before)

    def empty(self, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory for a value."""
        if self.plan.on_gpu:
            return torch.empty(sizes, dtype=dtype, device=self.plan.device)
        return memory.empty(sizes, dtype)

    def start(self, carry: Node) -> Tensor:
        """Return what a carry starts as, in the row before the first if there is one."""
        sketch, spec = self.sketch, self.sketch.carries[carry]
        # A stream gives a state that has no shape yet as a number, too.
        initial = spec.initial if isinstance(spec.initial, Fill) else self.operands[spec.initial]
        update = sketch.updates[carry]
        cells = self.cells.get(update)
        first = next(c for c, u in sketch.updates.items() if u is update)
        like = self.plan.like[carry.name]
        if isinstance(cells, Rows) and cells.before is not None and first is carry:
            target = cells.array[cells.before]
        elif isinstance(initial, Tensor) and like is not None:
            value = initial
            same = (value.shape, value.dtype) == (like.shape, like.dtype)
            if same and value.is_contiguous() and value.device == self.plan.device:
                return value
            target = self.empty(like.shape, like.dtype)
        else:
            target = self.empty(self.plan.sizes(carry), self.plan.dtype(carry))
        if isinstance(initial, Fill):
            return target.fill_(initial.value)
        return target.copy_(initial.detach())

    def is_before(self, cells: Rows, carry: Node) -> bool:
        """Tell whether the start of a carry lies in the row before the rows of its update."""
        direct = self.sketch.reading(carry).delay == 1 and cells.before is not None
        return direct and self.initials[carry].data_ptr() == cells.array[cells.before].data_ptr()

    def prepare(self, call: Node) -> list[Run]:
        """Return the functions that make a call at step k."""
        if isinstance(call.target, StepCall):
            return self.prepare_step(call, call.target)
        if call.target in SEVERAL:
            return [self.prepare_several(call)]
        cells = self.cells[call]
        if isinstance(cells, Items):
            args, kwargs = self.reader(call.args), self.reader(call.kwargs)
            return [_call(call.target, args, kwargs, cells)]
        into, rows = OUT[call.target], cells.tensors()
        first, *rest = _args(call)
        if all(operand in self.fixed or operand is None for operand in rest):
            weights = [None if operand is None else self.fixed[operand] for operand in rest]
            return [_call_into(into, self.reader(first, in_place=True), weights, rows)]
        reads = [self.reader(operand, in_place=True) for operand in call.args]
        return [lambda k: into(*[read(k) for read in reads], out=rows[k])]

    def prepare_several(self, call: Node) -> Run:
        """Return the function that writes the results of an operator into their rows."""
        rows: dict[int, list[Tensor]] = {}
        for value in self.sketch.values(call):
            cells, position = self.cells[value], value.args[1]
            assert isinstance(cells, Rows)
            assert isinstance(position, int)
            rows[position] = cells.tensors()
        reads = [self.reader(operand, in_place=True) for operand in call.args]
        if call.target is normalized:
            return norm_into(reads, [rows.get(i) for i in range(3)])
        return _copied(call.target, reads, rows)

    def prepare_step(self, call: Node, step: StepCall) -> list[Run]:
        """Return the copies that a fused step needs, and its launches."""
        bound = self.plan.bound[call]
        if 0 in bound.lanes:
            return []
        copies: list[Run] = []
        places = self.locate_step(call, step, copies)
        return [*copies, bound.launches(places, self.length)]

    def locate_step(self, call: Node, step: StepCall, copies: list[Run]) -> dict[str, Any]:
        """Return where a fused step reads and writes; add the copies that this takes."""
        bound = self.plan.bound[call]
        places: dict[str, Any] = {}
        for name, node in step_inputs(call).items():
            if name in bound.slots:
                places[name] = self.supply(call, name, node, copies)
        for name, node in self.sketch.outputs(call).items():
            cells = self.cells[node]
            assert isinstance(cells, Rows)
            places[name] = self.plan.places.of_rows(cells)
        for name in bound.slots.keys() - places.keys():
            places[name] = self.hold(self.empty(bound.lanes, step.type_of(name)))
        return places

    def locate(self, call: Node) -> dict[str, Addresses]:
        """Return what a call of a loop that is run by rows reads and writes."""
        if isinstance(call.target, StepCall):
            return self.locate_step(call, call.target, [])
        product, cells = row_product(self.sketch, call), self.cells[call]
        assert product is not None
        assert isinstance(cells, Rows)
        weight = self.fixed[product.weight]
        found: dict[str, Addresses] = {
            "x": self.sequence(product.x),
            "weight": self.hold(packed(weight.t() if product.transposed else weight)),
            "out": cells.addresses(),
            # A zero times infinity is no zero.
            "skip": int(weight.isfinite().all()),
        }
        if product.bias is not None:
            found["bias"] = self.hold(packed(self.fixed[product.bias]))
        return found

    def sequence(self, node: Node) -> list[Any]:
        """Return where a value lies that is written into rows, or was given, step by step."""
        if node in self.sketch.given:
            return self.rows(self.operands[self.sketch.given[node].operand])
        return self.delayed(node, self.plan.places.of_rows, self.plan.places.of)

    def supply(self, call: Node, name: str, node: Node, copies: list[Run]) -> Any:
        """Return where a fused step finds an input; add the copies that this takes."""
        bound, dtype = self.plan.bound[call], self.plan.seen[call][name].dtype
        whole = bound.lanes if name in bound.copied else None
        match self.plan.supplies[call][name]:
            case Supply.FIXED:
                value = self.plan.on_device(self.fixed[node], dtype)
                if whole is not None:
                    value = value.expand(whole).contiguous()
                return self.hold(value if value is self.fixed[node] else value.contiguous())
            case Supply.NUMBER:
                return self.rows(self.plan.numbers(node, dtype))
            case Supply.GIVEN:
                sequence = self.operands[self.sketch.given[node].operand]
                if whole is not None:
                    sequence = with_lanes(sequence, len(whole)).expand(self.length, *whole)
                    sequence = sequence.contiguous()
                return self.rows(sequence)
            case Supply.ROWS:
                return self.sequence(node)
            case Supply.COPY:
                buffer = self.empty(whole or self.plan.sizes(node), dtype)
                copies.append(_copy(self.reader(node, in_place=True), buffer))
                return self.hold(buffer)

    def hold(self, tensor: Tensor) -> Any:
        """Keep a tensor alive for this call and return where it lies."""
        self.held.append(tensor)
        return self.plan.places.of(tensor)

    def rows(self, sequence: Tensor) -> list[Any]:
        """Return where the rows of a sequence lie, in the order of the steps."""
        self.held.append(sequence)
        return self.plan.places.of_rows(Rows(sequence, self.times))

    def delayed(self, node: Node, of_rows: Callable[[Rows], list[Any]], of_start: Any) -> list[Any]:
        """Return what reading a node gives at each step: starts first, then rows."""
        reading = self.sketch.reading(node)
        cells = self.cells[reading.base]
        assert isinstance(cells, Rows)
        starts = [of_start(self.initials[c]) for c in reading.carries[: self.length]]
        return [*starts, *of_rows(cells)[: self.length - len(starts)]]

    def reader(self, value: Any, *, in_place: bool = False) -> Read:
        """Return a function that gives an argument of a call at step k.

        Args:
            value: A node, a literal, or a list, tuple, slice or dictionary of such.
            in_place: Whether a buffer that will be written again may be given as it is.
        """
        if isinstance(value, Node):
            return self.node_reader(value, in_place=in_place)
        if isinstance(value, tuple | list):
            parts = [self.reader(part) for part in value]
            return lambda k: type(value)([read(k) for read in parts])
        if isinstance(value, slice):
            bounds = self.reader((value.start, value.stop, value.step))
            return lambda k: slice(*bounds(k))
        if isinstance(value, dict):
            named = {key: self.reader(part) for key, part in value.items()}
            return lambda k: {key: read(k) for key, read in named.items()}
        return lambda _: value

    def node_reader(self, node: Node, *, in_place: bool) -> Read:
        if node in self.fixed:
            fixed = self.fixed[node]
            return lambda _: fixed
        reading = self.sketch.reading(node)
        starts = [self.initials[c] for c in reading.carries[: self.length]]
        cells = self.cells.get(reading.base)
        if isinstance(cells, Items):
            return _late(cells.values, starts)
        if cells is None:
            values = self.outside(reading.base)
            return [*starts, *values[: self.length - len(starts)]].__getitem__
        rows = self.delayed(node, Rows.tensors, lambda start: start)
        if cells.is_aligned and (in_place or not cells.is_reused):
            return rows.__getitem__
        return lambda k: rows[k].clone()

    def outside(self, base: Node) -> list[Any]:
        """Return the values of something that the loop does not compute, step by step."""
        if base in self.fixed:
            return [self.fixed[base]] * self.length
        if base in self.sketch.tables:
            values: Sequence[Any] = self.sketch.tables[base].values
        else:
            sequence = self.operands[self.sketch.given[base].operand]
            values = sequence.unbind(0) if isinstance(sequence, Tensor) else sequence
        return [values[t] for t in self.times]

    def result(self, name: str, *, stacked: bool) -> Any:
        """Return a result of the loop."""
        node = self.sketch.by_name[name]
        if not stacked:
            value = self.node_reader(node, in_place=True)(self.length - 1)
            return value.clone() if isinstance(value, Tensor) else value
        reading = self.sketch.reading(node)
        cells = self.cells.get(reading.base)
        if reading.base in self.sketch.given and not reading.delay:
            return self.operands[self.sketch.given[reading.base].operand]
        if isinstance(cells, Rows) and (not reading.delay or self.is_before(cells, node)):
            # The start lies before the row of the step that is run first.
            return cells.sequence(later=bool(reading.delay) is self.sketch.loop.reverse)
        values = [self.node_reader(node, in_place=True)(k) for k in range(self.length)]
        return values[::-1] if self.sketch.loop.reverse else values


def _args(call: Node) -> tuple[Any, ...]:
    return call.args


def _call(target: Any, args: Read, kwargs: Read, cells: Items) -> Run:
    """Return a call of an operator that makes a new value."""
    store = cells.store

    def run(k: int) -> None:
        store(k, target(*args(k), **kwargs(k)))

    def run_plain(k: int) -> None:
        store(k, target(*args(k)))

    return run if kwargs(0) else run_plain


def _call_into(into: Any, x: Read, weights: list[Any], rows: list[Tensor]) -> Run:
    """Return a call of an operator that writes into a row."""

    def run(k: int) -> None:
        into(x(k), *weights, out=rows[k])

    return run


def _copied(target: Any, reads: list[Read], rows: dict[int, list[Tensor]]) -> Run:
    """Return a call of an operator whose results are copied into rows."""

    def run(k: int) -> None:
        results = target(*[read(k) for read in reads])
        for position, places in rows.items():
            places[k].copy_(results[position])

    return run


def _copy(source: Read, buffer: Tensor) -> Run:
    def run(k: int) -> None:
        buffer.copy_(source(k))

    return run


def _late(values: list[Any], starts: list[Any]) -> Read:
    """Return how values that are not there yet are read, some steps late."""
    delay = len(starts)
    if not delay:
        return values.__getitem__
    return lambda k: starts[k] if k < delay else values[k - delay]
