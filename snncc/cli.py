"""``python -m snncc``: the verbs of the interface on the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from snncc import CompiledModule, SnnccError, compile, explain, verify
from snncc.errors import OptionError

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Factory = Annotated[
    str,
    typer.Argument(
        help="'package.module:factory'; calling the factory returns (model, inputs), where inputs "
        "is a tensor or a tuple of tensors."
    ),
]


@app.command("explain")
def explain_command(factory: Factory) -> None:
    """Show what was found in a model and what each part becomes."""
    model, inputs = _load(factory)
    explanation = explain(model, *inputs)
    typer.echo(str(explanation))
    raise typer.Exit(1 if explanation.refusal is not None else 0)


@app.command("verify")
def verify_command(factory: Factory, gradients: bool = True) -> None:
    """Compile a model, compare it with the original and print the certificate."""
    model, inputs = _load(factory)
    fast: CompiledModule = compile(model)
    report = verify(model, fast, *inputs, gradients=gradients)
    typer.echo(str(fast))
    typer.echo(str(report))
    raise typer.Exit(0 if report.ok else 1)


def _load(factory: str) -> tuple[Any, tuple[Any, ...]]:
    """Return the model and the inputs that a factory makes."""
    module_name, _, name = factory.partition(":")
    if not name:
        raise OptionError(
            f"'{factory}' does not name a factory.",
            code="option.factory",
            hints=["Write 'package.module:function'."],
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"The factory '{factory}' cannot be imported.",
            code="option.factory",
            notes=[str(error)],
        ) from error
    made = make()
    if not (isinstance(made, tuple) and len(made) == 2):
        raise OptionError(
            f"The factory '{factory}' did not return '(model, inputs)'.", code="option.factory"
        )
    model, inputs = made
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def main() -> None:
    """Run the command line; errors of snncc are shown without a traceback."""
    try:
        app()
    except SnnccError as error:
        Console(stderr=True, highlight=False).print(
            f"{type(error).__name__}: {error}", markup=False, soft_wrap=True
        )
        raise SystemExit(2) from None
