"""What the parallel modes make of a case: the results of its serial code, or a refusal.

Sequences are cut into short chunks, so that also short ones are more than one.  Forms that promise
the serial results are compared with them; of the others it is asked that they run, and that what
comes out has the sizes and types of what the model gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import snncc
from tests.compatibility.case import Case, itself
from tests.compatibility.check import Pair, default_dtype, other_sizes


@dataclass(frozen=True)
class ParallelForm:
    """A mode and its options.

    Attributes:
        title: As in the table.
        options: Options of ``snncc.compile``.
        is_exact: Whether its results are those of the serial code.
    """

    title: str
    options: Mapping[str, Any]
    is_exact: bool = True


FORMS = (
    ParallelForm("auto", {"mode": "auto"}),
    ParallelForm("scan", {"mode": "scan", "chunk": 3}),
    ParallelForm("parallel reset", {"mode": "parallel_reset", "chunk": 3}),
    ParallelForm("sweeps until stable", {"mode": "fpt"}),
    ParallelForm("3 sweeps", {"mode": "fpt", "sweeps": 3, "schedule": None}, is_exact=False),
    ParallelForm("3 soft sweeps", {"mode": "fpt", "sweeps": 3}, is_exact=False),
    ParallelForm("dynamic decay", {"mode": "dynamic_decay"}, is_exact=False),
)


def compiling(cases: Iterable[Case]) -> list[Case]:
    """Return the cases that compile in fused time."""
    return [case for case in cases if case.expect != "refused"]


def check_form(case: Case, form: ParallelForm) -> str:
    """Compile a case in a form, for the reference interpreter, and compare it.

    Args:
        case: A case that compiles in fused time.
        form: The form.

    Returns:
        The code of the refusal; nothing where it is compiled.

    Raises:
        AssertionError: Results differ from what the form promises.
    """
    fallback = {"fallback": "serial"} if case.expect == "serial part" else {}
    # A training script may ask for gradients of parameters that another neuron does not have.
    trains = form.is_exact or case.script is itself
    case = case if trains else replace(case, script=itself)
    dtype = torch.float64 if case.double else torch.float32
    with default_dtype(dtype), torch.set_grad_enabled(trains):
        pair = Pair(case, {**case.options, **fallback, **form.options, "target": "torch"})
        expected = pair.observe(pair.serial, pair.model, other_sizes(case))
        try:
            actual = pair.observe(pair.run, pair.twin, other_sizes(case))
        except snncc.SnnccError as refusal:
            return refusal.code
        _require_same_types(expected, actual)
        if form.is_exact:
            pair.agree(_joined(expected), _joined(actual))
    return ""


def _joined(seen: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Join all gradients: those that are zero but for roundings have no scale of their own."""
    gradients = [g.flatten() for g in seen["gradients"]]
    return {**seen, "gradients": [torch.cat(gradients)] if gradients else []}


def _require_same_types(expected: Mapping[str, list[Any]], actual: Mapping[str, list[Any]]) -> None:
    for what, values in expected.items():
        for x, y in zip(values, actual[what], strict=True):
            assert type(x) is type(y), what
            if isinstance(x, Tensor):
                assert (x.shape, x.dtype) == (y.shape, y.dtype), what
                assert bool(y.isfinite().all()) or not bool(x.isfinite().all()), what
