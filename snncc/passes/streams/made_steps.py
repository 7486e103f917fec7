"""Let sequences that a model makes of one value follow the steps of a stream.

An image that is shown at every step is often repeated along a new time axis, ``x.repeat(T, 1, 1)``,
and the loop runs over that.  The number of steps is then a number in the operator that makes them.
Replaced by the steps at hand, the operator makes as many as a chunk has.

Numerics: bitwise; with all steps at hand, each operator has the arguments that it had.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import draw, full
from snncc.ir import sequence_ops

# Operators that make axes, and which argument holds their sizes.
_SIZES: dict[Any, int] = {
    torch.Tensor.repeat: 1,
    torch.Tensor.expand: 1,
    torch.tile: 1,
    draw: 1,
    full: 0,
    torch.rand: 0,
}


def follow_steps(graph: torch.fx.Graph, length: torch.fx.Node) -> set[int]:
    """Let made sequences that loops visit follow the number of steps, in place.

    Args:
        graph: A sequence graph.
        length: The number of steps.

    Returns:
        The numbers of steps that such sequences had.
    """
    found: set[int] = set()
    for view in graph.find_nodes(op="call_function", target=sequence_ops.time_view):
        source, dim, *slices = view.args
        shape = source.meta.get("shape")
        if slices[:2] == [0, 1] and shape is not None:
            steps = shape[dim]
            found |= {steps for node in _made_of(source, steps) if _follow(node, steps, length)}
    return found


def _made_of(source: Any, steps: int) -> list[torch.fx.Node]:
    """Return a value and all that it is computed from that may have an axis of these steps.

    It may be a part of one, where time is folded into the batch.
    """
    found: list[torch.fx.Node] = [source]
    for node in found:
        for before in node.all_input_nodes:
            sizes = before.meta.get("shape") or ()
            if before not in found and any(size and size % steps == 0 for size in sizes):
                found.append(before)
    return found


def _follow(node: torch.fx.Node, steps: int, length: torch.fx.Node) -> bool:
    """Let one operator make as many steps as there are; tell whether it makes them."""
    if node.target is torch.repeat_interleave and node.args[1] == steps:
        node.update_arg(1, length)
        return True
    if node.target is torch.stack:
        items: Any = node.args[0]
        if len(items) == steps and len(set(items)) == 1:
            _repeat(node, items[0], length)
            return True
    position = _SIZES.get(node.target)
    return position is not None and _resize(node, position, steps, length)


def _resize(node: torch.fx.Node, position: int, steps: int, length: torch.fx.Node) -> bool:
    """Let the outermost axis that an operator makes, with as many steps, follow them."""
    sizes: Any = node.args[position]
    if not isinstance(sizes, tuple | list):
        return False
    own = (1,) * len(sizes)
    if position and isinstance(node.args[0], torch.fx.Node):
        own = (*own, *node.args[0].meta["shape"])[-len(sizes) :]
    dims = [i for i, made in enumerate(zip(sizes, own, strict=True)) if made == (steps, 1)]
    if dims:
        node.update_arg(position, tuple(length if i == dims[0] else n for i, n in enumerate(sizes)))
    return bool(dims)


def _repeat(node: torch.fx.Node, item: torch.fx.Node, length: torch.fx.Node) -> None:
    """Turn a stack of one value into its repetition along a new axis."""
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    with node.graph.inserting_before(node):
        repeated = node.graph.call_function(sequence_ops.repeat_time, (item, length))
    node.target, node.args, node.kwargs = torch.movedim, (repeated, 0, dim), {}
