"""``export()``: a compiled model as files that run without Python."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from snncc.arguments import Check, shown
from snncc.errors import OptionError, UnsupportedError
from snncc.export.bundle import Bundle
from snncc.export.entry.exported import exported_model
from snncc.export.entry.stepped import SteppedModel
from snncc.export.entry.torch_program import write_program
from snncc.export.entry.writers import write_cuda, write_library, write_nir, write_onnx
from snncc.export.names import is_library_name
from snncc.export.quantized.choice import Quantization, quantization_of
from snncc.model.given import example_of
from snncc.model.module import CompiledModule
from snncc.nir.checks import STEP

Writer = Callable[[SteppedModel, Path, str], Bundle]

_FOLDER = Check("The folder of an export", code="option.export", hint="Name the folder to write.")
_ARCH = Check("Option 'arch'", code="option.arch", hint="Name GPUs: arch=('sm_80', 'sm_90').")


def export(  # noqa: PLR0913 - all but the first two are keywords
    fast: CompiledModule,
    folder: str | os.PathLike[str],
    *,
    format: str = "c",
    example_inputs: tuple[Any, ...],
    name: str = "network",
    arithmetic: str | Quantization = "float",
    arch: str | Iterable[str] = ("sm_80", "sm_90"),
    dt: float = 1e-4,
) -> Bundle:
    """Write a compiled model as files that run without Python and torch.

    They come with a test vector, the outputs of the PyTorch model for the example, which
    `verify_bundle` compares.

    Args:
        fast: The compiled model; it is exported as it is now, in evaluation mode.
        folder: Where to; it is made, or replaced if it is a bundle.
        format: ``"c"``: a C11 library without dependencies, of the sizes of the example: give a
            batch of one for a device.  ``"cuda"``: the same on a GPU of NVIDIA, by its driver.
            ``"onnx"``: two ONNX models, one of the whole sequence and one of a step with its
            states.  ``"pt2"``: a program of `torch.export` for processes with torch and snncc.
            ``"nir"``: a graph in the Neuromorphic Intermediate Representation, see `to_nir`.
        example_inputs: Arguments of the model, with the time axis.
        name: A C identifier; every name in a library, and of a model's files, starts with it.
        arithmetic: ``"float"``, or whole numbers for a library: ``"int8"``, ``"int16"``, or a
            `Quantization` with more examples than the one, which decide the scales.
        arch: The GPUs that a CUDA library has binaries for.
        dt: For a NIR graph the length of a step, in seconds.

    Raises:
        OptionError: The format, the name or the model is not possible.
        UnsupportedError: The network has no form of that format, with the user's line.
        BundleError: The folder holds something else, or cannot be written.
    """
    choice, place = quantization_of(arithmetic), _FOLDER.path(folder)
    writers: dict[str, Writer] = {
        "c": functools.partial(write_library, choice=choice),
        "cuda": functools.partial(write_cuda, arches=_ARCH.words(arch)),
        "onnx": write_onnx,
        "pt2": lambda model, *where: write_program(model.whole, *where),
        "nir": functools.partial(write_nir, dt=STEP.positive(dt)),
    }
    _check_format(format, tuple(writers), choice)
    _check_name(name)
    _check_compiled(fast)
    model = SteppedModel(exported_model(fast, example_of(example_inputs)))
    _check_events(model, format, choice)
    return writers[format](model, place, name)


def _check_format(format: object, known: Sequence[str], choice: Quantization | None) -> None:
    if not (isinstance(format, str) and format in known):
        raise OptionError(
            f"There is no format {shown(format)}.",
            code="option.format",
            hints=[f"Choose {', '.join(map(repr, known))}."],
        )
    if choice is not None and format != "c":
        raise OptionError(
            f"There is no '{choice.arithmetic}' in the format '{format}'.",
            code="option.arithmetic",
            hints=["Choose format='c', or arithmetic='float'."],
        )


def _check_events(model: SteppedModel, format: str, choice: Quantization | None) -> None:
    """Refuse a queue of spikes where there is no form of one."""
    if not model.whole.compiled.event_networks or (format == "c" and choice is None):
        return
    form = f"the format '{format}'" if choice is None else f"whole numbers ('{choice.arithmetic}')"
    raise UnsupportedError(
        f"A queue of spikes has no form in {form}.",
        code="unsupported.export",
        notes=["A library in C with floats runs spikes one after another; others run layers."],
        hints=["Export it with format='c', or compile the layers with mode='fused'."],
    )


def _check_name(name: object) -> None:
    if not is_library_name(name):
        raise OptionError(
            f"{shown(name)} is no name for a library.",
            code="option.name",
            hints=["Use up to 100 letters, digits and underscores, and no word of C or C++."],
        )


def _check_compiled(fast: object) -> None:
    if not isinstance(fast, CompiledModule):
        raise OptionError(
            "What is to be exported is not a compiled model.",
            code="option.export",
            hints=["Pass the result of 'snncc.compile'."],
        )
