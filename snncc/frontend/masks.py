"""Writes through a mask whose value was read through the same mask.

``ref[ref > 0] -= 1`` reads ``ref[mask]``, subtracts and writes the result through ``mask``.  What
was computed of the selected elements alone can be computed of all elements instead, and selected
afterwards: ``where(mask, ref - 1, ref)``.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from snncc.frontend.canonical import cast
from snncc.frontend.draft import Node
from snncc.frontend.recorder import Recorder

# Operators that treat every element alike and whose tensor operands broadcast.
_ELEMENTWISE = frozenset(
    {
        torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.abs, torch.exp, torch.sigmoid,
        torch.tanh, torch.relu, torch.sqrt, torch.square, torch.clamp, torch.maximum, torch.minimum,
        torch.lt, torch.le, torch.gt, torch.ge, torch.where, torch.detach, cast,
    }
)  # fmt: skip


def unmasked(recorder: Recorder, node: Node, mask: Node) -> Node | None:
    """Return the tensor of which ``node`` is the part at ``mask``, or None where there is none."""
    if node.target is operator.getitem:
        base, index = node.args
        if isinstance(base, Node) and isinstance(index, Node) and same(index, mask):
            return base
        return None
    if node.target not in _ELEMENTWISE:
        return None
    operands = [_operand(recorder, a, mask) for a in node.args]
    found = [a for a in operands if isinstance(a, Node) and "shape" in a.meta]
    if any(a is _NOTHING for a in operands) or not found:
        return None
    like = max(found, key=lambda n: len(n.meta["shape"]))
    result = recorder.emit(node.target, tuple(operands), node.kwargs)
    result.meta["shape"], result.meta["dtype"] = like.meta["shape"], node.meta["dtype"]
    return result


_NOTHING = object()


def _operand(recorder: Recorder, value: Any, mask: Node) -> Any:
    if not isinstance(value, Node) or value.meta.get("shape") in (None, ()):
        return value
    found = unmasked(recorder, value, mask)
    return _NOTHING if found is None else found


def same(a: Any, b: Any) -> bool:
    """Tell whether two nodes compute the same value by the same calls of the same operands."""
    if a is b:
        return True
    if not isinstance(a, Node) or not isinstance(b, Node):
        return type(a) is type(b) and bool(a == b)
    return (
        a.target is not None
        and a.target is b.target
        and a.kwargs == b.kwargs
        and not a.meta["impure"]
        and len(a.args) == len(b.args)
        and all(same(x, y) for x, y in zip(a.args, b.args, strict=True))
    )
