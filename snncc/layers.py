"""Read the lines of a plan off a sequence graph."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, assert_never

import torch.fx

from snncc.ir import sequence_ops
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import FixedPoint, Form, FusedTime, Sequential
from snncc.ir.numerics import Numerics, weakest
from snncc.ir.printer import IR_DIALECT, spell
from snncc.ir.program import NeuronProgram, Place
from snncc.ir.time_loop import TimeLoop
from snncc.ir.walk import calls_maths
from snncc.passes.plan_storage import FLOAT_BYTES, backward_bytes
from snncc.report import Layer

# Operators of the sequence graph that only arrange values and are not worth a line.
PLUMBING = frozenset(
    {
        operator.getitem,
        operator.add,
        sequence_ops.time_view,
        sequence_ops.align,
        sequence_ops.last_step,
        sequence_ops.repeat_time,
        sequence_ops.number,
        sequence_ops.step_numbers,
        torch.arange,
    }
)


def layers_of(graph: torch.fx.Graph, target: str) -> tuple[Layer, ...]:
    """Return one line for each part of the network, in order of execution."""
    return tuple(_lines(graph, "c" if target == "auto" else target))


def _lines(graph: torch.fx.Graph, target: str) -> Iterator[Layer]:
    for node in graph.nodes:
        if isinstance(node.target, NeuronCall):
            yield _neuron(node, node.target.program, target)
        elif isinstance(node.target, TimeLoop):
            yield _loop(node)
        elif node.op == "call_function" and "stacked" in node.meta:
            yield _operator(node, "hoisted", "all steps at once")
        elif node.op == "call_function" and _is_layer(node):
            yield _operator(node, "operator", "once")


def _is_layer(node: torch.fx.Node) -> bool:
    target: Any = node.target
    plumbing = target in PLUMBING or isinstance(target, sequence_ops.TripLength)
    # Methods of tensors have no module.
    return not plumbing and getattr(target, "__module__", "") == "torch.nn.functional"


def _operator(node: torch.fx.Node, kind: str, form: str) -> Layer:
    return Layer(
        name=node.name,
        kind=kind,
        where=node.meta.get("where"),
        form=form,
        kernel="torch",
        numerics=node.meta.get("numerics", Numerics.BITWISE),
    )


def _loop(node: torch.fx.Node) -> Layer:
    rejection = node.meta["rejection"]
    serial = bool(node.target.carries)  # type: ignore[union-attr]
    return Layer(
        name=node.name,
        kind="serial" if serial else "mapped",
        where=node.meta.get("where"),
        form="one step after another",
        kernel="torch",
        numerics=Numerics.BITWISE,
        note=rejection.reason,
    )


def _neuron(node: torch.fx.Node, program: NeuronProgram, target: str) -> Layer:
    forward = program.forward
    dtype = node.meta.get("dtype")
    scale = 1.0 if dtype is None else dtype.itemsize / FLOAT_BYTES
    moved = FLOAT_BYTES * (len(forward.step_inputs) + len(forward.outputs)) * scale
    exact = calls_maths(forward.lets) == 0
    return Layer(
        name=forward.name,
        kind="neuron",
        where=forward.where,
        form=form_text(forward.form),
        kernel=target,
        numerics=weakest(
            Numerics.BITWISE if exact else Numerics.REASSOCIATED, promise_of(forward.form)
        ),
        forward_bytes=moved,
        training_bytes=_training_bytes(program, moved, scale),
        equations=equations(program),
        note="" if exact else "its maths functions differ from torch's in the last place",
    )


def form_text(form: Form) -> str:
    """Return how a form is called in a plan."""
    match form:
        case FixedPoint(sweeps=None):
            return "sweeps until stable"
        case FixedPoint(sweeps, None):
            return f"{sweeps} sweeps"
        case FixedPoint(sweeps):
            return f"{sweeps} soft sweeps"
        case Sequential() | FusedTime():
            return "fused time"
        case _:
            assert_never(form)


def promise_of(form: Form) -> Numerics:
    """Return what a form keeps of the serial results."""
    match form:
        case FixedPoint(sweeps, schedule) if sweeps is not None:
            # With sigmoids in place of thresholds the solution is another neuron's.
            return Numerics.ITERATED if schedule is None else Numerics.SUBSTITUTED
        case _:
            return Numerics.BITWISE


def _training_bytes(program: NeuronProgram, moved: float, scale: float) -> float | None:
    if program.adjoint is None or program.storage is None:
        return None
    return moved + scale * backward_bytes(program.forward, program.adjoint, program.storage)


def equations(program: NeuronProgram) -> tuple[str, ...]:
    """Return the step of a neuron as equations, one line each."""
    forward = program.forward
    lines = [f"{let.name} = {spell(let.expr, IR_DIALECT)}" for let in forward.lets]
    lines += [f"{s.name}[t+1] = {s.update}" for s in forward.states]
    if program.storage is not None:
        place = "recomputed" if program.storage.place is Place.SCRATCH else "stored"
        lines.append(f"backward: {', '.join(program.storage.saved) or 'nothing'} {place}")
    return tuple(lines)
