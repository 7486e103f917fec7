"""Explain, verify and time what snncc makes of a model.

A model is named by a factory: 'package.module:factory' or 'path/to/file.py:factory'.
Calling it returns (model, inputs); the inputs are a tensor or a tuple of tensors.
"""

from __future__ import annotations

import ast
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import snncc
from snncc.cli.benchmark import benchmark
from snncc.cli.emission import emit, table
from snncc.cli.factories import load
from snncc.errors import OptionError, SnnccError
from snncc.options import Options, settings
from snncc.runtime.binaries.contents import clear, contents
from snncc.source import Location, excerpt, is_library

EXIT_CODES = "Exit status: 0 the answer is yes, 1 it is no, 2 there is no answer."

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help=__doc__,
    epilog=EXIT_CODES,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out, err = Console(), Console(stderr=True, highlight=False)

Factory = Annotated[
    str, typer.Argument(help="'package.module:factory' or 'path/to/file.py:factory'.")
]
Choices = Annotated[
    list[str] | None,
    typer.Option(
        "--option", "-o", metavar="NAME=VALUE",
        help="An option of snncc.compile, such as storage=save; may be repeated.",
    ),
]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Print data for tools instead of text.")]
Gradients = Annotated[
    bool, typer.Option("--gradients/--no-gradients", help="Look at the backward pass too.")
]


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    in_full: Annotated[bool, typer.Option("--traceback", help="Show errors in full.")] = False,
) -> None:
    """Handle what comes before a command; `main` reads --traceback."""
    if version:
        out.print(f"snncc {snncc.__version__}", highlight=False)
        raise typer.Exit


@app.command("explain", epilog="Exit status: 1 where the model, or a part of it, is refused.")
def explain_command(
    factory: Factory,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    as_json: AsJson = False,
    option: Choices = None,
) -> None:
    """Show what was found in a model and what each part becomes."""
    with _working("recording"):
        model, inputs = load(factory)
        explanation = snncc.explain(model, *inputs, options=_options(option) or None)
    if as_json:
        typer.echo(json.dumps(explanation.to_dict(), indent=1))
    elif html is None:
        out.print(explanation)
    if html is not None:
        err.print(f"Wrote {explanation.save(html)}", markup=False)
    raise typer.Exit(0 if explanation.refusal is None else 1)


@app.command("verify", epilog="Exit status: 1 where the results are not equivalent.")
def verify_command(factory: Factory, gradients: Gradients = True, option: Choices = None) -> None:
    """Compile a model and compare it with the original.

    Given the folder of an exported network, let that run its test vector; a library is compiled.
    """
    if (Path(factory) / "manifest.json").is_file():
        with _working("running the test vector"):
            found = snncc.verify_bundle(factory)
        typer.echo(str(found))
        raise typer.Exit(0 if found.ok else 1)
    with _working("comparing"):
        model, inputs = load(factory)
        fast = snncc.compile(model, **_options(option))
        report = snncc.verify(model, fast, *inputs, gradients=gradients)
    typer.echo(str(fast))
    typer.echo(str(report))
    raise typer.Exit(0 if report.ok else 1)


@app.command("export")
def export_command(  # noqa: PLR0913 - the options of a command
    factory: Factory,
    output: Annotated[Path, typer.Option("--output", help="The folder to write.")],
    format: Annotated[
        str, typer.Option(help="'c': a C11 library, 'cuda': one for GPUs, 'onnx', 'pt2', 'nir'.")
    ] = "c",
    name: Annotated[str, typer.Option(help="What every name in it starts with.")] = "network",
    arithmetic: Annotated[str, typer.Option(help="'float', 'int8' or 'int16'.")] = "float",
    arch: Annotated[str, typer.Option(help="The GPUs of a CUDA library.")] = "sm_80,sm_90",
    dt: Annotated[float, typer.Option(help="Seconds that a step of a NIR graph takes.")] = 1e-4,
    option: Choices = None,
) -> None:
    """Write a model as a C or CUDA library, or as a model that runs without its code.

    A library has the sizes of the factory's inputs; modules are exported in evaluation mode.
    """
    with _working("exporting"):
        model, inputs = load(factory)
        fast = snncc.compile(model, **_options(option)).eval()
        bundle = snncc.export(
            fast,
            output,
            format=format,
            example_inputs=inputs,
            name=name,
            arithmetic=arithmetic,
            arch=arch.split(","),
            dt=dt,
        )
    typer.echo(f"Wrote {bundle}")


@app.command("emit")
def emit_command(
    factory: Factory,
    output: Annotated[Path, typer.Option("--output", help="The folder to write.")],
    target: Annotated[str, typer.Option(help="'c', 'triton' or 'cuda'.")] = "triton",
    arch: Annotated[str, typer.Option(help="A GPU, such as sm_90 or gfx942.")] = "sm_90",
    option: Choices = None,
) -> None:
    """Write the kernels of a model, compiled for a GPU that need not be there.

    The kernels are those for the types, sizes and strides of the factory's inputs.
    """
    with _working("compiling"):
        model, inputs = load(factory)
        fast = snncc.compile(model, **(_options(option) | {"target": target}))
        kernels = emit(fast, inputs, output, arch)
    if any(kernel.binary for kernel in kernels):
        out.print(table(kernels))
    typer.echo(f"Wrote {output}: {len(kernels)} kernels")


@app.command("bench")
def bench_command(
    factory: Factory,
    seconds: Annotated[float, typer.Option(help="Time for each kind of run.", min=0.0)] = 5.0,
    gradients: Gradients = True,
    as_json: AsJson = False,
    option: Choices = None,
) -> None:
    """Time the serial against the compiled model.

    The two run in turn; medians are shown, with quartiles, and their ratio.
    """
    with _working("timing"):
        model, inputs = load(factory)
        result = benchmark(
            snncc.compile(model, **_options(option)), inputs, seconds, gradients=gradients
        )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=1))
        return
    out.print(result.table())
    typer.echo(
        f"first call of the compiled model {result.compile_seconds:.2f} s, "
        f"{result.threads} threads, outputs differ by {result.difference:.1e} of the largest"
    )


@app.command("cache")
def cache_command(
    empty: Annotated[bool, typer.Option("--clear", help="Delete all compiled kernels.")] = False,
) -> None:
    """Show where kernels are kept, or delete them."""
    folder = settings().cache_dir
    found = clear(folder) if empty else contents(folder)
    kernels = "1 kernel" if found.kernels == 1 else f"{found.kernels} kernels"
    size = f"{found.bytes / 2**20:.1f} MiB"
    typer.echo(f"{'Deleted from' if empty else 'Cache'} {folder}: {kernels}, {size}")


def _options(choices: list[str] | None) -> dict[str, Any]:
    """Return compile options from ``name=value`` words."""
    found: dict[str, Any] = {}
    for choice in choices or []:
        name, is_given, value = choice.partition("=")
        if not is_given:
            raise OptionError(
                f"The option '{choice}' has no value.",
                code="option.unknown",
                hints=["Write '--option name=value'."],
            )
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    Options.of(found)
    return found


@contextmanager
def _working(what: str) -> Iterator[None]:
    """Show that something is going on, where a person is watching."""
    if not err.is_terminal:
        yield
        return
    with err.status(f"{what} ..."):
        yield


def main() -> None:
    """Run the command line; errors are shown without a traceback."""
    try:
        app()
    except Exception as error:
        if "--traceback" in sys.argv:
            raise
        is_ours = isinstance(error, SnnccError)
        text = f"{type(error).__name__}: {error}" if is_ours else _users_error(error)
        err.print(Text(text), soft_wrap=True)
        raise SystemExit(2) from None


def _users_error(error: Exception) -> str:
    """Return an error of the user's code: what it says, and their own innermost line."""
    lines = [f"{type(error).__name__}: {error}"]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_library(f.filename)]
    if frames:
        last = frames[-1]
        where = Location(last.filename, last.lineno or 1, function=last.name)
        lines.append(f'  File "{where.file}", line {where.line}, in {where.function}')
        lines += excerpt(where)
    lines.append("  Hint: 'snncc --traceback ...' shows the error in full.")
    return "\n".join(lines)
