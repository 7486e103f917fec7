"""Find the shape of a carry at the first step: ask an input of the loop where one tells it.

A start that is one number takes its shape from a value of the body (`Fill.like`).  If that value is
computed in the step itself, whatever reads the carry has to wait for it, and steps that could be
one kernel are two.  An elementwise operator has the shape of its widest operand, so the question
can often be passed on to an input of the loop, which is there from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch.fx

from snncc.frontend.operators.canonical import full, full_like
from snncc.ir.time_loop import Carry, Fill, TimeLoop
from snncc.passes.base import Rejection
from snncc.passes.hoisting.find_recurrences import pointwise

Node = torch.fx.Node


def settle_start_shapes(loop: TimeLoop) -> TimeLoop:
    """Return the loop with starts that take their shape from inputs, as far as they can."""
    by_name = {n.name: n for n in loop.body.nodes}
    starts = {c.name: c.initial for c in loop.carries}
    carries = tuple(_settled(c, by_name, starts) for c in loop.carries)
    return replace(loop, carries=carries)


def _settled(carry: Carry, by_name: dict[str, Node], starts: dict[str, int | Fill]) -> Carry:
    initial, seen = carry.initial, set[str]()
    while isinstance(initial, Fill) and initial.like is not None and initial.like not in seen:
        seen.add(initial.like)
        source = _source_of_shape(by_name[initial.like], starts)
        if source is None:
            break
        dtype = initial.dtype or by_name[initial.like].meta.get("dtype")
        initial = Fill(initial.value, source, dtype)
    like = initial.like if isinstance(initial, Fill) else None
    settled = like is not None and by_name[like].op == "placeholder"
    return replace(carry, initial=initial) if settled else carry


def _source_of_shape(node: Node, starts: dict[str, int | Fill]) -> str | None:
    """Return the name of an operand that has the shape of a value, or None."""
    if node.name in starts:
        start = starts[node.name]
        return start.like if isinstance(start, Fill) else None
    if node.op != "call_function" or pointwise(node) is not None:
        return None
    alike = (n for n in node.all_input_nodes if n.meta.get("shape") == node.meta["shape"])
    # An input tells its shape at once; a carry of the loop may lead to one.
    ordered = sorted(alike, key=lambda n: n.op == "call_function")
    return next((n.name for n in ordered), None)


def uneven_starts(loop: TimeLoop, operands: Sequence[object]) -> dict[Node, tuple[int, ...]]:
    """Return the carries that start with another shape than they have later, and that shape.

    Args:
        loop: The loop.
        operands: What it is called with.
    """
    by_name = {n.name: n for n in loop.body.nodes}
    found: dict[Node, tuple[int, ...]] = {}
    for carry in loop.carries:
        given = isinstance(carry.initial, int) and carry.initial < len(operands)
        start = operands[carry.initial] if given else None  # type: ignore[index]
        shape = start.meta.get("shape") if isinstance(start, Node) else None
        if shape is not None and tuple(shape) != tuple(by_name[carry.update].meta["shape"]):
            found[by_name[carry.name]] = tuple(shape)
    return found


def fit_starts(
    loop: TimeLoop, operands: Sequence[object], broadcasts: Callable[[Node], bool]
) -> TimeLoop | Rejection:
    """Return a loop whose carries start with the shape that they have later, or one it grows to.

    Args:
        loop: The loop.
        operands: What it is called with.
        broadcasts: Tells of an operator whether each row of its result depends on that row alone.
    """
    fitted: dict[str, Fill] = {}
    for carry, shape in uneven_starts(loop, operands).items():
        later = tuple(carry.meta["shape"])
        start = next(c.initial for c in loop.carries if c.name == carry.name)
        number = _constant(operands[start])  # type: ignore[index]
        rowwise = all(map(broadcasts, carry.users))
        if rowwise and number is not None:
            fitted[carry.name] = Fill(number)
        elif not rowwise or not can_broadcast(shape, later):
            reason = f"a state starts with shape {list(shape)} and has {list(later)} later"
            return Rejection("start-shape", reason)
    carries = (replace(c, initial=fitted.get(c.name, c.initial)) for c in loop.carries)
    return replace(loop, carries=tuple(carries))


def _constant(operand: object) -> float | None:
    """Return the number that an operand is filled with, or None."""
    if not isinstance(operand, Node) or operand.target not in (full, full_like):
        return None
    value = operand.args[1]
    return value if isinstance(value, bool | int | float) else None


def can_broadcast(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Tell whether a shape can be expanded to another."""
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in pairs)
