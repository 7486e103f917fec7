"""The parts of a recurrent loop as NIR nodes: products, neurons, and what arrives a step later.

A loop that feeds back keeps its steps: in its body products read what neurons gave in the step
before, and the neurons are fused steps whose states are carried by the loop.  In NIR that is a
cycle of arrows; what goes round it arrives one step later.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from snncc.ir.loop_call import LoopCall
from snncc.ir.nodes import Const, Input, Rank, Recurrence, State
from snncc.ir.step_call import StepCall, output_name, step_inputs
from snncc.ir.time_loop import Carry, Fill
from snncc.nir.parts import Parts, name_of


class LoopWriter:
    """Writes the body of one loop.

    Args:
        parts: What has been written of the graph around it.
        call: The node that calls the loop.
        args: The values of its arguments.
    """

    def __init__(self, parts: Parts, call: torch.fx.Node, args: tuple[Any, ...]) -> None:
        assert isinstance(call.target, LoopCall)
        self.parts, self.call, self.args = parts, call, args
        self.loop = call.target.forward
        self.body = {node.name: node for node in self.loop.body.nodes}
        self.carries = {self.body[c.name]: c for c in self.loop.carries}
        self.waiting: list[tuple[torch.fx.Node, torch.fx.Node]] = []

    def write(self) -> tuple[tuple[str, ...], ...]:
        """Write every part; return for each result of the loop the NIR nodes that it comes from."""
        self.bind_inputs()
        for node in self.loop.body.nodes:
            if node.op != "call_function":
                continue
            if isinstance(node.target, StepCall):
                self.neuron(node, node.target.recurrence)
            elif node.target is not operator.getitem:
                self.operator(node)
        for product, carry in self.waiting:
            self.close(product, carry)
        if not all(result.stacked for result in self.loop.results):
            raise self.parts.refusal(self.call, "a result is no sequence of its input")
        return tuple(self.origins(self.body[result.node]) for result in self.loop.results)

    def bind_inputs(self) -> None:
        """Give what the body reads from outside its values and origins, a step of it."""
        outer: Any = self.call.args
        for step in self.loop.steps:
            if (step.dim, step.start, step.stride) != (0, 0, 1):
                raise self.parts.refusal(self.call, "NIR has no node that picks steps")
            self.adopt(self.body[step.name], self.args[step.operand][:1])
            source = outer[step.operand]
            if source in self.parts.origins:
                self.parts.origins[self.body[step.name]] = self.parts.origins[source]
        for fixed in self.loop.invariants:
            if outer[fixed.operand] in self.parts.origins:
                raise self.parts.refusal(self.call, "a value of the loop is no sequence")
            self.parts.values[self.body[fixed.name]] = self.args[fixed.operand]
        for carry in self.loop.carries:
            shape = self.body[carry.update].meta.get("shape", ())
            self.adopt(self.body[carry.name], torch.zeros(1, *shape))

    def operator(self, node: torch.fx.Node) -> None:
        """A product or other operator of the body, on what there is in this step or was before."""
        late = [n for n in node.all_input_nodes if n in self.carries]
        if (
            late
            and len([n for n in node.all_input_nodes if n in self.parts.origins]) + len(late) > 1
        ):
            raise self.parts.refusal(node, "it joins values of the step before with others")
        self.step(node, is_late=bool(late))
        if late:
            self.waiting.append((node, late[0]))

    def step(self, node: torch.fx.Node, *, is_late: bool) -> None:
        """Run an operator on one step, and translate it where it moves."""
        args: Any = torch.fx.node.map_arg(node.args, self.parts.values.__getitem__)
        moving = [n in self.parts.axes for n in node.args]
        if node.kwargs or (
            not is_late and not any(n in self.parts.origins for n in node.all_input_nodes)
        ):
            raise self.parts.refusal(node, f"NIR has no node for '{name_of(node.target)}'")
        step = [x[0] if m else x for x, m in zip(args, moving, strict=True)]
        self.adopt(node, node.target(*step).unsqueeze(0))  # type: ignore[operator]
        if node.target not in (F.linear, F.conv1d, F.conv2d, torch.add, torch.mul):
            raise self.parts.refusal(
                node, f"NIR has no node for '{name_of(node.target)}' in a loop"
            )
        self.parts.rules[node.target](node, args)

    def adopt(self, node: torch.fx.Node, value: Tensor) -> None:
        """Let a node of the body stand for a sequence of one step."""
        self.parts.values[node], self.parts.axes[node] = value, 0

    def neuron(self, node: torch.fx.Node, step: Recurrence) -> None:
        """A fused step, with the carries that it alone reads as its states."""
        given = step_inputs(node)
        states, inputs = [], []
        for name, source in given.items():
            carry = self.carries.get(source)
            if carry is None:
                is_step = source in self.parts.origins
                inputs.append(Input(name, Rank.STEP if is_step else Rank.LANE))
            else:
                states.append(State(name, self.start(carry), self.update(node, carry)))
        used = [g for g in node.users if self.is_used(g, node)]
        outputs = tuple(output_name(g) for g in used)
        forward = replace(step, inputs=tuple(inputs), states=tuple(states), outputs=outputs)
        read = {i.name: given[i.name] for i in inputs}
        self.parts.translate(node, forward, read)
        for g in used:
            self.adopt(g, torch.zeros(1, *g.meta["shape"], dtype=g.meta.get("dtype")))
            self.parts.origins[g] = self.parts.origins[node]

    def start(self, carry: Carry) -> Const:
        """Return the one number that a carry starts from."""
        if isinstance(carry.initial, Fill):
            return Const(float(carry.initial.value))
        value = self.args[carry.initial]
        numbers = set(value.flatten().tolist()) if isinstance(value, torch.Tensor) else set()
        if len(numbers) != 1 or self.call.args[carry.initial] in self.parts.origins:
            raise self.parts.refusal(self.call, f"'{carry.name}' does not start at one number")
        return Const(float(numbers.pop()))

    def update(self, node: torch.fx.Node, carry: Carry) -> str:
        """Return what a state becomes, by its name in the step."""
        update = self.body[carry.update]
        if update.args[:1] != (node,):
            raise self.parts.refusal(node, "a neuron reads what another was in the step before")
        return output_name(update)

    def is_used(self, output: torch.fx.Node, step: torch.fx.Node) -> bool:
        """Tell whether an output of a step is more than the next value of its own state."""
        late = (self.body[c.name] for c in self.loop.carries if c.update == output.name)
        is_result = any(r.node == output.name for r in self.loop.results)
        return bool(output.users) or is_result or any(set(n.users) - {step} for n in late)

    def close(self, product: torch.fx.Node, carry: torch.fx.Node) -> None:
        """Add the arrow from a neuron to what reads it one step later."""
        facts = self.carries[carry]
        if self.start(facts).value != 0.0:
            raise self.parts.refusal(product, f"'{facts.name}' does not start at 0")
        sources = self.origins(self.body[facts.update])
        (target,) = self.parts.origins[product]
        self.parts.edges += [(source, target) for source in sources]
        self.parts.delayed |= {(source, target) for source in sources}

    def origins(self, node: torch.fx.Node) -> tuple[str, ...]:
        """Return the NIR nodes that a value of the body is the sum of."""
        if node not in self.parts.origins:
            raise self.parts.refusal(self.call, f"NIR has no node that gives '{node.name}'")
        return self.parts.origins[node]
