"""The errors for passes that do not apply to a model."""

from __future__ import annotations

from dataclasses import dataclass

from snncc.errors import FormError, SnnccError, UnsupportedError
from snncc.frontend.reroll import Rolled
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.tape import Tape
from snncc.passes import Pass, Rejection
from snncc.passes.dynamic_decay.substitute_dynamic_decay import SubstituteDynamicDecay
from snncc.passes.events.queue_spikes import QueueSpikes
from snncc.passes.folding.fold_norms import FoldNorms
from snncc.passes.gradients.cut_time import CutTime
from snncc.passes.parallel.parallelize_fixed_point import ParallelizeFixedPoint
from snncc.passes.parallel.parallelize_reset import ParallelizeReset


@dataclass(frozen=True, slots=True)
class _Wording:
    """What is said of a pass that does not apply; the rejection adds the line and the reason."""

    kind: type[SnnccError]
    message: str
    code: str
    hint: str


_WORDINGS: dict[type[Pass], _Wording] = {
    CutTime: _Wording(
        FormError,
        "The gradient of the model cannot be cut between its time steps.",
        code="form.online",
        hint="Compile it for one step with step=True, or detach its states and use mode='fused'.",
    ),
    FoldNorms: _Wording(
        UnsupportedError,
        "A batch norm cannot be folded.",
        code="unsupported.fold-norms",
        hint="Call 'model.eval()' first; 'snncc.compile' without 'fold_norms' keeps its norms.",
    ),
    ParallelizeFixedPoint: _Wording(
        FormError,
        "A neuron cannot be solved by sweeps.",
        code="form.fixed-point",
        hint="Use mode='fused', which runs any neuron.",
    ),
    ParallelizeReset: _Wording(
        FormError,
        "A neuron cannot run chunks of time at once.",
        code="form.parallel-reset",
        hint="Use mode='fused', which runs any neuron.",
    ),
    QueueSpikes: _Wording(
        FormError,
        "The model cannot run as a queue of spikes.",
        code="form.async",
        hint="Use mode='fused', which runs any neuron and what is between them.",
    ),
    SubstituteDynamicDecay: _Wording(
        FormError,
        "A dynamic decay cannot stand for the neurons of the model.",
        code="form.dynamic-decay",
        hint="Use snncc.nn.DynamicDecay in its place, or mode='fused', which runs any neuron.",
    ),
}


def refusal(each: Pass, rejection: Rejection, tape: Tape, rolled: Rolled) -> SnnccError:
    """Return the error for a pass that does not apply."""
    wording = _WORDINGS.get(type(each))
    if wording is None:
        return _no_loop(tape, rolled, rejection)
    return wording.kind(
        wording.message,
        code=wording.code,
        location=rejection.where,
        notes=[rejection.reason],
        hints=[wording.hint],
    )


def _no_loop(tape: Tape, rolled: Rolled, rejection: Rejection) -> UnsupportedError:
    differences = getattr(rolled, "diagnostics", ())
    functions = [c for c in tape.calls if isinstance(c.target, CustomGradient)]
    places = [d.location for d in differences] + [c.meta["where"] for c in functions]
    names = dict.fromkeys(str(c.target) for c in functions)
    return UnsupportedError(
        "The model has no loop over time that could be proven.",
        code="unsupported.no-time-loop",
        location=next((place for place in places if place is not None), None),
        notes=[
            rejection.reason,
            *(str(d) for d in differences[:3]),
            *(f"'{n}' has a gradient of its own: its inside is not searched" for n in names),
        ],
        hints=["Loop over the time axis in Python: 'for t in range(x.shape[0]): ...'."],
    )
