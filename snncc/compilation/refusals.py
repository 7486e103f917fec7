"""The errors for passes that do not apply to a model."""

from __future__ import annotations

from snncc.errors import FormError, SnnccError, UnsupportedError
from snncc.frontend.reroll import Rolled
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.tape import Tape
from snncc.passes import Pass, Rejection
from snncc.passes.dynamic_decay.substitute_dynamic_decay import SubstituteDynamicDecay
from snncc.passes.folding.fold_norms import FoldNorms
from snncc.passes.parallel.parallelize_fixed_point import ParallelizeFixedPoint
from snncc.passes.parallel.parallelize_reset import ParallelizeReset


def refusal(each: Pass, rejection: Rejection, tape: Tape, rolled: Rolled) -> SnnccError:
    """Return the error for a pass that does not apply."""
    match each:
        case SubstituteDynamicDecay():
            return _no_substitution(rejection)
        case ParallelizeFixedPoint():
            return _no_fixed_point(rejection)
        case ParallelizeReset():
            return _no_parallel_reset(rejection)
        case FoldNorms():
            return _no_fold(rejection)
        case _:
            return _no_loop(tape, rolled, rejection)


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


def _no_fold(rejection: Rejection) -> UnsupportedError:
    return UnsupportedError(
        "A batch norm cannot be folded.",
        code="unsupported.fold-norms",
        location=rejection.where,
        notes=[rejection.reason],
        hints=["Call 'model.eval()' first; 'snncc.compile' without 'fold_norms' keeps its norms."],
    )


def _no_fixed_point(rejection: Rejection) -> FormError:
    return FormError(
        "A neuron cannot be solved by sweeps.",
        code="form.fixed-point",
        location=rejection.where,
        notes=[rejection.reason],
        hints=["Use mode='fused', which runs any neuron."],
    )


def _no_parallel_reset(rejection: Rejection) -> FormError:
    return FormError(
        "A neuron cannot run chunks of time at once.",
        code="form.parallel-reset",
        location=rejection.where,
        notes=[rejection.reason],
        hints=["Use mode='fused', which runs any neuron."],
    )


def _no_substitution(rejection: Rejection) -> FormError:
    return FormError(
        "A dynamic decay cannot stand for the neurons of the model.",
        code="form.dynamic-decay",
        location=rejection.where,
        notes=[rejection.reason],
        hints=["Use snncc.nn.DynamicDecay in its place, or mode='fused', which runs any neuron."],
    )
