"""Let convolutions of spikes skip the zeros of their input.

A spike is 0 at most steps, and so are sums, maxima and arrangements of spikes.  A convolution that
reads such values is marked here; at each call the runtime counts how many are not zero and takes
the faster of two ways, the dense library or a kernel that adds up the weights of active inputs.
Both compute the same sum of the same terms but for those that are zero times a weight.

Numerics: reassociated, because the kernel adds in an order of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

from snncc.ir import sequence_ops
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Binary, Const, Detach, Expr, Op, Recurrence, Select, Unary, Var
from snncc.ir.numerics import Numerics, weakest
from snncc.passes.neurons import copy_graph

CONVOLUTIONS = frozenset({F.conv1d, F.conv2d, torch.conv1d, torch.conv2d})
# With fewer there is too little to skip.
FEWEST_FILTERS, FEWEST_CHANNELS = 16, 8

# What only arranges values, or takes one of several.
ARRANGING = frozenset(
    {
        *(torch.reshape, torch.flatten, torch.permute, torch.transpose, torch.Tensor.expand),
        *(torch.squeeze, torch.unsqueeze, torch.movedim, torch.cat, torch.stack, torch.flip),
        *(F.max_pool1d, F.max_pool2d, F.dropout, F.relu),
        *(sequence_ops.time_view, sequence_ops.align, sequence_ops.repeat_time),
        *(sequence_ops.last_step, sequence_ops.shift_time),
    }
)
SUMS = frozenset({operator.add, torch.add, torch.sub, operator.sub, torch.maximum})
FACTORS = frozenset({operator.mul, torch.mul})
_SUMS = frozenset({Op.ADD, Op.SUB, Op.MIN, Op.MAX})
_KEEPING = frozenset({Op.NEG, Op.ABS, Op.SIGN, Op.FLOAT, Op.SQRT, Op.TANH, Op.SIN})
_WHOLE = frozenset({Op.FLOOR, Op.CEIL, Op.ROUND})
_DECIDED = frozenset({Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE, Op.AND})


@dataclass(frozen=True, slots=True)
class SkipZeros:
    """Mark the convolutions whose input is a spike, or made of spikes."""

    name = "skip-zeros"
    numerics = Numerics.REASSOCIATED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with ``skips_zeros`` in the meta of such convolutions."""
        result = copy_graph(graph)
        spiking: dict[torch.fx.Node, tuple[bool, ...]] = {}
        for node in result.nodes:
            spiking[node] = _results(node, spiking)
            if not (_operator(node) in CONVOLUTIONS and _is_worthwhile(node)):
                continue
            if any(spiking.get(_node(node.args[0]), ())):
                promised = node.meta.get("numerics", Numerics.BITWISE)
                node.meta["numerics"] = weakest(promised, Numerics.REASSOCIATED)
                node.meta["skips_zeros"] = True
        return result


def _node(value: Any) -> Any:
    return value if isinstance(value, torch.fx.Node) else None


def _operator(node: torch.fx.Node) -> Any:
    target: Any = node.target
    return target.operator if isinstance(target, sequence_ops.Folded) else target


def _is_worthwhile(node: torch.fx.Node) -> bool:
    """Tell whether the sizes that are known leave a kernel enough to do."""
    weight = _node(node.args[1]) if len(node.args) > 1 else None
    shape: Sequence[Any] = () if weight is None else weight.meta.get("shape", ())
    return len(shape) > 2 and shape[0] >= FEWEST_FILTERS and shape[1] >= FEWEST_CHANNELS


def _results(
    node: torch.fx.Node, spiking: Mapping[torch.fx.Node, tuple[bool, ...]]
) -> tuple[bool, ...]:
    """Tell of each result of a node whether it is zero wherever nothing fires."""

    def known(value: Any) -> bool:
        if isinstance(value, tuple | list):
            return bool(value) and all(map(known, value))
        return any(spiking.get(_node(value), ()))

    target = _operator(node)
    if not node.args:
        return (False,)
    if isinstance(target, NeuronCall):
        return _outputs(target.program.forward, [known(value) for value in node.args[1:]])
    if target is operator.getitem:
        source, index = spiking.get(_node(node.args[0]), ()), node.args[1]
        if len(source) > 1 and isinstance(index, int):
            return (index < len(source) and source[index],)
        return (any(source),)
    if target in ARRANGING:
        return (known(node.args[0]),)
    if target in SUMS:
        return (all(map(known, node.args[:2])),)
    return (target in FACTORS and any(map(known, node.args[:2])),)


def _outputs(forward: Recurrence, given: Sequence[bool]) -> tuple[bool, ...]:
    """Tell of each output of a neuron, and of each final, whether it is a spike or made of some."""
    names = (*forward.step_inputs, *forward.lane_inputs)
    known = dict(zip(names, given, strict=True))
    for let in forward.lets:
        known[let.name] = is_spiking(let.expr, known)
    outputs = tuple(known.get(name, False) for name in forward.outputs)
    return (*outputs, *(False for _ in forward.finals), False)


def is_spiking(expr: Expr, known: Mapping[str, bool]) -> bool:
    """Tell whether an expression is zero where nothing fires, given what its names are.

    It is meant as a guess that costs nothing where it is wrong: the values are counted at run time.
    """
    match expr:
        case Var(name):
            return known.get(name, False)
        case Const(value):
            return not value
        case Detach(arg):
            return is_spiking(arg, known)
        case Unary(op, arg):
            return op in _WHOLE or (op in _KEEPING and is_spiking(arg, known))
        case Binary(op, lhs, rhs):
            if op in _DECIDED:
                return True
            sides = (is_spiking(lhs, known), is_spiking(rhs, known))
            return (op in _SUMS and all(sides)) or (op is Op.MUL and any(sides))
        case Select(_, if_true, if_false):
            return is_spiking(if_true, known) or is_spiking(if_false, known)
