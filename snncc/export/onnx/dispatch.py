"""Find the writer of an operator."""

from __future__ import annotations

from typing import Any

from snncc.export.names import operator_name
from snncc.export.onnx import neurons, operators
from snncc.export.onnx.lowering import Lowering
from snncc.export.remedies import OUTSIDE
from snncc.ir import sequence_ops
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.loop_call import LoopCall
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.step_call import StepCall
from snncc.ir.step_sizes import StepSizes
from snncc.ir.time_loop import TimeLoop
from snncc.passes.scalars.scalar_ops import SCALAR_OPS

_COMPOSED = (
    NeuronCall, StepCall, LoopCall, TimeLoop,
    sequence_ops.Folded, sequence_ops.TripLength, sequence_ops.StepCount,
)  # fmt: skip


def write_operator(
    low: Lowering, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Write one operator and return what stands for its result.

    Raises:
        UnsupportedError: The operator has no form in ONNX.
    """
    if isinstance(target, _COMPOSED):
        return _write_composed(low, target, args, kwargs)
    if target in operators.STRUCTURAL:
        return operators.STRUCTURAL[target](low, *args, **kwargs)
    samples = low.sampled(target, args, kwargs)
    if target in operators.HANDLERS:
        return low.made(samples, operators.HANDLERS[target](low, samples, *args, **kwargs))
    if target in SCALAR_OPS or isinstance(target, CustomGradient):
        return low.elementwise(samples, target, args, kwargs)
    if isinstance(target, StepSizes):
        raise low.refusal("it draws random numbers in each step", OUTSIDE)
    raise low.refusal(f"the operator '{operator_name(target)}' has no form in ONNX")


def _write_composed(
    low: Lowering, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Write a target that has an inside of its own."""
    match target:
        case NeuronCall():
            return neurons.neuron(low, target.program.forward, args)
        case StepCall():
            return neurons.step(low, target.recurrence, args)
        case LoopCall():
            return neurons.loop(low, target.forward, args)
        case TimeLoop():
            return neurons.loop(low, target, args)
        case sequence_ops.TripLength():
            return operators.trip_length(low, target, *args)
        case sequence_ops.StepCount():
            return operators.step_count(low, target, *args)
        case _:
            return operators.folded(low, target, args, kwargs)
