"""What was compiled, how, and what was not: the plan of one specialisation."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from snncc.errors import Location
from snncc.ir.numerics import Numerics, weakest


@dataclass(frozen=True, slots=True)
class Layer:
    """One line of a plan: a part of the network and how it runs.

    Attributes:
        name: Name of the neuron or operator.
        kind: ``neuron``, ``hoisted`` (once over the whole sequence), ``invariant`` (once, the same
            at all steps), ``mapped`` (one call a step) or ``serial`` (the user's loop).
        where: The user's line.
        form: How the time axis is executed.
        kernel: What executes it: ``c``, ``torch``.
        numerics: The promise given its input.
        forward_bytes: Bytes moved for each neuron-step by inference, in the dtype of the layer.
        training_bytes: Bytes moved for each neuron-step by forward and backward together.
        equations: The step, one line each.
        note: Why it is not in a better form, or what is special.
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


@dataclass(frozen=True)
class Plan:
    """How one specialisation of a model runs.

    ``print(plan)`` shows one line a layer; `layers` is the data.
    """

    layers: tuple[Layer, ...]
    specialized_on: str
    notes: tuple[str, ...] = ()

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
        for title in ("layer", "kind", "source", "form", "kernel", "numerics", "B/step", "train"):
            table.add_column(title, no_wrap=title != "source", overflow="fold")
        for layer in self.layers:
            table.add_row(
                layer.name,
                layer.kind,
                _short(layer.where),
                layer.form,
                layer.kernel,
                layer.numerics.value,
                _bytes(layer.forward_bytes),
                _bytes(layer.training_bytes),
            )
        return table

    def __str__(self) -> str:
        text = render(self.table())
        remarks = [f"  {layer.name}: {layer.note}" for layer in self.layers if layer.note]
        remarks += [f"  {note}" for note in self.notes]
        head = f"Plan for {self.specialized_on}; network: {self.numerics.value}"
        return "\n".join([head, text, *remarks])


@dataclass
class Timings:
    """Seconds that each stage of a compilation took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of all stages together."""
        return sum(self.seconds.values())


def render(table: Table, width: int = 120) -> str:
    """Return a table as plain text."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def _short(where: Location | None) -> str:
    if where is None:
        return ""
    return f"{where.file.rsplit('/', 1)[-1]}:{where.line}"


def _bytes(count: float | None) -> str:
    return "" if count is None else f"{count:g}"
