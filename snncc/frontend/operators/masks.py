"""Writes through a mask whose value was read through the same mask.

``ref[ref > 0] -= 1`` reads ``ref[mask]``, subtracts and writes the result through ``mask``.  What
was computed of the selected elements alone can be computed of all elements instead, and selected
afterwards: ``where(mask, ref - 1, ref)``.  Operators that are not finite everywhere, or have no
finite derivative, read 1 in the place of the elements that were not selected: ``0 * inf`` would
reach the gradient.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from snncc.frontend.operators.canonical import cast
from snncc.frontend.recorder import Recorder
from snncc.ir.record import Node

# Operators that treat every element alike and whose tensor operands broadcast.
_ELEMENTWISE = frozenset(
    {
        torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.abs, torch.exp, torch.sigmoid,
        torch.tanh, torch.relu, torch.sqrt, torch.square, torch.clamp, torch.maximum, torch.minimum,
        torch.lt, torch.le, torch.gt, torch.ge, torch.where, torch.detach, torch.log, torch.pow,
        torch.reciprocal, cast,
    }
)  # fmt: skip
_PARTIAL = frozenset(
    {torch.div, torch.exp, torch.sqrt, torch.log, torch.pow, torch.reciprocal}
)  # fmt: skip


_DEPTH = 8  # how far a value is followed back to the parts that it was computed of


def unmasked(recorder: Recorder, node: Node, mask: Node) -> Node | None:
    """Return the tensor of which ``node`` is the part at ``mask``, or None where there is none."""
    if not _is_part(node, mask, _DEPTH):
        return None
    return _whole(recorder, node, mask if _is_partial(node) else None)


def _is_part(value: Any, mask: Node, depth: int) -> bool:
    """Tell whether a value was computed, element by element, of parts at the mask."""
    if not isinstance(value, Node) or value.target is None or depth == 0:
        return False
    if value.target is operator.getitem:
        return _same(value.args[1], mask, depth)
    if value.target not in _ELEMENTWISE:
        return False
    parts = [a for a in value.operands if not _is_single(a)]
    return bool(parts) and all(_is_part(p, mask, depth - 1) for p in parts)


def _is_single(node: Node) -> bool:
    return bool(node.meta.get("shape", ()) == ())


def _is_partial(node: Node) -> bool:
    """Tell whether a part was computed by an operator that is not finite everywhere."""
    if node.target is operator.getitem:
        return False
    return node.target in _PARTIAL or any(_is_partial(a) for a in node.operands if a.target)


def _whole(recorder: Recorder, node: Node, guard: Node | None) -> Node:
    """Compute for all elements what ``node`` is at the mask; with a guard, from 1 elsewhere."""
    if node.target is operator.getitem:
        base = node.args[0]
        assert isinstance(base, Node)
        return base if guard is None else _guarded(recorder, base, guard)
    args = tuple(
        _whole(recorder, a, guard) if isinstance(a, Node) and not _is_single(a) else a
        for a in node.args
    )
    result = recorder.emit(node.target, args, node.kwargs)
    shapes = [a.meta["shape"] for a in result.operands if "shape" in a.meta]
    return _seen(result, max(shapes, key=len), node.meta["dtype"])


def _seen(node: Node, shape: tuple[int, ...], dtype: torch.dtype) -> Node:
    """Note the shape and type of a value that the run has not computed."""
    node.meta = {**node.meta, "shape": shape, "dtype": dtype}
    return node


def _guarded(recorder: Recorder, base: Node, mask: Node) -> Node:
    for dim in range(len(mask.meta["shape"]), len(base.meta["shape"])):
        shape = (*mask.meta["shape"], 1)
        mask = _seen(recorder.emit(torch.unsqueeze, (mask, dim)), shape, torch.bool)
    result = recorder.emit(torch.where, (mask, base, 1.0))
    return _seen(result, base.meta["shape"], base.meta["dtype"])


def _same(a: Any, b: Any, depth: int) -> bool:
    """Tell whether two nodes compute the same value by the same calls of the same operands."""
    if a is b:
        return True
    if not isinstance(a, Node) or not isinstance(b, Node):
        return type(a) is type(b) and bool(a == b)
    if depth == 0 or a.target is None or a.target is not b.target or a.meta["impure"]:
        return False
    if a.kwargs != b.kwargs or len(a.args) != len(b.args):
        return False
    return all(_same(x, y, depth - 1) for x, y in zip(a.args, b.args, strict=True))
