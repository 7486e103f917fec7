"""``export()``: a compiled model as files that run without Python."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import OptionError
from snncc.export.bundle import Bundle, write_bundle
from snncc.export.c_library import Sequence, write_library
from snncc.export.network import Network
from snncc.export.trace import trace
from snncc.frontend.sources import gather, preserved
from snncc.ir.tape import Position, SourceKind, Tape
from snncc.module import CompiledModule
from snncc.pipeline import chunk_program
from snncc.version import __version__


def export(
    fast: CompiledModule,
    folder: str | os.PathLike[str],
    *,
    format: str = "c",
    example_inputs: tuple[Any, ...],
    name: str = "network",
) -> Bundle:
    """Write a compiled model as a self-contained library.

    The library has the sizes of the example: give a batch of one for a device.  It comes with a
    test vector, the outputs of the PyTorch model for the example; `verify_bundle` runs it.

    Args:
        fast: The compiled model; it is exported as it is now, in evaluation mode.
        folder: Where to; it is made, or replaced if it is a bundle.
        format: ``"c"``: C11 without dependencies.
        example_inputs: Arguments of the model, with the time axis.
        name: A C identifier; every name in the library starts with it.

    Raises:
        OptionError: The format, the name or the model is not possible.
        UnsupportedError: The network has no form as a library, with the user's line.
        BundleError: The folder holds something else, or cannot be written.
    """
    if format != "c":
        raise OptionError(
            f"There is no format '{format}'.", code="option.format", hints=["Choose 'c'."]
        )
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is None:
        raise OptionError(
            f"'{name}' is no name for a library.",
            code="option.name",
            hints=["Use letters, digits and underscores."],
        )
    if not isinstance(fast, CompiledModule):
        raise OptionError(
            "What is to be exported is not a compiled model.",
            code="option.export",
            hints=["Pass the result of 'snncc.compile'."],
        )
    model = fast.program
    with torch.no_grad():
        compiled = fast.specialize(*example_inputs)
    tape = compiled.recording.tape
    leaves = [leaf.detach() for leaf in gather(tape, model, example_inputs, {})]
    program = chunk_program(compiled, leaves)
    axes = program.input_axes
    step = [x if a is None else x.narrow(a, 0, 1) for x, a in zip(leaves, axes, strict=True)]
    own = [source.kind is SourceKind.INPUT for source in tape.sources]
    names = [source.name for source in tape.sources]
    wanted = _wanted(tape)
    network = trace(program, step, own, names, wanted)
    lengths = (x.shape[a] for x, a in zip(leaves, axes, strict=True) if a is not None)
    steps = next(lengths, program.length)
    inputs = tuple(
        x if a is None else x.movedim(a, 0)
        for x, a, is_own in zip(leaves, axes, own, strict=True)
        if is_own
    )
    # With other neurons than the user's the reference is what was compiled.
    reference = fast if fast.options.mode == "dynamic_decay" else model
    outputs = _expected(reference, example_inputs, [program.output_axes[i] for i in wanted])
    files = write_library(network, name, Sequence(inputs, outputs, steps))
    return write_bundle(folder, files, _facts(network, name, steps))


def _facts(network: Network, name: str, steps: int) -> dict[str, Any]:
    """Return what the manifest says of a library."""
    shapes = network.shapes
    return {
        "name": name,
        "snncc": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numerics": "as PyTorch, but products sum in the order of their inputs",
        "number": "float64" if network.is_double else "float32",
        "steps": steps,
        "inputs": {b.name: list(shapes[b.name]) for b in network.inputs},
        "outputs": {b.name: list(shapes[b.name]) for b in network.outputs},
        "every_step": list(network.every_step),
    }


def _wanted(tape: Tape) -> list[int]:
    """Return which outputs of a tape's graph the model returns."""
    places = [leaf.index for leaf in tape.output_leaves if isinstance(leaf, Position)]
    if len(places) < len(tape.output_leaves):
        raise OptionError(
            "The model returns something that is no tensor.",
            code="option.export",
            hints=["Return tensors only."],
        )
    return places


def _expected(
    model: Callable[..., Any], args: tuple[Any, ...], axes: list[int | None]
) -> tuple[Tensor, ...]:
    """Return what the PyTorch model returns, each output with its time axis first."""
    with torch.no_grad(), preserved(model, args):
        leaves = pytree.tree_leaves(model(*args))
    return tuple(x if a is None else x.movedim(a, 0) for x, a in zip(leaves, axes, strict=True))
