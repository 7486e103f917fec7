"""``convergence()``: what fixed-point forms cost and how far a few sweeps are from the serial code.

For each neuron with threshold feedback, on the inputs that it has in the user's network: how many
sweeps there are until no spike changes, which share of its spikes is wrong after a few sweeps, and
the contraction bound of the published argument.  At a large decay sweeps converge slowly, whatever
the threshold function; the report says so and so does a warning.

Source: FPT, arXiv 2506.12087; with a soft reset by V the bound is ``V alpha / 4 * d (1 - d^(T-1)) /
(1 - d)``, d the magnitude of the decay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from rich.table import Table
from torch import Tensor

from snncc.equivalence.translation import interpret_graph
from snncc.errors import NumericsWarning
from snncc.frontend.state.sources import gather, preserved
from snncc.ir.interpret import evaluate
from snncc.ir.names import fresh_name, names_in
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.neuron_class import Reset, Role
from snncc.ir.nodes import Expr, FixedPoint, FusedTime, Let, Op, Recurrence, Unary, Var
from snncc.ir.program import NeuronProgram
from snncc.ir.walk import bool_lets, names_read
from snncc.model.module import compile_model
from snncc.options import Options
from snncc.passes.meaning.classify_neurons import classify_neuron
from snncc.passes.meaning.find_feedback import find_feedback
from snncc.passes.parallel.parallelize_fixed_point import parallelize
from snncc.reporting.report import render
from snncc.runtime.launch import DTYPES
from snncc.runtime.neuron import Neuron

# The numbers of sweeps after which the mismatch is reported.
SWEEPS = (1, 2, 3, 5, 10)
# Where more than this share of all steps is swept, serial order in one kernel is the better form.
_SLOW = 0.125
# The steepness of the last sweep of the published schedule.
_STEEPNESS = 12.0
# States that only hold or count what the neuron gives.
_BYSTANDERS = (Role.SPIKE, Role.LAST, Role.SUM)


@dataclass(frozen=True, slots=True)
class Convergence:
    """How the sweeps of one neuron converge.

    Attributes:
        name: The neuron.
        steps: T.
        sweeps: Sweeps until no spike changes.
        mismatch: For each number in `SWEEPS` the share of spikes that differ from the serial ones.
        decay: The decay of its membrane potential as it is now, the largest in magnitude where
            neurons differ; None where it varies with the step.
        bound: The contraction bound at this decay; below one, sigmoids are sure to converge.  None
            where the argument does not hold: it is one about soft resets.
    """

    name: str
    steps: int
    sweeps: int
    mismatch: tuple[float, ...]
    decay: float | None
    bound: float | None

    @property
    def is_slow(self) -> bool:
        """Whether so many sweeps are needed that another form is the better choice."""
        return self.sweeps > max(8, _SLOW * self.steps)


@dataclass(frozen=True)
class ConvergenceReport:
    """The convergence of all neurons: ``print(report)``."""

    neurons: tuple[Convergence, ...]

    def __str__(self) -> str:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("neuron", "decay", "bound", "T", "sweeps", *(f"wrong, {k}" for k in SWEEPS)):
            table.add_column(title, justify="left" if title == "neuron" else "right")
        for each in self.neurons:
            shares = (f"{100 * share:.2g} %" for share in each.mismatch)
            table.add_row(
                each.name, _number(each.decay), _number(each.bound), str(each.steps),
                str(each.sweeps), *shares,
            )  # fmt: skip
        slow = [each.name for each in self.neurons if each.is_slow]
        notes = [f"  {name}: slow to converge; mode='fused' is exact and faster" for name in slow]
        return "\n".join([render(table), *notes])


def convergence(model: Callable[..., Any], *args: Any, **kwargs: Any) -> ConvergenceReport:
    """Measure how sweeps converge on the neurons of a model.

    Args:
        model: The serial model.
        *args: Its inputs.
        **kwargs: Its keyword inputs.

    Raises:
        FormError: A neuron cannot be solved by sweeps.
    """
    with torch.no_grad():
        fast = compile_model(model, Options(mode="fpt"))
        compiled = fast.specialize(*args, **kwargs)
        found: list[Convergence] = []

        def call(node: torch.fx.Node, values: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if isinstance(node.target, NeuronCall) and node.target.program.sweep is not None:
                found.append(_measure(node.target.program, values))
            target: Any = node.target
            return target(*values, **named)

        with preserved(fast.program, args, kwargs):
            leaves = gather(compiled.recording.tape, fast.program, args, kwargs)
            interpret_graph(compiled.graph, leaves, call)
    slow = [each.name for each in found if each.is_slow]
    if slow:
        warnings.warn(
            f"{', '.join(slow)}: sweeps converge slowly here; mode='fused' is exact and faster.",
            NumericsWarning,
            stacklevel=2,
        )
    return ConvergenceReport(tuple(found))


def _measure(program: NeuronProgram, values: tuple[Any, ...]) -> Convergence:
    """Sweep over all steps at once, on the CPU, where a kernel keeps sequences of any length."""
    length, *given = values
    arguments = tuple(_on_cpu(value) for value in given)
    forward = program.forward
    written = NeuronProgram(replace(_giving_spikes(forward), form=FusedTime()))
    serial = Neuron(written).run(arguments, length)
    steps = int(serial[0].shape[0])
    exact = Neuron(program, scratch_bytes=1 << 40)  # one chunk, however many steps there are
    exact.run(arguments, length)
    mismatch = []
    for sweeps in SWEEPS:
        few = parallelize(written, FixedPoint(sweeps, None))
        assert isinstance(few, NeuronProgram)
        mismatch.append(_wrong(serial, Neuron(few).run(arguments, length)))
    decay, bound = _contraction(forward, arguments, steps)
    return Convergence(forward.name, steps, exact.sweeps, tuple(mismatch), decay, bound)


def _giving_spikes(forward: Recurrence) -> Recurrence:
    """Return a neuron whose outputs are the spikes that feed back, whatever it gives itself."""
    bools, taken = bool_lets(forward.lets), names_in(forward)
    lets, outputs = list(forward.lets), []
    for cut in find_feedback(forward):
        if cut in bools:
            lets.append(Let(fresh_name(f"{cut}_fires", taken), Unary(Op.FLOAT, Var(cut))))
        outputs.append(lets[-1].name if cut in bools else cut)
    return replace(forward, lets=tuple(lets), outputs=tuple(outputs), finals=())


def _on_cpu(value: Tensor) -> Tensor:
    """Return a tensor of the CPU in a type that C kernels compute in."""
    return value.cpu() if value.dtype in DTYPES else value.cpu().float()


def _wrong(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest share of values of one output that differ."""
    shares = (
        float((a != b).double().mean()) for a, b in zip(expected, actual, strict=True) if a.numel()
    )
    return max(shares, default=0.0)


def _contraction(
    forward: Recurrence, arguments: Sequence[Tensor], steps: int
) -> tuple[float | None, float | None]:
    """Return the decay of the membrane potential, and how far an error of its spikes may spread.

    The bound is that of a soft reset, where nothing else remembers a spike.
    """
    neuron = classify_neuron(forward)
    values = dict(zip(forward.lane_inputs, arguments[len(forward.step_inputs) :], strict=True))
    membrane = neuron.membranes[0] if len(neuron.membranes) == 1 else None
    decay = None if membrane is None else _lane_value(membrane.decay, values)
    if membrane is None or decay is None or not decay.numel():
        return None, None
    largest = float(decay.flatten()[decay.abs().argmax()])
    changed = [s for s in neuron.states if s.reset is not Reset.NONE and s.role not in _BYSTANDERS]
    amount = _lane_value(membrane.amount, values) if membrane.reset is Reset.SUBTRACT else None
    if amount is None or not amount.numel() or changed != [membrane] or membrane.is_delayed:
        return largest, None
    return largest, _STEEPNESS / 4 * float(amount.abs().max()) * _reach(abs(largest), steps)


def _lane_value(expr: Expr | None, values: Mapping[str, Tensor]) -> Tensor | None:
    """Return what an expression is for each lane; None where it differs from step to step."""
    if expr is None or not values.keys() >= {*names_read(expr)}:
        return None
    like = next(iter(values.values()), torch.zeros(()))
    return evaluate(expr, values, like)


def _reach(decay: float, steps: int) -> float:
    """Return the sum of the powers of a decay over the steps that remember a spike."""
    if decay == 1:
        return float(steps - 1)
    power = float(torch.tensor(decay, dtype=torch.float64) ** (steps - 1))  # may be infinite
    return decay * (1 - power) / (1 - decay)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
