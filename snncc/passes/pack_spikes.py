"""Let products keep spikes as bits for the gradients of their weights.

The gradient of a weight reads what the product read forward, so autograd keeps it: four bytes for
each neuron and step.  Where that is 0 or 1, whatever the data, one bit says the same::

    s = neuron(x)                       s = neuron(x)
    y = linear(s, w)                    y = linear(s, w)
    # kept: s, 4 bytes a value          # kept: s != 0, an eighth of a byte a value

Precondition: each value is proven to be 0 or 1, and not -0: an output of a neuron that is a
decision, and what only arranges such values, multiplies them or takes the largest.  A spike that is
scaled, graded, ternary, counted, averaged or dropped out is none.

Numerics: bitwise; the gradients are products of the same values.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.fx
import torch.nn.functional as F

from snncc.frontend.operators.canonical import cast
from snncc.ir import sequence_ops
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import HALF_ROUNDINGS, Binary, Const, Detach, Expr, Op, Select, Unary, Var
from snncc.ir.numerics import Numerics
from snncc.ir.walk import is_bool
from snncc.passes.neurons import copy_graph

LAYERS = frozenset(
    {
        *(sequence_ops.linear, F.linear),
        *(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
    }
)
# What arranges the values of its first argument, or takes the largest of some.
_ARRANGING = frozenset(
    {
        *(torch.reshape, torch.flatten, torch.unflatten, torch.permute, torch.transpose),
        *(torch.squeeze, torch.unsqueeze, torch.movedim, torch.flip, torch.Tensor.expand),
        *(torch.select, torch.narrow, torch.clone, torch.cat, torch.stack),
        *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.relu),
        *(sequence_ops.time_view, sequence_ops.align, sequence_ops.repeat_time),
        *(sequence_ops.last_step,),
    }
)
_JOINING = frozenset({torch.mul, operator.mul, torch.maximum, torch.minimum})
_KEEPING = frozenset({Op.ABS, Op.SIGN, Op.FLOAT, Op.FLOOR, Op.CEIL, Op.ROUND, *HALF_ROUNDINGS})
_BOTH = frozenset({Op.MUL, Op.MIN, Op.MAX})

# Of a tensor whether it is 0 or 1 everywhere; of several results whether each of them is.
Known: TypeAlias = bool | tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class PackSpikes:
    """Mark the linear layers and convolutions whose input is 0 or 1."""

    name = "pack-spikes"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with ``reads_bits`` in the meta of such products."""
        result = copy_graph(graph)
        known: dict[torch.fx.Node, Known] = {}
        for node in result.nodes:
            known[node] = _known(node, known)
            if _operator(node) in LAYERS and _are_bits(node.args[0], known):
                node.meta["reads_bits"] = True
        return result


def _operator(node: torch.fx.Node) -> Any:
    target: Any = node.target
    return target.operator if isinstance(target, sequence_ops.Folded) else target


def _are_bits(value: Any, known: Mapping[torch.fx.Node, Known]) -> bool:
    """Tell whether an argument is 0 or 1: a tensor, a number, or a list of them."""
    if isinstance(value, torch.fx.Node):
        return known.get(value) is True
    if isinstance(value, tuple | list):
        return bool(value) and all(_are_bits(each, known) for each in value)
    return _is_bit(value)


def _is_bit(value: Any) -> bool:
    is_number = isinstance(value, int | float)
    return is_number and value in (0, 1) and math.copysign(1, value) > 0


def _known(node: torch.fx.Node, known: Mapping[torch.fx.Node, Known]) -> Known:
    """Tell of the results of a node whether they are 0 or 1 everywhere."""
    target, args = _operator(node), node.args
    if node.op != "call_function" or not args:
        return False
    if isinstance(target, NeuronCall):
        return _outputs(target, [_are_bits(value, known) for value in args[1:]])
    if target is operator.getitem:
        source = known.get(args[0], False)  # type: ignore[arg-type]
        if isinstance(source, tuple):
            return isinstance(args[1], int) and args[1] < len(source) and source[args[1]]
        return source
    if target is cast:
        is_decision = isinstance(args[0], torch.fx.Node) and args[0].meta.get("dtype") is torch.bool
        return is_decision or _are_bits(args[0], known)
    if target is torch.where:
        return len(args) == 3 and all(_are_bits(value, known) for value in args[1:])
    if target in _JOINING or target is sequence_ops.shift_time:
        return len(args) == 2 and all(_are_bits(value, known) for value in args)
    return target in _ARRANGING and _are_bits(args[0], known)


def _outputs(call: NeuronCall, given: list[bool]) -> tuple[bool, ...]:
    """Tell of each output of a neuron whether it is 0 or 1; its finals are not asked for."""
    forward = call.program.forward
    bits = dict(zip((*forward.step_inputs, *forward.lane_inputs), given, strict=True))
    bools: set[str] = set()
    for let in forward.lets:
        if is_bool(let.expr, bools):
            bools.add(let.name)
        bits[let.name] = let.name in bools or is_zero_or_one(let.expr, bits, bools)
    return tuple(bits.get(name, False) for name in forward.outputs)


def is_zero_or_one(expr: Expr, bits: Mapping[str, bool], bools: set[str]) -> bool:
    """Tell whether an expression is 0 or 1 whatever its other names are.

    Args:
        expr: The expression.
        bits: For names whether they are.
        bools: Names of truth values, which are.
    """
    match expr:
        case Var(name):
            return bits.get(name, False)
        case Const(value):
            return _is_bit(value)
        case Detach(arg):
            return is_zero_or_one(arg, bits, bools)
        case Unary(op, arg):
            is_decided = op is Op.FLOAT and is_bool(arg, bools)
            return is_decided or (op in _KEEPING and is_zero_or_one(arg, bits, bools))
        case Binary(Op.SUB, Const(1), rhs):
            return is_zero_or_one(rhs, bits, bools)
        case Binary(op, lhs, rhs):
            sides = (is_zero_or_one(each, bits, bools) for each in (lhs, rhs))
            return op in _BOTH and all(sides)
        case Select(_, if_true, if_false):
            return all(is_zero_or_one(each, bits, bools) for each in (if_true, if_false))
