"""The line of a plan for a recurrent loop whose steps are fused."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch.fx

from snncc.ir.interpret import HALVES
from snncc.ir.loop_call import LoopCall
from snncc.ir.numerics import Numerics
from snncc.ir.printer import IR_DIALECT, spell
from snncc.ir.step_call import StepCall
from snncc.ir.time_loop import TimeLoop
from snncc.ir.walk import calls_maths
from snncc.passes.loops.start_shapes import uneven_starts
from snncc.reporting.report import Layer
from snncc.runtime.loops.row_loop import row_products
from snncc.runtime.loops.sketch import LoopSketch


def recurrent_layer(node: torch.fx.Node, call: LoopCall, name: str, target: str) -> Layer:
    """Return the line of a recurrent loop; its bytes are those of the fused steps."""
    steps = _steps(call.forward)
    remarks = list(_remarks(node, call.forward, steps))
    others = [n for n in _calls(call.forward) if not isinstance(n.target, StepCall)]
    spelled = dict.fromkeys(_spelled(n) for n in others if n.target is not operator.getitem)
    at_each_step = [_runner(call.forward, ", ".join(spelled), target)] if spelled else []
    lines = [n.meta.get("where") for n in others]
    lines += [let.where for step in steps for let in step.recurrence.lets]
    return Layer(
        name=name,
        kind="recurrent",
        where=next((s.recurrence.where for s in steps), node.meta.get("where")),
        form="step by step, fused",
        kernel=target,
        numerics=Numerics.REASSOCIATED if remarks else Numerics.BITWISE,
        forward_bytes=_bytes(call.forward),
        training_bytes=None if call.adjoint is None else sum(map(_bytes, call.loops[1:])),
        equations=tuple(_equations(call.forward)),
        note="; ".join([*at_each_step, *remarks]),
        operator="loop",
        lines=tuple(dict.fromkeys(where for where in lines if where is not None)),
    )


def _runner(loop: TimeLoop, spelled: str, target: str) -> str:
    """Say who computes what is no fused step."""
    if target != "c" or row_products(LoopSketch(loop)) is None:
        return f"torch runs {spelled} at each step"
    return f"one call for all steps, {spelled} included, where torch adds in the same order"


def _calls(loop: TimeLoop) -> list[torch.fx.Node]:
    return [n for n in loop.body.nodes if n.op == "call_function"]


def _steps(loop: TimeLoop) -> list[StepCall]:
    return [n.target for n in loop.body.nodes if isinstance(n.target, StepCall)]


def _spelled(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _remarks(node: torch.fx.Node, loop: TimeLoop, steps: list[StepCall]) -> Iterator[str]:
    """Yield why a loop rounds in another way than the serial code, if it does."""
    if any(calls_maths(step.recurrence.lets) for step in steps):
        yield "its maths functions differ from torch's in the last place"
    if any(n.meta.get("folded") for n in node.all_input_nodes):
        yield "norms are folded into its products and states"
    grown = (user for carry in uneven_starts(loop, node.args) for user in carry.users)
    if any(not isinstance(user.target, StepCall) for user in grown):
        yield "its first step multiplies as many rows as the others"


def _bytes(loop: TimeLoop) -> float:
    """Return the bytes that the fused steps of a loop move for each lane and step."""
    fixed = {i.name for i in loop.invariants}
    moved = 0
    for node in loop.body.nodes:
        if isinstance(node.target, StepCall):
            step = node.target
            types = [n.meta.get("dtype") for n in node.all_input_nodes if n.name not in fixed]
            read = [dtype if dtype in HALVES else step.dtype for dtype in types]
            written = map(step.type_of, step.recurrence.outputs)
            moved += sum(dtype.itemsize for dtype in (*read, *written))
    return float(moved)


def _equations(loop: TimeLoop) -> Iterator[str]:
    for node in _calls(loop):
        if isinstance(node.target, StepCall):
            for let in node.target.recurrence.lets:
                yield f"{let.name} = {spell(let.expr, IR_DIALECT)}"
        elif node.target is not operator.getitem:
            yield f"{node.name} = {_spelled(node)}({', '.join(map(str, node.args))})"
    for carry in loop.carries:
        yield f"{carry.name}[t+1] = {carry.update}"
