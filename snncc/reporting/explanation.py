"""``explain()``: what was found in a model, and what each part becomes, line by line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from snncc.arguments import Check, shown
from snncc.errors import OptionError, SnnccError
from snncc.errors import render as render_error
from snncc.model.module import CompiledModule, compile_model
from snncc.options import Options
from snncc.reporting.report import Layer, Plan, as_data, short
from snncc.reporting.wording import describe

# Neurons beyond these are in the table, in `to_dict` and on the page, but not one by one in text.
MOST_NEURONS = 24


@dataclass(frozen=True)
class Explanation:
    """What snncc found: ``print(explanation)``, or ``explanation.save("page.html")``.

    Attributes:
        model: Name of the model.
        plan: How the model runs, or None where it was refused as a whole.
        refusal: Why the model, or a part of it, was refused; or None.
        seconds: Seconds that each stage took.
        options: How it was compiled.
    """

    model: str
    plan: Plan | None
    refusal: SnnccError | None
    seconds: dict[str, float] = field(default_factory=dict)
    options: Options = field(default_factory=Options)

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=120, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())

    def __rich__(self) -> RenderableType:
        return Group(*self._parts())

    def _parts(self) -> Iterator[RenderableType]:
        if self.plan is not None:
            head = f"{self.model} for {self.plan.specialized_on}; network: "
            yield Text.assemble((head, "bold"), self.plan.numerics.value)
            yield self.plan.table()
            yield from (Text(f"  {note}") for note in self.plan.remarks)
            neurons = self.plan.neurons
            for layer in neurons[:MOST_NEURONS]:
                yield Text()
                yield _neuron(layer)
            if len(neurons) > MOST_NEURONS:
                yield Text(f"\nand {len(neurons) - MOST_NEURONS} more neurons, see the table")
        if self.refusal is not None:
            yield Text.assemble(("\nRefused: ", "bold red"), render_error(self.refusal))
        if self.seconds:
            yield Text()
            yield _stages(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as dicts, lists, strings and numbers, for JSON."""
        refusal = None
        if self.refusal is not None:
            error = self.refusal
            refusal = {
                "code": error.code,
                "message": error.message,
                "notes": list(error.notes),
                "hints": list(error.hints),
                "location": as_data(error.location),
                "text": render_error(error),
            }
        return {
            "model": self.model,
            "plan": None if self.plan is None else self.plan.to_dict(),
            "refusal": refusal,
            "seconds": dict(self.seconds),
            "options": as_data(self.options),
        }

    def to_html(self) -> str:
        """Return the explanation as one page of HTML that needs nothing else."""
        from snncc.reporting.page import page

        return page(self)

    def save(self, path: str | Path) -> Path:
        """Write the explanation to a file: ``.html`` a page, ``.json`` data, ``.txt`` text.

        Args:
            path: The file; it is replaced.

        Returns:
            The path.

        Raises:
            OptionError: The name of the file ends in none of these, or it cannot be written.
        """
        path = _FILE.path(path)
        writers: Mapping[str, Callable[[], str]] = {
            ".html": self.to_html,
            ".json": lambda: json.dumps(self.to_dict(), indent=1),
            ".txt": lambda: str(self),
        }
        if path.suffix not in writers:
            raise OptionError(
                f"An explanation cannot be saved as '{path.name}'.",
                code="option.file",
                hints=[_FILE.hint],
            )
        text = writers[path.suffix]() + "\n"
        try:
            path.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:  # of the path: NUL
            raise OptionError(
                f"The explanation cannot be written to {shown(str(path))}.",
                code="option.file",
                notes=[str(error)],
                hints=["Name a file in a folder that can be written to."],
            ) from error
        return path


_FILE = Check(
    "The file of an explanation",
    code="option.file",
    hint="Let the name end in '.html', '.json' or '.txt'.",
)


def explain(
    model: Callable[..., Any],
    *args: Any,
    options: Options | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Explain what snncc makes of a model on given inputs.

    A model that would be refused is explained up to the refusal; parts that would stay serial are
    shown as such.

    Args:
        model: The model, or a compiled model, which is explained as it was compiled.
        *args: Inputs of the model.
        options: How to compile it; a compiled model has its own.
        **kwargs: Keyword inputs of the model.

    Raises:
        OptionError: The options do not exist, or the model is compiled and has others.
    """
    fast = _compiled(model, options)
    try:
        return _explained(fast, args, kwargs, None)
    except SnnccError as error:
        if error.code != "unsupported.serial-recurrence":
            return Explanation(_name(fast), None, error, {}, fast.options)
        # Everything else can be shown with that part left serial.
        allowed = compile_model(fast.original, replace(fast.options, fallback="serial"))
        return _explained(allowed, args, kwargs, error)


def _compiled(
    model: Callable[..., Any], options: Options | Mapping[str, Any] | None
) -> CompiledModule:
    if isinstance(model, CompiledModule):
        if options is not None:
            raise OptionError(
                "The model is compiled already, with options of its own.",
                code="option.model",
                hints=["Explain the original: 'snncc.explain(fast.original, x, options=...)'."],
            )
        return model
    if options is None:
        options = Options(fallback="serial")
    elif not isinstance(options, Options):
        options = Options.of(options)
    return compile_model(model, options)


def _explained(
    fast: CompiledModule, args: tuple[Any, ...], kwargs: dict[str, Any], refusal: SnnccError | None
) -> Explanation:
    compiled = fast.specialize(*args, **kwargs)
    seconds = dict(compiled.recording.timings.seconds)
    return Explanation(_name(fast), compiled.plan, refusal, seconds, fast.options)


def _name(fast: CompiledModule) -> str:
    original = fast.original
    return str(getattr(original, "__name__", type(original).__name__))


def _neuron(layer: Layer) -> RenderableType:
    head = Text.assemble((layer.name, "bold"), f"  {layer.what}  {short(layer.where)}")
    lines = [head, *(Text(f"  {equation}", style="cyan") for equation in layer.equations)]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for what, sentence in describe(layer):
        table.add_row(Text(f"  {what}"), Text(sentence))
    for operand in layer.operands:
        if operand.where is not None and operand.where.text:
            table.add_row(Text("  where"), Text(f"{operand.shown} = {operand.where.text}"))
    table.add_row(Text("  form"), Text(_form(layer)))
    for other in layer.rejected:
        table.add_row(Text(f"  no {other.form}"), Text(f"{other.reason} [{other.code}]"))
    return Group(*lines, table)


def _form(layer: Layer) -> str:
    parts = [f"{layer.form} ({layer.kernel}), {layer.numerics.value}"]
    if layer.forward_bytes is not None:
        parts.append(f"{layer.forward_bytes:g} bytes a neuron-step")
    if layer.training_bytes is not None:
        parts.append(f"{layer.training_bytes:g} with gradients ({layer.keeps})")
    return "; ".join(parts)


def _stages(seconds: dict[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    for stage, duration in seconds.items():
        table.add_row(stage, f"{1e3 * duration:.1f}")
    table.add_row("together", f"{1e3 * sum(seconds.values()):.1f}")
    return table
