"""The gradient of a recurrent loop: a loop in reverse time, and products over all steps after it.

With the step ``y[t] = f(x[t], y[t-1], W)`` the cotangents obey, from the last step to the first::

    g[t] = gy[t] + (df/dy[t-1])^T g[t+1]       gx[t] = (df/dx)^T g[t]

so the reverse of a loop is a loop.  Each part of the body gives one part of the reverse body:
a fused step its adjoint as a fused step, a product the product with the transposed weights, a norm
the gradient of a norm, any other operator the gradient that autograd knows for it, noted at each
step of forward.
Gradients of weights need no loop: they are one product over all steps (`product_rules`).

Every carry becomes carries of the reverse loop, one for each place that reads it: their sum is
taken inside of the step that needs it.

Numerics: gradients of autograd up to the order of sums; forward is not changed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.fx
from torch import Tensor

from snncc.errors import InternalError
from snncc.ir.adjoint_ops import fit_gradient, fit_lanes, fit_sequence, in_last_step
from snncc.ir.interpret import HALVES
from snncc.ir.local_gradient import LocalGradient
from snncc.ir.loop_call import LoopAdjoint, LoopCall
from snncc.ir.norm_ops import norm_gradient
from snncc.ir.numerics import Numerics
from snncc.ir.step_call import StepCall, output_name, step_inputs
from snncc.ir.time_loop import Fill, TimeLoop
from snncc.passes.loops.builder import LoopBuilder, of_type
from snncc.passes.loops.find_gradients import find_gradients
from snncc.passes.loops.norm_rules import Norm
from snncc.passes.loops.product_rules import Product
from snncc.passes.loops.reverse_step import Demand, reverse_step
from snncc.passes.loops.training_loop import TrainingLoop
from snncc.passes.loops.units import Unit, find_units
from snncc.passes.neurons import copy_graph

Node = torch.fx.Node
# What a carry of the reverse loop takes: what a unit gives to the carry, or another value.
Source: TypeAlias = tuple[Unit, Node] | Node
# The operand that a gradient belongs to, the result of the reverse loop, how it is fitted.
Pending: TypeAlias = tuple[int, int, Callable[[Tensor, Tensor], Tensor]]


@dataclass(frozen=True, slots=True)
class DifferentiateLoops:
    """Give every recurrent loop that may need gradients its adjoint.

    It reads what `Differentiate` has noted on the nodes of the graph.
    """

    name = "differentiate-loops"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with the adjoint of each recurrent loop."""
        if not any(isinstance(n.target, LoopCall) for n in graph.nodes):
            return graph
        result = copy_graph(graph)
        for node in result.nodes:
            if isinstance(node.target, LoopCall):
                wanted = [isinstance(a, Node) and a.meta["requires_grad"] for a in node.args]
                forward = node.target.forward
                node.target = LoopCall(forward, differentiate_loop(forward, wanted))
        return result


def differentiate_loop(loop: TimeLoop, wanted: Sequence[bool]) -> LoopAdjoint | None:
    """Return the adjoint of a fused loop, or None where no gradient flows through it.

    Args:
        loop: The loop.
        wanted: For each operand whether it requires a gradient.
    """
    builder = _Adjoint(loop, wanted)
    return builder.build() if builder.active else None


class _Adjoint:
    """Builds the reverse loop, walking through the units of the forward loop from the last.

    ``terms`` holds for each forward value the reverse values whose sum is its cotangent.
    """

    def __init__(self, loop: TimeLoop, wanted: Sequence[bool]) -> None:
        self.loop = loop
        self.wanted = wanted
        self.by_name = {n.name: n for n in loop.body.nodes}
        self.updates = {self.by_name[c.name]: self.by_name[c.update] for c in loop.carries}
        self.units = find_units(loop)
        self.flow = find_gradients(loop, wanted)
        self.active = self.find_active()

    def find_active(self) -> frozenset[Node]:
        """Return the values between an operand with a gradient and a result."""
        found = {self.by_name[r.node] for r in self.loop.results} & self.flow
        while True:
            size = len(found)
            for unit in reversed(self.units):
                for output in unit.outputs:
                    if output in found:
                        found |= unit.depends(output) & self.flow
            found |= {u for c, u in self.updates.items() if c in found} & self.flow
            if len(found) == size:
                return frozenset(found)

    def build(self) -> LoopAdjoint:
        """Return the adjoint."""
        loop = self.loop
        self.training = TrainingLoop(loop, self.units, self.active)
        self.graph = self.training.graph
        self.reverse = LoopBuilder()
        self.terms: dict[Node, list[Node]] = {n: [] for n in self.active}
        self.ends: dict[Node, Node] = {}
        self.sums: list[tuple[Node, int]] = []
        self.products: list[tuple[Product, int]] = []
        self.given: dict[tuple[Unit, Node], Node] = {}
        self.waiting: list[tuple[Node, Source]] = []
        self.carried: dict[Node, list[Node]] = {}
        self.small: set[Node] = set()
        self.add_results()
        self.add_carries()
        for unit in reversed(self.units):
            if any(output in self.active for output in unit.outputs):
                self.reverse_unit(unit)
        for place, source in self.waiting:
            self.reverse.set_update(place, self.source_of(source))
        backward = self.finish()
        differentiable = tuple(self.by_name[r.node] in self.flow for r in loop.results)
        return LoopAdjoint(self.training.build(), backward, differentiable)

    def add_results(self) -> None:
        """Start from the cotangents of the results."""
        for result, cotangent in zip(self.loop.results, self.training.cotangents, strict=True):
            node = self.by_name[result.node]
            if node not in self.active:
                continue
            if not result.stacked:
                if node in self.updates.values() and node not in self.ends and self.is_read(node):
                    self.ends[node] = cotangent
                    continue
                cotangent = self.call(in_last_step, cotangent, self.training.steps())
            place = self.reverse.step(f"g_{node.name}", cotangent)
            self.terms[node].append(of_type(place, node))

    def is_read(self, update: Node) -> bool:
        return any(u is update and self.places(c) for c, u in self.updates.items())

    def places(self, carry: Node) -> list[Source]:
        """Return where cotangents of a carry come from: units that read it, and what is there."""
        if carry not in self.active:
            return []
        readers = [
            (unit, carry)
            for unit in self.units
            if any(o in self.active and carry in unit.depends(o) for o in unit.outputs)
        ]
        return [*readers, *self.terms[carry]]

    def add_carries(self) -> None:
        """Carry cotangents of carries to the step before, where they belong to the update."""
        for carry in self.in_order_of_delay():
            update = self.updates[carry]
            places = self.places(carry)
            self.carried[carry] = []
            for source in places:
                initial = self.ends.pop(update, None) if update in self.active else None
                if initial is None:  # no cotangent comes from after the last step
                    initial = self.call(torch.zeros_like, self.training.last(update))
                place = of_type(self.reverse.carry(f"g_{carry.name}", initial), update)
                self.waiting.append((place, source))
                self.carried[carry].append(place)
                if update in self.active:
                    self.terms[update].append(place)

    def in_order_of_delay(self) -> Iterable[Node]:
        """Yield the carries, those that delay another carry before it."""
        left = [c for c in self.updates if c in self.active]
        while left:
            ready = [c for c in left if not any(self.updates[d] is c for d in left if d is not c)]
            if not ready:
                raise InternalError(f"carries of '{self.loop.name}' exchange their values")
            yield from ready
            left = [c for c in left if c not in ready]

    def reverse_unit(self, unit: Unit) -> None:
        """Emit the reverse of a unit."""
        if unit.step is not None:
            self.reverse_step(unit, unit.step)
        elif unit.product is not None:
            self.reverse_product(unit, unit.product)
        elif unit.norm is not None:
            self.reverse_norm(unit, unit.norm)
        else:
            self.reverse_operators(unit)

    def reverse_step(self, unit: Unit, step: StepCall) -> None:
        """Emit the adjoint of a step as a step."""
        outputs = {output_name(o): o for o in unit.outputs if o in self.active}
        used = set().union(*(unit.depends(o) for o in outputs.values())) & self.active
        inputs = step_inputs(unit.nodes[0])
        wanted = [name for name, node in inputs.items() if node in used]
        demand = Demand(
            cotangents={name: len(self.terms[node]) for name, node in outputs.items()},
            wanted=wanted,
            summed=[name for name in wanted if self.training.is_invariant(inputs[name])],
            stored=frozenset(self.training.stored_names(unit)),
            passed=[name for name, node in outputs.items() if self.is_free(node)],
            halves={
                name: node.meta["dtype"]
                for name, node in (inputs | outputs).items()
                if node.meta.get("dtype") in HALVES
            },
        )
        found = reverse_step(step.recurrence, demand)
        arguments: dict[str, Node] = {}
        for name, places in found.cotangents.items():
            arguments |= zip(places, self.terms[outputs[name]], strict=True)
        for name, place in found.kept.items():
            arguments[place] = self.training.forward_value(self.reverse, unit, name)
        sums = {
            name: self.reverse.carry(before, Fill(0.0)) for name, (before, _) in found.sums.items()
        }
        arguments |= {found.sums[name][0]: place for name, place in sums.items()}
        values = self.emit_step(StepCall(found.recurrence, step.dtype, found.narrow), arguments)
        lanes = unit.outputs[0].meta["shape"]
        for name, gradient in found.gradients.items():
            self.give(unit, inputs[name], values.get(gradient) or arguments[gradient], lanes)
        for name, before in sums.items():
            total = values[found.sums[name][1]]
            self.reverse.set_update(before, total)
            self.sums.append((inputs[name], self.reverse.result(total, stacked=False)))

    def emit_step(self, step: StepCall, arguments: dict[str, Node]) -> dict[str, Node]:
        """Emit a step and return its outputs by name."""
        names = step.recurrence.outputs
        if not names:
            return {}
        call = self.reverse.emit(step, *(arguments[n] for n in step.recurrence.step_inputs))
        return {n: self.reverse.emit(operator.getitem, call, i) for i, n in enumerate(names)}

    def is_free(self, node: Node) -> bool:
        """Tell whether the cotangent of a value may become what a carry takes: it is none."""
        term, *more = self.terms[node]
        return not more and all(term is not place for place, _ in self.waiting)

    def reverse_product(self, unit: Unit, product: Product) -> None:
        """Emit the product with the transposed weights; note what their gradients need."""
        node = product.node
        g = self.total(node)
        if product.x in self.active:
            weight = self.training.value_of(self.reverse, product.weights[0])
            x = self.training.value_of(self.reverse, product.x) if product.reads_input else None
            gradient = product.input_gradient(self.reverse.emit, g, x, weight)
            self.give(unit, product.x, gradient, product.x.meta["shape"])
        if any(weight in self.active for weight in product.weights):
            self.products.append((product, self.reverse.result(g, stacked=True)))

    def reverse_norm(self, unit: Unit, norm: Norm) -> None:
        """Emit the gradient of a norm, from the statistics that it took."""
        statistics = self.training.statistics(self.reverse, unit)
        x, weight = (
            None if node is None else self.training.value_of(self.reverse, node)
            for node in (norm.x, norm.weight)
        )
        wanted = tuple(node in self.active for node in norm.differentiable)
        g = self.total(norm.node)
        call = self.reverse.emit(norm_gradient, g, x, weight, *statistics, norm.eps, wanted)
        for position, node in enumerate(norm.differentiable):
            if node is not None and node in self.active:
                gradient = self.reverse.emit(operator.getitem, call, position)
                self.give(unit, node, gradient, node.meta["shape"])
                self.small |= {gradient} if position else set()

    def reverse_operators(self, unit: Unit) -> None:
        """Ask autograd for the gradient of the operators between steps and products."""
        note, leaves, roots = self.training.note(self.reverse, unit)
        cotangents = [self.total(root) for root in roots]
        name = getattr(unit.nodes[0].target, "__name__", "operator")
        call = self.reverse.emit(LocalGradient(name), note, *cotangents)
        for position, leaf in enumerate(leaves):
            value = self.reverse.emit(operator.getitem, call, position)
            self.give(unit, leaf, value, leaf.meta["shape"])

    def total(self, node: Node) -> Node:
        """Return the cotangent of a value."""
        first, *rest = self.terms[node]
        for term in rest:
            first = self.reverse.emit(torch.add, first, term)
        return first

    def give(self, unit: Unit, node: Node, gradient: Node, lanes: tuple[int, ...]) -> None:
        """Note the gradient that a unit gives to what it reads."""
        own = tuple(node.meta["shape"])
        if own != tuple(lanes) and not self.training.is_operand(node):
            missing = len(lanes) - len(own)
            grown = (missing + d for d, n in enumerate(own) if n != lanes[missing + d])
            dims = (*range(missing), *grown)
            gradient = self.reverse.emit(fit_lanes, gradient, dims, len(own))
        of_type(gradient, node)
        if node in self.updates:
            self.given[unit, node] = gradient
        else:
            self.terms[node].append(gradient)

    def finish(self) -> torch.fx.Graph:
        """Emit the call of the reverse loop and the gradients of the operands."""
        pending = [*self.gradients_of_steps(), *self.gradients_of_invariants()]
        pending += self.gradients_of_starts()
        trip, operands = self.loop.trip, self.training.operands
        if trip.operand is not None:
            trip = replace(trip, operand=self.reverse.operand(operands[trip.operand]))
        built = self.reverse.build(f"{self.loop.name}_adjoint", trip, reverse=True)
        call = self.call(LoopCall(built), *self.reverse.operands)
        results = [self.call(operator.getitem, call, i) for i, _ in enumerate(built.results)]
        gradients: dict[int, list[Node]] = {}
        for operand, position, fit in pending:
            fitted = self.call(fit, results[position], operands[operand])
            gradients.setdefault(operand, []).append(fitted)
        for product, position in self.products:
            self.add_weights(product, results[position], gradients)
        self.graph.output(tuple(self.sum_of(gradients.get(i)) for i in range(self.loop.operands)))
        self.graph.eliminate_dead_code()
        return self.graph

    def gradients_of_steps(self) -> Iterator[Pending]:
        """Yield the gradients of the sequences that the loop reads."""
        for step in self.loop.steps:
            for term in self.terms.get(self.by_name[step.name], []):
                yield step.operand, self.reverse.result(term, stacked=True), fit_sequence

    def gradients_of_invariants(self) -> Iterator[Pending]:
        """Yield the gradients of what is the same at all steps, but for weights of products."""
        for invariant in self.loop.invariants:
            node = self.by_name[invariant.name]
            for term in self.terms.get(node, []):
                yield invariant.operand, self.accumulate(term), fit_gradient
            for owner, position in self.sums:
                if owner is node:
                    yield invariant.operand, position, fit_gradient

    def gradients_of_starts(self) -> Iterator[Pending]:
        """Yield the gradients of what carries start as."""
        sources = dict(self.waiting)
        for carry in self.loop.carries:
            if isinstance(carry.initial, int) and self.wanted[carry.initial]:
                for place in self.carried.get(self.by_name[carry.name], []):
                    last = self.source_of(sources[place])
                    yield carry.initial, self.reverse.result(last, stacked=False), fit_gradient

    def source_of(self, source: Source) -> Node:
        """Return the reverse value that a carry of the reverse loop takes."""
        return self.given[source] if isinstance(source, tuple) else source

    def accumulate(self, term: Node) -> int:
        """Sum a gradient over all steps and return the position of the result.

        A small one is kept at each step instead, for one sum over all of them.
        """
        if term in self.small:
            return self.reverse.result(term, stacked=True)
        place = self.reverse.carry("sum", Fill(0.0))
        total = self.reverse.emit(torch.add, term, place)
        self.reverse.set_update(place, total)
        return self.reverse.result(total, stacked=False)

    def add_weights(self, product: Product, g: Node, gradients: dict[int, list[Node]]) -> None:
        operand_of = {self.by_name[i.name]: i.operand for i in self.loop.invariants}
        weight = self.training.operands[operand_of[product.weights[0]]]
        x = self.training.sequence_of(product.x)
        found = product.weight_gradients(self.call, g, x, weight)
        for owner, gradient in zip(product.weights, found, strict=True):
            if owner in self.active:
                gradients.setdefault(operand_of[owner], []).append(gradient)

    def sum_of(self, parts: list[Node] | None) -> Node | None:
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = self.call(torch.add, total, part)
        return total

    def call(self, target: Any, *args: Any) -> Node:
        """Emit a call in the backward graph."""
        return self.graph.call_function(target, args)
