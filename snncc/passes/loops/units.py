"""The body of a fused loop as a list of units: what is differentiated as a whole.

A unit is a `StepCall` with its outputs, a product or norm that has gradient rules, or operators
between those that autograd differentiates together.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch.fx

from snncc.ir.step_call import StepCall, output_name, step_inputs
from snncc.ir.time_loop import TimeLoop
from snncc.passes.loops.find_gradients import differentiable_inputs
from snncc.passes.loops.find_step_groups import assign_levels, dependencies
from snncc.passes.loops.norm_rules import Norm, find_norm
from snncc.passes.loops.product_rules import Product, find_product

Node = torch.fx.Node


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of a loop's body.

    Attributes:
        nodes: Its nodes, in order; those of a step are the call and then its outputs.
        outputs: The nodes that something outside of it reads.
        product: The product that it is, or None.
        norm: The norm that it is, or None.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]
    product: Product | None = None
    norm: Norm | None = None

    @property
    def step(self) -> StepCall | None:
        """The step that it is, or None."""
        target = self.nodes[0].target
        return target if isinstance(target, StepCall) else None

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        """What it reads, each once."""
        inside = set(self.nodes)
        read = (i for n in self.nodes for i in n.all_input_nodes if i not in inside)
        return tuple(dict.fromkeys(read))

    def depends(self, output: Node) -> set[Node]:
        """Return the inputs that an output may have a derivative with respect to."""
        step = self.step
        if step is None:
            return set(self.inputs)
        inputs = step_inputs(self.nodes[0])
        return {
            inputs[name] for name in differentiable_inputs(step.recurrence)[output_name(output)]
        }


def find_units(loop: TimeLoop) -> tuple[Unit, ...]:
    """Return the units of a fused loop, in an order in which they can run."""
    nodes = [n for n in loop.body.nodes if n.op == "call_function"]
    products = {n: product for n in nodes if (product := find_product(loop, n)) is not None}
    norms = {n: norm for n in nodes if (norm := find_norm(n)) is not None}

    def kind(node: Node) -> Node | None:
        """Return what a node stays with: its step or itself; None is what autograd handles."""
        call = node.args[0] if node.target is operator.getitem else node
        if isinstance(call, Node) and isinstance(call.target, StepCall):
            return call
        return node if node in products or node in norms else None

    level = assign_levels(nodes, dependencies(loop, nodes), kind)
    members: dict[tuple[int, Node | None], list[Node]] = {}
    for node in nodes:
        if node.target is operator.getitem and isinstance(node.args[1], int):
            level[node] = level.get(node.args[0], level[node])  # a tuple stays in its unit
        members.setdefault((level[node], kind(node)), []).append(node)
    shown = {c.update for c in loop.carries} | {r.node for r in loop.results}
    ordered = sorted(members.values(), key=lambda group: level[group[0]])
    return tuple(
        Unit(
            nodes=tuple(group),
            outputs=tuple(_outputs(group, shown)),
            product=products.get(group[0]),
            norm=norms.get(group[0]),
        )
        for group in ordered
    )


def _outputs(group: list[Node], shown: set[str]) -> Iterable[Node]:
    inside = set(group)
    for node in group:
        if isinstance(node.target, StepCall):
            continue
        if node.name in shown or any(user not in inside for user in node.users):
            yield node
