"""``explain()``: what was found in a model, and what each part becomes, line by line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from snncc.errors import SnnccError
from snncc.errors import render as render_error
from snncc.frontend.sources import gather
from snncc.module import CompiledModule
from snncc.options import Options
from snncc.pipeline import build, record
from snncc.report import Layer, Plan, render


@dataclass(frozen=True)
class Explanation:
    """What snncc found: ``print(explanation)``.

    Attributes:
        plan: How the model runs, or None where it was refused.
        refusal: Why the model was refused, or None.
        seconds: Seconds that each stage took.
    """

    plan: Plan | None
    refusal: SnnccError | None
    seconds: dict[str, float]

    def __str__(self) -> str:
        parts = [] if self.plan is None else [str(self.plan), *map(_neuron, self.plan.neurons)]
        if self.refusal is not None:
            parts.append("Refused: " + render_error(self.refusal))
        parts.append(render(_stages(self.seconds)))
        return "\n\n".join(parts)


def explain(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Explain what snncc makes of a model on given inputs.

    A model that would be refused is explained up to the refusal; parts that would stay serial are
    shown as such.

    Args:
        model: The model, or a compiled model, which is explained as it was compiled.
        *args: Inputs of the model.
        **kwargs: Keyword inputs of the model.
    """
    options = Options(fallback="serial")
    if isinstance(model, CompiledModule):
        options = replace(model.options, fallback="serial")
        model = model.program
    try:
        recording = record(model, args, kwargs)
    except SnnccError as error:
        return Explanation(None, error, {})
    try:
        leaves = gather(recording.tape, model, args, kwargs)
        plan = build(recording, options, leaves, "explain").plan
    except SnnccError as error:
        return Explanation(None, error, recording.timings.seconds)
    return Explanation(plan, None, recording.timings.seconds)


def _neuron(layer: Layer) -> str:
    lines = [f"{layer.name} at {layer.where}"]
    source = layer.where.source.strip() if layer.where is not None else ""
    lines += [f"    {source}"] if source else []
    return "\n".join([*lines, *(f"  {equation}" for equation in layer.equations)])


def _stages(seconds: dict[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    for stage, duration in seconds.items():
        table.add_row(stage, f"{1e3 * duration:.1f}")
    return table
