"""The operands of the parts of a sequence graph, in the user's words."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch.fx

from snncc.frontend.operators.canonical import cast
from snncc.ir import sequence_ops
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.own_tensor import OwnTensor
from snncc.ir.tape import Source, SourceKind
from snncc.passes.scalars.scalar_ops import SCALAR_OPS
from snncc.reporting.report import Operand

# Operators that give the same values in another shape or type.
_SAME = frozenset({sequence_ops.align, cast, sequence_ops.channels, sequence_ops.repeat_time})
_HELD = frozenset({SourceKind.PARAMETER, SourceKind.BUFFER})


def parameters_of(node: torch.fx.Node, sources: Mapping[torch.fx.Node, Source]) -> list[str]:
    """Return the names of the parameters and buffers that a node reads directly."""
    read = (sources[n] for n in node.all_input_nodes if n in sources)
    return [source.name for source in read if source.kind in _HELD]


class Origins:
    """Where values come from.

    Args:
        sources: For each placeholder where its tensor comes from.
        names: The names of the parts of the plan, by node; it grows while they are found.
    """

    def __init__(
        self, sources: Mapping[torch.fx.Node, Source], names: Mapping[torch.fx.Node, str]
    ) -> None:
        self.sources = sources
        self.names = names
        self._learned: dict[torch.fx.Node, tuple[bool, bool]] = {}

    def operands(self, node: torch.fx.Node, call: NeuronCall) -> tuple[Operand, ...]:
        """Return what the inputs of a neuron are."""
        forward = call.program.forward
        names = (*forward.step_inputs, *forward.lane_inputs)
        found: list[Operand] = []
        for position, (name, argument) in enumerate(zip(names, node.args[1:], strict=True)):
            is_step = position < len(forward.step_inputs)
            shown = self.shown(argument, name)
            if any(operand.shown == shown for operand in found):
                shown = name
            found.append(self.operand(name, shown, argument, is_step=is_step))
        return tuple(found)

    def operand(self, name: str, shown: str, argument: Any, *, is_step: bool) -> Operand:
        """Return what one input of a neuron is."""
        if not isinstance(argument, torch.fx.Node):
            return Operand(name, shown, None, is_step, "one value", is_learned=False)
        source = _source(argument)
        where = source.meta.get("where") if source.op == "call_function" else None
        has_parameter, has_input = self.learned(source)
        varies = "" if is_step else _variation(self.shape(source))
        return Operand(name, shown, where, is_step, varies, has_parameter and not has_input)

    def shown(self, argument: Any, name: str) -> str:
        """Return the name in equations of what is passed as an input."""
        if not isinstance(argument, torch.fx.Node):
            return name
        node = _source(argument)
        if node.target is sequence_ops.time_view:
            node = _source(node.args[0])
        if node in self.sources:
            return self.sources[node].name
        if isinstance(node.target, OwnTensor):
            return node.target.shown
        if node in self.names:
            return self.names[node]
        part = node.args[0] if node.target is operator.getitem else None
        if isinstance(part, torch.fx.Node) and isinstance(part.target, NeuronCall):
            forward = part.target.program.forward
            results = (*forward.outputs, *forward.finals)
            return f"{self.names[part]}.{results[int(node.args[1])]}"  # type: ignore[arg-type]
        return self.names.get(part, name) if isinstance(part, torch.fx.Node) else name

    def learned(self, node: torch.fx.Node) -> tuple[bool, bool]:
        """Tell whether a learned parameter, and whether an input of the model, goes into a node."""
        if node not in self._learned:
            source = self.sources.get(node)
            if isinstance(node.target, OwnTensor):
                found = (node.target.requires_grad, False)
            elif source is not None:
                is_parameter = source.kind is SourceKind.PARAMETER
                found = (
                    is_parameter and bool(node.meta.get("requires_grad")),
                    source.kind is SourceKind.INPUT,
                )
            else:
                parts = [self.learned(n) for n in node.all_input_nodes]
                found = (any(p for p, _ in parts), any(i for _, i in parts))
            self._learned[node] = found
        return self._learned[node]

    def shape(self, node: torch.fx.Node) -> tuple[int, ...] | None:
        """Return the shape of a value that is the same at all steps, where it is known."""
        if "shape" in node.meta:
            return tuple(node.meta["shape"])
        shapes = [self.shape(n) for n in node.all_input_nodes]
        if node.target not in SCALAR_OPS or None in shapes:
            return None
        # Not torch's function of that name: its first call imports sympy.
        return numpy.broadcast_shapes(*(s for s in shapes if s is not None))


def _source(node: Any) -> torch.fx.Node:
    while node.target in _SAME:
        node = node.args[0]
    found: torch.fx.Node = node
    return found


def _variation(shape: Sequence[int] | None) -> str:
    if shape is None:
        return "one value for all steps"
    wide = [position for position, size in enumerate(shape) if size != 1]
    if not wide:
        return "one value"
    is_channel = len(wide) == 1 and wide[0] < len(shape) - 1
    return "one value for each channel" if is_channel else "one value for each neuron"
