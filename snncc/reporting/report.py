"""The plan of one specialisation: what was compiled, how, and what was not."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from rich.console import Console
from rich.table import Table

from snncc.ir.neuron_class import NeuronClass
from snncc.ir.nodes import Binary, Const, Detach, Recurrence, Select, Unary, Var
from snncc.ir.numerics import Numerics, weakest
from snncc.ir.printer import IR_DIALECT, print_recurrence, spell
from snncc.ir.walk import names_read
from snncc.passes.meaning.classify_neurons import classify_neuron
from snncc.passes.meaning.judge_forms import other_forms
from snncc.reporting.equations import Equations, equations_of
from snncc.source import Location


@dataclass(frozen=True, slots=True)
class Operand:
    """What one input of a neuron is.

    Attributes:
        name: Its name in the recurrence.
        shown: Its name in equations: the layer, the variable or the parameter that it comes from.
        where: The user's expression for it, where it is one.
        is_step: Whether it has a value for each step.
        varies: For a value that is the same at all steps, how it differs between neurons.
        is_learned: Whether a parameter that requires gradients goes into it, and no input does.
    """

    name: str
    shown: str
    where: Location | None
    is_step: bool
    varies: str
    is_learned: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """A way to run a part that was not taken, and why.

    Attributes:
        form: The way.
        code: Stable identifier of the reason.
        reason: One clause, in the user's words.
        where: The user's line that is at fault, where there is one.
    """

    form: str
    code: str
    reason: str
    where: Location | None = None


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes that each neuron moves at each step, in the forward or the backward sweep."""

    sweep: str
    what: str
    bytes: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One line of a plan: a part of the network and how it runs.

    Attributes:
        name: Name of the neuron or operator.
        kind: ``neuron``, ``hoisted`` (once over the whole sequence), ``operator`` (once, outside of
            the loop), ``mapped`` (one call a step), ``recurrent`` (a loop whose steps are fused) or
            ``serial`` (the user's loop).
        where: The user's line.
        form: How the time axis is executed.
        kernel: What executes it: ``c``, ``torch``.
        numerics: The promise given its input.
        forward_bytes: Bytes moved for each neuron-step by inference, in the dtype of the layer.
        training_bytes: Bytes moved for each neuron-step by forward and backward together.
        equations: The step of a neuron, one line each.
        note: Why it is not in a better form, or what is special.
        operator: What the operator is.
        lines: Every line of the user's that is part of it.
        refused: For a neuron the forms that were found to be slower; for any other part better
            ways to run it, and why they were not taken.
        operands: What the inputs of a neuron are.
        keeps: What the backward sweep of a neuron gets from the forward sweep.
        kept_bytes: Bytes that the forward sweep leaves for the backward sweep, of a neuron for each
            neuron-step.  Of a product they are known for each value that it reads where that is
            0 or 1 and kept as a bit.
        transfers: What ``training_bytes``, or without a gradient ``forward_bytes``, consist of.
        recurrence: The step of a neuron.
        stands_for: What the user's neuron is, where another one was substituted for it.
    """

    name: str
    kind: str
    where: Location | None
    form: str
    kernel: str
    numerics: Numerics
    forward_bytes: float | None = None
    training_bytes: float | None = None
    equations: tuple[str, ...] = ()
    note: str = ""
    operator: str = ""
    lines: tuple[Location, ...] = ()
    refused: tuple[Rejected, ...] = ()
    operands: tuple[Operand, ...] = ()
    keeps: str = ""
    kept_bytes: float | None = None
    transfers: tuple[Transfer, ...] = ()
    recurrence: Recurrence | None = field(default=None, repr=False)
    stands_for: str = ""

    @property
    def meaning(self) -> NeuronClass | None:
        """What a neuron means; None for what is no neuron."""
        return None if self.recurrence is None else classify_neuron(self.recurrence)

    @property
    def step(self) -> Equations | None:
        """The step of a neuron, to be shown; None for what is no neuron."""
        if self.recurrence is None:
            return None
        return equations_of(self.recurrence, {o.name: o.shown for o in self.operands})

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """The ways to run it that were not taken."""
        if self.recurrence is None:
            return self.refused
        judged = other_forms(self.recurrence)
        slower = {other.form for other in self.refused}
        others = [Rejected(form, r.code, r.reason, r.where) for form, r in judged]
        return (*self.refused, *(other for other in others if other.form not in slower))

    @property
    def what(self) -> str:
        """What it is, in a word or two: ``LIF``, ``linear``."""
        if self.stands_for:
            return "dynamic decay"
        meaning = self.meaning
        if meaning is None:
            return self.operator or self.kind
        # The name of a LIF says whether its decay is learned, which only the network tells.
        learned = {operand.name for operand in self.operands if operand.is_learned}
        decays = [m.decay for m in meaning.membranes if m.decay is not None]
        if meaning.name == "LIF" and any(learned & {*names_read(decay)} for decay in decays):
            return "PLIF"
        return meaning.name


@dataclass(frozen=True)
class Plan:
    """How one specialisation of a model runs.

    ``print(plan)`` shows one line a layer; `layers` is the data, and `to_dict` all of it for tools.

    Attributes:
        layers: The parts, in the order in which they run.
        specialized_on: The inputs that it was made for.
        notes: Remarks about the whole.
        flow: Which part reads which, as pairs of names; inputs and outputs of the model have the
            names in ``ends``.
        ends: Names of the model's inputs and outputs in ``flow``.
        others: The lines of operators that only arrange or combine values.
    """

    layers: tuple[Layer, ...]
    specialized_on: str
    notes: tuple[str, ...] = ()
    flow: tuple[tuple[str, str], ...] = ()
    ends: tuple[str, ...] = ()
    others: tuple[Location, ...] = ()

    @property
    def numerics(self) -> Numerics:
        """The promise of the network as a whole."""
        return weakest(*(layer.numerics for layer in self.layers))

    @property
    def neurons(self) -> tuple[Layer, ...]:
        """The layers that are neurons."""
        return tuple(layer for layer in self.layers if layer.kind == "neuron")

    def table(self) -> Table:
        """Return the plan as a table for the terminal."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("layer", "what", "source", "form", "kernel", "numerics", "B/step", "train"):
            table.add_column(title, no_wrap=title != "source", overflow="fold")
        for layer in self.layers:
            table.add_row(
                layer.name,
                layer.what,
                short(layer.where),
                layer.form,
                layer.kernel,
                layer.numerics.value,
                _bytes(layer.forward_bytes),
                _bytes(layer.training_bytes),
            )
        return table

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is special about parts and about the whole."""
        parts = (f"{layer.name}: {layer.note}" for layer in self.layers if layer.note)
        return (*parts, *self.notes)

    def __str__(self) -> str:
        head = f"Plan for {self.specialized_on}; network: {self.numerics.value}"
        return "\n".join([head, render(self.table()), *(f"  {r}" for r in self.remarks)])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as dicts, lists, strings and numbers, for JSON."""
        return {"numerics": self.numerics.value, **as_data(self)}


@dataclass
class Timings:
    """Seconds that each stage of a compilation took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of all stages together."""
        return sum(self.seconds.values())


def as_data(value: Any) -> Any:
    """Return a value as dicts, lists, strings and numbers; expressions as text."""
    match value:
        case Location():
            return {
                "file": value.file,
                "line": value.line,
                "column": value.column,
                "end_line": value.last_line,
                "end_column": value.end_column,
                "function": value.function,
                "text": value.text,
            }
        case Recurrence():
            return print_recurrence(value)
        case Const() | Var() | Unary() | Binary() | Select() | Detach():
            return spell(value, IR_DIALECT)
        case Layer():
            derived = {
                name: as_data(getattr(value, name)) for name in ("what", "meaning", "rejected")
            }
            return {**derived, **_fields(value)}
        case Enum():
            return value.value
        case tuple() | list():
            return [as_data(v) for v in value]
        case Mapping():
            return {str(k): as_data(v) for k, v in value.items()}
        case _ if is_dataclass(value):
            return _fields(value)
        case _:
            return value


def _fields(value: Any) -> dict[str, Any]:
    return {f.name.rstrip("_"): as_data(getattr(value, f.name)) for f in fields(value)}


def render(table: Table, width: int = 120) -> str:
    """Return a table as plain text."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def short(where: Location | None) -> str:
    """Return the user's own file and line, without folders."""
    if where is None:
        return ""
    own = where.own
    return f"{own.file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{own.line}"


def _bytes(count: float | None) -> str:
    return "" if count is None else f"{count:g}"
