"""Recording the results of a pure call: fresh tensors, views of an operand, and tuples of both."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from snncc.frontend.functionalize import Edge, View
from snncc.frontend.operators.invocation import Call
from snncc.frontend.recorder import Recorder
from snncc.ir.layouts import orders_of, rounds_by_layout
from snncc.ir.record import Node


def record(
    recorder: Recorder, result: Any, lowered: Call, operands: tuple[Any, ...], *, impure: bool
) -> Any:
    """Record a call whose result is known, and return the result.

    Args:
        recorder: The recorder.
        result: What the call returned: a tensor, a tuple or list of tensors, or something else.
        lowered: The call, with nodes in the place of tensors.
        operands: The positional arguments of the call in the run.
        impure: Whether the call draws random numbers or changes a buffer.
    """
    if isinstance(result, Tensor):
        for operand in operands:
            if result is operand:
                return result
        _bind(recorder, result, lowered, operands, impure)
    elif isinstance(result, tuple | list) and any(isinstance(x, Tensor) for x in result):
        node = recorder.emit(lowered.target, lowered.args, lowered.kwargs, impure=impure)
        for position, part in enumerate(result):
            if isinstance(part, Tensor):
                _bind_part(recorder, part, node, position)
    return result


def _bind(
    recorder: Recorder, result: Tensor, lowered: Call, operands: tuple[Any, ...], impure: bool
) -> None:
    memory = recorder.memory_at(result)
    first = operands[0] if operands and isinstance(operands[0], Tensor) else None
    parent = None if first is None else recorder.find(first)
    if memory is not None and parent is not None and parent.memory is memory and not lowered.kwargs:
        edge = Edge(lowered.target, lowered.args[1:])
        recorder.bind(result, recorder.child(parent, edge, result))
        return
    target, args, kwargs = lowered.target, lowered.args, lowered.kwargs
    orders = orders_of(operands) if rounds_by_layout(target) else ()
    node = recorder.emit(target, args, kwargs, like=result, impure=impure, orders=orders)
    if memory is None:
        recorder.fresh(result, node)
    else:
        bind_stranger(recorder, result, node)


def bind_stranger(recorder: Recorder, tensor: Tensor, node: Node) -> None:
    """Bind a tensor that shares known memory in an unknown way: it may be read, never written."""
    memory = recorder.memory_at(tensor)
    assert memory is not None
    if memory.generation > 0:
        recorder.refuse_alias("A tensor was made that shares memory in a way that is not known.")
    memory.is_shared = True
    if not recorder.grad and node.is_differentiable:
        node = recorder.emit(torch.detach, (node,), like=tensor)
    recorder.bind(tensor, View(memory, tuple(tensor.shape), tensor.dtype, node, generation=0))


def _bind_part(recorder: Recorder, part: Tensor, node: Node, position: int) -> None:
    element = recorder.emit(operator.getitem, (node, position), like=part)
    if recorder.memory_at(part) is None:
        recorder.fresh(part, element)
    else:
        bind_stranger(recorder, part, element)
